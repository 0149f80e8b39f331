"""The mirror: the trail's records as JSON lines in a file, for tools that read files.

`Mirror` promises: each line is a record's stored bytes and a newline, and lies
whole in one write call; the lines of all its files, oldest file first, are the
trail's records in order, none missing and none twice, also after a crash and
whoever rotates the file by renaming it (logrotate, or the mirror itself at a
size). Rotation by copying (logrotate's ``copytruncate``) can lose lines
between the copy and the cut; the mirror then warns and goes on.

The file is a convenience: the trail is the evidence. Whether the records are
right is left to verification; when to write, to the agent.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditSettingsError, TrailLockedError
from otel_audit.readers.descriptors import Descriptor
from otel_audit.readers.resume import MAX_LINES, Mark, cut_torn_line, resume
from otel_audit.trail.durable import sync

if TYPE_CHECKING:
    from pathlib import Path

    from otel_audit.readers.cursors import Cursors
    from otel_audit.trail.reader import TrailReader

_FLAGS: Final = os.O_RDWR | os.O_APPEND
_DIRECTORY_MODE: Final = 0o750
_TOGETHER: Final = 65_536
"""Bytes of one write call: with a call for each line Python would go to and fro between threads."""
_UNUSABLE: Final = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)

_logger = logging.getLogger("otel_audit.mirror")


def cursor_name(path: Path) -> str:
    """Name the cursor of the mirror at ``path``: each file has its own place in the trail."""
    return f"mirror:{os.path.abspath(path)}"  # noqa: PTH100 - resolve() would follow links, and rotation replaces the name, not its target


def create(path: Path, mode: int = 0o640) -> None:
    """Make the mirror's file (``mode``) and its directories (0750) unless they exist.

    Raises `AuditSettingsError` when the place can never hold it, and `OSError`
    for what may pass (a full disk).
    """
    try:
        _open(path, mode).close()
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        what = "it" if path.exists() else "its directory"
        message = (
            f"the mirror {path} cannot be written: {error.strerror}; make {what} "
            "writable for this user, or set AUDIT_LOG_LOCAL_FILE to another file (or to false)"
        )
        raise AuditSettingsError(message) from error


class Mirror:
    """Copies the trail into a file, step by step. For one thread at a time.

    At most one process writes the file: it is locked (flock) while it is open.
    """

    def __init__(
        self,
        reader: TrailReader,
        path: Path,
        cursors: Cursors,
        *,
        mode: int = 0o640,
        max_bytes: int = 0,
        backups: int = 90,
        patience: float = 1.0,
    ) -> None:
        """Take the trail, the file and the place of the cursor; open nothing yet.

        With ``max_bytes`` the mirror rotates by itself before the file grows
        beyond it and keeps ``backups`` old files (``audit.log.1`` is the
        newest). ``patience`` is how long, in seconds, the file may be missing
        before the mirror makes a new one: logrotate renames first and creates
        then, and is confused by a file that stands there in between.
        """
        self.path = path
        self.name = cursor_name(path)
        self._reader = reader
        self._cursors = cursors
        self._mode = mode
        self._max_bytes = max_bytes
        self._backups = backups
        self._patience = patience
        self._file: Descriptor | None = None
        self._position = 0
        self._size = 0
        self._end = 0
        self._missing_since: float | None = None

    @property
    def position(self) -> int:
        """The sequence number of the first record that has no line yet, as far as is known."""
        return self._position

    def step(self, max_lines: int = MAX_LINES, max_seconds: float = 0.05) -> int:
        """Write the lines of some records that are new; return how many.

        Ends after ``max_lines`` or ``max_seconds``. When it returns, the lines
        are synced and the cursor counts them. Raises `OSError` (disk full,
        no permission), `TrailError` and `AuditSettingsError`; the next call
        then finds out what reached the file and goes on behind it.
        """
        try:
            if not self._ready():
                return 0
            return self._copy(min(max_lines, MAX_LINES), time.monotonic() + max_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and let go of its lock; the next step opens it again."""
        if self._file is not None:
            self._file.unlock_and_close()
            self._file = None

    def _ready(self) -> bool:
        """Have the right file open; False while rotation is under way."""
        if self._file is None:
            self._start(self._resume())
            return True
        held = os.fstat(self._file.number)
        there = self._there()
        if there is not None and os.path.samestat(held, there):
            self._missing_since = None
            self._notice_size(held.st_size)
        elif there is None and self._wait_for_rotation():
            return False
        elif held.st_nlink == 0:
            # Deleted, perhaps after compression: what it held last has to be looked up.
            self.close()
            self._start(self._resume())
        else:
            self.close()
            self._start(self._position)
        return True

    def _there(self) -> os.stat_result | None:
        try:
            return self.path.stat()
        except FileNotFoundError:
            return None

    def _wait_for_rotation(self) -> bool:
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        return now - self._missing_since < self._patience

    def _notice_size(self, size: int) -> None:
        if size < self._size:
            _logger.error(
                "%s was cut from %d to %d bytes by another program (logrotate's copytruncate?): "
                "lines may be missing from the copy. Rotate with `create` instead; the mirror "
                "finds the new file by itself. The trail is not affected",
                self.path,
                self._size,
                size,
            )
        self._size = size

    def _end_line(self, file: Descriptor, position: int) -> None:
        """See to it that record ``position`` begins a line, whatever was written by others."""
        if not cut_torn_line(self._reader, file.number, position):
            _logger.warning("%s ends with an unfinished line of another program", self.path)
            os.write(file.number, b"\n")
        self._size = self._end = os.fstat(file.number).st_size

    def _resume(self) -> int:
        # The file has to exist before its directory is searched.
        create(self.path, self._mode)
        row = self._cursors.row(self.name)
        mark = None
        if row is not None:
            mark = Mark(row.position, row.state.get("inode", 0), row.state.get("offset", 0))
            if row.state.get("origin") != self._reader.origin:
                _logger.warning("%s: the trail is another one than before", self.path)
                mark = None
            elif mark.position > self._reader.tree().size:
                _logger.error(
                    "%s holds %d records of a trail that now has %d: the trail was rolled back "
                    "or replaced by an older copy. Compare both before you go on",
                    self.path,
                    mark.position,
                    self._reader.tree().size,
                )
                mark = None
        return resume(self._reader, self.path, mark)

    def _start(self, position: int) -> None:
        """Open the file that is there now and continue with record ``position``."""
        file = _open(self.path, self._mode)
        try:
            self._lock(file)
            self._end_line(file, position)
            self._file = file
            self._position = position
            self._missing_since = None
            # The mark is stored before the first line: `resume` relies on it.
            self._store(file)
        except BaseException:
            file.close()
            raise

    def _lock(self, file: Descriptor) -> None:
        if not file.try_lock():
            message = (
                f"another process writes the mirror {self.path}: two trails may not share one "
                "file; set AUDIT_LOG_LOCAL_FILE to a file of its own for each"
            )
            raise TrailLockedError(message)

    def _copy(self, max_lines: int, deadline: float) -> int:
        start = self._position
        stop = min(self._reader.tree().size, start + max_lines)
        lines = 0
        together = bytearray()
        for leaf in self._reader.leaves(start, stop):
            length = len(leaf.record) + 1
            full = 0 < self._max_bytes < self._size + len(together) + length
            if together and (full or len(together) + length > _TOGETHER):
                self._write(together, leaf.sequence)
            if full and self._size:
                self._rotate()
            together += leaf.record
            together += b"\n"
            lines += 1
            if time.monotonic() >= deadline:
                stop = leaf.sequence + 1
                break
        # Up to here also where retention removed records that were never mirrored.
        self._write(together, stop)
        if self._position > start and not self._count():
            return 0
        return lines

    def _write(self, lines: bytearray, position: int) -> None:
        """Write whole lines, and empty them; behind them the record ``position`` comes next."""
        file = self._open_file
        number, size = file.number, len(lines)
        if size and os.fstat(number).st_size != self._end:
            self._end_line(file, self._position)
        # Only a full disk or a signal makes a write to a file short; the rest, or its error, follows.
        while lines:
            del lines[: os.write(number, lines)]
        self._size += size
        self._end += size
        self._position = position

    def _count(self) -> bool:
        """Sync the lines, then count them; False if they went into a deleted file.

        The order keeps the cursor from ever running ahead of the file.
        """
        file = self._open_file
        os.fsync(file.number)
        if os.fstat(file.number).st_nlink == 0:
            self.close()
            return False
        self._store(file)
        return True

    def _store(self, file: Descriptor) -> None:
        status = os.fstat(file.number)
        self._size = status.st_size
        state = {"origin": self._reader.origin, "inode": status.st_ino, "offset": status.st_size}
        self._cursors.set(self.name, self._position, state)

    def _rotate(self) -> None:
        os.fsync(self._open_file.number)
        self._store(self._open_file)
        shift_backups(self.path, self._backups)
        self.close()
        self._start(self._position)

    @property
    def _open_file(self) -> Descriptor:
        if self._file is None:  # pragma: no cover - step() opens it first
            message = "the mirror is not open"
            raise ValueError(message)
        return self._file


def shift_backups(path: Path, backups: int) -> None:
    """Rename ``path`` to ``.1``, what is there to ``.2`` and so on; drop what is too old.

    With no ``backups`` that is ``path`` itself. Only the names up to the first gap move, so that a crash in between costs
    no file: the next call closes the gap. Raises `OSError`.
    """
    if not backups:
        path.unlink(missing_ok=True)
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1))]
    free = next((index for index, name in enumerate(names) if not name.exists()), backups)
    for index in range(free, 0, -1):
        names[index - 1].replace(names[index])
    sync(path.parent)


def _open(path: Path, mode: int) -> Descriptor:
    """Open the file for appending, making it when it is missing. Raises `OSError`."""
    with contextlib.suppress(FileExistsError):
        _create(path, mode)
    file = Descriptor(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(file.number).st_mode):
        file.close()
        message = (
            f"the mirror {path} is not a regular file, so it could not be told which lines it "
            "has; set AUDIT_LOG_LOCAL_FILE to a file (`otel-audit tail -f` writes to pipes and "
            "terminals)"
        )
        raise AuditSettingsError(message)
    return file


def _create(path: Path, mode: int) -> None:
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(_DIRECTORY_MODE, exist_ok=True)
    file = Descriptor(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(file.number, mode)  # whatever the umask left
    finally:
        file.close()
    sync(path.parent)
