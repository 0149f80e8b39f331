"""Metrics: the draft's names, and numbers that are true."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("measured") / "trail"
    done = subprocess.run(
        [sys.executable, "-m", "tests.readers.measured", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def points(run: dict[str, Any], name: str, unit: str) -> list[dict[str, Any]]:
    metric = run["metrics"][name]
    assert metric["unit"] == unit
    found: list[dict[str, Any]] = metric["points"]
    return found


def test_records_are_counted_where_they_become_durable_and_where_they_arrive(
    run: dict[str, Any],
) -> None:
    [emitted] = points(run, "audit.records.emitted", "{record}")
    [exported] = points(run, "audit.records.exported", "{record}")
    assert (emitted["value"], exported["value"]) == (5, 5)
    assert exported["attributes"] == {"otel_audit.destination": "otlp"}
    dropped = points(run, "audit.records.dropped", "{record}")
    assert {(p["attributes"]["otel_audit.reason"], p["value"]) for p in dropped} == {
        ("failed", 0),
        ("refused", 0),
    }


def test_the_queue_is_what_the_trail_has_and_the_destination_has_not(run: dict[str, Any]) -> None:
    [depth] = points(run, "audit.queue.depth", "{record}")
    [age] = points(run, "otel_audit.queue.age", "s")
    [quarantine] = points(run, "otel_audit.quarantine.size", "{record}")
    assert (depth["value"], age["value"], quarantine["value"]) == (0, 0, 0)


def test_requests_are_timed_failures_apart(run: dict[str, Any]) -> None:
    durations = points(run, "audit.export.duration", "s")
    kinds = {point["attributes"].get("error.type"): point for point in durations}
    assert kinds["503"]["count"] == 1
    assert kinds[None]["count"] >= 1
    [failures] = points(run, "otel_audit.export.failures", "{request}")
    assert (failures["value"], failures["attributes"]["error.type"]) == (1, "503")


def test_checkpoints_are_watched(run: dict[str, Any]) -> None:
    [age] = points(run, "otel_audit.checkpoint.age", "s")
    [pending] = points(run, "otel_audit.checkpoint.pending", "{record}")
    assert 0 <= age["value"] < 60
    # The first checkpoint comes with the first records, the next one a minute later.
    assert 0 <= pending["value"] < 5


def test_the_disk_is_watched(run: dict[str, Any], tmp_path: Path) -> None:
    [free] = points(run, "otel_audit.trail.disk.free", "By")
    assert free["value"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_exemplars_lead_to_the_traces_of_records(run: dict[str, Any]) -> None:
    [commits] = points(run, "otel_audit.commit.duration", "s")
    assert commits["count"] == 5
    assert run["trace"] in commits["traces"]
    traces = [t for point in points(run, "audit.export.duration", "s") for t in point["traces"]]
    assert run["trace"] in traces
