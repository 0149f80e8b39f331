"""`tail` and `show`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from otel_audit import AuditProvider, HealthStatus, Settings, TrailReader
from otel_audit.health.announcer import Announcer, Change
from otel_audit.trail.trail import Trail
from tests.cli.conftest import Cli, record

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable


def test_the_newest_ten_are_shown_in_columns(cli: Cli) -> None:
    lines = cli("tail").out.splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(2, 12)]
    assert "success  u-2   server.start    start  server files-2" in lines[0]
    assert "failure  u-0   authentication  login  server files-3: wrong password" in lines[1]
    assert len({line.index("server files") for line in lines}) == 1


def test_a_request_that_no_route_matched_is_told_by_its_path(directory: Path, fresh: Cli) -> None:
    where = {"resource_type": "route", "event": "http.request", "method": "GET"}
    requests = (
        {
            **where,
            "resource_name": "unmatched",
            "route": "unmatched",
            "path": "/.env",
            "status_code": 404,
        },
        {
            **where,
            "resource_name": "/orders/{order}",
            "route": "/orders/{order}",
            "path": "/orders/7",
            "status_code": 409,
        },
    )
    store = Trail.open(directory)
    stored = [orjson.dumps(one) for one in requests]
    store.store.append(stored, {})
    store.close()
    first, second = fresh("tail").out.splitlines()
    assert first.endswith("404 /.env (no route)")
    assert second.endswith("409 route /orders/{order}")


def test_a_change_of_health_says_of_what_and_to_what(directory: Path, fresh: Cli) -> None:
    """Whichever it is, its outcome is success: the words have to tell an outage."""
    settings = replace(Settings.from_env(directory=directory, service_name="shop"), agent="off")
    with contextlib.closing(AuditProvider(settings)) as provider:
        announcer = Announcer(lambda: provider)
        for before, after, reason in (
            (HealthStatus.UNKNOWN, HealthStatus.HEALTHY, ""),
            (HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, "OSError: refused"),
        ):
            announcer.tell(Change("db", before, after, reason, 3, time.time()))
        announcer.pursue()
        assert announcer.flush(10)
    begun, ended = fresh("tail").out.splitlines()
    assert begun.endswith("health.state_changed  change  db: unknown -> healthy")
    assert ended.endswith(
        "health.state_changed  change  db: healthy -> unhealthy: OSError: refused"
    )
    outage = ("--event", "health.state_changed", "--where", "to=unhealthy")
    assert fresh("query", *outage).out.splitlines() == [ended]


def test_what_has_begun_is_told_by_its_own_word(directory: Path, fresh: Cli) -> None:
    store = Trail.open(directory)
    begun = {"event": "server.start", "status": "initiated", "outcome": "unknown"}
    store.store.append([orjson.dumps(begun)], {})
    store.close()
    assert fresh("tail").out.split() == ["0", "initiated", "server.start"]


def test_an_actor_whom_nobody_verified_is_marked(cli: Cli) -> None:
    assert "u-1?" in cli("tail", "-n", "12").out
    assert "u-2?" not in cli("tail", "-n", "12").out


def test_the_number_of_lines_is_chosen(cli: Cli) -> None:
    assert len(cli("tail", "--lines", "3").out.splitlines()) == 3
    assert len(cli("tail", "-n", "99").out.splitlines()) == 12
    assert cli("tail", "-n", "0").out == ""


def test_json_gives_the_stored_bytes(trail: Path, cli: Cli) -> None:
    with TrailReader(trail) as reader:
        stored = [leaf.record.decode() for leaf in reader.leaves(9)]
    assert cli("tail", "--json", "-n", "3").out.splitlines() == stored


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["outcome=failure"], [3, 7, 11]),
        (["resource_name=files-1*"], [1, 10, 11]),
        (["resource_name=files-1*", "outcome=failure"], [11]),
        (["outcome!=success"], [3, 7, 11]),
        (["number=1?"], [10, 11]),
        (["actor_verified=false", "event=server.*"], [4, 10]),
        (["absent=*"], []),
        (["absent!=x", "number=5"], [5]),
        (["error=a=b"], []),
    ],
)
def test_filters(cli: Cli, conditions: list[str], found: list[int]) -> None:
    options = [part for condition in conditions for part in ("--where", condition)]
    lines = cli("tail", "--json", "-n", "12", *options).out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == found


def test_filters_reach_as_far_back_as_they_must(directory: Path, fresh: Cli) -> None:
    store = Trail.open(directory)
    records = [b'{"record_id":"x","n":%d}' % number for number in range(5_000)]
    store.store.append(records, {})
    store.close()
    shown = fresh("tail", "--json", "-n", "2", "--where", "n=?").out.split()
    assert shown == ['{"record_id":"x","n":8}', '{"record_id":"x","n":9}']


def test_a_filter_that_is_none_is_a_usage_error(cli: Cli) -> None:
    assert "FIELD=VALUE" in cli("tail", "--where", "failure", code=2).err


def test_a_record_cannot_control_the_terminal(directory: Path, fresh: Cli) -> None:
    store = Trail.open(directory)
    item = json.dumps(
        {"record_id": "x", "event": "\x1b[2Jgone\u202e", "error": "two\nlines"}
    ).encode()
    store.store.append([item], {})
    store.close()
    for command in (("tail",), ("show", "0")):
        shown = fresh(*command).out
        assert r"\x1b[2Jgone\u202e" in shown
        assert r"two\nlines" in shown
        assert not {"\x1b", "\u202e"} & set(shown)


def test_bytes_that_are_no_record_are_shown_as_such(directory: Path, fresh: Cli) -> None:
    store = Trail.open(directory)
    store.store.append([b"\xff\x00", b"[]"], {})
    store.signer.sign()
    store.close()
    lines = fresh("tail").out.splitlines()
    assert r"not a record: �\x00" in lines[0]
    assert "not a record: []" in lines[1]
    assert r"not a record: �\x00" in fresh("show", "0").out


def test_following_shows_new_records_and_ends_with_ctrl_c(
    trail: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    child = spawn("tail", "-f", "-n", "1", "--json", "--dir", str(trail))
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["number"] == 11
    record(trail, 2)
    assert [json.loads(child.stdout.readline())["number"] for _ in range(2)] == [0, 1]
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("more", [1, 0])
def test_following_ends_quietly_when_its_reader_goes_away(
    trail: Path, spawn: Callable[..., subprocess.Popen[str]], more: int
) -> None:
    """Also if no record comes that could not be written."""
    reading, writing = os.pipe()
    child = spawn("tail", "-f", "--dir", str(trail), stdout=writing)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    record(trail, more)
    _, err = child.communicate(timeout=10)
    assert (child.returncode, err) == (0, "")


def test_show_says_where_a_record_stands_and_what_covers_it(trail: Path, cli: Cli) -> None:
    shown = cli("show", "7").out
    with TrailReader(trail) as reader:
        leaf = reader.leaf(7)
        assert leaf is not None
        assert f"{leaf.hash.hex()}  matches the record" in shown
        assert f"trail       {reader.origin}" in shown
    assert "of 12 records, signed " in shown
    assert "the record is in its tree" in shown
    assert "resource_name   files-7\n" in shown


def test_show_says_which_service_and_instance_a_resource_is(trail: Path, cli: Cli) -> None:
    with TrailReader(trail) as reader:
        ((name, stored),) = reader.resources()
    assert stored is not None
    attributes = json.loads(stored)
    shown = json.loads(cli("show", "7", "--json").out)
    assert shown["record"]["resource"] == name
    assert shown["resource"] == attributes
    (line,) = [line for line in cli("show", "7").out.splitlines() if "service.name=hub" in line]
    assert line.startswith("resource    ")
    assert f"service.instance.id={attributes['service.instance.id']}" in line
    change(trail, "UPDATE resource SET json = CAST(replace(json, 'hub', 'bus') AS BLOB)")
    assert "resource    the trail does not have it\n" in cli("show", "7").out
    assert json.loads(cli("show", "7", "--json").out)["resource"] is None


def test_show_finds_a_record_by_its_id(cli: Cli) -> None:
    record_id = json.loads(cli("tail", "-n", "1", "--json").out)["record_id"]
    shown = json.loads(cli("show", record_id, "--json").out)
    assert shown["sequence"] == 11
    assert shown["record"]["record_id"] == record_id
    assert json.loads(shown["bytes"]) == shown["record"]
    assert shown["leaf_hash_matches"] is True
    assert shown["checkpoint"]["size"] == 12
    assert shown["problem"] is None
    assert list(shown) == [
        "origin",
        "sequence",
        "committed_at",
        "leaf_hash",
        "leaf_hash_matches",
        "checkpoint",
        "problem",
        "record",
        "resource",
        "bytes",
    ]


def test_show_says_that_no_checkpoint_covers_a_record_yet(directory: Path, fresh: Cli) -> None:
    store = Trail.open(directory)
    store.store.append([b"{}"], {})
    store.close()
    assert "none covers it yet" in fresh("show", "0").out
    assert json.loads(fresh("show", "0", "--json").out)["checkpoint"] is None


@pytest.mark.parametrize("name", ["12", "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11", "rubbish"])
def test_what_is_not_there_is_said_with_what_is(trail: Path, cli: Cli, name: str) -> None:
    err = cli("show", name, code=4).err
    assert (
        err == f"otel-audit: there is no record {name} in {trail}; it holds the records 0 to 11\n"
    )


def test_show_names_a_changed_record(trail: Path, cli: Cli) -> None:
    change(trail, "UPDATE leaf SET record = replace(record, 'files-5', 'files-6') WHERE seq = 5")
    change(trail, "UPDATE leaf SET record = CAST(record AS BLOB) WHERE seq = 5")
    shown = cli("show", "5", code=1).out
    assert "DOES NOT MATCH the record" in shown
    assert "record 5 cannot be proved" in shown
    assert json.loads(cli("show", "5", "--json", code=1).out)["leaf_hash_matches"] is False


def test_rows_of_another_type_are_no_reason_to_fail_obscurely(trail: Path, cli: Cli) -> None:
    change(trail, "UPDATE leaf SET record = 5 WHERE seq = 11")
    assert "not a record: 5" in cli("tail").out
    assert cli("tail", "--json").out.endswith("\n5\n")
    assert "not stored as bytes any more" in cli("show", "11", code=1).err


def change(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "trail.db") as database:
        database.execute(statement)
    database.close()


def test_tail_needs_a_trail(fresh: Cli) -> None:
    assert "there is no trail in" in fresh("tail", code=3).err


def test_tail_works_where_nothing_can_be_written(trail: Path, cli: Cli) -> None:
    trail.chmod(0o500)
    try:
        assert len(cli("tail").out.splitlines()) == 10
    finally:
        trail.chmod(0o700)


def test_following_does_not_keep_a_processor_busy(
    trail: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    child = spawn("tail", "-f", "--dir", str(trail))
    assert child.stdout is not None
    child.stdout.readline()
    before = _processor_time(child.pid)
    time.sleep(1)
    assert _processor_time(child.pid) - before < 0.2


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
