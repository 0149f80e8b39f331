"""docs/record.md says what the code does, and its examples give what they show."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from otel_audit.record.coerce import plain
from otel_audit.record.event import KEYS, RESERVED, level_of, outcome_of
from otel_audit.record.semconv import ATTRIBUTES, SEVERITY_NUMBERS, to_log_record

PAGE = (Path(__file__).parents[2] / "docs" / "record.md").read_text(encoding="utf-8")
SAMPLE = re.findall(r"<!-- file: audit.log -->\n```json\n(.*?)```", PAGE, re.DOTALL)[0]
EXAMPLES = re.findall(r"```console\n\$ (jq .*?)\n(.*?)```", PAGE, re.DOTALL)


def keys_of_the_table() -> list[str]:
    table = PAGE.split("## The keys")[1].split("###")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def row(key: str) -> list[str]:
    table = PAGE.split("## The keys")[1].split("###")[0]
    line = next(line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_every_key_in_the_records_order() -> None:
    assert keys_of_the_table() == [*KEYS, "error_type", "missing_fields", "coerced"]
    assert set(keys_of_the_table()) >= RESERVED


@pytest.mark.parametrize(("key", "attribute"), ATTRIBUTES.items())
def test_the_table_names_the_attribute(key: str, attribute: str) -> None:
    assert f"`{attribute}`" in row(key)[-1]


def test_the_table_names_the_severities() -> None:
    assert re.findall(r"\d+", row("level")[-1]) == [str(n) for n in SEVERITY_NUMBERS.values()]


@pytest.mark.parametrize("key", [key for key in KEYS if row(key)[1] == "●"])
def test_keys_that_are_in_every_record_are_in_the_samples(key: str) -> None:
    assert all(key in orjson.loads(line) for line in SAMPLE.splitlines())


@pytest.mark.parametrize(
    "cells",
    re.findall(
        r"^\| (.+?) \| `(\w+)` \| `(\w+)` \|$",
        PAGE.split("### Outcome and level")[1].split("###")[0],
        re.MULTILINE,
    ),
    ids=lambda cells: "-".join(cells[1:]),
)
def test_the_table_of_outcomes_holds(cells: tuple[str, str, str]) -> None:
    statuses, outcome, level = cells
    words = re.findall(r"`(\w+)`", statuses)
    assert words
    assert {outcome_of(word) for word in words} == {outcome}
    assert {level_of(word, "other") for word in words} == {level}


@pytest.mark.parametrize("line", SAMPLE.splitlines())
def test_the_samples_are_records(line: str) -> None:
    said = orjson.loads(line)
    assert orjson.dumps(said).decode() == line
    known = [key for key in said if key in KEYS]
    assert known == [key for key in KEYS if key in said]
    assert said["outcome"] == outcome_of(said["status"])
    assert said["level"] == level_of(said["status"], said["event_type"])
    sent = to_log_record(
        line.encode(),
        sequence_number=0,
        stream_id="origin",
        leaf_hash=b"",
        committed_unix_nano=0,
        resource=None,
    )
    assert sent.body == line


@dataclass
class Point:
    x: int = 1


class Bad:
    def __repr__(self) -> str:
        raise RuntimeError


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("label", "value", "shown", "flagged"),
    [
        ("datetime", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), None, False),
        ("timedelta", timedelta(seconds=90), None, False),
        ("Decimal", Decimal("1.50"), None, False),
        ("dataclass", Point(), None, False),
        ("a tuple, a set", {3, 1}, None, False),
        ("exception", ValueError("no"), None, False),
        ("NaN", float("nan"), None, True),
        ("NaN", float("inf"), None, True),
        ("NaN", float("-inf"), None, True),
        ("bytes", b"abc", None, True),
        ("bytes", b"\xff\x00", None, True),
        ("surrogate", "a\ud800b", None, True),
        ("integer beyond", 2**70, None, True),
        ("key", {1: 2}, None, True),
        ("contains itself", CYCLE, "[cycle]", True),
        ("16 levels", nested(20), "[cut: deeper than 16 levels]", True),
        ("raises", Bad(), None, True),
        ("text that is too long", "x" * 70_000, "…[cut 4464 characters]", True),
        ("too many elements", list(range(10_005)), "…[cut 5 elements]", True),
    ],
)
def test_the_table_of_odd_values_holds(
    label: str, value: Any, shown: str | None, *, flagged: bool
) -> None:
    fields, altered = plain({"it": value})
    recorded = orjson.dumps(fields["it"]).decode()
    table = PAGE.split("values that JSON does not have:")[1].split("##")[0]
    said = next(line for line in table.splitlines() if label in line)
    assert (shown or recorded) in recorded
    assert (shown or recorded) in said
    assert said.endswith("| yes |") == flagged
    assert bool(altered) == flagged


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not on this machine")
@pytest.mark.parametrize(("command", "output"), EXAMPLES)
def test_the_examples_give_what_they_show(command: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text(SAMPLE, encoding="utf-8")
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert done.stdout == output


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6
