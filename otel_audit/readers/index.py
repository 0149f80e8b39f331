"""The query index: `index.db` beside the trail, made from it and never needed.

`QueryIndex` writes it and `IndexView` reads it. Promises: the index holds no
record; it is deleted and made anew when it belongs to another trail, format or
history, or is damaged; each step is one transaction, so that whoever reads sees
every segment whole; an index that is written costs the trail nothing but
reading, and leaves the disk's last `RESERVE` bytes to it.

Small segments follow the trail closely; sixty-four of them become one large
one. What is newer than the newest segment (fewer than `segments.SMALL` records,
when the index keeps up) is read from the trail by whoever asks.

What a query means is left to `search.py`; who calls `step`, to the agent.
"""

from __future__ import annotations

import os
import secrets
from array import array
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw
import orjson

from otel_audit.errors import TrailError
from otel_audit.readers import segments
from otel_audit.readers.beside import SHARE, Beside
from otel_audit.readers.gathering import Gathered
from otel_audit.readers.segments import (
    LARGE,
    NO_TIME,
    SMALL,
    Bucket,
    DamagedError,
    Joined,
    Terms,
    Times,
)
from otel_audit.trail.database import Handle, fetch
from otel_audit.trail.reader import open_read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from otel_audit.readers.segments import Rows
    from otel_audit.trail.reader import TrailReader

DATABASE: Final = "index.db"
RESERVE: Final = 64 << 20
"""Bytes of the disk that are left to the trail: the index waits when there are no more."""

_APPLICATION_ID: Final = 0x6F744149
"""PRAGMA application_id: "otAI"."""

_SHIFT: Final = 10
"""Bits of a bucket's number in its key."""

_VALUES: Final = 1_024
"""Values of a field in one segment that are counted by the index; for more the records are read."""

_LONGEST_VALUE: Final = 256
_BREATH: Final = 64
"""Records between two looks at the clock: a thread that indexes must not hold up those that emit."""

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE segment (
  start INTEGER PRIMARY KEY, span INTEGER NOT NULL, present INTEGER NOT NULL,
  first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL);
CREATE TABLE times (start INTEGER PRIMARY KEY, nanos BLOB NOT NULL);
CREATE TABLE bucket (id INTEGER PRIMARY KEY, terms BLOB NOT NULL);
CREATE TABLE facet (
  start INTEGER NOT NULL, field TEXT NOT NULL, "values" BLOB,
  PRIMARY KEY (start, field)) WITHOUT ROWID;
"""
_TEXT: Final = """
CREATE VIRTUAL TABLE text USING fts5(
  words, content='', detail='none', columnsize=0, tokenize='unicode61 remove_diacritics 0');
"""


class Segment(NamedTuple):
    """One segment's row; times are nanoseconds since 1970, of the records themselves."""

    start: int
    span: int
    present: int
    first_ns: int
    last_ns: int

    @property
    def stop(self) -> int:
        """The sequence number after its last one."""
        return self.start + self.span


class QueryIndex:
    """The writer of a trail's index. One process at a time, which the agent's lease ensures."""

    def __init__(
        self,
        directory: Path,
        *,
        full_text: bool = True,
        reserve: int = RESERVE,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember the trail's directory; nothing is opened yet.

        ``breathe`` is called every few records, so that a thread may rest.
        """
        self.directory = directory
        self.path = directory / DATABASE
        self.full_text = full_text
        self._reserve = reserve
        self._breathe = breathe
        self._handle = Handle(self._connect)
        self._file: tuple[int, int] | None = None
        self._origin = ""

    def step(self, reader: TrailReader, size: int) -> bool:
        """Index the next segment if the trail has one; return whether there are more.

        Raises `TrailError`; the next call then begins again, with a new index
        if this one is of no use.
        """
        if size < SMALL and not self.path.exists():
            return False  # a small trail needs no index, and no file for one
        self._origin = reader.origin
        self._check_place()
        try:
            return self._step(reader, size)
        except apsw.FullError as error:
            message = f"{self.path}: the disk is full; the index goes on when there is space"
            raise TrailError(message) from error
        except _NOT_ITS_FAULT as error:
            message = f"{self.path} cannot be written: {error}"
            raise TrailError(message) from error
        except (apsw.Error, DamagedError) as error:
            self.discard()
            message = f"{self.path} is damaged ({error}); it was deleted and is made anew"
            raise TrailError(message) from error

    def discard(self) -> None:
        """Delete the index; it is made anew from the trail."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database; a later call would open it again."""
        self._handle.close()
        self._file = None

    def _step(self, reader: TrailReader, size: int) -> bool:
        with self._handle.use() as connection:
            position = _position(connection)
            if not self._belongs(connection, reader, position, size):
                self.discard()
                return True
            terms = Terms(_key(connection))
        if size - position < SMALL:
            return False
        self._check_space()
        # The connection is not held meanwhile: a fork would have to wait for it.
        built = self._gathered(reader, position)
        facets = {field: _listed(list(values)) for field, values in built.rows.items()}
        packed = list(segments.pack_all(self._hashed(built, terms), SMALL))
        with self._handle.use() as connection, _transaction(connection):
            segment = _segment(position, SMALL, built.times)
            _store(connection, segment, built.times, packed, facets)
            connection.execute("REPLACE INTO meta VALUES ('last_hash', ?)", (built.last_hash,))
            if self.full_text:
                connection.executemany("INSERT INTO text (rowid, words) VALUES (?, ?)", built.texts)
        if (position + SMALL) % LARGE == 0:
            self._merge(position + SMALL - LARGE)
        return size - position >= 2 * SMALL

    def _gathered(self, reader: TrailReader, start: int) -> Gathered:
        built = Gathered(start, full_text=self.full_text)
        for leaves in reader.batches(start, start + SMALL):
            for first in range(0, len(leaves), _BREATH):
                built.add(leaves[first : first + _BREATH])
                self._breathe()
        return built

    def _hashed(self, built: Gathered, terms: Terms) -> dict[int, Rows]:
        postings: dict[int, Rows] = {}
        for field, by_value in built.rows.items():
            postings.update(zip(terms.of(field, by_value), by_value.values(), strict=True))
            self._breathe()
        return postings

    def _merge(self, start: int) -> None:
        """Make one large segment of the small ones; the work is done bucket by bucket."""
        stop = start + LARGE
        with self._handle.use() as connection:
            smalls = [Segment._make(row) for row in fetch(connection, _SEGMENTS_IN, (start, stop))]
            if [small.start for small in smalls] != list(range(start, stop, SMALL)):
                return
            times = array("q")
            for small in smalls:
                times.extend(Times(_times(connection, small.start), SMALL).of)
            facets = _joined(connection, start)
        packed: list[tuple[int, bytes]] = []
        for number in range(segments.buckets(SMALL)):
            packed += segments.pack_all(self._joined(smalls, number), LARGE)
        with self._handle.use() as connection, _transaction(connection):
            _remove(connection, start, stop)
            _store(connection, _segment(start, LARGE, times), times, packed, facets)

    def _joined(self, smalls: Sequence[Segment], number: int) -> dict[int, Rows]:
        """Join one bucket of the small segments."""
        joined = Joined()
        for small in smalls:
            with self._handle.use() as connection:
                blob = _bucket(connection, small.start, number)
            if blob is not None:
                joined.add(blob, small.start - smalls[0].start)
            self._breathe()
        return joined.rows()

    def _belongs(
        self, connection: apsw.Connection, reader: TrailReader, position: int, size: int
    ) -> bool:
        """Whether the index is one of this trail, as it is."""
        if position == 0:
            return True
        if position > size:
            return False
        leaf = reader.leaf(position - 1)
        return leaf is None or leaf.hash == _meta(connection, "last_hash")

    def _check_place(self) -> None:
        """Notice that the file was deleted or replaced, and let go of the old one."""
        now = _identity(self.path)
        if now is None or now != self._file:
            self.close()

    def _check_space(self) -> None:
        if self._reserve:
            place = os.statvfs(self.directory)
            free = place.f_bavail * place.f_frsize
            if free < self._reserve:
                message = (
                    f"{self.path} is not written: the disk has {free >> 20} MiB left, and the last "
                    f"{self._reserve >> 20} MiB are the trail's; free space, and it goes on"
                )
                raise TrailError(message)

    def _connect(self) -> apsw.Connection:
        for _ in range(2):
            with suppress(apsw.CorruptError, apsw.NotADBError):
                connection = self._opened()
                if connection is not None:
                    self._file = _identity(self.path)
                    return connection
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        message = f"{self.path} cannot be made; look at the kernel's log (dmesg)"
        raise TrailError(message)

    def _opened(self) -> apsw.Connection | None:
        """Open or make the index; None when there is one that is of no use."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(self.path, flags, 0o600))
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(5_000)
            connection.pragma("journal_mode", "wal")
            # What a crash of the machine loses is made again from the trail.
            connection.pragma("synchronous", "normal")
            if connection.pragma("application_id") == 0 and not fetch(connection, _TABLES):
                self._make(connection)
            if _serves(connection, self._origin) and _has_text(connection) == self.full_text:
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _make(self, connection: apsw.Connection) -> None:
        with _transaction(connection):
            connection.execute(_SCHEMA)
            if self.full_text:
                connection.execute(_TEXT)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("format", segments.FORMAT),
                    ("origin", self._origin),
                    ("key", secrets.token_bytes(32)),
                    ("last_hash", b""),
                ],
            )
            connection.pragma("application_id", _APPLICATION_ID)


class IndexView:
    """A trail's index, for reading; usable from several threads and after a fork.

    Each method that reads raises `apsw.Error` or `DamagedError` when the index
    is of no use any more; whoever asks reads the trail instead.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        """Remember where it would be; nothing is opened yet."""
        self.path = directory / DATABASE
        self._origin = origin
        self._handle = Handle(self._connect)
        self._file: tuple[int, int] | None = None
        self._terms: Terms | None = None

    @contextmanager
    def use(self) -> Iterator[Lookup | None]:
        """Lend one consistent view of the index; None when there is none of this trail."""
        if self._terms is None or self._file != _identity(self.path):
            self.close()
        try:
            with self._handle.use() as connection:
                terms = self._terms
                if terms is None:
                    yield None
                    return
                connection.execute("BEGIN")
                try:
                    yield Lookup(connection, terms)
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except (apsw.CorruptError, apsw.NotADBError):
            self.close()
            raise

    def close(self) -> None:
        """Close the database; a later call would open it again."""
        self._handle.close()

    def _connect(self) -> apsw.Connection:
        self._terms, self._file = None, _identity(self.path)
        if self._file is None:
            return apsw.Connection(":memory:")
        try:
            connection = open_read_only(self.path)
        except apsw.Error:
            return apsw.Connection(":memory:")
        try:
            if _serves(connection, self._origin):
                self._terms = Terms(_key(connection))
        except apsw.Error:
            pass
        return connection


class Lookup:
    """What one view of the index knows."""

    def __init__(self, connection: apsw.Connection, terms: Terms) -> None:
        """Take a connection in a transaction."""
        self._connection = connection
        self._terms = terms

    @property
    def position(self) -> int:
        """The first sequence number that is not indexed."""
        return _position(self._connection)

    @property
    def full_text(self) -> bool:
        """Whether words can be looked up."""
        return _has_text(self._connection)

    def segment_at(self, sequence: int) -> Segment | None:
        """Return the segment that covers a sequence number, or None."""
        rows = fetch(self._connection, _SEGMENT_AT, (sequence,))
        segment = Segment._make(rows[0]) if rows else None
        return segment if segment is not None and sequence < segment.stop else None

    def next_in_time(
        self, sequence: int, times: tuple[int, int], *, descending: bool
    ) -> Segment | None:
        """Return the next segment from a sequence number on with records of these times, or None."""
        query = _NEXT_BELOW if descending else _NEXT_ABOVE
        rows = fetch(self._connection, query, (sequence, *times))
        return Segment._make(rows[0]) if rows else None

    def rows(self, segment: Segment, field: str, value: str) -> int:
        """Return the rows whose field has this value, as a bitmap."""
        term = self._terms(field, value)
        blob = _bucket(self._connection, segment.start, segments.bucket_of(term, segment.span))
        return 0 if blob is None else Bucket(blob, segment.span).bitmap(term)

    def times(self, segment: Segment) -> Times:
        """Return the times of the rows."""
        return Times(_times(self._connection, segment.start), segment.span)

    def values(self, segment: Segment, field: str) -> list[str] | None:
        """Return the values of a field in a segment, None when they are too many."""
        query = 'SELECT "values" FROM facet WHERE start = ? AND field = ?'
        rows = fetch(self._connection, query, (segment.start, field))
        if not rows:
            return []
        if rows[0][0] is None:
            return None
        values: list[str] = orjson.loads(rows[0][0])
        return values

    def text(self, segment: Segment, match: str) -> int:
        """Return the rows whose words match a query of SQLite's FTS5, as a bitmap."""
        rows = fetch(
            self._connection,
            "SELECT rowid - ? FROM text WHERE text MATCH ? AND rowid >= ? AND rowid < ? "
            "ORDER BY rowid",
            (segment.start, match, segment.start, segment.stop),
        )
        return segments.bitmap([row[0] for row in rows])


def following(
    directory: Path,
    reader_factory: Callable[[], TrailReader],
    *,
    full_text: bool = True,
    share: float = SHARE,
) -> Beside:
    """Return the thread that keeps a trail's index, for the agent to start and stop.

    ``share`` is what it takes of one processor at most while it catches up.
    """
    reader: TrailReader | None = None

    def work() -> bool:
        nonlocal reader
        if reader is None:
            reader = reader_factory()
        try:
            return index.step(reader, reader.tree().size)
        except BaseException:
            reader.close()
            reader = None
            raise

    def rest() -> None:
        nonlocal reader
        if reader is not None:
            reader.close()
            reader = None
        index.close()

    thread = Beside("query index", work, share=share, rest=rest)
    index = QueryIndex(directory, full_text=full_text, breathe=thread.breathe)
    return thread


_SEGMENT_AT: Final = "SELECT * FROM segment WHERE start <= ? ORDER BY start DESC LIMIT 1"
_NEXT_BELOW: Final = (
    "SELECT * FROM segment WHERE start <= ? AND present > 0 AND last_ns >= ? AND first_ns < ? "
    "ORDER BY start DESC LIMIT 1"
)
_NEXT_ABOVE: Final = (
    "SELECT * FROM segment WHERE start + span > ? AND present > 0 AND last_ns >= ? "
    "AND first_ns < ? ORDER BY start LIMIT 1"
)
_SEGMENTS_IN: Final = "SELECT * FROM segment WHERE start >= ? AND start < ? ORDER BY start"
_TABLES: Final = "SELECT name FROM sqlite_schema"


_NOT_ITS_FAULT: Final = (
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
)
"""Errors that an index made anew would have as well."""


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has done so already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _position(connection: apsw.Connection) -> int:
    rows = fetch(connection, "SELECT start + span FROM segment ORDER BY start DESC LIMIT 1")
    return int(rows[0][0]) if rows else 0


def _meta(connection: apsw.Connection, key: str) -> Any:  # noqa: ANN401 - text or bytes, as it was put there
    rows = fetch(connection, "SELECT value FROM meta WHERE key = ?", (key,))
    return rows[0][0] if rows else None


def _key(connection: apsw.Connection) -> bytes:
    return bytes(_meta(connection, "key"))


def _serves(connection: apsw.Connection, origin: str) -> bool:
    """Whether this is an index of this form and of this trail."""
    return bool(
        connection.pragma("application_id") == _APPLICATION_ID
        and _meta(connection, "format") == segments.FORMAT
        and _meta(connection, "origin") == origin
    )


def _has_text(connection: apsw.Connection) -> bool:
    return bool(fetch(connection, f"{_TABLES} WHERE name = 'text'"))


def _bucket(connection: apsw.Connection, start: int, number: int) -> bytes | None:
    query = "SELECT terms FROM bucket WHERE id = ?"
    rows = fetch(connection, query, ((start << _SHIFT) | number,))
    return rows[0][0] if rows else None


def _times(connection: apsw.Connection, start: int) -> bytes:
    rows = fetch(connection, "SELECT nanos FROM times WHERE start = ?", (start,))
    return bytes(rows[0][0]) if rows else b""


def _segment(start: int, span: int, times: array[int]) -> Segment:
    known = [moment for moment in times if moment != NO_TIME]
    return Segment(start, span, len(known), min(known, default=0), max(known, default=0))


def _store(
    connection: apsw.Connection,
    segment: Segment,
    times: array[int],
    packed: Sequence[tuple[int, bytes]],
    facets: dict[str, bytes | None],
) -> None:
    start = segment.start
    connection.execute("INSERT INTO segment VALUES (?, ?, ?, ?, ?)", segment)
    connection.execute("INSERT INTO times VALUES (?, ?)", (start, segments.pack_times(times)))
    connection.executemany(
        "INSERT INTO bucket VALUES (?, ?)",
        [((start << _SHIFT) | number, blob) for number, blob in packed],
    )
    connection.executemany(
        "INSERT INTO facet VALUES (?, ?, ?)",
        [(start, field, values) for field, values in facets.items()],
    )


def _remove(connection: apsw.Connection, start: int, stop: int) -> None:
    connection.execute("DELETE FROM segment WHERE start >= ? AND start < ?", (start, stop))
    connection.execute("DELETE FROM times WHERE start >= ? AND start < ?", (start, stop))
    connection.execute("DELETE FROM facet WHERE start >= ? AND start < ?", (start, stop))
    connection.execute(
        "DELETE FROM bucket WHERE id >= ? AND id < ?", (start << _SHIFT, stop << _SHIFT)
    )


def _listed(values: list[str]) -> bytes | None:
    """Return a field's values as they are kept, None when they are too many or too long."""
    if len(values) > _VALUES or any(len(value) > _LONGEST_VALUE for value in values):
        return None
    try:
        return orjson.dumps(values)
    except TypeError:  # a lone surrogate, which no record of ours has
        return None


def _joined(connection: apsw.Connection, start: int) -> dict[str, bytes | None]:
    """Join the values of the small segments' fields."""
    query = 'SELECT field, "values" FROM facet WHERE start >= ? AND start < ? ORDER BY start'
    joined: dict[str, dict[str, None] | None] = {}
    for field, blob in fetch(connection, query, (start, start + LARGE)):
        before = joined.setdefault(field, {})
        if blob is None or before is None or len(before) > _VALUES:
            joined[field] = None
        else:
            before.update(dict.fromkeys(orjson.loads(blob)))
    return {
        field: None if values is None else _listed(list(values)) for field, values in joined.items()
    }


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell one file from another one of the same name."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
