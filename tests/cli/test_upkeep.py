"""`agent` and `new-origin`."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit import TrailReader
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.trail import Trail
from tests.cli.conftest import Cli, record

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Spawn = Callable[..., subprocess.Popen[str]]


# agent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_signs_mirrors_and_ends_with_a_last_checkpoint(
    directory: Path, spawn: Spawn, number: signal.Signals
) -> None:
    append(directory, 1)
    mirror = directory.parent / "audit.log"
    child = spawn(
        "agent", "--dir", str(directory), environment={"AUDIT_LOG_LOCAL_FILE": str(mirror)}
    )
    assert child.stdout is not None
    started = child.stdout.readline()
    assert started.startswith(f"serving the trail in {directory} (otel-audit.local/")
    append(directory, 4)
    until(lambda: mirror.exists() and len(mirror.read_bytes().splitlines()) == 5)
    child.send_signal(number)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, err) == (0, "")
    assert out == "ended: 5 of 5 records covered by checkpoints\n"


def test_the_agent_stands_by_and_takes_over(directory: Path, spawn: Spawn) -> None:
    append(directory, 1)
    first = spawn("agent", "--json", "--dir", str(directory))
    assert facts(first)["standing_by_for"] is None
    until(lambda: covered(directory) == 1)
    second = spawn("agent", "--json", "--dir", str(directory))
    assert facts(second)["standing_by_for"] == f"process {first.pid} (python)"
    first.kill()
    first.wait()
    append(directory, 1)
    until(lambda: covered(directory) == 2)
    second.terminate()
    ended = facts(second)
    assert (ended["event"], ended["records"], ended["covered"]) == ("ended", 2, 2)


def test_the_agent_waits_for_a_trail_when_told_to(directory: Path, spawn: Spawn) -> None:
    child = spawn("agent", "--wait", "--json", "--dir", str(directory))
    assert child.stderr is not None
    assert child.stderr.readline() == f"otel-audit: waiting for a trail in {directory}\n"
    assert not directory.exists()
    append(directory, 1)
    assert facts(child)["event"] == "started"


def test_the_agent_can_be_ended_while_it_waits(directory: Path, spawn: Spawn) -> None:
    child = spawn("agent", "--wait", "--dir", str(directory))
    assert child.stderr is not None
    child.stderr.readline()
    child.terminate()
    assert child.wait(10) == 0


def test_without_a_trail_the_agent_ends_at_once(directory: Path, fresh: Cli) -> None:
    assert "there is no trail" in fresh("agent", code=3).err
    assert not directory.exists()


def test_the_agents_troubles_are_lines_on_stderr(directory: Path, spawn: Spawn) -> None:
    append(directory, 1)
    lines = {}
    for option in ((), ("--json",)):
        mirror = directory.parent / f"audit{len(option)}.log"
        child = spawn(
            "agent",
            *option,
            "--dir",
            str(directory),
            environment={"AUDIT_LOG_LOCAL_FILE": str(mirror)},
        )
        assert child.stdout is not None
        child.stdout.readline()
        until(lambda mirror=mirror: mirror.exists() and mirror.stat().st_size > 0)  # type: ignore[misc]
        mirror.unlink()
        mirror.mkdir()
        assert child.stderr is not None
        lines[option] = child.stderr.readline()
        child.terminate()
        child.wait(20)
    assert " ERROR the agent's duty 'mirror' failed" in lines[()]
    logged = json.loads(lines[("--json",)])
    assert (logged["event"], logged["level"]) == ("log", "error")


def facts(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line: dict[str, Any] = json.loads(child.stdout.readline())
    return line


def covered(directory: Path) -> int:
    with TrailReader(directory) as reader:
        last = reader.last_checkpoint()
    return 0 if last is None else last.size


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def append(directory: Path, count: int) -> None:
    trail = Trail.open(directory)
    item = b'{"record_id":"x"}'
    trail.store.append([item] * count, {})
    trail.close()


# new-origin


@pytest.fixture
def restored(trail: Path) -> Path:
    """Give a trail whose database is older than what was signed."""
    older = trail.parent / "older"
    shutil.copytree(trail, older)
    record(trail, 3)
    for name in ("trail.db", "trail.db-wal", "trail.db-shm"):
        shutil.copy2(older / name, trail / name)
    return trail


def test_a_restored_trail_gives_way_to_one_that_tells_of_it(restored: Path, cli: Cli) -> None:
    before = TrailReader(restored)
    old_origin, old_root = before.origin, before.tree().root.hex()
    before.close()
    signed = (restored / "signed").read_text("utf-8")
    shown = cli("new-origin", "--yes", "--reason", "restored the backup of Tuesday").out
    (kept,) = (restored / "previous").iterdir()
    assert f"old trail   {kept}\n" in shown
    assert kept.name.startswith(old_origin.replace("/", "-"))

    first = json.loads(cli("show", "0", "--json").out)["record"]
    assert first["event"] == "audit.origin_started"
    assert first["action"] == "new-origin"
    assert first["reason"].startswith("restored the backup of Tuesday; it has 12 records, but 15")
    assert first["previous_origin"] == old_origin
    assert first["previous_checkpoint"] == signed
    assert (first["previous_size"], first["previous_root"]) == (12, old_root)
    assert first["service_name"] == "hub"
    assert "coerced" not in first

    cli("verify")
    assert (
        "NOT IN ORDER: 1 finding (1 rolled-back)"
        in cli.bare("verify", "--dir", str(kept), code=1).out
    )
    with TrailReader(restored) as reader:
        assert reader.origin != old_origin
        assert reader.origin.startswith("otel-audit.local/hub/")
    record(restored, 2)
    assert covered(restored) == 3


def test_as_json(cli: Cli) -> None:
    shown = json.loads(cli("new-origin", "--yes", "--reason", "a test", "--json").out)
    assert list(shown) == [
        "origin",
        "public_keys",
        "previous_origin",
        "previous_size",
        "kept_in",
    ]
    assert shown["previous_size"] == 12


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_done_without_a_yes(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    before = sorted(trail.iterdir())
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    err = cli("new-origin", code=5).err
    assert "trouble  none: this trail can go on as it is" in err
    assert err.endswith("[y/N]:\notel-audit: nothing was done\n")
    assert sorted(trail.iterdir()) == before


def test_a_yes_is_enough(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert "new origin" in cli("new-origin").out


@pytest.mark.parametrize("reason", [(), ("--reason", " ")])
def test_who_is_not_asked_says_why(trail: Path, cli: Cli, reason: tuple[str, ...]) -> None:
    before = sorted(trail.iterdir())
    assert "say why" in cli("new-origin", "--yes", *reason, code=2).err
    assert sorted(trail.iterdir()) == before


def test_an_exposed_key_is_a_reason_that_is_found_by_itself(trail: Path, cli: Cli) -> None:
    old = (trail / "signing.key").read_bytes()
    (trail / "signing.key").chmod(0o644)
    cli("new-origin", "--yes", "--reason", "a test")
    reason = json.loads(cli("show", "0", "--json").out)["record"]["reason"]
    assert "mode 0644 lets others at the signing key" in reason
    assert (trail / "signing.key").read_bytes() != old


def test_a_damaged_trail_gives_way_too(trail: Path, cli: Cli) -> None:
    (trail / "trail.db").write_bytes(b"rubbish" * 1_000)
    (trail / "trail.db-wal").unlink()
    cli("new-origin", "--yes", "--reason", "a test")
    first = json.loads(cli("show", "0", "--json").out)["record"]
    assert "cannot be read" in first["reason"]
    assert first["previous_checkpoint"].startswith(first["previous_origin"])
    assert "previous_size" not in first
    (kept,) = (trail / "previous").iterdir()
    assert (kept / "trail.db").read_bytes() == b"rubbish" * 1_000


def test_a_trail_in_use_is_left_alone(trail: Path, cli: Cli, spawn: Spawn) -> None:
    child = spawn("tail", "-f", "--dir", str(trail))
    assert child.stdout is not None
    child.stdout.readline()
    err = cli("new-origin", "--yes", "--reason", "a test", code=3).err
    assert f"in use by process {child.pid} (python): stop it" in err
    assert not (trail / "previous").exists()


def test_a_key_that_a_setting_gives_has_to_be_another_one(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY", (trail / "signing.key").read_text("utf-8"))
    assert "has been signed already" in cli("new-origin", "--yes", "--reason", "a test", code=3).err
    cli("verify")
    record(trail, 1)
    keys = TrailKeys.generate("example.org/next")
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY", keys.to_text())
    assert (
        json.loads(cli("new-origin", "--yes", "--reason", "a test", "--json").out)["origin"]
        == "example.org/next"
    )
    assert not (trail / "signing.key").exists()


def test_the_key_file_in_the_trails_own_directory_moves_with_it(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY_FILE", str(trail / "signing.key"))
    cli("new-origin", "--yes", "--reason", "a test")
    cli("checkpoint", "--sign")


def test_without_a_trail_there_is_nothing_to_succeed(directory: Path, fresh: Cli) -> None:
    assert "there is no trail" in fresh("new-origin", "--yes", "--reason", "a test", code=3).err
    assert not directory.exists()


# Whose trail it is


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    "command", [("agent",), ("new-origin", "--yes", "--reason", "a test"), ("checkpoint", "--sign")]
)
def test_only_the_owner_writes(trail: Path, cli: Cli, command: tuple[str, ...]) -> None:
    os.chown(trail, 65_534, 65_534)
    err = cli(*command, code=3).err
    assert "belongs to the user nobody, and this is root: run it as nobody (sudo -u nobody " in err
