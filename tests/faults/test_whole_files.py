"""Every file that is written whole: a sync that fails costs neither the old one nor space."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_audit.api.sessions import session_salt
from otel_audit.cli.app import run
from otel_audit.errors import TrailError
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.trail import Trail
from otel_audit.web.tokens import TokenFile

if TYPE_CHECKING:
    from collections.abc import Callable


def write_key(directory: Path) -> Path:
    path = directory / "signing.key"
    TrailKeys.load_or_create(path, "test/origin")
    return path


def write_salt(directory: Path) -> Path:
    session_salt(directory)
    return directory / "session.salt"


def write_tokens(directory: Path) -> Path:
    tokens = TokenFile(directory / "tokens.json")
    tokens.create("ann", ["read"])
    return tokens.path


def write_memory(directory: Path) -> Path:
    trail = Trail.open(directory)
    try:
        trail.store.append([b"{}"], {})
        trail.signer.sign()
    finally:
        trail.close()
    return directory / "signed"


def write_checkpoint(directory: Path) -> Path:
    path = directory / "kept"
    command = ("checkpoint", "--dir", str(directory.parent / "trail"), "-o", str(path))
    assert run(command) in (0, 2)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_memory(tmp_path / "trail")
    path = tmp_path / "place"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("write", "replaces"),
    [
        (write_key, False),
        (write_salt, False),
        (write_tokens, True),
        (write_memory, True),
        (write_checkpoint, True),
    ],
)
@pytest.mark.parametrize("directories", [False, True])
def test_a_sync_that_fails(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Path],
    *,
    replaces: bool,
    directories: bool,
) -> None:
    path = write(directory)
    before = path.read_bytes()
    there = set(directory.iterdir())
    if not replaces:
        path.unlink()
    fsync, failed = os.fsync, []

    def fail(descriptor: int) -> None:
        # The log of the database is the store's business.
        synced = Path(f"/proc/self/fd/{descriptor}").readlink()
        if synced.is_dir() is directories and "trail.db" not in synced.name:
            failed.append(synced)
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with suppress(OSError, TrailError):
            write(directory)
    assert len(failed) == 1
    assert set(directory.iterdir()) <= there
    if not directories:
        assert (path.read_bytes() == before) if replaces else (not path.exists())
    write(directory)
    assert path.exists()
