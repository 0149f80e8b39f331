"""What the bundled configurations must never lose: the reasons are in docs/stack.md."""

from __future__ import annotations

import re
from typing import Any

import yaml

from collector.stack.build import COLLECTOR
from otel_audit.record.classes import RETENTION_CLASSES

COLLECTOR_CONFIGURATION = COLLECTOR.parent / "otel-collector-config.yaml"
HOURS_A_DAY = 24


def loki() -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (COLLECTOR / "loki" / "loki.yaml").read_text())
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def collector() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COLLECTOR_CONFIGURATION.read_text())
    return read


def default(value: str) -> int:
    return int(re.sub(r"\$\{env:\w+:-(\d+)\}", r"\1", value))


def days(retention: str) -> int:
    number, unit = int(retention[:-1]), retention[-1]
    return number * {"d": 1, "y": 365}[unit]


def test_loki_keeps_each_retention_class_as_long_as_it_says() -> None:
    kept = {
        re.sub(r'.*"(.*)".*', r"\1", one["selector"]): one["period"]
        for one in loki()["limits_config"]["retention_stream"]
    }
    assert kept == {one: f"{days(one) * HOURS_A_DAY}h" for one in RETENTION_CLASSES}


def test_loki_keeps_what_has_no_class_longest() -> None:
    longest = max(days(one) for one in RETENTION_CLASSES)
    assert loki()["limits_config"]["retention_period"] == f"{longest * HOURS_A_DAY}h"
    assert loki()["compactor"]["retention_enabled"] is True


def test_nobody_deletes_from_loki() -> None:
    assert loki()["limits_config"]["deletion_mode"] == "disabled"


def test_loki_refuses_no_record_for_its_age_or_size() -> None:
    limits = loki()["limits_config"]
    assert limits["reject_old_samples"] is False
    assert limits["shard_streams"]["time_sharding_enabled"] is True
    assert limits["shard_streams"]["desired_rate"] == "1GB"  # a copy must not get another stream
    assert limits["max_structured_metadata_entries_count"] >= 256


def hours(duration: str) -> int:
    assert duration.endswith("h")
    return int(duration[:-1])


def test_a_record_from_the_future_does_not_make_loki_refuse_the_present() -> None:
    grace = hours(loki()["limits_config"]["creation_grace_period"])
    assert grace >= 14  # time zones
    assert grace + 1 <= hours(loki()["ingester"]["max_chunk_age"]) / 2


def test_records_wait_on_disk_for_ever() -> None:
    configuration = collector()
    storage = configuration["extensions"]["file_storage/audit"]
    assert (storage["fsync"], storage["recreate"]) == (True, False)
    exporter = configuration["exporters"]["otlp_http/loki"]
    assert exporter["retry_on_failure"]["enabled"] is True
    assert exporter["retry_on_failure"]["max_elapsed_time"] == 0
    queue = exporter["sending_queue"]
    assert queue["storage"] == "file_storage/audit"
    assert queue["block_on_overflow"] is True
    # A full queue makes senders wait; a full disk would lose what leaves the queue.
    assert queue["sizer"] == "bytes"
    assert default(storage["max_size"]) >= 4 * default(queue["queue_size"])


def test_nothing_between_receiver_and_queue_holds_or_leaves_out_records() -> None:
    pipeline = collector()["service"]["pipelines"]["logs/audit"]
    kinds = {name.partition("/")[0] for name in pipeline["processors"]}
    assert kinds == {"memory_limiter", "transform"}


def test_audit_has_a_port_of_its_own_that_asks_who_is_there() -> None:
    configuration = collector()
    for protocol in configuration["receivers"]["otlp/audit"]["protocols"].values():
        assert protocol["auth"] == {"authenticator": "bearertokenauth/audit"}
    logs = [name for name in configuration["service"]["pipelines"] if name.startswith("logs")]
    assert logs == ["logs/audit"]
    assert configuration["service"]["pipelines"]["logs/audit"]["receivers"] == ["otlp/audit"]


def test_modules_are_those_of_the_manifest() -> None:
    """go.mod is what is built; builder.yaml is what people read."""
    manifest = yaml.safe_load((COLLECTOR / "builder.yaml").read_text())
    wanted = [
        one["gomod"]
        for section, modules in manifest.items()
        if section != "dist"
        for one in modules
    ]
    text = (COLLECTOR / "tools" / "otelcol-audit" / "go.mod").read_text()
    assert [one for one in wanted if f"\t{one}\n" not in text] == []


def test_the_documents_name_every_variable() -> None:
    files = [COLLECTOR_CONFIGURATION, *(COLLECTOR / "overlays").glob("*.yaml")]
    read = {name for file in files for name in re.findall(r"\$\{env:(\w+):-", file.read_text())}
    page = (COLLECTOR.parent / "docs" / "stack.md").read_text()
    assert len(read) > 30
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []
    assert [file.name for file in files[1:] if f"`{file.name}`" not in page] == []


def test_the_documents_name_every_alert() -> None:
    page = (COLLECTOR.parent / "docs" / "stack.md").read_text()
    for runbook in (COLLECTOR.parent / "docs" / "runbooks").glob("*.md"):
        assert f"[{runbook.stem}](runbooks/{runbook.name})" in page
