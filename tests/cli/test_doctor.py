"""`doctor` works when things are broken: that is when it is used."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.cli.access import as_user
from otel_audit.cli.diagnosis import place, processes, setup
from otel_audit.cli.diagnosis import trail as examined
from otel_audit.cli.diagnosis.check import Subject, examine
from otel_audit.settings import Settings
from otel_audit.trail import filesystem
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.lock import FileLock
from otel_audit.trail.trail import Trail
from tests.cli.conftest import Cli, as_nobody, on_terminal, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECOND = 1_000_000_000


def report(fresh: Cli, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fresh("doctor", "--json", code=code).out)
    return found


def outcome(fresh: Cli, name: str, code: int = 0) -> dict[str, str]:
    """Give the one check of this name."""
    (check,) = [check for check in report(fresh, code)["checks"] if check["name"] == name]
    return dict(check)


def test_a_trail_in_order(trail: Path, cli: Cli) -> None:
    found = report(cli)
    assert found["ok"] is True
    assert found["directory"] == str(trail)
    states = {check["name"]: check["state"] for check in found["checks"]}
    # Whether the host runs a time service is its own business.
    del states["clock"]
    assert states == dict.fromkeys(
        [
            "settings",
            "policy",
            "directory",
            "files",
            "file system",
            "disk space",
            "trail",
            "signing key",
            "signed",
            "checkpoint",
            "lock",
            "agent",
            "mirror",
            "shipping",
        ],
        "ok",
    )


def test_for_people(trail: Path, cli: Cli) -> None:
    shown = cli("doctor").out
    assert [line for line in shown.splitlines() if line and line[0] != " "][:3] == [
        "Checks",
        "Settings",
        "Versions",
    ]
    assert re.search(rf"^  OTEL_AUDIT_DIR +{re.escape(str(trail))} +--dir$", shown, re.MULTILINE)
    assert f"  trail        ok    otel-audit.local/hub/" in shown  # noqa: F541 - reads as its neighbours


def test_settings_that_nobody_set_are_counted_unless_all_are_wanted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_TIMEOUT", "7")
    number = len(Settings.from_env({}).describe())
    shown = cli("doctor").out
    assert re.search("^  OTEL_AUDIT_TIMEOUT +7.0 ", shown, re.MULTILINE)
    assert not re.search(r" default$", shown, re.MULTILINE)
    assert f"\n  {number - 2} more have their defaults (--all shows them)\n" in shown
    everything = cli("doctor", "--all").out
    assert len(re.findall(r" default$", everything, re.MULTILINE)) == number - 2
    assert "--all shows them" not in everything
    monkeypatch.delenv("OTEL_AUDIT_TIMEOUT")
    assert f"\n  all {number} have their defaults (" in cli.bare("doctor").out


def test_a_narrow_terminal_has_one_column_for_what_is_said(trail: Path) -> None:
    """The state stands by itself, and what is to do begins where the finding does."""
    place = trail.rename(trail.parent / ("long-" * 12))
    place.chmod(0o755)
    shown = on_terminal("doctor", "--dir", str(place), columns=80)
    checks = shown[shown.index("Checks") + 1 : shown.index("Settings") - 1]
    indent = checks[0].index("every variable")
    (first,) = (line for line in checks if line.startswith("  directory"))
    assert first[:indent].split() == ["directory", "warn"]
    assert first[indent:].startswith(str(place))
    others = [line for line in checks if not line[:indent].strip()]
    assert {len(line) - len(line.lstrip()) for line in others} == {indent}
    assert any(line[indent:].startswith("to do: chmod 700") for line in others)
    assert all(line[indent:].strip() for line in checks)


def test_every_setting_is_listed_with_value_and_origin(cli: Cli) -> None:
    rows = {row["variable"]: row for row in report(cli)["settings"]}
    assert set(rows) == {row["variable"] for row in Settings.from_env({}).describe()}
    assert rows["OTEL_AUDIT_TIMEOUT"]["origin"] == "default"


def test_the_versions(cli: Cli) -> None:
    versions = report(cli)["versions"]
    assert list(versions) == ["otel-audit", "Python", "SQLite", "apsw", "OpenTelemetry"]
    assert all(number[0].isdigit() for number in versions.values())


def test_nothing_is_changed(trail: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in trail.iterdir()}
    before.pop(trail / "trail.db-shm")
    cli("doctor")
    after = {path: path.stat().st_mtime_ns for path in trail.iterdir()}
    after.pop(trail / "trail.db-shm")
    assert after == before


# Settings


def test_settings_that_cannot_be_used_do_not_end_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_TIMEOUT", "soon")
    monkeypatch.setenv("OTEL_AUDIT_ON_FAILURE", "ignore")
    failed = [check for check in report(cli, 1)["checks"] if check["state"] == "fail"]
    assert [check["name"] for check in failed] == ["settings", "settings"]
    assert {check["message"].split("=")[0] for check in failed} == {
        "OTEL_AUDIT_TIMEOUT",
        "OTEL_AUDIT_ON_FAILURE",
    }
    assert all(check["remedy"] == "correct it or unset it" for check in failed)


def test_unknown_variables_are_pointed_out(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_TIMOUT", "5")
    check = outcome(cli, "settings")
    assert check["state"] == "warn"
    assert check["remedy"] == "did you mean OTEL_AUDIT_TIMEOUT?"
    monkeypatch.delenv("OTEL_AUDIT_TIMOUT")
    monkeypatch.setenv("OTEL_AUDIT_ZZZZZ", "5")
    assert outcome(cli, "settings")["remedy"] == "unset it, if nothing else reads it"
    monkeypatch.delenv("OTEL_AUDIT_ZZZZZ")
    # It had a name of its own once.
    monkeypatch.setenv("OTEL_AUDIT_LOKI_TENANT", "shop")
    assert outcome(cli, "settings")["remedy"] == "did you mean LOKI_TENANT?"


def test_disabled_is_a_failure() -> None:
    settings = Settings.from_env({"OTEL_AUDIT_DISABLED": "true"})
    checks = list(setup.settings(Subject(settings)))
    assert [check.state for check in checks] == ["fail", "ok"]
    assert "nothing at all is recorded" in checks[0].message


# The place


def test_no_trail_yet(directory: Path, fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(directory))
    found = json.loads(fresh.bare("doctor", "--json").out)["checks"]
    checks = {check["name"]: check for check in found}
    assert checks["directory"]["state"] == "warn"
    assert "does not exist" in checks["directory"]["message"]
    assert checks["trail"]["state"] == "warn"
    assert checks["disk space"]["state"] == "ok"
    assert not directory.exists()


def test_a_directory_that_was_named_has_to_hold_a_trail(directory: Path, fresh: Cli) -> None:
    """A misspelt name is not told that its trail will be made some day."""
    assert "does not exist" in outcome(fresh, "directory", 1)["message"]
    check = outcome(fresh, "trail", 1)
    said = f"otel-audit: {check['message']}; {check['remedy']}\n"
    assert said == fresh("tail", code=3).err
    assert not directory.exists()


def test_a_directory_one_level_too_high(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(trail.parent))
    for arguments in ((), ("--dir", str(trail.parent))):
        found = json.loads(cli.bare("doctor", "--json", *arguments, code=1).out)["checks"]
        (check,) = (check for check in found if check["name"] == "trail")
        assert check["remedy"].endswith(f"there is one in {trail}")


def test_a_directory_one_level_too_low(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_DIR", str(trail))
    found = json.loads(cli.bare("doctor", "--json", code=1).out)["checks"]
    (check,) = (check for check in found if check["name"] == "trail")
    assert check["remedy"].endswith(f"there is one in {trail}")
    assert cli.bare("tail", code=3).err.endswith(f"there is one in {trail}\n")


@pytest.mark.parametrize("above", [1, 2])
def test_a_directory_that_is_not_the_trails_may_be_open(
    tmp_path: Path, fresh: Cli, above: int
) -> None:
    trail = tmp_path / "data" / "logs" / "trail"
    trail.parent.mkdir(parents=True)
    record(trail, 1)
    wrong = trail.parents[above - 1]
    wrong.chmod(0o777)
    (wrong / "notes").touch()
    (wrong / "notes").chmod(0o666)
    found = json.loads(fresh.bare("doctor", "--json", "--dir", str(wrong), code=1).out)["checks"]
    checks = {check["name"]: check for check in found}
    assert checks["directory"]["message"] == f"{wrong} is there, and holds no trail"
    assert "files" not in checks
    assert checks["trail"]["remedy"].endswith(f"there is one in {trail}")


def test_a_file_in_place_of_the_directory(directory: Path, fresh: Cli) -> None:
    directory.write_text("", encoding="utf-8")
    assert "is not a directory" in outcome(fresh, "directory", 1)["message"]


@pytest.mark.parametrize(("mode", "state"), [(0o777, "fail"), (0o755, "warn"), (0o700, "ok")])
def test_the_directorys_mode(trail: Path, cli: Cli, mode: int, state: str) -> None:
    trail.chmod(mode)
    check = outcome(cli, "directory", state == "fail")
    assert check["state"] == state
    assert f"mode {mode:04o}" in check["message"]
    assert (check["remedy"] == "") is (state == "ok")


@pytest.mark.parametrize(("mode", "state"), [(0o660, "fail"), (0o640, "warn")])
def test_the_files_modes(trail: Path, cli: Cli, mode: int, state: str) -> None:
    (trail / "trail.db").chmod(mode)
    check = outcome(cli, "files", state == "fail")
    assert (check["state"], check["remedy"]) == (state, f"chmod 600 {trail / 'trail.db'}")


def test_files_with_the_same_trouble_share_a_line(trail: Path, cli: Cli) -> None:
    for name in [f"file {number}" for number in range(9)]:
        (trail / name).touch()
        (trail / name).chmod(0o644)
    check = outcome(cli, "files")
    assert check["message"] == (
        "each of 9 files has mode 0644: others can read it (file 0, file 1, file 2 and 6 more)"
    )
    subprocess.run(["sh", "-c", check["remedy"]], check=True)
    assert outcome(cli, "files")["state"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user(trail: Path, cli: Cli) -> None:
    os.chown(trail / "lock", 12_345, 12_345)
    assert outcome(cli, "files", 1)["message"] == "lock belongs to 12345, the directory to root"
    os.chown(trail / "lock", 0, 0)
    os.chown(trail, 12_345, 12_345)
    assert "this is root, the trail belongs to 12345" in outcome(cli, "user", 1)["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_cannot_be_written(reachable: Path) -> None:
    for path in (reachable, *reachable.iterdir()):
        os.chown(path, 65_534, 65_534)
    reachable.chmod(0o500)
    done = as_nobody("doctor", "--json", "--dir", str(reachable))
    assert done.returncode == 1, done.stderr
    (check,) = [
        item for item in json.loads(done.stdout)["checks"] if item["name"] in {"directory", "user"}
    ]
    assert check["state"] == "fail"
    assert "mode 0500, of nobody: it cannot be written, so no record" in check["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("what", ["trail.db", "trail.db-wal", ".", ".."])
def test_what_another_user_may_not_read_is_one_failure(reachable: Path, what: str) -> None:
    """What is not allowed is no damage: it needs another user, not another trail."""
    for path in (reachable, *reachable.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (reachable / "signing.key").chmod(0o600)
    place = (reachable / what).resolve()
    place.chmod(0o700 if place.is_dir() else 0o600)
    done = as_nobody("doctor", "--json", "--dir", str(reachable))
    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout)["checks"]
    failing = [check for check in checks if check["state"] == "fail"]
    assert len(failing) == 1, failing
    (failed,) = failing
    mode = "0700" if place.is_dir() else "0600"
    assert failed["name"] == "user"
    assert failed["message"].startswith(f"{place} (mode {mode}, of root) cannot be read by nobody")
    assert failed["remedy"].startswith(f"sudo -u root otel-audit doctor --dir {reachable}; ")
    (trail,) = (check for check in checks if check["name"] == "trail")
    assert trail["message"] == f"not looked at: {place} is closed to this user"
    assert not any(raw in done.stdout for raw in ("Errno", "cannot be checked", "new-origin"))


def test_a_user_without_a_name(tmp_path: Path) -> None:
    said = as_user(4_000_000, "doctor", tmp_path / "a trail")
    assert said == f"sudo -u '#4000000' otel-audit doctor --dir '{tmp_path}/a trail'"


def test_file_systems(trail: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subject = Subject(Settings.from_env({}, directory=trail))
    mounts = tmp_path / "mounts"
    for kind, state in (("nfs4", "fail"), ("tmpfs", "warn"), ("xfs", "ok")):
        mounts.write_text(f"1 1 0:1 / {trail} rw - {kind} x rw\n", encoding="utf-8")
        monkeypatch.setattr("otel_audit.trail.filesystem._MOUNTS", str(mounts))
        (check,) = place.file_system(subject)
        assert check.state == state


def test_little_space(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(Settings.from_env({}, directory=trail))
    (check,) = place.space(subject)
    assert re.search(r"; the trail has [\d.]+ KiB and a log of 8\.\d MiB$", check.message)
    (trail / "trail.db-wal").unlink()
    (check,) = place.space(subject)
    assert re.search(r"; the trail has [\d.]+ KiB$", check.message)
    (trail / "trail.db").unlink()
    (check,) = place.space(subject)
    assert "the trail has" not in check.message
    monkeypatch.setattr(filesystem, "TIGHT", 1 << 60)
    assert [check.state for check in place.space(subject)] == ["warn"]
    monkeypatch.setattr(place, "_FEW_FILES", 1 << 60)
    assert [check.state for check in place.space(subject)] == ["fail"]
    monkeypatch.setattr(filesystem, "FULL", 1 << 60)
    (check,) = place.space(subject)
    assert "about to be refused" in check.message
    monkeypatch.setattr(filesystem, "room", lambda _: (0, 1 << 30, None))
    (check,) = place.space(subject)
    assert "0 B free of 1.0 GiB" in check.message
    assert check.message.endswith(": there is no room, and records are refused")


def test_sizes_are_readable() -> None:
    sizes = [place._size(number) for number in (5, 5 << 10, 5 << 20, 5 << 30, 5 << 40)]
    assert sizes == ["5 B", "5.0 KiB", "5.0 MiB", "5.0 GiB", "5.0 TiB"]


# The trail


def test_a_newer_trail(trail: Path, cli: Cli) -> None:
    with sqlite3.connect(trail / "trail.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    check = outcome(cli, "trail", 1)
    assert "has schema version 99" in check["message"]
    assert "new-origin" not in check["remedy"]


def test_a_trail_with_an_index_of_somebody_elses(trail: Path, cli: Cli) -> None:
    changed(trail, "CREATE INDEX innocent ON leaf (committed_unix_nano)")
    check = outcome(cli, "trail", 1)
    assert "there is 'index' 'innocent' on 'leaf', which is none of a trail's" in check["message"]


def test_a_damaged_trail(trail: Path, cli: Cli) -> None:
    with swollen(trail).open("r+b") as file:
        file.seek(100)
        file.write(b"rubbish" * 500)
    check = outcome(cli, "trail", 1)
    assert "cannot be read" in check["message"]
    assert "otel-audit new-origin" in check["remedy"]


@pytest.mark.parametrize("text", [b"hello\n", b"rubbish" * 1_000, b""])
def test_a_file_that_is_no_trail(trail: Path, cli: Cli, text: bytes) -> None:
    """It is no evidence that somebody damaged: the right one may be somewhere."""
    (trail / "trail.db").write_bytes(text)
    (trail / "trail.db-wal").unlink()
    check = outcome(cli, "trail", 1)
    assert re.search("is no database, and so no trail|but not an audit trail", check["message"])
    assert check["remedy"] == "put the right file in its place, from the backup, and keep this one"


def swollen(trail: Path) -> Path:
    """Give the trail more records, a complete tile among them, and empty its log."""
    record(trail, 406)
    database = sqlite3.connect(trail / "trail.db")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return trail / "trail.db"


def changed(trail: Path, statement: str) -> None:
    database = sqlite3.connect(trail / "trail.db")
    with database:
        database.execute(statement)
    database.close()


def test_a_part_of_the_trail_is_read(trail: Path, cli: Cli) -> None:
    swollen(trail)
    check = outcome(cli, "trail")
    assert re.search(r"418 records, the newest at .*; \d+ were read and fit", check["message"])
    assert check["message"].endswith("; all else: otel-audit verify")


def test_one_record_is_told_as_one(directory: Path, fresh: Cli) -> None:
    record(directory, 1)
    said = outcome(fresh, "trail")["message"]
    assert ": 1 record, the newest at " in said
    assert "; 1 was read and fits its hash; all else" in said


def test_pages_that_were_overwritten(trail: Path, cli: Cli) -> None:
    path = swollen(trail)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 - 50_000)
        file.write(b"\xa5" * 100_000)
    checks = {check["name"]: check for check in report(cli, 1)["checks"]}
    assert checks["trail"]["state"] == "fail"
    assert "418 records, but not all can be read: " in checks["trail"]["message"]
    assert "malformed" in checks["trail"]["message"]
    assert checks["trail"]["remedy"] == "keep everything; otel-audit verify says what else"
    assert not any("cannot be checked" in check["message"] for check in checks.values())


def test_last_records_that_were_removed(trail: Path, cli: Cli) -> None:
    swollen(trail)
    changed(trail, "DELETE FROM leaf WHERE seq > 400")
    checks = {check["name"]: check for check in report(cli, 1)["checks"]}
    assert checks["trail"]["message"].endswith("records 401 to 417, the last ones, are missing")
    assert checks["signed"]["state"] == "fail"
    assert "its own check says" in checks["signed"]["message"]
    assert "ProofError" not in str(checks)
    changed(trail, "DELETE FROM leaf")
    assert "records 0 to 417, the" in outcome(cli, "trail", 1)["message"]
    assert cli("new-origin", "--yes", "--reason", "a test").code == 0


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM leaf WHERE seq = 417", "the last one, record 417, is missing"),
        ("DELETE FROM leaf WHERE seq BETWEEN 200 AND 209", "are missing, the first of them record 20"),
        ("DELETE FROM leaf WHERE seq = 3", "records that were looked for is missing"),
        ("UPDATE leaf SET record = x'7b7d' WHERE seq = 3", "record 3 does not fit its hash"),
        ("UPDATE leaf SET record = 'text' WHERE seq = 3", "not all can be read: "),
        ("UPDATE tile SET hashes = zeroblob(8192) WHERE level = 0", "tile 0/0 does not fit the tree"),
        ("UPDATE tree SET edge = zeroblob(length(edge))", "do not lead to the tree that it states"),
        ("UPDATE tree SET size = 1 << 40", "records 418 to 1099511627775, the last ones, are missing"),
        ("DELETE FROM tree", "cannot be read: "),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(trail: Path, cli: Cli, statement: str, said: str) -> None:
    swollen(trail)
    changed(trail, statement)
    check = outcome(cli, "trail", 1)
    assert said in check["message"]
    assert check["remedy"].startswith("keep everything; otel-audit verify")


def test_a_part_of_the_database_that_another_check_needs(trail: Path, cli: Cli) -> None:
    changed(trail, "DROP TABLE checkpoint")
    check = outcome(cli, "checkpoint", 1)
    assert check["message"].startswith("a part of the database that this needs cannot be read: ")


def test_what_was_signed_is_compared_by_hashes_and_says_so(trail: Path, cli: Cli) -> None:
    changed(trail, "UPDATE leaf SET record = x'7b7d' WHERE seq = 3")
    check = outcome(cli, "signed", 1)
    assert check["state"] == "ok"
    assert check["message"] == (
        "12 records at last, whose hashes the trail has; whether all records fit them: "
        "otel-audit verify"
    )


def test_a_trail_that_went_missing(trail: Path, cli: Cli) -> None:
    (trail / "trail.db").unlink()
    check = outcome(cli, "trail", 1)
    assert "signing.key and signed are there" in check["message"]
    (trail / "signing.key").unlink()
    assert "but signed is there: it was" in outcome(cli, "trail", 1)["message"]


def test_an_older_copy(trail: Path, cli: Cli) -> None:
    older = trail.parent / "older"
    shutil.copytree(trail, older)
    record(trail, 3)
    shutil.copy2(trail / "signed", older / "signed")
    shutil.rmtree(trail)
    older.rename(trail)
    assert outcome(cli, "signed", 1)["message"].startswith("it has 12 records, but 15 were signed")


def test_a_memory_of_other_records(trail: Path, cli: Cli) -> None:
    note = (trail / "signed").read_text("utf-8")
    root = note.splitlines()[2]
    (trail / "signed").write_text(note.replace(root, f"A{root[1:-5]}AAAA="), encoding="utf-8")
    assert "are not those that were signed" in outcome(cli, "signed", 1)["message"]
    (trail / "signed").write_text("rubbish", encoding="utf-8")
    assert "is damaged" in outcome(cli, "signed", 1)["message"]


def test_earlier_trails_are_mentioned(cli: Cli) -> None:
    cli("new-origin", "--yes", "--reason", "a test")
    assert outcome(cli, "trail")["message"].endswith("; 1 earlier trail in previous/")


# The key


def test_the_public_key_is_shown(trail: Path, cli: Cli) -> None:
    check = outcome(cli, "signing key")
    assert f"{trail / 'signing.key'} (mode 0600)" in check["message"]
    assert cli("keys").out.split()[0] in check["message"]


def test_an_exposed_key(trail: Path, cli: Cli) -> None:
    (trail / "signing.key").chmod(0o644)
    check = outcome(cli, "signing key", 1)
    assert "0644" in check["message"]
    assert check["remedy"].startswith("run chmod 600")


def test_a_lost_key(trail: Path, cli: Cli) -> None:
    (trail / "signing.key").unlink()
    check = outcome(cli, "signing key", 1)
    assert "is missing, but the trail was signed with it" in check["message"]


def test_a_damaged_key(trail: Path, cli: Cli) -> None:
    (trail / "signing.key").write_text("rubbish", encoding="utf-8")
    check = outcome(cli, "signing key", 1)
    assert check["message"].endswith("+<base64>")
    assert check["remedy"].startswith("put back the key from your backup")


def test_foreign_keys(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TrailKeys.generate("example.org/other")
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY", other.to_text())
    check = outcome(cli, "signing key", 1)
    assert check["message"].startswith("OTEL_AUDIT_SIGNING_KEY belongs to example.org/other")
    origin = cli("keys").out.split("+")[0]
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY", TrailKeys.generate(origin).to_text())
    assert "the trail was begun with" in outcome(cli, "signing key", 1)["message"]


def test_a_key_file_elsewhere(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = (trail / "signing.key").rename(tmp_path / "hub.key")
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY_FILE", str(path))
    assert outcome(cli, "signing key")["message"].startswith(f"{path} (mode 0600); public: ")


def test_a_key_that_only_its_owner_can_read(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> TrailKeys:
        raise PermissionError

    monkeypatch.setattr(examined, "_load", refuse)
    (check,) = examined.key(Subject(Settings.from_env({}, directory=trail)))
    assert check.state == "warn"


def test_a_trail_without_keys_yet(directory: Path, fresh: Cli) -> None:
    Trail.open(directory).close()
    (directory / "signing.key").unlink()
    with sqlite3.connect(directory / "trail.db") as database:
        database.execute("DELETE FROM meta WHERE key LIKE '%_key'")
    database.close()
    assert outcome(fresh, "signing key")["message"].endswith("signing.key is made on first use")


# Checkpoint and clock


def test_records_that_wait_for_a_checkpoint(directory: Path) -> None:
    trail = Trail.open(directory)
    trail.store.append([b"{}"] * 2, {})
    trail.close()
    subject = examined.subject_of(Settings.from_env({}, directory=directory))
    assert subject.reader is not None
    (fresh,) = examined.checkpoint(subject)
    assert (fresh.state, fresh.message) == ("ok", "none yet; 2 records after it")
    later = Subject(subject.settings, reader=subject.reader, now=subject.now + 3_600 * SECOND)
    (late,) = examined.checkpoint(later)
    assert late.state == "warn"
    assert (
        late.message
        == "none yet; 2 records after it, the first waiting for 60 min: no agent signs them"
    )
    (agent,) = processes.agent(later)
    assert (agent.state, agent.remedy) == ("warn", "start the application")
    subject.reader.close()


def test_the_agent_that_is_wanted_is_named(directory: Path) -> None:
    trail = Trail.open(directory)
    trail.store.append([b"{}"], {})
    trail.close()
    subject = examined.subject_of(Settings.from_env({}, directory=directory, agent="off"))
    (agent,) = processes.agent(subject)
    assert agent.remedy == "start otel-audit agent"
    assert subject.reader is not None
    subject.reader.close()


def test_a_checkpoint_that_is_not_valid(trail: Path, cli: Cli) -> None:
    with sqlite3.connect(trail / "trail.db") as database:
        database.execute("UPDATE checkpoint SET note = replace(note, '12', '11')")
    database.close()
    assert "the newest is not valid" in outcome(cli, "checkpoint", 1)["message"]


def test_a_clock_that_went_back(trail: Path) -> None:
    subject = examined.subject_of(Settings.from_env({}, directory=trail))
    assert subject.reader is not None
    earlier = subject.now - 3_600 * SECOND
    (check,) = examined.clock(Subject(subject.settings, reader=subject.reader, now=earlier))
    assert check.state == "fail"
    assert "which is 60 min before the newest" in check.message
    subject.reader.close()


def test_a_clock_that_starts_anew() -> None:
    (check,) = examined.clock(Subject(Settings.from_env({}), now=0))
    assert check.state == "fail"
    assert "before this software was released" in check.message


@pytest.mark.parametrize(("answer", "state"), [(True, "ok"), (False, "warn")])
def test_what_the_kernel_knows_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
    answer: bool,  # noqa: FBT001 - a parameter of the table
    state: str,
) -> None:
    assert isinstance(examined._synchronised(), bool)
    monkeypatch.setattr(examined, "_synchronised", lambda: answer)
    (check,) = examined.clock(Subject(Settings.from_env({})))
    assert check.state == state


# Processes


def test_who_holds_the_lock_all_the_time(trail: Path, cli: Cli) -> None:
    lock = FileLock(trail / "lock")
    lock.acquire(1)
    check = outcome(cli, "lock")
    assert check["state"] == "warn"
    assert f"held by process {os.getpid()} (" in check["message"]
    lock.close()


def test_a_stopped_process_is_a_failure(
    trail: Path, cli: Cli, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    child = spawn("agent", "--dir", str(trail))
    assert child.stdout is not None
    child.stdout.readline()
    deadline = time.monotonic() + 10
    while "serves the trail" not in outcome(cli, "agent")["message"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert outcome(cli, "agent")["message"] == f"process {child.pid} (python) serves the trail"
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)  # until it stands still
    check = outcome(cli, "agent", 1)
    assert check["remedy"].startswith(f"kill -CONT {child.pid}")
    child.send_signal(signal.SIGCONT)


def test_a_stopped_writer(trail: Path) -> None:
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(); sys.stdout.flush(); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(trail / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)  # until it stands still
        (check,) = processes.lock(Subject(Settings.from_env({}, directory=trail)))
        child.kill()
    assert check.state == "fail"
    assert check.remedy == f"kill -CONT {child.pid}, or end it"


# The mirror


def mirrored(directory: Path, **overrides: object) -> Subject:
    settings = Settings.from_env(
        {}, directory=directory, mirror=directory.parent / "audit.log", **overrides
    )
    return examined.subject_of(settings)


def test_the_mirror(trail: Path, caplog: pytest.LogCaptureFixture) -> None:
    from otel_audit.readers.cursors import Cursors
    from otel_audit.readers.mirror import Mirror

    caplog.set_level(logging.CRITICAL)
    subject = mirrored(trail)
    assert subject.reader is not None
    path = subject.settings.mirror_file
    assert path is not None
    assert [check.message for check in processes.mirror(subject)] == [f"{path} does not exist"]

    cursors = Cursors(trail)
    mirror = Mirror(subject.reader, path, cursors)
    while mirror.step():
        pass
    mirror.close()
    assert [check.message for check in processes.mirror(subject)] == [
        f"{path}, mode 0640, 0 records behind"
    ]

    record(trail, 2)
    later = Subject(subject.settings, reader=subject.reader, now=time.time_ns() + 60 * SECOND)
    (check,) = processes.mirror(later)
    assert (check.state, check.message) == (
        "warn",
        f"{path}, mode 0640, 2 records behind, the first for 60 s",
    )
    assert check.remedy == "the agent writes it: see the agent's check, and its log"
    (agent,) = processes.agent(later)
    assert (agent.state, agent.message) == ("warn", "none at work, and records wait for the mirror")

    path.chmod(0o644)
    assert [check.state for check in processes.mirror(subject)] == ["warn", "ok"]
    path.chmod(0o640)
    cursors.set(mirror.name, 12, {"origin": "another"})
    (check,) = processes.mirror(subject)
    assert "the copy of another trail" in check.message
    assert [check.state for check in processes.agent(subject)] == ["ok"]
    cursors.close()

    (trail / "cursors.db").write_bytes(b"rubbish" * 1_000)
    (trail / "cursors.db-wal").unlink(missing_ok=True)
    (check,) = processes.mirror(subject)
    assert "how far it is cannot be read" in check.message
    assert [check.state for check in processes.agent(subject)] == ["ok"]
    subject.reader.close()


def test_a_mirror_that_another_environment_writes(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(cli, "mirror")["message"].endswith("(LOG_DIR or AUDIT_LOG_LOCAL_FILE)")
    for path in (trail / "audit.log", trail.parent / "audit.log"):
        path.touch(0o640)
        said = f", but {path} is there: AUDIT_LOG_LOCAL_FILE={path} has doctor look at it"
        assert outcome(cli, "mirror")["message"].endswith(said)
    monkeypatch.setenv("AUDIT_LOG_LOCAL_FILE", str(path))
    assert outcome(cli, "mirror")["message"].startswith(f"{path}, mode 0640, 12 records behind")


def test_a_mirror_of_a_trail_that_cannot_be_opened(directory: Path) -> None:
    subject = mirrored(directory)
    (directory.parent / "audit.log").touch(0o640)
    assert list(processes.mirror(subject)) == []


# Whatever happens


def test_a_check_that_raises_keeps_no_other_from_being_made() -> None:
    subject = Subject(Settings.from_env({}))

    def broken(_: Subject) -> list[Any]:
        message = "no idea"
        raise RuntimeError(message)

    checks = list(examine(subject, [("odd", broken), ("settings", setup.settings)]))
    assert [(check.name, check.state) for check in checks] == [("odd", "fail"), ("settings", "ok")]
    assert checks[0].message == "cannot be checked: RuntimeError: no idea"


def test_the_summary_counts(cli: Cli, trail: Path) -> None:
    assert cli("doctor").out.splitlines()[-1] in ("All is well", "Nothing failed, 1 warning")
    (trail / "signing.key").unlink()
    assert cli("doctor", code=1).out.splitlines()[-1].startswith("1 failed, ")
