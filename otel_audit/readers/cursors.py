"""How far each reader has come: `cursors.db`, one row a reader.

Promises: a position that `Cursors.set` stored is on the disk when it returns;
all processes of the host see it; each row changes as a whole; `Cursors.advance`
never overwrites what somebody else stored meanwhile. The file is opened on first use and again after a fork. A lost or damaged `cursors.db` costs
nothing but work: how a reader then finds its place, and what its state means,
is left to that reader.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw
import orjson

from otel_audit.errors import TrailError, TrailLockedError
from otel_audit.trail.database import BUSY_MILLISECONDS, Handle, fetch, make_file
from otel_audit.trail.layout import CURSORS
from otel_audit.trail.reader import open_read_only

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_logger = logging.getLogger("otel_audit.agent")

_APPLICATION_ID: Final = 0x6F744143
"""PRAGMA application_id: "otAC"."""

_TABLES: Final = {
    "cursor": """(
  reader TEXT PRIMARY KEY, position INTEGER NOT NULL, state TEXT NOT NULL,
  updated_unix_nano INTEGER NOT NULL) WITHOUT ROWID""",
    "aside": """(
  destination TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL,
  unix_nano INTEGER NOT NULL, wanted INTEGER NOT NULL,
  PRIMARY KEY (destination, kind, number)) WITHOUT ROWID""",
}
_SCHEMA_VERSION: Final = 2


class Cursor(NamedTuple):
    """One reader's row.

    ``position`` is the sequence number of the first record that it has not
    dealt with; ``state`` is the reader's own JSON object.
    """

    position: int
    state: dict[str, Any]
    updated_unix_nano: int


class Cursors:
    """The cursors of one trail; usable from several threads, processes and forks."""

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        """Remember the trail's directory; nothing is opened yet.

        With ``read_only`` nothing is ever written either: for who looks at a
        trail that is somebody else's. The file has to be there.
        """
        self.path = directory / CURSORS
        self._handle = Handle(self._look if read_only else self._connect)

    def get(self, reader: str) -> int:
        """Return the reader's position, 0 when it has no row. Raises `TrailError`."""
        row = self.row(reader)
        return 0 if row is None else row.position

    def row(self, reader: str) -> Cursor | None:
        """Return the reader's whole row, None when there is none. Raises `TrailError`."""
        query = "SELECT position, state, updated_unix_nano FROM cursor WHERE reader = ?"
        with self.connection() as connection:
            found = fetch(connection, query, (reader,))
        for row in found:
            return _cursor(reader, *row)
        return None

    def rows(self) -> dict[str, Cursor]:
        """Return all rows by the reader's name. Raises `TrailError`."""
        query = "SELECT reader, position, state, updated_unix_nano FROM cursor ORDER BY reader"
        with self.connection() as connection:
            found = fetch(connection, query)
        rows = ((reader, _cursor(reader, *rest)) for reader, *rest in found)
        return {reader: row for reader, row in rows if row is not None}

    def set(self, reader: str, position: int, state: Mapping[str, Any] | None = None) -> None:
        """Store the reader's position, durably.

        ``state`` replaces the reader's state; None leaves it as it is. Raises
        `TrailError`; then nothing is promised either way.
        """
        text = None if state is None else orjson.dumps(dict(state)).decode()
        with self.connection() as connection:
            connection.execute(
                "INSERT INTO cursor VALUES (?1, ?2, coalesce(?3, '{}'), ?4) "
                "ON CONFLICT (reader) DO UPDATE SET position = ?2, "
                "state = coalesce(?3, state), updated_unix_nano = ?4",
                (reader, position, text, time.time_ns()),
            )

    def advance(
        self, reader: str, since: Cursor | None, position: int, state: Mapping[str, Any]
    ) -> bool:
        """Store the reader's position, durably, if its row still is ``since``.

        None stands for no row. Returns whether it did: False when somebody
        else changed the row. Raises `TrailError`.
        """
        now, text = time.time_ns(), orjson.dumps(dict(state)).decode()
        with self.connection() as connection:
            if since is None:
                connection.execute(
                    "INSERT OR IGNORE INTO cursor VALUES (?, ?, ?, ?)",
                    (reader, position, text, now),
                )
            else:
                connection.execute(
                    "UPDATE cursor SET position = ?, state = ?, updated_unix_nano = ? "
                    "WHERE reader = ? AND position = ? AND state = ?",
                    (position, text, now, reader, since.position, _text(since)),
                )
            return connection.changes() == 1

    def remove(self, reader: str) -> None:
        """Forget a reader. Raises `TrailError`."""
        with self.connection() as connection:
            connection.execute("DELETE FROM cursor WHERE reader = ?", (reader,))

    def close(self) -> None:
        """Close the database; a later call would open it again."""
        self._handle.close()

    @contextmanager
    def connection(self) -> Iterator[apsw.Connection]:
        """Give the database, alone, to whoever keeps tables of its own in it. Raises `TrailError`."""
        try:
            with self._handle.use() as connection:
                yield connection
        except apsw.BusyError as error:
            message = (
                f"{self.path} has been locked by another process for "
                f"{BUSY_MILLISECONDS // 1000} s; find it with `fuser {self.path}`"
            )
            raise TrailLockedError(message) from error
        except apsw.Error as error:
            message = f"{self.path} cannot be used: {error}: {_advice(error)}"
            raise TrailError(message) from error
        except OSError as error:
            message = (
                f"{self.path} cannot be opened: {error.strerror}; readers keep their place "
                "there: make the trail's directory writable for the user that runs the agent"
            )
            raise TrailError(message) from error

    def _connect(self) -> apsw.Connection:
        make_file(self.path)
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            known = connection.pragma("application_id") == _APPLICATION_ID
            if not known or connection.pragma("user_version") < _SCHEMA_VERSION:
                for name, form in _TABLES.items():
                    connection.execute(f"CREATE TABLE IF NOT EXISTS {name} {form}")
                connection.pragma("user_version", _SCHEMA_VERSION)
                connection.pragma("application_id", _APPLICATION_ID)
        except BaseException:
            connection.close()
            raise
        return connection

    def _look(self) -> apsw.Connection:
        connection = open_read_only(self.path)
        try:
            connection.pragma("temp_store", "memory")
            present = {name for (name,) in fetch(connection, "SELECT name FROM sqlite_schema")}
            for name in _TABLES.keys() - present:
                # What nobody has made yet, as with a file of an older version, is empty.
                connection.execute(f"CREATE TEMP TABLE {name} {_TABLES[name]}")
        except BaseException:
            connection.close()
            raise
        return connection


def _cursor(reader: str, position: object, state: object, updated: object) -> Cursor | None:
    """Return a row, or None as if it were not there when another program has changed its form."""
    try:
        known = orjson.loads(state) if isinstance(state, (str, bytes)) else None
    except orjson.JSONDecodeError:
        known = None
    whole = type(position) is int and position >= 0 and type(updated) is int
    if whole and isinstance(known, dict):
        return Cursor(position, known, updated)  # type: ignore[arg-type] # see the line before
    _logger.error("%s: the row of %s is damaged, and counts as missing", CURSORS, reader)
    return None


def _text(cursor: Cursor) -> str:
    return orjson.dumps(cursor.state).decode()


def _advice(error: apsw.Error) -> str:
    if isinstance(error, apsw.FullError):
        return "free space on the disk; readers go on by themselves afterwards"
    if isinstance(error, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)):
        return "make the trail's directory writable for the user that runs the agent"
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return "delete it with all agents stopped; readers then find their place by themselves"
    return "look at the kernel's log (dmesg)"
