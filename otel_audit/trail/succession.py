"""Ends a trail that cannot go on, and puts a new one under a new origin in its place.

Promises: nothing of the old trail is deleted or changed, it stays whole under
``previous/``; no other process uses the trail meanwhile (the writers' lock and
the agent's lease are held, and a process that has the database open is
noticed); a crash at any moment leaves the old trail in its place, or the new
one, or a directory that every writer refuses until `succeed` is called again.
A tree is never signed twice at one size, because the new trail has another
origin and another key.

What the first record of the new trail says, and how it is made, is left to the
caller.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.errors import (
    OtelAuditError,
    ProofError,
    TrailError,
    TrailLockedError,
    TrailMismatchError,
    TrailVersionError,
)
from otel_audit.trail import durable
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.layout import (
    AGENT_LOCK,
    CURSORS,
    DATABASE,
    INDEX,
    KEY,
    LOCK,
    MEMORY,
    NEXT,
    PREVIOUS,
    whole,
)
from otel_audit.trail.lock import FairFileLock, FileLock
from otel_audit.trail.occupants import holders, name_of
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_OLD: Final = (*whole(DATABASE), *whole(CURSORS), *whole(INDEX), KEY, MEMORY)
_, _WAL, _SHARED_MEMORY = whole(DATABASE)
_USER_BYTE: Final = 128
"""Byte of the shared memory's file that SQLite locks while a database is open (os_unix.c)."""

_MARKER: Final = "kept"
"""File in the new trail that names the directory in which the old one is safe."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What is known of the trail that ends.

    ``checkpoint`` is the note of the largest tree that was signed, whether the
    database or the file ``signed`` has it; ``size`` and ``root`` (hex) are what
    the database states now. What cannot be read is None, and ``trouble`` says
    why.
    """

    origin: str | None
    size: int | None
    root: str | None
    checkpoint: str | None
    trouble: str | None = None


class Succession(NamedTuple):
    """Where the old trail is kept, and what is known of it."""

    kept: Path
    predecessor: Predecessor


def look(directory: Path) -> Predecessor:
    """Read what is known of the trail in ``directory``, however damaged it is.

    Raises `TrailError` when nothing is there that could be succeeded, and
    `TrailVersionError` when it is a newer version's.
    """
    signed = _remembered(directory)
    try:
        with TrailReader(directory) as reader:
            tree, stored = reader.tree(), reader.last_checkpoint()
            notes = [note for note in (signed, stored and stored.note) if note]
            return Predecessor(
                reader.origin, tree.size, tree.root.hex(), max(notes, key=_size_of, default=None)
            )
    except TrailVersionError:
        raise
    except UNREADABLE as error:
        if not _is_damage(error, directory):
            raise
        origin = read_checkpoint(signed).origin if signed else None
        there = (directory / DATABASE).exists()
        # The reader's own words would tell how to name another directory.
        trouble = str(error) if there else f"{DATABASE} is missing"
        return Predecessor(origin, None, None, signed, trouble)


def succeed(
    directory: Path,
    begin: Callable[[Path, Predecessor], None],
    *,
    timeout: float = 10.0,
) -> Succession:
    """Keep the old trail under ``previous/`` and put a new one in its place.

    ``begin`` makes the new trail in the directory that it is given, with its
    first record and a checkpoint, and closes it; it is not called when an
    earlier attempt that was interrupted only has to be finished. ``timeout`` is
    how long to wait for a writer, in seconds. Raises `TrailLockedError` when
    another process uses the trail, and other kinds of `TrailError`; the old
    trail is then where it was.
    """
    look(directory)
    scratch = directory / NEXT
    with _alone(directory, timeout):
        kept = _interrupted(directory)
        if kept is None:
            _tidy(directory)
            predecessor = look(directory)
            with _unused(directory):
                _begin(scratch, predecessor, begin)
                kept = _keep(directory, predecessor)
                _mark(scratch, kept)
                _remove_old(directory)
        else:
            predecessor = look(kept)
            _remove_old(directory)
        _place(scratch, directory, kept)
    return Succession(kept, predecessor)


def _remembered(directory: Path) -> str | None:
    """Return the note in the file ``signed``, if it is one."""
    try:
        text = (directory / MEMORY).read_text("utf-8")
        read_checkpoint(text)
    except (OSError, ValueError):
        return None
    return text


def _size_of(note: str) -> int:
    try:
        return read_checkpoint(note).size
    except ProofError:
        return -1


def _is_damage(error: Exception, directory: Path) -> bool:
    """Tell a trail that is damaged or gone from a directory that never had one."""
    if (directory / DATABASE).is_file():
        # A database that opens, but is no trail, is somebody else's.
        return not isinstance(error, TrailError) or error.__cause__ is not None
    return any((directory / name).exists() for name in (KEY, MEMORY))


@contextmanager
def _alone(directory: Path, timeout: float) -> Iterator[None]:
    """Hold the agent's lease and the writers' lock."""
    lease, lock = FileLock(directory / AGENT_LOCK), FairFileLock(directory / LOCK)
    try:
        if not lease.try_acquire():
            raise TrailLockedError(_in_use(directory, holders(lease.path)))
        with lock.held(timeout):
            yield
    except OSError as error:
        if isinstance(error, OtelAuditError):
            raise
        message = f"a new origin cannot be begun in {directory}: {error}; the old trail is kept"
        raise TrailError(message) from error
    finally:
        lease.close()
        lock.close()


@contextmanager
def _unused(directory: Path) -> Iterator[None]:
    """Make sure that no process has the database open, and keep it so.

    To close any descriptor of the shared memory's file lets go of this
    process's POSIX locks on it, so nothing may open the old trail in here.
    """
    path = directory / _SHARED_MEMORY
    with ExitStack() as stack:
        if path.exists():
            file = stack.enter_context(path.open("r+b"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _USER_BYTE)
            except OSError as error:
                raise TrailLockedError(_in_use(directory, holders(path))) from error
        yield


def _in_use(directory: Path, pids: tuple[int, ...]) -> str:
    names = ", ".join(name_of(pid) for pid in pids if pid != os.getpid()) or "another process"
    return f"the trail in {directory} is in use by {names}: stop it, then try again"


def _interrupted(directory: Path) -> Path | None:
    """Return where the old trail is kept, if only the new one is not in its place yet."""
    try:
        name = (directory / NEXT / _MARKER).read_text("utf-8")
    except FileNotFoundError:
        return None
    return None if (directory / DATABASE).exists() else directory / PREVIOUS / name


def _tidy(directory: Path) -> None:
    """Take away what an attempt left that was interrupted before anything was moved."""
    previous = directory / PREVIOUS
    for kept in previous.iterdir() if previous.exists() else ():
        for name in _OLD:
            if _same(kept / name, directory / name):
                (kept / name).unlink()
        if not any(kept.iterdir()):
            kept.rmdir()
    scratch = directory / NEXT
    if (scratch / DATABASE).exists():
        previous.mkdir(mode=0o700, exist_ok=True)
        scratch.rename(_free(previous / "unfinished"))
    elif scratch.exists():
        _drop(scratch)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _begin(
    scratch: Path, predecessor: Predecessor, begin: Callable[[Path, Predecessor], None]
) -> None:
    """Make the new trail, and make sure that it is another one."""
    scratch.mkdir(mode=0o700)
    begin(scratch, predecessor)
    with TrailReader(scratch) as reader:
        if reader.origin == predecessor.origin:
            message = (
                f"the new trail would be {reader.origin} again, which has been signed already: "
                "its signing key is given by a setting; give another key "
                "(OTEL_AUDIT_SIGNING_KEY, OTEL_AUDIT_SIGNING_KEY_FILE) or none"
            )
            raise TrailMismatchError(message)
        if reader.last_checkpoint() is None:
            message = f"the new trail in {scratch} has no checkpoint; the old one is kept"
            raise TrailError(message)


def _keep(directory: Path, predecessor: Predecessor) -> Path:
    """Give each old file a second name under ``previous/``."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    name = _NOT_IN_NAMES.sub("-", predecessor.origin or "unknown").strip("-.")
    previous = directory / PREVIOUS
    previous.mkdir(mode=0o700, exist_ok=True)
    kept = _free(previous / f"{name}-{now}")
    kept.mkdir(mode=0o700)
    for old in _OLD:
        if (directory / old).exists():
            os.link(directory / old, kept / old)
    for path in (kept, previous, directory):
        durable.sync(path)
    return kept


def _free(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _mark(scratch: Path, kept: Path) -> None:
    """Remember durably that every old file has its second name."""
    durable.write(scratch / _MARKER, kept.name.encode(), replace=True)


def _remove_old(directory: Path) -> None:
    """Take the old names away, all of which have another one by now.

    The key and the memory of what was signed stay until new ones replace them:
    beside them, no writer begins a trail where the database is missing.
    """
    for name in _OLD:
        if name not in (KEY, MEMORY):
            (directory / name).unlink(missing_ok=True)
    durable.sync(directory)


def _place(scratch: Path, directory: Path, kept: Path) -> None:
    """Move the new trail into its place, the database last. May be repeated."""
    for name in (MEMORY, KEY, _WAL, DATABASE):
        if (scratch / name).exists():
            (scratch / name).replace(directory / name)
        elif name == KEY and _same(directory / name, kept / name):
            # The new trail's key is kept elsewhere.
            (directory / name).unlink()
    durable.sync(directory)
    _drop(scratch)


def _drop(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
