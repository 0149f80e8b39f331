"""`checkpoint` and `keys`."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from otel_audit import TrailReader
from otel_audit.trail.checkpoint import open_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.note import Verifier
from otel_audit.trail.trail import Trail
from tests.cli.conftest import Cli, record

if TYPE_CHECKING:
    from pathlib import Path


def test_the_newest_checkpoint_is_printed_as_it_is(cli: Cli) -> None:
    note = cli("checkpoint").out
    keys = [Verifier.parse(key) for key in cli("keys").out.split()]
    signed = open_checkpoint(note, keys)
    assert signed.checkpoint.size == 12
    assert signed.timestamp is not None


def test_as_json(cli: Cli) -> None:
    shown = json.loads(cli("checkpoint", "--json").out)
    assert list(shown) == ["origin", "size", "root", "note"]
    assert shown["size"] == 12
    assert shown["note"] == cli("checkpoint").out


def test_sign_signs_what_there_is(directory: Path, fresh: Cli) -> None:
    append(directory)
    assert "has no checkpoint yet" in fresh("checkpoint", code=4).err
    assert json.loads(fresh("checkpoint", "--sign", "--json").out)["size"] == 1


def test_a_misspelt_directory_does_not_become_a_trail(directory: Path, fresh: Cli) -> None:
    fresh("checkpoint", "--sign", code=3)
    assert not directory.exists()


def test_a_kept_checkpoint_is_replaced_by_one_that_continues_it(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    assert cli("checkpoint", "-o", str(kept)).out == ""
    record(trail, 2)
    cli("checkpoint", "-o", str(kept))
    assert kept.read_text("utf-8") == cli("checkpoint").out
    assert [path.name for path in tmp_path.iterdir() if "kept" in path.name] == ["kept"]


def test_the_file_that_cannot_be_written_is_named(cli: Cli, tmp_path: Path) -> None:
    """Not the one that it was to be before it is whole."""
    path = tmp_path / "none" / "kept"
    err = cli("checkpoint", "-o", str(path), code=2).err
    assert err == f"otel-audit: {path} cannot be written: No such file or directory\n"


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_neither_read_nor_replaced(cli: Cli, tmp_path: Path, kind: str) -> None:
    """As root, a device such as /dev/null would be gone for everybody."""
    path = tmp_path / kind
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = path.stat()
    err = cli("checkpoint", "-o", str(path), code=2).err
    assert err == f"otel-audit: {path} is no file; without --output the checkpoint is printed\n"
    assert path.stat().st_ino == before.st_ino


def test_a_kept_checkpoint_that_contradicts_the_trail_stays(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    cli("checkpoint", "-o", str(kept))
    before = kept.read_bytes()
    trail.rename(tmp_path / "old")

    record(trail, 13)
    assert "is of another trail" in cli("checkpoint", "-o", str(kept), code=1).err

    with TrailReader(tmp_path / "old") as reader:
        origin = reader.origin
    trail.rename(tmp_path / "other")
    record(trail, 13, keys=TrailKeys.generate(origin))
    assert "has another root" in cli("checkpoint", "-o", str(kept), code=1).err

    trail.rename(tmp_path / "longer")
    record(trail, 3, keys=TrailKeys.generate(origin))
    err = cli("checkpoint", "-o", str(kept), code=1).err
    assert "covers 12 records, the newest of the trail only 3" in err
    assert kept.read_bytes() == before


def test_what_is_no_checkpoint_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("my notes\n", encoding="utf-8")
    assert "is no checkpoint" in cli("checkpoint", "-o", str(notes), code=2).err
    assert notes.read_text("utf-8") == "my notes\n"


def test_keys_are_two_lines_that_verify_takes(trail: Path, cli: Cli) -> None:
    shown = cli("keys")
    log, cosigner = map(Verifier.parse, shown.out.splitlines())
    assert cosigner.name == f"{log.name}/cosigner"
    assert shown.err == f"private: {trail / 'signing.key'}\n"


def test_private_keys_are_never_shown(trail: Path, cli: Cli) -> None:
    private = (trail / "signing.key").read_text("utf-8").split()
    for arguments in (("keys",), ("keys", "--json"), ("doctor",), ("doctor", "--json")):
        shown = cli(*arguments)
        assert not any(key in shown.out + shown.err for key in private)
        assert "PRIVATE" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("variable", "where"),
    [("OTEL_AUDIT_SIGNING_KEY", "in OTEL_AUDIT_SIGNING_KEY"), ("", "not here ({} is missing)")],
)
def test_where_the_private_key_is(
    trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, where: str
) -> None:
    path = trail / "signing.key"
    if variable:
        monkeypatch.setenv(variable, path.read_text("utf-8"))
    path.unlink()
    shown = json.loads(cli("keys", "--json").out)
    assert list(shown) == ["origin", "public_keys", "private_key"]
    assert shown["private_key"] == where.format(path)


def test_a_trail_that_was_never_opened_for_signing_has_no_keys(directory: Path, fresh: Cli) -> None:
    append(directory)
    with sqlite3.connect(directory / "trail.db") as database:
        database.execute("DELETE FROM meta WHERE key LIKE '%_key'")
    database.close()
    assert "has no keys yet" in fresh("keys", code=4).err


def append(directory: Path) -> None:
    trail = Trail.open(directory)
    trail.store.append([b"{}"], {})
    trail.close()
