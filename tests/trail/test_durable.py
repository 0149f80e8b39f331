"""Files that are written whole: whatever goes wrong at whichever step."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from otel_audit.trail import durable
from tests.small_disk import mounted

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = b"old" * 1_000, b"new" * 100_000
STEPS = (
    (os, "open"),
    (os, "fchmod"),
    (os, "fdopen"),
    (os, "fsync"),
    (os, "link"),
    (Path, "replace"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def stop_at(number: int, patch: pytest.MonkeyPatch, how: Callable[[], NoReturn]) -> None:
    """Do ``how`` instead of the given one of the calls that `durable` makes."""
    calls = itertools.count()

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) == number:
                how()
            return real(*arguments, **options)

        return call

    for place, name in STEPS:
        patch.setattr(place, name, stopping(getattr(place, name)))


def write(path: Path, *, replace: bool) -> None:
    if replace:
        path.write_bytes(OLD)
    else:
        path.unlink(missing_ok=True)
    durable.write(path, NEW, replace=replace)


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_a_file_is_whole_and_private_whatever_the_umask(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        durable.write(path, NEW, replace=False)
    finally:
        os.umask(before)
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_public_file_gets_the_mode_that_the_umask_leaves(path: Path) -> None:
    before = os.umask(0o027)
    try:
        durable.write(path, NEW, replace=True, public=True)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_there_is_replaced_only_when_asked(path: Path) -> None:
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError) as caught:
        durable.write(path, NEW, replace=False)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == OLD
    with path.open("rb") as reading:
        durable.write(path, NEW, replace=True)
        assert reading.read() == OLD, "who reads the old one reads it to its end"
    assert path.read_bytes() == NEW
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("replace", [True, False])
def test_the_content_is_synced_before_the_name_and_then_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, replace: bool
) -> None:
    synced: list[tuple[str, bytes | None]] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, content(path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    write(path, replace=replace)
    assert synced == [("file", OLD if replace else None), ("directory", NEW)]


@pytest.mark.parametrize("how", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("replace", [True, False])
def test_an_error_at_any_step_leaves_the_old_file_or_the_new_one_and_no_other(
    path: Path, how: BaseException, *, replace: bool
) -> None:
    def fail() -> NoReturn:
        raise how

    found = []
    for number in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            stop_at(number, patch, fail)
            try:
                write(path, replace=replace)
                break
            except OSError as error:
                assert str(error) == f"[Errno 5] Input/output error: {str(path)!r}"  # noqa: PT017 - the last round raises nothing
            except KeyboardInterrupt:
                pass
        found.append(content(path))
        assert set(path.parent.iterdir()) <= {path}
    # Only what comes after the name was given can fail with the new file in its place.
    assert found == [OLD if replace else None] * 5 + [NEW] * 2


@pytest.mark.parametrize("replace", [True, False])
def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(
    path: Path, *, replace: bool
) -> None:
    found = []
    for number in itertools.count():
        child = os.fork()
        if child == 0:
            stop_at(number, pytest.MonkeyPatch(), kill)
            write(path, replace=replace)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        found.append(content(path))
    assert found == [OLD if replace else None] * 5 + [NEW] * 2
    write(path, replace=replace)
    assert path.read_bytes() == NEW


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m") as disk:
        path = disk / "kept"
        path.write_bytes(OLD)
        with pytest.raises(OSError, match=r"No space left on device: '.*/kept'"):
            durable.write(path, bytes(2 << 20), replace=True)
        assert path.read_bytes() == OLD
        assert list(disk.iterdir()) == [path]
        durable.write(path, NEW, replace=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="ONLY ROOT CAN GIVE FILES TO OTHERS: not tested")
@pytest.mark.parametrize("for_owner", [True, False])
def test_what_root_writes_belongs_to_the_directorys_owner_where_that_is_wanted(
    path: Path, *, for_owner: bool
) -> None:
    os.chown(path.parent, 65_534, 65_533)
    durable.write(path, NEW, replace=False, for_owner=for_owner)
    status = path.stat()
    assert (status.st_uid, status.st_gid) == ((65_534, 65_533) if for_owner else (0, 0))
    assert status.st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="ONLY ROOT CAN GIVE FILES TO OTHERS: not tested")
def test_root_without_the_right_to_give_files_away_writes_them(path: Path) -> None:
    """As in a container that was started with --cap-drop=CHOWN."""
    os.chown(path.parent, 65_534, 65_533)
    program = (
        "import pathlib, sys; from otel_audit.trail import durable; "
        "durable.write(pathlib.Path(sys.argv[1]), b'new', replace=True, for_owner=True)"
    )
    rights = ("setpriv", "--bounding-set=-chown", "--inh-caps=-chown")
    subprocess.run([*rights, sys.executable, "-c", program, str(path)], check=True)
    assert path.read_bytes() == b"new"


def test_a_directory_that_is_missing_is_told_by_the_files_name(path: Path) -> None:
    path = path / "none" / "kept"
    with pytest.raises(FileNotFoundError) as caught:
        durable.write(path, NEW, replace=True)
    assert caught.value.filename == str(path)
