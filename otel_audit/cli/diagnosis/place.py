"""Where the trail is: directory, files, file system, space."""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from otel_audit.cli.access import account, as_user, described
from otel_audit.cli.diagnosis.check import Check, fail, ok, warn
from otel_audit.errors import TrailFileSystemError
from otel_audit.trail import filesystem
from otel_audit.trail.layout import DATABASE, KEY, MEMORY
from otel_audit.trail.nearby import nearby

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from otel_audit.cli.diagnosis.check import Subject

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_PUBLIC: Final = frozenset({MEMORY})
"""Files that hold nothing but signed notes, which are for everybody."""

_NO_ROOM: Final = 1 << 20
_FEW_FILES: Final = 100
_NAMED: Final = 3
"""Files that are named; the remedy has all of them."""


def directory(subject: Subject) -> Iterator[Check]:
    """Whether the directory is there, private, and ours to write."""
    path = subject.directory
    if subject.closed is not None:
        yield _closed(subject.closed, path)
        if subject.closed in path.absolute().parents:
            return
    if not path.is_dir():
        yield _absent(subject)
        return
    if not _is_of_trail(subject):
        yield ok("directory", f"{path} is there, and holds no trail")
        return
    yield _private(path, writable=subject.closed is not None or _is_writable(path))
    if subject.closed is None and not _is_ours(path):
        yield warn(
            "user",
            f"this is {account(os.geteuid())}, the trail belongs to {_owner(path)}",
            f"nothing has to be done to read it; commands that write run as {_owner(path)}",
        )


def _absent(subject: Subject) -> Check:
    path = subject.directory
    if path.exists():
        return fail("directory", f"{path} is not a directory", "set OTEL_AUDIT_DIR to another")
    if subject.named:
        return fail("directory", f"{path} does not exist", "name the trail's with --dir")
    return warn(
        "directory",
        f"{path} does not exist",
        "it is made on first use; if a trail should be there, name it with --dir",
    )


def _is_of_trail(subject: Subject) -> bool:
    """Whether a trail is in the directory, or may be made there; else it is none of our business."""
    path = subject.directory
    if subject.closed or any((path / name).exists() for name in (DATABASE, KEY, MEMORY)):
        return True
    return not subject.named and not nearby(path)


def _private(path: Path, *, writable: bool) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode)
    shown = f"{path}, mode {mode:04o}, of {_owner(path)}"
    if not writable:
        return fail(
            "directory",
            f"{shown}: it cannot be written, so no record can be stored",
            "make it writable for its owner, and its file system, if that is mounted read-only",
        )
    if mode & _OTHERS_WRITE:
        return fail("directory", f"{shown}: others can replace the trail", f"chmod 700 {path}")
    if mode & _OTHERS:
        return warn("directory", f"{shown}: others can look into it", f"chmod 700 {path}")
    return ok("directory", shown)


def _closed(barrier: Path, path: Path) -> Check:
    me = account(os.geteuid())
    return fail(
        "user",
        f"{described(barrier)} cannot be read by {me}, so little can be checked",
        f"{as_user(barrier.stat().st_uid, 'doctor', path)}; or chown it, if it should be {me}'s",
    )


def _is_ours(path: Path) -> bool:
    return path.stat().st_uid == os.geteuid()


def _owner(path: Path) -> str:
    return account(path.stat().st_uid)


def _is_writable(path: Path) -> bool:
    """Whether its owner can write it; for another user's trail that cannot be told."""
    return not _is_ours(path) or os.access(path, os.W_OK | os.X_OK)


def files(subject: Subject) -> Iterator[Check]:
    """Whether every file of the trail belongs to one user and is closed to others."""
    path = subject.directory
    if not path.is_dir() or not _is_of_trail(subject):
        return
    owner = path.stat().st_uid
    found = sorted(item for item in path.iterdir() if item.is_file())
    troubles: dict[_Trouble, list[Path]] = {}
    for item in found:
        for trouble in _file_troubles(item, owner):
            troubles.setdefault(trouble, []).append(item)
    for trouble, items in troubles.items():
        yield Check("files", trouble.state, _said(trouble, items), _remedy(trouble, items))
    if found and not troubles:
        yield ok("files", f"{len(found)} files, all of {account(owner)} and closed to others")


class _Trouble(NamedTuple):
    """What is wrong with a file, and how it is mended; files with the same share a line."""

    state: Literal["warn", "fail"]
    is_so: str
    command: str


def _file_troubles(path: Path, owner: int) -> Iterator[_Trouble]:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != owner:
        whose = f"belongs to {account(status.st_uid)}, the directory to {account(owner)}"
        yield _Trouble("fail", whose, f"chown {account(owner)}")
    shown = f"has mode {mode:04o}: others can"
    if mode & _OTHERS_WRITE:
        yield _Trouble("fail", f"{shown} change it", "chmod 600")
    elif mode & _OTHERS and path.name not in _PUBLIC and not path.name.endswith(".log"):
        yield _Trouble("warn", f"{shown} read it", "chmod 600")


def _said(trouble: _Trouble, items: Sequence[Path]) -> str:
    if len(items) == 1:
        return f"{items[0].name} {trouble.is_so}"
    names = [item.name for item in items]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"each of {len(names)} files {trouble.is_so} ({', '.join(names[:_NAMED])}{more})"


def _remedy(trouble: _Trouble, items: Sequence[Path]) -> str:
    if len(items) == 1:
        return f"{trouble.command} {items[0]}"
    names = " ".join(shlex.quote(item.name) for item in items)
    return f"cd {shlex.quote(str(items[0].parent))} && {trouble.command} {names}"


def file_system(subject: Subject) -> Iterator[Check]:
    """Whether the file system keeps what it says it has written."""
    path = _existing(subject.directory)
    kind = filesystem.type_of(path) or "an unknown file system"
    try:
        warning = filesystem.check(path)
    except TrailFileSystemError as error:
        message, _, remedy = str(error).partition("; ")
        yield fail("file system", message, remedy)
        return
    if warning is not None:
        yield warn("file system", warning, "set OTEL_AUDIT_DIR to a disk that stays")
    else:
        yield ok("file system", kind)


def space(subject: Subject) -> Iterator[Check]:
    """Whether there is room for more records."""
    free, total, files = filesystem.room(_existing(subject.directory))
    shown = f"{_size(free)} free of {_size(total)}{_used(subject.directory)}"
    more = "make room, or move the trail (OTEL_AUDIT_DIR)"
    if free < _NO_ROOM:
        # What is not used of the log, which is made in advance, is all that there is.
        yield fail("disk space", f"{shown}: there is no room, and records are refused", more)
    elif free < filesystem.FULL:
        yield fail("disk space", f"{shown}: records are about to be refused", more)
    elif files is not None and files < _FEW_FILES:
        yield fail("disk space", f"{shown}, but room for {files} more files only", more)
    elif free < filesystem.TIGHT:
        yield warn("disk space", shown, more)
    else:
        yield ok("disk space", shown)


def _used(directory: Path) -> str:
    """Return what the trail takes; the log is made in advance, and no measure of what is recorded."""
    try:
        trail = (directory / DATABASE).stat().st_size
        log = sum(path.stat().st_size for path in directory.glob(f"{DATABASE}-wal"))
    except OSError:
        return ""
    return f"; the trail has {_size(trail)}" + (f" and a log of {_size(log)}" if log else "")


def _existing(path: Path) -> Path:
    """Return the nearest directory that is there: where the trail would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1_024:  # noqa: PLR2004 - the step between units
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1_024
    return f"{number:.1f} TiB"
