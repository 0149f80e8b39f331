"""`query` and `timeline`: the questions of an incident, answered in the terminal."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import orjson
import pytest
from rich.cells import cell_len

from otel_audit.readers.index.segments import SMALL
from otel_audit.readers.query.times import stamp
from tests.cli.conftest import Cli, on_terminal
from tests.readers.ledger import BEGAN, SECOND, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

HOUR = 3_600 * SECOND


@pytest.fixture
def ledger(directory: Path) -> Iterator[Ledger]:
    """Give a trail of some hours: log-ins, a credential that was read, and what else happened."""
    ledger = Ledger(directory)
    ledger.write(
        {
            "schema": "otel-audit/1",
            "timestamp": stamp(BEGAN + number * 60 * SECOND),
            "event": "credential_access" if number % 10 == 3 else "authentication",
            "event_type": "security",
            "record_id": f"{number:08x}-0000-4000-8000-000000000000",
            "action": "read" if number % 10 == 3 else "login",
            "outcome": "failure" if number % 10 == 4 else "success",
            "actor_id": f"u-{number % 3}",
            "resource_name": "openai" if number % 20 == 3 else "other",
            "request_id": f"r-{number // 5}",
            "=cmd": "=1+1",
            "number": number,
        }
        for number in range(300)
    )
    yield ledger
    ledger.close()


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], ledger: Ledger) -> Cli:
    return Cli(capsys, ledger.directory)


def numbers(text: str) -> list[int]:
    return [orjson.loads(line)["number"] for line in text.splitlines()]


def test_who_read_a_credential(ask: Cli) -> None:
    shown = ask("query", "--action", "read", "--resource", "openai", "--start", "2026-02-02")
    lines = shown.out.splitlines()
    assert len(lines) == 15
    assert lines[0].split()[0] == "283"
    assert "u-1" in lines[0]
    assert shown.err == ""


def test_what_else_happened_in_a_request(ask: Cli) -> None:
    lines = ask("timeline", "--request-id", "r-0").out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "4"]
    assert "2026-02-02 02:40:00.000" in lines[0]
    assert "+60.000 s" in lines[1]
    stored = ask("timeline", "--request-id", "r-0", "--json").out
    assert numbers(stored) == [0, 1, 2, 3, 4]
    assert numbers(
        ask("timeline", "--actor", "u-1", "--end", "2026-02-02T02:46:00Z", "--json").out
    ) == [1, 4]
    assert "--request-id, --trace-id or --actor" in ask("timeline", code=2).err


@pytest.fixture
def tools(directory: Path) -> Path:
    """Give a trail whose records have long names for everything but the resource."""
    ledger = Ledger(directory)
    ledger.write(
        {
            "timestamp": stamp(BEGAN + number * SECOND),
            "event": "mcp_client_tool_called",
            "action": "tool_call_requested",
            "outcome": "failure" if number % 2 else "success",
            "actor_id": "a.very.long.name@example.org",
            "resource_type": "server",
            "resource_name": f"files-{number}",
        }
        for number in range(12)
    )
    ledger.close()
    return directory


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("command", ["timeline --actor a.*", "query --oldest", "tail -n 12"])
def test_a_narrow_terminal_shows_what_it_was_about(tools: Path, columns: int, command: str) -> None:
    """What is before the resource, which is last in a line, gives way."""
    lines = on_terminal(*command.split(), "--dir", str(tools), columns=columns)
    assert [line.split()[-1] for line in lines] == [f"files-{number}" for number in range(12)]
    assert all(len(line) <= columns for line in lines)
    assert ("…" in lines[0]) is (columns < 200)


@pytest.mark.parametrize("command", ["query --oldest", "tail -n 12"])
def test_the_event_stays_whole_on_a_terminal_of_80_columns(tools: Path, command: str) -> None:
    """The year and the action leave, as the event says it too; the outcome is short."""
    lines = on_terminal(*command.split(), "--dir", str(tools), columns=80)
    assert lines[:2] == [
        "   0  02-02 02:40:00  ok    a.very.lon…  mcp_client_tool_called  server files-0",
        "   1  02-02 02:40:01  fail  a.very.lon…  mcp_client_tool_called  server files-1",
    ]


def test_a_line_is_no_longer_than_the_terminal_whatever_is_in_it(directory: Path) -> None:
    ledger = Ledger(directory)
    ledger.write([
        {"event": "漢字" * 20, "actor_id": "é" * 40, "resource_name": "漢" * 99, "outcome": "x" * 30},
        b"rubbish" * 40,
        {"event": "e" * 200, "timestamp": "2026"},
    ])  # fmt: skip
    ledger.close()
    for columns in (24, 40, 60, 80, 120):
        lines = on_terminal("tail", "--dir", str(directory), columns=columns)
        assert [cell_len(line) for line in lines if cell_len(line) > columns] == []


def test_many_lines_cost_little_more_than_their_bytes(ask: Cli, ledger: Ledger) -> None:
    """Rich's table for each took ten times as long, and the size of the terminal was asked for each."""
    calls = Counter[str]()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_filename.rpartition("/")[2]] += 1

    ledger.fill(2_000)
    for arguments in (("query", "-n", "0"), ("timeline", "--actor", "u-*")):
        before = calls.copy()
        sys.setprofile(count)
        try:
            shown = ask(*arguments)
        finally:
            sys.setprofile(None)
        lines = len(shown.out.splitlines())
        assert lines > 900
        # One table of these lines would have been hundreds of calls a line in Rich's console.
        assert (calls - before)["console.py"] < 4 * lines


def test_memory_does_not_grow_with_the_lines(ask: Cli, ledger: Ledger) -> None:
    ledger.fill(30_000)
    program = (
        "import sys; from otel_audit.cli.app import run; run(sys.argv[1:]); "
        # Not getrusage: that begins with what the process had that started this one.
        "sys.stderr.write(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for number in ("10", "30000"):
        command = ["tail", "-n", number, "--dir", str(ask.directory)]
        done = subprocess.run(
            [sys.executable, "-c", program, *command], capture_output=True, check=True
        )
        assert len(done.stdout.splitlines()) == int(number)
        peaks.append(int(done.stderr))
    assert peaks[1] - peaks[0] < 20_000


def test_a_timeline_can_be_limited(ask: Cli) -> None:
    shown = ask("timeline", "--actor", "u-1", "-n", "2")
    assert [line.split()[0] for line in shown.out.splitlines()] == ["1", "4"]
    assert shown.err == "2 shown, there are more: -n 0 for all\n"
    assert numbers(ask("timeline", "--actor", "u-1", "--limit", "2", "--json").out) == [1, 4]
    for arguments in ((), ("-n", "0"), ("-n", "100")):
        whole = ask("timeline", "--actor", "u-1", *arguments)
        assert (len(whole.out.splitlines()), whole.err) == (100, "")


def test_failed_log_ins_per_hour_are_bars(ask: Cli) -> None:
    arguments = ("query", "--event", "authentication", "--outcome", "failure", "--per", "1h")
    lines = ask(*arguments).out.splitlines()
    assert lines[0].startswith("2026-02-02 02:00:00  2  █")
    assert [line.split()[2] for line in lines] == ["2", "6", "6", "6", "6", "4"]
    assert max(line.count("█") for line in lines) == 40
    counts = json.loads(ask(*arguments, "--json").out)["counts"]
    assert counts[0] == {"start": "2026-02-02T02:00:00Z", "value": None, "count": 2}
    assert ask(*arguments, "--csv").out.splitlines()[:2] == [
        "start,count",
        "2026-02-02T02:00:00Z,2",
    ]


def test_hours_in_which_nothing_happened_are_shown(ask: Cli) -> None:
    """Each to programs; to people in one line, so that what happened stays in sight."""
    times = ("--start", "2026-02-02T00:00:00Z", "--end", "2026-02-02T10:00:00Z")
    last = ("query", "--where", "number=299", *times)
    shown = ask(*last, "--per", "1h").out.splitlines()
    assert shown == [
        "2026-02-02 00:00:00  0  until 2026-02-02 06:00:00",
        f"2026-02-02 07:00:00  1  {40 * '█'}",
        "2026-02-02 08:00:00  0  until 2026-02-02 09:00:00",
    ]
    counts = json.loads(ask(*last, "--per", "1h", "--json").out)["counts"]
    assert [one["count"] for one in counts] == [0] * 7 + [1, 0, 0]
    assert len(ask(*last, "--per", "1h", "--csv").out.splitlines()) == 11
    by = ("query", "--where", "number=29*", "--per", "1h", "--count-by", "event")
    assert ask(*by).out.splitlines() == [
        "2026-02-02 03:00:00  authentication     1  █████",
        "2026-02-02 04:00:00                     0  until 2026-02-02 06:00:00",
        f"2026-02-02 07:00:00  authentication     9  {40 * '█'}",
        "                     credential_access  1  █████",
    ]
    many = ask("query", "--per", "1s").out.splitlines()
    assert len(many) == 599
    assert many[1] == "2026-02-02 02:40:01  0  until 2026-02-02 02:40:59"
    assert len(json.loads(ask("query", "--per", "1s", "--json").out)["counts"]) == 299 * 60 + 1


def test_hours_are_listed_from_the_start_to_the_end_that_were_said(ask: Cli) -> None:
    """Also where nothing matches; without an end until now, without a start from the first on."""

    def counted(*arguments: str) -> list[tuple[str, int]]:
        shown = ask("query", "--per", "1h", "--json", *arguments).out
        return [(one["start"], one["count"]) for one in json.loads(shown)["counts"]]

    day = ("--start", "2026-02-02T22:30:00Z", "--end", "2026-02-03T01:00:00Z")
    assert counted(*day) == [
        ("2026-02-02T22:00:00Z", 0),
        ("2026-02-02T23:00:00Z", 0),
        ("2026-02-03T00:00:00Z", 0),
    ]
    assert ask("query", "--per", "1h", "--csv", *day).out.splitlines()[1:] == [
        "2026-02-02T22:00:00Z,0",
        "2026-02-02T23:00:00Z,0",
        "2026-02-03T00:00:00Z,0",
    ]
    assert "no record matches" in ask("query", "--per", "1h", *day).err
    assert len(counted("--start", "-3h")) == 4
    assert counted("--end", "2026-02-02T10:00:00Z")[-2:] == [
        ("2026-02-02T08:00:00Z", 0),
        ("2026-02-02T09:00:00Z", 0),
    ]
    assert counted("--end", "2026-02-01") == counted("--actor", "nobody") == []
    assert counted("--start", "2030-01-01") == []
    assert counted(*day[:2], "--end", day[1]) == [("2026-02-02T22:00:00Z", 0)]
    assert len(counted("--end", "2110-02-01")) == 6  # the others are more than anybody looks at


def test_that_there_is_more_is_said_to_people(ask: Cli) -> None:
    more = "50 shown, there are more: -n 0 for all\n"
    assert ask("query").err == more
    assert len(ask("query").out.splitlines()) == 50
    assert ask("query", "--json").err == ask("query", "--csv").err == ""
    assert ask("query", "-n", "300").err == ask("query", "-n", "0").err == ""
    assert ask("query", "-n", "299").err.startswith("299 shown")
    assert ask("query", "--event", "nothing", "-n", "1").err.startswith("no record")


def test_the_limit_is_of_the_values_that_are_counted(ask: Cli) -> None:
    shown = ask("query", "--count-by", "event", "-n", "1")
    assert shown.out.split()[:2] == ["authentication", "270"]
    assert len(shown.out.splitlines()) == 1
    assert shown.err == "1 shown, there are more: -n 0 for all\n"
    assert ask("query", "--count-by", "event", "-n", "2").err == ""
    assert len(ask("query", "--count-by", "number").out.splitlines()) == 300
    counts = json.loads(ask("query", "--count-by", "event", "-n", "1", "--json").out)["counts"]
    assert [one["value"] for one in counts] == ["authentication"]
    assert len(ask("query", "--count-by", "number", "-n", "0", "--csv").out.splitlines()) == 301


@pytest.mark.parametrize(
    "command", ["--count-by record_id", "--count-by event --per 1h", "--count-by event"]
)
def test_bars_are_as_long_as_a_terminal_has_room(ask: Cli, command: str) -> None:
    asked = ("query", "--dir", str(ask.directory), *command.split(), "--where", "number=29?")
    for columns in (60, 80):
        lines = on_terminal(*asked, columns=columns)
        assert lines
        assert max(map(len, lines)) <= columns
        assert 8 <= max(line.count("█") for line in lines) <= 40


def test_counts_by_a_field(ask: Cli) -> None:
    lines = ask("query", "--count-by", "event").out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["authentication", "270"],
        ["credential_access", "30"],
    ]
    both = ask("query", "--count-by", "outcome", "--per", "24h", "--csv").out.splitlines()
    assert both == [
        "start,outcome,count",
        "2026-02-02T00:00:00Z,success,270",
        "2026-02-02T00:00:00Z,failure,30",
    ]
    assert ask("query", "--count-by", "=cmd", "--csv").out.splitlines()[1] == "'=1+1,300"


def test_the_order_the_limit_and_conditions_of_all_kinds(ask: Cli) -> None:
    assert numbers(ask("query", "--json").out) == list(range(299, 249, -1))
    assert numbers(ask("query", "--json", "--oldest", "-n", "3").out) == [0, 1, 2]
    assert len(numbers(ask("query", "--json", "-n", "0").out)) == 300
    found = ask("query", "--json", "--where", "number=29?", "--where", "outcome!=success").out
    assert numbers(found) == [294]
    found = ask("query", "--json", "--actor", "u-0", "--actor", "u-1", "-q", "openai read").out
    assert numbers(found) == [283, 243, 223, 183, 163, 123, 103, 63, 43, 3]


def test_csv_has_one_column_for_the_callers_own_fields_and_no_formulas(
    ask: Cli, ledger: Ledger
) -> None:
    ledger.write([{"event": "=HYPERLINK(1)", "action": "@x", "actor_id": "-1", "note": "=2"}])
    rows = list(csv.DictReader(io.StringIO(ask("query", "--csv", "-n", "2").out)))
    assert (rows[0]["event"], rows[0]["action"], rows[0]["actor_id"]) == (
        "'=HYPERLINK(1)",
        "'@x",
        "'-1",
    )
    assert rows[0]["fields"] == '{"note":"=2"}'
    assert rows[1]["sequence"] == "299"
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "sometime"), "start is 'sometime'"),
        (("-q", "one", "-q", "two"), "q is said twice"),
        (("--start", "-1h", "--end", "-2h"), "ends before it starts"),
        (("--where", "nothing"), "FIELD=VALUE"),
        (("--per", "often"), "length of time"),
        (("-q", "..."), "no word"),
        (("--event", "x" * 5_000), "at most 4096"),
        (("--csv", "--json"), "choose one of them"),
        (("--count-by", "event", "--count-by", "action"), "--count-by is said 2 times"),
        (("--per", "1h", "--per", "2h"), "--per is said 2 times"),
        (("--per", "1h", "-n", "2"), "is limited by --start and --end"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ask: Cli, arguments: tuple[str, ...], said: str) -> None:
    shown = ask("query", *arguments, code=2)
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_copy_that_cannot_be_written_is_asked_with_and_without_its_index(
    ask: Cli, ledger: Ledger, tmp_path: Path
) -> None:
    ledger.fill(2 * SMALL)
    ledger.index()
    copy = tmp_path / "copy"
    shutil.copytree(ledger.directory, copy)
    copy.chmod(0o500)
    live = ask("query", "--outcome", "failure", "-n", "0", "--json").out
    asked = ("query", "--outcome", "failure", "-n", "0", "--json", "--dir", str(copy))
    assert ask.bare(*asked).out == live != ""
    copy.chmod(0o700)
    (copy / "index.db").unlink()
    copy.chmod(0o500)
    assert ask.bare(*asked).out == live
    copy.chmod(0o700)


def test_who_asks_without_an_index_is_told(
    ask: Cli, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit.cli.questions._UNNOTICED", 100)
    assert "300 of 300 records are not in the index (yet)" in ask("query").err
    ledger.fill(SMALL)
    ledger.index()
    monkeypatch.setattr("otel_audit.cli.questions._UNNOTICED", SMALL)
    assert ask("query", "-n", "0").err == ""


def test_whoever_wants_to_know_is_told_how_the_answer_is_found(
    ask: Cli, ledger: Ledger, tmp_path: Path
) -> None:
    told = ask("query", "-v", "--limit", "0").err.splitlines()
    assert told[0] == (
        "otel-audit: all 300 records are read; with 1,024 a trail gets an index, and needs one"
    )
    assert told[1].startswith("otel-audit: answered in 0.")
    assert ask("query", "--limit", "0").err == ""
    ledger.fill(SMALL)
    ledger.index()
    said = "1,024 of 1,324 records are in the index, 300 are read"
    assert said in ask("timeline", "--verbose", "--actor", "u-1").err
    assert said in ask("query", "--verbose", "--count-by", "event").err
    empty = Ledger(tmp_path / "empty")
    empty.close()
    shown = ask.bare("query", "-v", "--dir", str(empty.directory)).err
    assert "the trail has no record yet" in shown
    assert "no record matches: the trail is empty" in shown


def test_whoever_finds_nothing_is_told_of_what_times_there_is_something(ask: Cli) -> None:
    shown = ask("query", "--start", "2027-01-01")
    assert shown.out == ""
    assert shown.err == (
        "no record matches; the trail's first record is of 2026-02-02T02:40:00Z, the newest of "
        "2026-02-02T07:39:00Z\n"
    )
    assert ask("query", "--start", "2027-01-01", "--json").err == ""
    counted = ask("query", "--count-by", "event", "--start", "2027-01-01")
    assert (counted.out, counted.err) == ("", shown.err)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("actor", "actor_id"),
        ("resource", "resource_name"),
        ("field.number", "number"),
        ("action", "action"),
    ],
)
def test_fields_are_counted_by_the_names_of_the_filters(ask: Cli, name: str, field: str) -> None:
    counted = ask("query", "--count-by", name).out
    assert counted == ask("query", "--count-by", field).out != ""


def test_conditions_take_the_names_of_the_filters(ask: Cli) -> None:
    for command in (("query", "-n", "0"), ("tail", "-n", "999")):
        found = ask(*command, "--json", "--where", "actor=u-1").out
        assert len(numbers(found)) == 100
        assert found == ask(*command, "--json", "--where", "actor_id=u-1").out
        assert numbers(ask(*command, "--json", "--where", "field.number=7").out) == [7]
        assert len(numbers(ask(*command, "--json", "--where", "action=authentication").out)) == 270
        assert len(numbers(ask(*command, "--json", "--where", "actor!=u-1").out)) == 200


OF_A_RECORD = {
    "action": "read", "event": "credential_access", "event_type": "security", "actor": "u-1",
    "outcome": "success", "level": "info", "request_id": "r-6", "resource_name": "other",
    "resource_type": "server", "session_id": "s-1", "status": "done", "client": "c-1",
    "client_ip": "10.0.0.1", "server_name": "files", "trace_id": "t-1", "q": "needle",
    "record_id": "00000033-0000-4000-8000-000000000000",
}  # fmt: skip


def test_query_and_tail_have_every_filter_that_http_has(ask: Cli, ledger: Ledger) -> None:
    from otel_audit.web.events.router import _FILTERS

    said = {name.removesuffix("!") for name, _, _ in _FILTERS}
    assert set(OF_A_RECORD) == said - {"field.NAME"}
    fields = {"actor": "actor_id", "client": "client_id", "q": "note"}
    stored = {fields.get(name, name): value for name, value in OF_A_RECORD.items()}
    ledger.write([{**stored, "number": 300}])
    others = {"resource_name": ("--resource", "--resource-name"), "q": ("--words", "-q")}
    for name, value in OF_A_RECORD.items():
        for option in others.get(name, (f"--{name.replace('_', '-')}",)):
            for command in (("query", "-n", "1"), ("tail", "--limit", "1")):
                asked = (*command, "--json", option, value, "--where", "number=300")
                assert numbers(ask(*asked).out) == [300], (command, option)
    two = ("--lines", "2", "--json", "--actor", "u-0", "--actor", "u-2")
    assert numbers(ask("tail", *two).out) == [297, 299]
    assert "can only be success" in ask("tail", "--outcome", "good", code=2).err


def test_times_go_by_two_names(ask: Cli) -> None:
    times = ("2026-02-02T02:41:00Z", "2026-02-02T02:43:00Z")
    for start, end in (("--start", "--end"), ("--from", "--to")):
        asked = ("query", "--json", start, times[0], end, times[1])
        assert numbers(ask(*asked).out) == [2, 1]
        told = ask("timeline", "--actor", "u-*", "--json", start, times[0], end, times[1]).out
        assert numbers(told) == [1, 2]


def test_a_field_that_no_record_has_is_told_from_no_record(ask: Cli) -> None:
    shown = ask("query", "--count-by", "purpose", "--outcome", "failure")
    assert shown.out == ""
    assert shown.err == "none of the 30 records that match has a field purpose\n"
    one = ask("query", "--count-by", "purpose", "--where", "number=7").err
    assert one == "the record that matches has no field purpose\n"
    assert json.loads(ask("query", "--count-by", "purpose", "--json").out)["counts"] == []
