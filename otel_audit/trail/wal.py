"""The write-ahead log of a trail: its length, and its way into the database.

Promises: what is in the log is as safe as what is in the database, and stays
there until it has been copied and synced; copying keeps no writer waiting but
for the rest that came meanwhile. Nothing here knows what a record is.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import TrailError, TrailLockedError, TrailMismatchError
from otel_audit.trail.database import BUSY_MILLISECONDS, Handle
from otel_audit.trail.layout import LOCK
from otel_audit.trail.lock import FairFileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PREALLOCATED: Final = 8 << 20
"""Bytes of log written in advance: a sync that need not grow the file costs half."""

_AUTOMATIC_PAGES: Final = 50_000
"""Without an agent SQLite itself empties the log at about 200 MB."""

_logger = logging.getLogger("otel_audit.trail")


class LogEmptier:
    """Copies the log into the database, so that it is used again from its beginning."""

    def __init__(
        self,
        path: Path,
        writer: Handle,
        connect: Callable[[FairFileLock], apsw.Connection],
        inspect: Callable[[apsw.Connection], None],
        timeout: float,
    ) -> None:
        """Empty the log of the database ``path``, into which ``writer`` writes.

        ``connect`` opens the database under a lock; ``inspect`` raises
        `TrailMismatchError`, with the lock held, unless the log is whole;
        ``timeout`` is how long to wait for another process, in seconds.
        """
        self.stuck = False
        """Whether the emptying has ended until this process is restarted."""
        self._path = path
        self._timeout = timeout
        self._inspect = inspect
        self._writer = writer
        # Another connection and descriptor: commits go on while the log is copied.
        self._lock = FairFileLock(path.with_name(LOCK))
        self._handle = Handle(lambda: connect(self._lock))
        self._frames = 0
        self._waits = False

    def empty(self, *, above: int = 0, reset: bool = False) -> None:
        """Copy the write-ahead log into the database, so that it is reused.

        Does nothing while at most ``above`` bytes in the log are not copied
        yet. Most of the work happens beside the writers, only the rest under
        their lock. With ``reset``, or when nothing was written since the last
        call, nothing stays in the log at all: SQLite prefers what is there to
        what is in the database, so that a change made to the file behind our
        back would go unseen until the log is reused.

        A full disk only delays it. After an I/O error it never runs again in
        this process (`stuck`): the kernel may have dropped what a later
        sync would then claim to have written, while the log still holds
        everything. Nor does it after the log was cut off: zeros would be copied.
        """
        if self.stuck:
            return
        try:
            with self._handle.use() as connection:
                self._copy(connection, above, reset=reset)
        except (apsw.BusyError, TrailLockedError):
            return
        except TrailMismatchError as error:
            self._leave()
            _logger.critical("%s", error)
        except apsw.Error as error:
            self._failed(error)
        else:
            if self._waits:
                self._waits = False
                _logger.warning("%s: the write-ahead log is copied again", self._path)

    def close(self) -> None:
        """Empty the log if that can be done now, and let go of the database."""
        with suppress(TrailError, OSError):  # what is in the log is as safe as before
            self.empty(reset=True)
        self._handle.close()
        self._lock.close()

    def _copy(self, connection: apsw.Connection, above: int, *, reset: bool) -> None:
        total, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        idle, self._frames = total == self._frames, total
        waiting = (total - copied) * connection.pragma("page_size")
        if not (waiting > above or ((idle or reset) and total)):
            return
        with self._lock.held(self._timeout):
            self._inspect(connection)
        total, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if copied < total or idle or reset:
            self._copy_rest(connection, reset=idle or reset)

    def _failed(self, error: apsw.Error) -> None:
        if not isinstance(error, apsw.FullError):
            self._leave()
            _logger.critical(
                "%s: the write-ahead log could not be copied into the database (%s); records "
                "stay safe in the log, which grows from now on: repair the disk, then restart",
                self._path,
                error,
            )
        elif not self._waits:
            # A write was refused, but no sync has failed: what was written may be written again.
            self._waits = True
            _logger.error(
                "%s: the disk is full, so that the write-ahead log is not copied into the "
                "database; records are as safe in the log, and it is tried again",
                self._path,
            )

    def _leave(self) -> None:
        self.stuck = True
        for handle in (self._handle, self._writer):
            # What cannot be opened now is told when it is.
            with suppress(apsw.Error, TrailError, OSError), handle.use() as connection:
                leave(connection)

    def _copy_rest(self, connection: apsw.Connection, *, reset: bool) -> None:
        """Copy what came while the log was copied, with all writers waiting."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if reset else apsw.SQLITE_CHECKPOINT_PASSIVE
        with self._lock.held(self._timeout):
            # Rather try again later than let the writers wait for somebody who reads.
            connection.set_busy_timeout(0)
            try:
                connection.wal_checkpoint(mode=mode)
                if reset:
                    preallocate(self._path)
                    self._frames = 0
                # For its length: the database has grown.
                self._inspect(connection)
            finally:
                connection.set_busy_timeout(BUSY_MILLISECONDS)


def keep(connection: apsw.Connection) -> None:
    """Keep the log's file when the last connection closes, and let SQLite empty it only when it is long.

    The next one is spared its growth, and a reader that may not write finds
    what it needs.
    """
    connection.pragma("wal_autocheckpoint", _AUTOMATIC_PAGES)
    yes = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(yes))


def leave(connection: apsw.Connection) -> None:
    """Keep SQLite from emptying the log by itself, also when the last connection closes."""
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def preallocate(path: Path) -> None:
    """Give the log of a database its length in advance, so that a sync need not change the inode.

    Zeros after the last frame end SQLite's recovery, whose frames carry salted
    checksums (https://sqlite.org/walformat.html). SQLite places its locks on
    the database and on the shared memory, never on the log, so that closing
    the file here lets go of none.
    """
    wal = path.with_name(f"{path.name}-wal")
    try:
        missing = _PREALLOCATED - wal.stat().st_size
        if missing > 0:
            with wal.open("ab") as file:
                file.write(bytes(missing))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        # Only speed is lost; if the disk is full, the append itself will say so.
        _logger.info("%s was not preallocated: %s", wal, error.strerror)
