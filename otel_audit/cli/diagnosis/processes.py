"""Who works on the trail: writers, the agent, the mirror."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from otel_audit.cli.diagnosis.check import Check, fail, ok, warn
from otel_audit.cli.output import count, span
from otel_audit.errors import TrailError
from otel_audit.readers import cursors
from otel_audit.readers.mirror import cursor_name
from otel_audit.readers.shipping.standing import standing
from otel_audit.trail.layout import AGENT_LOCK, CURSORS, LOCK
from otel_audit.trail.occupants import holders, is_stopped, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.cli.diagnosis.check import Subject
    from otel_audit.trail.reader import TrailReader

_LOOKS: Final = 5
_PAUSE: Final = 0.1
_SECOND: Final = 1_000_000_000
_LATE: Final = 10 * _SECOND


def lock(subject: Subject) -> Iterator[Check]:
    """Whether a process keeps the writers' lock: a commit holds it for a millisecond."""
    path = subject.directory / LOCK
    if not path.exists():
        return
    held = set(holders(path))
    for _ in range(_LOOKS):
        if not held:
            break
        time.sleep(_PAUSE)
        held &= set(holders(path))
    for pid in sorted(held):
        message = f"held by {name_of(pid)} all the time: no other process can commit"
        if is_stopped(pid):
            yield fail("lock", f"{message}; it is stopped", f"kill -CONT {pid}, or end it")
        else:
            yield warn("lock", message, "look what it waits for (a slow disk?), or end it")
    if not held:
        yield ok("lock", "free")


def agent(subject: Subject) -> Iterator[Check]:
    """Whether somebody signs checkpoints and writes the mirror."""
    reader = subject.reader
    if reader is None:
        return
    leaders = holders(subject.directory / AGENT_LOCK)
    for pid in leaders:
        if is_stopped(pid):
            message = f"{name_of(pid)} serves the trail, but it is stopped"
            yield fail("agent", message, f"kill -CONT {pid}, or end it: another one takes over")
        else:
            yield ok("agent", f"{name_of(pid)} serves the trail")
    if leaders:
        return
    awaited = ", ".join(_awaited(subject, reader))
    if not awaited:
        yield ok("agent", "none at work, and nothing waits for one")
        return
    how = "otel-audit agent" if subject.settings.agent == "off" else "the application"
    yield warn("agent", f"none at work, and records wait for {awaited}", f"start {how}")


def _awaited(subject: Subject, reader: TrailReader) -> Iterator[str]:
    """Name what an agent would do now; what cannot be read is told by the check that it belongs to."""
    size = reader.tree().size
    last = reader.last_checkpoint()
    if size != (last.size if last else 0):
        yield "a checkpoint"
    path = subject.settings.mirror_file
    if path is not None and path.exists():
        with suppress(TrailError):
            row = _row(subject.directory, path)
            if _is_of(row, reader) and size > (0 if row is None else row.position):
                yield "the mirror"
    for each in subject.settings.destinations:
        with suppress(TrailError):
            if standing(reader, each.name).waiting:
                yield f"the shipping to {each.name}"


def mirror(subject: Subject) -> Iterator[Check]:
    """Whether the JSON lines copy is there and follows."""
    path, reader = subject.settings.mirror_file, subject.reader
    if path is None:
        none = "none is configured here (LOG_DIR or AUDIT_LOG_LOCAL_FILE)"
        yield ok("mirror", none + _left(subject.directory))
        return
    if not path.exists():
        yield warn("mirror", f"{path} does not exist", "the application makes it when it starts")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    shown = f"{path}, mode {mode:04o}"
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        yield warn("mirror", f"{shown}: personal data for others to read", f"chmod 640 {path}")
    if reader is None:
        return
    try:
        row = _row(subject.directory, path)
    except TrailError as error:
        yield warn("mirror", f"{shown}; how far it is cannot be read: {error}", "run as its owner")
        return
    size = reader.tree().size
    behind = size - (0 if row is None else row.position)
    if not _is_of(row, reader):
        yield warn("mirror", f"{shown}; it is the copy of another trail", "start the application")
        return
    oldest = reader.leaf(size - behind) if behind > 0 else None
    if oldest is None or subject.now - oldest.committed_unix_nano <= _LATE:
        yield ok("mirror", f"{shown}, {count(max(0, behind), 'record')} behind")
        return
    since = span((subject.now - oldest.committed_unix_nano) / _SECOND)
    yield warn(
        "mirror",
        f"{shown}, {count(behind, 'record')} behind, the first for {since}",
        "the agent writes it: see the agent's check, and its log",
    )


def _is_of(row: cursors.Cursor | None, reader: TrailReader) -> bool:
    """Whether the mirror is this trail's, or may become it."""
    return row is None or row.state.get("origin") in (None, reader.origin)


def _left(directory: Path) -> str:
    """Return which mirror a service with other settings may write, where its file is there."""
    for place in (directory.absolute().parent, directory.absolute()):
        path = place / "audit.log"
        if os.access(path, os.F_OK):
            return f", but {path} is there: AUDIT_LOG_LOCAL_FILE={path} has doctor look at it"
    return ""


def _row(directory: Path, path: Path) -> cursors.Cursor | None:
    """Read the mirror's cursor. Raises `TrailError`."""
    if not (directory / CURSORS).exists():
        return None
    rows = cursors.Cursors(directory, read_only=True)
    try:
        return rows.row(cursor_name(path))
    finally:
        rows.close()
