"""Whether a directory can keep the promises, its safe creation, and the room it has.

The trail needs working fsync, flock and shared memory between processes. A
network file system has none of them for certain, so it is refused; tmpfs and
overlay work but forget on restart, so there is a warning.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.errors import TrailFileSystemError
from otel_audit.settings import first_to_say, is_utf_8
from otel_audit.trail.durable import sync

if TYPE_CHECKING:
    from pathlib import Path

FULL: Final = 64 << 20
"""Free bytes below which records are about to be refused; what can be made anew leaves them alone."""
TIGHT: Final = 1 << 30
"""Free bytes below which somebody should make room."""

_MOUNTS: Final = "/proc/self/mountinfo"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""How the kernel writes a space, a tab, a newline and a backslash in a mount point."""

_REFUSED: Final = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre", "vboxsf")
_FORGETFUL: Final = {
    "tmpfs": "its contents are gone after a restart",
    "ramfs": "its contents are gone after a restart",
    "overlay": "a container's own layer is gone with the container; mount a volume",
}

_OTHERS: Final = 0o077
_WRITE: Final = 0o022

_logger = logging.getLogger("otel_audit.trail")


class Room(NamedTuple):
    """What a user without privileges may still use of a file system."""

    free: int
    """Bytes."""
    total: int
    """Bytes, used or not."""
    files: int | None
    """How many more can be made; None where there is no fixed number, as on btrfs."""


def room(path: str | os.PathLike[str]) -> Room:
    """Return the room where ``path`` is. Raises `OSError`."""
    facts = os.statvfs(path)
    return Room(
        facts.f_bavail * facts.f_frsize,
        facts.f_blocks * facts.f_frsize,
        facts.f_favail if facts.f_files else None,
    )


def type_of(directory: Path, mounts: str | None = None) -> str:
    """Name the type of the file system that holds ``directory`` ("" when unknown).

    ``mounts`` is the text of /proc/self/mountinfo (proc(5)).
    """
    if mounts is None:
        try:
            with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - a constant of the kernel
                mounts = file.read()
        except OSError:  # pragma: no cover - systems without /proc
            return ""
    target = os.path.realpath(directory)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields, separator, after = line.partition(" - ")
        if not separator:
            continue
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields.split()[4])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        # Later lines hide earlier ones at the same mount point.
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def check(directory: Path, mounts: str | None = None) -> str | None:
    """Refuse a network file system; return a warning for a forgetful one.

    Raises `TrailFileSystemError`.
    """
    kind = type_of(directory, mounts)
    if kind.startswith(_REFUSED):
        message = (
            f"{directory} is on {kind}, where fsync and locks between hosts cannot be relied "
            "on; set OTEL_AUDIT_DIR to a directory on a local disk (each host keeps a trail "
            "of its own)"
        )
        raise TrailFileSystemError(message)
    if kind in _FORGETFUL:
        return f"{directory} is on {kind}: {_FORGETFUL[kind]}"
    return None


def prepare(directory: Path) -> None:
    """Make the trail's directory (mode 0700) and make its name durable.

    One that is there, empty and this user's gets the mode too: a trail begins
    in it. Of any other that is open to others there is a warning. Raises
    `TrailFileSystemError` when it cannot be made or is unsuitable.
    """
    if not is_utf_8(str(directory)):
        message = (
            f"the trail cannot be in {str(directory)!r}, since SQLite opens only paths in UTF-8; "
            "set OTEL_AUDIT_DIR to another place"
        )
        raise TrailFileSystemError(message)
    warning = check(directory)
    try:
        _make(directory)
        mode = _closed(directory)
    except OSError as error:
        message = (
            f"the trail's directory {directory} cannot be made: {_why(error)}; create it "
            "for this user, or set OTEL_AUDIT_DIR to another place"
        )
        raise TrailFileSystemError(message) from error
    if mode & _OTHERS:
        how = "is writable by others" if mode & _WRITE else "can be looked into by others"
        text = f"{directory} {how} (mode {mode:04o}): chmod 700 it"
        if first_to_say(text):
            _logger.warning("%s", text)
    if warning is not None:
        _logger.warning("%s", warning)


def _closed(directory: Path) -> int:
    """Close the directory to others if that harms nobody, and return its mode."""
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    # Not with the sticky bit: that is a place for everybody, such as /tmp.
    ours = status.st_uid == os.geteuid() and not mode & stat.S_ISVTX
    if mode & _OTHERS and ours and not any(directory.iterdir()):
        with suppress(OSError):  # some file systems have no modes to change
            directory.chmod(0o700)
            return 0o700
    return mode


def _why(error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return f"{error.filename} is there, and is no directory"
    return error.strerror or str(error)


def _make(directory: Path, mode: int = 0o700) -> None:
    """Make the directory, and those that are missing above it, with names that are durable."""
    if directory.is_dir():
        return
    _make(directory.parent, 0o777)
    directory.mkdir(mode, exist_ok=True)
    sync(directory.parent)
