"""`ship` and `reconcile`: what people see of shipping, and what they can do about it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.aside import Quarantine
from otel_audit.readers.shipping.standing import cursor_name
from otel_audit.trail.reader import TrailReader
from tests.readers.bench import wait_for
from tests.readers.fakeloki import FakeLoki
from tests.readers.farend import Reply

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Cli

ENDPOINT = "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT"


@pytest.fixture
def loki() -> Iterator[FakeLoki]:
    with FakeLoki() as loki:
        yield loki


@pytest.fixture
def agent(
    trail: Path,
    loki: FakeLoki,
    spawn: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], subprocess.Popen[str]]:
    """Give what starts `otel-audit agent`, which ships to Loki."""
    monkeypatch.setenv("LOKI_ENABLED", "true")
    monkeypatch.setenv("LOKI_ENDPOINT", loki.url)
    return lambda: spawn("agent", "--dir", str(trail))


def bodies(directory: Path) -> list[bytes]:
    with TrailReader(directory) as reader:
        return [leaf.record for leaf in reader.leaves()]


def status(cli: Cli) -> dict[str, Any]:
    [row] = json.loads(cli("ship", "status", "--json").out)["destinations"]
    return dict(row)


def checks(cli: Cli, name: str, code: int = 0) -> list[tuple[str, str]]:
    shown = json.loads(cli("doctor", "--json", code=code).out)
    return [(each["state"], each["message"]) for each in shown["checks"] if each["name"] == name]


def test_the_agent_ships_as_a_process_of_its_own(
    cli: Cli, trail: Path, loki: FakeLoki, agent: Callable[[], subprocess.Popen[str]]
) -> None:
    child = agent()
    wait_for(lambda: len(loki.records) == 12)
    wait_for(lambda: status(cli)["waiting"] == 0)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, out + err
    assert loki.records == bodies(trail)
    shown = cli("ship", "status").out
    assert "destination  loki" in shown
    assert "up to record 11" in shown
    assert checks(cli, "shipping") == [("ok", "loki is 0 records behind")]
    done = cli("reconcile", "--loki", loki.url)
    assert "Loki has what the trail has" in done.out
    del loki.stored[3]
    done = cli("reconcile", "--loki", loki.url, "--repair", code=1)
    assert "missing" in done.out
    assert "to be sent again  1 record, to loki" in done.out
    assert "to be sent again  1 record" in cli("ship", "status").out
    child = agent()
    wait_for(lambda: status(cli)["to_be_sent_again"] == 0)
    child.terminate()
    found = json.loads(cli("reconcile", "--loki", loki.url, "--json").out)
    assert (found["ok"], found["found"], found["missing_records"]) == (True, 12, [])


def test_what_is_refused_is_seen_and_sent_again(
    cli: Cli, trail: Path, loki: FakeLoki, agent: Callable[[], subprocess.Popen[str]]
) -> None:
    bad = bodies(trail)[4]
    loki.refuses = lambda sent: Reply(400) if bad in sent else None
    child = agent()
    wait_for(lambda: status(cli)["set_aside"] == 1)
    assert [state for state, _ in checks(cli, "shipping")] == ["ok", "warn"]
    assert "1 record, which is set aside" in checks(cli, "shipping")[1][1]
    loki.refuses = lambda _: None
    assert "no record" not in cli("ship", "requeue", "7", code=4).out
    assert "loki: 1 record to be sent again" in cli("ship", "requeue", "4").out
    wait_for(lambda: bad in loki.records)
    wait_for(lambda: status(cli)["to_be_sent_again"] == 0)
    child.terminate()
    assert status(cli)["set_aside"] == 0


def test_a_replay_is_done_by_whoever_serves(
    cli: Cli, loki: FakeLoki, agent: Callable[[], subprocess.Popen[str]]
) -> None:
    child = agent()
    wait_for(lambda: len(loki.records) == 12)
    wait_for(lambda: status(cli)["waiting"] == 0)
    assert cli("ship", "replay", "--from", "10").out == "loki: was at record 12, goes on at 10\n"
    wait_for(lambda: len(loki.records) == 14)
    # What has arrived is not written down yet.
    wait_for(lambda: status(cli)["waiting"] == 0)
    early = json.loads(cli("ship", "replay", "--from", "2020-01-01", "--json").out)
    assert early == {"from": 0, "destinations": [{"destination": "loki", "was": 12, "now": 0}]}
    wait_for(lambda: len(loki.records) == 26)
    child.terminate()


@pytest.mark.parametrize("option", ["--from", "--start"])
@pytest.mark.parametrize(
    ("when", "position"),
    [
        ("7", 7), ("#7", 7), ("-1h", 0), ("yesterday", 0), ("2020-01-31", 0),
        ("2020-01-31T08:00:00+01:00", 0), ("now", 12), ("+1h", 12),
    ],
)  # fmt: skip
def test_a_place_is_said_in_the_words_of_a_query(
    cli: Cli, loki: FakeLoki, monkeypatch: pytest.MonkeyPatch, option: str, when: str, position: int
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://localhost:4328")
    shown = cli("ship", "replay", option, when, "--json").out
    assert json.loads(shown)["from"] == position
    found = json.loads(
        cli("reconcile", "--loki", loki.url, option, when, "--end", when, "--json").out
    )
    assert (found["first"], found["end"]) == (position, position)


def test_the_agent_compares_on_a_schedule(
    cli: Cli,
    loki: FakeLoki,
    agent: Callable[[], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_RECONCILE_LOKI", loki.url)
    child = agent()
    # Nothing is old enough to be missed yet; that is a result, too.
    wait_for(lambda: len(loki.records) == 13)
    child.terminate()
    child.communicate(timeout=30)
    record = json.loads(loki.records[-1])
    assert (record["event"], record["status"], record["checked"]) == (
        "audit.reconciled",
        "success",
        0,
    )
    [(state, message)] = checks(cli, "reconciled")
    assert (state, message.partition(" ago ")[2]) == ("warn", "there was nothing to compare yet")
    cursors = Cursors(cli.directory)
    cursors.set("reconcile", 5, {"checked": 5, "missing": 0, "altered": 0})
    [(state, message)] = checks(cli, "reconciled")
    assert (state, message.partition(" ago ")[2]) == ("ok", "Loki had what the trail has")
    cursors.set("reconcile", 5, {"missing": 3, "altered": 0})
    [(state, message)] = checks(cli, "reconciled", code=1)
    assert (state, message.rpartition(": ")[2]) == ("fail", "3 missing")
    cursors.remove("reconcile")
    assert [state for state, _ in checks(cli, "reconciled")] == ["warn"]
    cursors.set("reconcile", 5, {"missing": 0})
    with cursors.connection() as connection:
        connection.execute("UPDATE cursor SET updated_unix_nano = 0 WHERE reader = 'reconcile'")
    cursors.close()
    assert "last compared" in checks(cli, "reconciled")[0][1]


def test_trouble_and_lag_are_seen(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks(cli, "shipping") == [("ok", "records are shipped nowhere: no endpoint is set")]
    monkeypatch.setenv(ENDPOINT, "http://user:secret@localhost:4328")
    assert checks(cli, "shipping") == [("ok", "otlp is 12 records behind")]
    assert checks(cli, "agent") == [
        ("warn", "none at work, and records wait for the shipping to otlp")
    ]
    cursors = Cursors(cli.directory)
    state = {"trouble": {"reason": "HTTP 401", "since_unix_nano": 1}}
    cursors.set(cursor_name("otlp"), 2, state)
    [(found, message)] = checks(cli, "shipping")
    assert (found, message.partition(";")[0]) == ("warn", "otlp is 10 records behind")
    assert message.endswith("HTTP 401")
    shown = cli("ship", "status").out
    assert "trouble" in shown
    assert "secret" not in shown
    assert status(cli)["endpoint"] == "http://localhost:4328/v1/logs"
    monkeypatch.setenv(ENDPOINT, "")
    assert checks(cli, "shipping") == [("ok", "otlp was shipped to, and is not configured here")]
    assert "not configured here" in cli("ship", "status").out
    cursors.close()


def test_records_that_wait_too_long_are_a_warning(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://localhost:4328")
    monkeypatch.setattr("otel_audit.cli.diagnosis.shipping._LATE", 0)
    [(state, message)] = checks(cli, "shipping")
    assert state == "warn"
    assert "12 records behind, the first for" in message


def test_what_cannot_be_done_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "known are: none" in cli("ship", "replay", "--from", "0", code=4).err
    assert "there is no destination yet" in cli("ship", "requeue", code=4).err
    assert "which Loki?" in cli("reconcile", code=2).err
    monkeypatch.setenv(ENDPOINT, "http://localhost:4328")
    assert "known are: otlp" in (
        cli("ship", "replay", "--from", "0", "--destination", "siem", code=4).err
    )
    assert "neither a sequence number nor a time" in (
        cli("ship", "replay", "--from", "sometime", code=2).err
    )
    assert "there is no record 13: the next one of this trail will be 12" in (
        cli("ship", "replay", "--from", "13", code=4).err
    )
    loki = ("reconcile", "--loki", "http://127.0.0.1:9")
    assert "there is no record 99999" in cli(*loki, "--from", "99999", code=4).err
    assert "--from is record 9, and --to is record 4" in (
        cli(*loki, "--from", "9", "--to", "4", code=2).err
    )
    assert "is not a sequence number" in cli("ship", "requeue", "x", code=2).err
    assert "otlp: 0 records to be sent again" in cli("ship", "requeue").out


def test_a_loki_that_cannot_be_reached_is_told_alike_by_all_who_ask_it(cli: Cli) -> None:
    said = (
        "otel-audit: Loki at http://127.0.0.1:9 cannot be asked: [Errno 111] Connection refused; "
        "is the address right?\n"
    )
    for command in ("query", "reconcile"):
        assert cli(command, "--loki", "http://127.0.0.1:9", code=3).err == said
        shown = cli(command, "--loki", "http://user:secret@127.0.0.1:9", code=3).err
        assert "secret" not in shown


def test_findings_are_counted_and_named(cli: Cli, trail: Path, loki: FakeLoki) -> None:
    cursors = Cursors(trail)
    quarantine = Quarantine(cursors, "otlp")
    quarantine.add([("record", number) for number in range(11)], "refused")
    cursors.close()
    done = cli("reconcile", "--loki", loki.url, code=1)
    assert "missing     1: 11" in done.out
    assert "Loki differs from the trail" in done.out
    monkey = cli("reconcile", "--loki", loki.url, "--to", "3")
    assert "0 to before 3" in monkey.out
    assert "there was nothing to compare" in monkey.out
