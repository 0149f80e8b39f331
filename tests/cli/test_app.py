"""The program around the commands: help, version, errors, exit codes, speed of start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from otel_audit import TrailReader, __version__
from otel_audit.cli.app import app, run
from otel_audit.cli.output import moment, span, stamp, visible
from otel_audit.readers.cursors import Cursors
from tests.cli.conftest import Cli, as_nobody, process, record

if TYPE_CHECKING:
    from pathlib import Path


def ended(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    child = process(*arguments, environment=environment)
    out, err = child.communicate(timeout=30)
    return child.returncode, out, err


def test_the_version() -> None:
    assert ended("--version") == (0, f"otel-audit {__version__}\n", "")


def test_help_lists_the_commands_in_groups() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for title in ("Look", "Prove", "Run"):
        assert f"─ {title} ─" in done.stdout


def test_without_a_command_there_is_help(fresh: Cli) -> None:
    assert "Usage: otel-audit" in fresh.bare(code=2).out


def test_help_loads_neither_opentelemetry_nor_a_trail() -> None:
    program = (
        "import sys; from otel_audit.cli.app import run; run(['verify', '--help']); "
        "heavy = ('opentelemetry', 'apsw', 'cryptography', 'orjson', 'structlog'); "
        "sys.exit([name for name in heavy if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_reading_does_not_load_opentelemetry(trail: Path) -> None:
    program = (
        "import sys; from otel_audit.cli.app import run\n"
        "for command in ('tail', 'verify', 'keys', 'doctor', 'show 0', 'checkpoint'):\n"
        "    assert run([*command.split(), '--dir', sys.argv[1]]) == 0\n"
        "    assert 'opentelemetry' not in sys.modules, command\n"
    )
    command = [sys.executable, "-c", program, str(trail)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frob",), "No such command 'frob' (try 'otel-audit --help')"),
        (("show",), "Missing argument 'RECORD' (try 'otel-audit show --help')"),
        (("tail", "-n", "x"), "(try 'otel-audit tail --help')"),
        (("ship",), "Missing command (try 'otel-audit ship --help')"),
        (("policy",), "(try 'otel-audit policy --help')"),
        (("policy", "frob"), "(try 'otel-audit policy --help')"),
        (("token",), "(try 'otel-audit token --help')"),
        (("--frob",), "No such option: --frob (try 'otel-audit --help')"),
    ],
)
def test_wrong_usage_is_one_line(fresh: Cli, arguments: tuple[str, ...], message: str) -> None:
    err = fresh.bare(*arguments, code=2).err
    assert err.startswith("otel-audit: ")
    assert err.endswith(f"{message}\n")
    assert err.count("\n") == 1
    shown = json.loads(fresh.bare(*arguments, "--json", code=2).err)
    assert list(shown) == ["error", "message", "exit_code"]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("verify", "--dir"),
        ("tail", "--dir"),
        ("policy check", "--file"),
        ("token list alice", "--file"),
    ],
)
def test_a_place_without_its_option_is_told_the_option(
    fresh: Cli, tmp_path: Path, command: str, option: str
) -> None:
    place = tmp_path / "a place"
    said = f"({place}); did you mean {option} '{place}'? (try 'otel-audit "
    given = (*command.split(), str(place))
    assert "did you mean" not in fresh.bare(*given, code=2).err
    if option == "--dir":
        place.mkdir()
    else:
        place.touch()
    assert said in fresh.bare(*given, code=2).err
    assert "did you mean" not in fresh.bare(*given, str(place), code=2).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("policy chek", "for 'check|explain': 'chek' is not one of 'check', 'explain' (try"),
        ("tail -n x", "'x' is not a whole number (try"),
        ("tail -n 1.5", "'1.5' is not a whole number (try"),
        ("health --interval x", "'x' is not a number (try"),
        ("verify --processes 0", "0 is less than 1 (try"),
        ("query --evnt x", "No such option: --evnt (Possible options: --event, --end, --client)"),
    ],
)
def test_what_is_wrong_is_said_in_words_for_people(fresh: Cli, arguments: str, said: str) -> None:
    assert said in fresh.bare(*arguments.split(), code=2).err


def test_a_setting_that_cannot_be_used(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_TIMEOUT", "soon")
    said = "OTEL_AUDIT_TIMEOUT='soon' cannot be used: expected seconds, more than 0"
    assert said in fresh("tail", code=2).err
    monkeypatch.delenv("OTEL_AUDIT_TIMEOUT")
    for variable in ("OTEL_AUDIT_MIRROR_BACKUPS", "OTEL_AUDIT_QUEUE_SIZE"):
        monkeypatch.setenv(variable, "some")
        said = f"{variable}='some' cannot be used: expected a whole number"
        assert said in fresh("tail", code=2).err
        monkeypatch.delenv(variable)


def test_the_trail_is_chosen_by_option_or_environment(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = cli("checkpoint").out
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(trail))
    assert cli.bare("checkpoint").out == shown
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "none"))
    assert cli("checkpoint").out == shown
    monkeypatch.delenv("OTEL_AUDIT_DIR")
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    assert cli.bare("checkpoint").out == shown


def test_the_file_of_a_trail_is_no_directory(trail: Path, cli: Cli) -> None:
    err = cli.bare("tail", "--dir", str(trail / "trail.db"), code=3).err
    assert err == (
        f"otel-audit: {trail}/trail.db is a file; name the trail's directory: --dir {trail}\n"
    )


def test_a_file_beside_which_there_is_no_trail(tmp_path: Path, fresh: Cli) -> None:
    path = tmp_path / "hostname"
    path.write_text("shop\n", encoding="utf-8")
    err = fresh.bare("verify", "--dir", str(path), code=3).err
    assert err == (
        f"otel-audit: {path} is a file, and there is no trail in {tmp_path}; name the trail's "
        "directory by --dir\n"
    )


def test_other_trails_are_named_when_the_one_is_missing(fresh: Cli, isolated: Path) -> None:
    assert "use --dir" not in fresh.bare("tail", code=3).err
    there = isolated / "state" / "otel-audit" / "hub"
    record(there, 1)
    err = fresh.bare("tail", code=3).err
    assert err.endswith(f"there is one in {there}: use --dir\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("command", ["tail", "token list", "verify", "checkpoint"])
@pytest.mark.parametrize("what", [".", "trail.db"])
def test_a_trail_that_cannot_be_looked_into(reachable: Path, command: str, what: str) -> None:
    closed = (reachable / what).resolve()
    reachable.chmod(0o755 if closed.is_file() else 0o700)
    done = as_nobody(*command.split(), "--dir", str(reachable))
    assert done.returncode == 3
    assert done.stderr == (
        f"otel-audit: {closed} cannot be read by this user: run it as root "
        f"(sudo -u root otel-audit ... --dir {reachable})\n"
    )


def test_a_damaged_database_is_one_line(trail: Path, cli: Cli) -> None:
    import sqlite3

    with sqlite3.connect(trail / "trail.db") as database:
        database.execute("DROP TABLE checkpoint")
    database.close()
    err = cli("checkpoint", code=3).err
    assert err.startswith("otel-audit: the database cannot be read: ")
    assert json.loads(cli("checkpoint", "--json", code=3).err)["error"] == "SQLError"


def test_a_defect_keeps_its_traceback(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_audit.cli.app._program", lambda: None)
    err = fresh.bare("--version", code=70).err
    assert err.startswith("Traceback")
    assert err.endswith("\notel-audit: 'NoneType' object is not callable\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "0"),
        ("show", "0", "--json"),
        ("query", "-n", "0", "--json"),
        ("query", "--csv"),
        ("query", "--count-by", "event"),
        ("query", "--count-by", "event", "--csv"),
        ("timeline", "--actor", "u-1", "--json"),
        ("verify",),
        ("--help",),
        ("query", "--help"),
        (),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_no_defect(trail: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    where = {"OTEL_AUDIT_DIR": str(trail)}
    child = process(*arguments, stdout=writing, environment=where)
    os.close(writing)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (141, "")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("verify >&-", 0),
        ("verify --json >&-", 0),
        ("tail --json >&-", 0),
        ("show 99 >&- 2>&-", 4),
        ("tail >&- <&- 2>&-", 0),
        ("--help >&-", 0),
    ],
)
def test_a_closed_output_is_no_defect(trail: Path, command: str, code: int) -> None:
    """Neither a traceback, nor a trail that is written to by accident."""
    before = (trail / "trail.db").read_bytes()
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m otel_audit.cli {command}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OTEL_AUDIT_DIR": str(trail)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert (trail / "trail.db").read_bytes() == before


def test_no_colour_where_there_is_no_terminal_or_none_is_wanted(trail: Path) -> None:
    import pty

    assert "\x1b" not in ended("tail", "--dir", str(trail))[1]
    for no_color, coloured in (("", True), ("1", False)):
        controller, terminal = pty.openpty()
        environment = {"TERM": "xterm-256color", "NO_COLOR": no_color}
        child = process("tail", "--dir", str(trail), stdout=terminal, environment=environment)
        child.communicate(timeout=30)
        os.close(terminal)
        assert (b"\x1b[32m" in os.read(controller, 65_536)) is coloured
        os.close(controller)


def test_a_terminal_without_unicode_gets_escapes(trail: Path) -> None:
    import sqlite3

    with sqlite3.connect(trail / "trail.db") as database:
        database.execute(
            "UPDATE leaf SET record = CAST(replace(record, 'files-11', 'Ordner-ä-☃') AS BLOB)"
        )
    database.close()
    code, out, _ = ended("tail", "--dir", str(trail), environment={"PYTHONIOENCODING": "ascii"})
    assert code == 0
    assert r"Ordner-\xe4-\u2603" in out


def test_bars_where_there_are_no_blocks(trail: Path) -> None:
    arguments = ("query", "--dir", str(trail), "--count-by", "outcome")
    for encoding, mark in (("ascii", "#"), ("latin-1", "#"), ("utf-8", "█")):
        code, out, _ = ended(*arguments, environment={"PYTHONIOENCODING": encoding})
        assert code == 0
        assert out.splitlines()[0] == f"success  9  {40 * mark}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = {
        "_OTEL_AUDIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "otel-audit che",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "otel-audit che",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    _, out, _ = ended(environment=environment)
    assert "check-proof" in out
    assert "checkpoint" in out


def test_run_returns_the_exit_code() -> None:
    assert run(["--version"]) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 days")],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_times() -> None:
    assert moment(0) == "1970-01-01 00:00:00 UTC"
    assert moment(1e20) == "an impossible time"
    assert stamp(1_000_000_005) == "1970-01-01T00:00:01.000000005Z"


def test_visible_text() -> None:
    assert visible("a\tb\x7f\x9b\u2028é☃") == r"a\tb\x7f\x9b\u2028é☃"


@pytest.mark.parametrize(
    "command",
    ["doctor", "ship status", "verify", "query", "tail", "timeline --actor olga", "show 0", "keys"],
)
def test_a_command_that_reads_leaves_a_copied_trail_as_it_was(
    trail: Path, tmp_path: Path, command: str
) -> None:
    """A copy as an auditor gets it, taken while others had it open."""
    reader, cursors = TrailReader(trail), Cursors(trail)
    reader.tree()
    cursors.set("ship loki", 1, {})
    copy = tmp_path / "copy"
    shutil.copytree(trail, copy)
    cursors.close()
    reader.close()

    def contents() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in copy.iterdir()
            # Which readers there are: nothing of the trail's.
            if not path.name.endswith("-shm")
        }

    before = contents()
    assert {"trail.db", "cursors.db", "cursors.db-wal"} <= before.keys()
    one = process(*command.split(), "--dir", str(copy))
    one.communicate(timeout=60)
    assert one.returncode in {0, 1}
    assert contents() == before
