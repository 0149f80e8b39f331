"""The file of a trail: how it is made, opened to be written, and known again.

Promises: a trail is made whole or not at all; what is none, is newer than this
software, or has lost everything is refused and left alone; a file that was
replaced while it is open is noticed at the next transaction; a log or an index
of the log that was replaced, a log or a file that was cut off in place, and
another schema, within a tenth of a second. What is written in between may be lost with what was
cut off, but is followed by an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import TrailMismatchError
from otel_audit.trail import durable, frames, schema, wal
from otel_audit.trail.database import BUSY_MILLISECONDS, make_file
from otel_audit.trail.layout import KEY, MEMORY, whole
from otel_audit.trail.reader import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    check_version,
    refuse_newer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOK_SECONDS: Final = 0.1
"""How long the files beside the database are believed to be the same: after a look at a file's
times Linux writes them anew with the next write, which costs a fifth of a commit."""

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)
"""Too many files are open, in this process or on this machine."""


class TrailFile:
    """The database file of one trail, for who writes it."""

    def __init__(
        self,
        path: Path,
        *,
        new_origin: Callable[[], str],
        clock: Callable[[], int],
        vfs: str | None,
    ) -> None:
        """Remember the path; a new trail is named by ``new_origin()``."""
        self.path = path
        self._new_origin = new_origin
        self._clock = clock
        self._vfs = vfs
        self._side_names = whole(str(path))[1:]
        self._beside: tuple[int, ...] = ()
        self._length = 0
        self._log: frames.Log | None = None
        """The log at the last look; None if nothing was in it."""
        self._schema: int | None = None
        """SQLite's number of the schema that was found right; None if none was since it was opened."""
        self._look_again = 0.0

    def open(self, *, leave_log: bool) -> apsw.Connection:
        """Open it to write, and make the trail if there is none; hold the lock of all writers.

        ``leave_log``: SQLite must not empty the log. Raises `TrailError` and its
        kinds, `apsw.Error` and `OSError`.
        """
        if not self.path.exists():
            self._refuse_orphans("no")
            make_file(self.path)
        connection = apsw.Connection(str(self.path), vfs=self._vfs)
        try:
            self._prepare(connection, leave_log=leave_log)
        except BaseException:
            connection.close()
            raise
        return connection

    def remember(self) -> None:
        """Take the log and its index for those that belong to the file."""
        self._beside = self._side_files()
        self._log = None

    def recognise(self, connection: apsw.Connection) -> None:
        """Refuse a file that is not where it was opened.

        Raises `TrailMismatchError`: what is written there nobody would find again.
        """
        moved = ctypes.c_int()
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        if moved.value:
            raise self._replaced()

    def look(self, connection: apsw.Connection) -> None:
        """Refuse a file that has lost what is beside it, or another schema; and `inspect`.

        Ten times a second at most, since the last time that all was right; not
        at the log and the file's length while too many files are open.
        """
        now = time.monotonic()
        if now < self._look_again:
            return
        if self._side_files() != self._beside:
            raise self._replaced()
        try:
            self.inspect(connection)
        except OSError as error:
            # Who has no descriptor left has seen nothing, and must still be able to record.
            if error.errno not in _EXHAUSTED:
                raise
        self._check_schema(connection)
        self._look_again = now + _LOOK_SECONDS

    def inspect(self, connection: apsw.Connection) -> None:
        """Refuse a file or a log that was cut off.

        To be called with the lock of all writers, and outside of a transaction.
        Raises `OSError` and `TrailMismatchError`; the log is then left as it is, for what was
        cut off there SQLite would copy into the database as zeros.
        """
        # Twice: an administrator's tool may write, which knows nothing of our lock.
        if self._lost(connection) and (lost := self._lost(connection)):
            wal.leave(connection)
            message = (
                f"{lost} under this process: records that were confirmed may be lost. Find out by "
                "whom, keep everything as evidence, and restart this process; if it does not "
                "start then, restore the trail from a copy, or begin a new origin with "
                "`otel-audit new-origin`"
            )
            raise TrailMismatchError(message)

    def _check_schema(self, connection: apsw.Connection) -> None:
        """Refuse a schema that somebody else has changed; raises `TrailMismatchError`."""
        number = connection.pragma("schema_version")
        if number == self._schema:
            return
        refuse_newer(connection.pragma("user_version"), self.path)
        if odd := schema.oddities(connection):
            raise TrailMismatchError(schema.described(self.path, odd))
        self._schema = number

    def _replaced(self) -> TrailMismatchError:
        message = (
            f"{self.path}, or the log or index beside it, was removed or replaced while this "
            "process had it open: find out by whom, put it back, and restart this process"
        )
        return TrailMismatchError(message)

    def _lost(self, connection: apsw.Connection) -> str:
        """Return what was cut off, of the log or of the file; nothing if it is all there."""
        number, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        log = self._side_names[0]
        try:
            self._log = frames.look_into(log, number, self._log) if number > 0 else None
        except ValueError as error:
            return f"the log {log} was cut off or overwritten ({error})"
        except FileNotFoundError:
            return ""  # `look` says so; what it held can still be copied
        try:
            length = self.path.stat().st_size
        except FileNotFoundError:
            return ""  # `recognise` says so
        if length < self._length or copied == number:
            # It may have become shorter by VACUUM, and have grown again in the log alone.
            count, size = connection.pragma("page_count"), connection.pragma("page_size")
            logged = frames.pages_in(log, size, copied, number)
            if any(page not in logged for page in range(length // size + 1, count + 1)):
                return f"{self.path} was cut off (it has {length} bytes, and needs {count * size})"
        self._length = length
        return ""

    def _side_files(self) -> tuple[int, ...]:
        """Return which files the log and its index are: without them nothing would be kept."""
        try:
            return tuple(os.stat(name).st_ino for name in self._side_names)  # noqa: PTH116 - a third of the time
        except FileNotFoundError:
            return ()

    def _refuse_orphans(self, what: str) -> None:
        """Do not replace a database that went missing, or has lost everything, by a new one."""
        directory = self.path.parent
        for name in (KEY, MEMORY):
            if (directory / name).exists():
                message = (
                    f"{directory} has {name} but {what} {self.path.name}: the trail was removed or "
                    f"not restored. Restore {self.path.name}; if it is lost for good, begin a new "
                    "origin with `otel-audit new-origin`, whose first record says so"
                )
                raise TrailMismatchError(message)

    def _prepare(self, connection: apsw.Connection, *, leave_log: bool) -> None:
        schema.disarm(connection)
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        fresh = connection.pragma("application_id") == 0
        if fresh:
            self._refuse_foreign(connection)
            # Its log may have been lost, with all that there was.
            self._refuse_orphans("an empty")
            connection.pragma("page_size", 4096)
            connection.pragma("auto_vacuum", 2)
        else:
            check_version(connection, self.path)
            self._schema = None
            self._check_schema(connection)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("secure_delete", "on")
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        wal.keep(connection)
        if leave_log:
            # At once: to close it after an error further down would empty the log, too.
            wal.leave(connection)
        if fresh:
            self._create(connection)
        wal.preallocate(self.path)

    def _refuse_foreign(self, connection: apsw.Connection) -> None:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            message = f"{self.path} is a database, but not an audit trail; nothing was changed"
            raise TrailMismatchError(message)

    def _create(self, connection: apsw.Connection) -> None:
        """Make the schema in one transaction: a crash leaves all of it or nothing."""
        with connection:
            connection.execute(schema.CREATE)
            connection.execute(
                "INSERT INTO meta VALUES ('origin', ?), ('created_unix_nano', ?)",
                (self._new_origin(), str(self._clock())),
            )
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", SCHEMA_VERSION)
        durable.sync(self.path.parent)
