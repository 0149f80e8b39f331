"""The file `index.db`: its schema, and its rows in and out of a connection.

The only module that knows the tables. Promises: what is asked for and was never
written is None, empty or 0; what was written and is changed, elsewhere or gone
is a `DamagedError`, never a wrong answer (but for words, which SQLite keeps);
nothing begins or ends a transaction but `transaction`. When something is written
is left to `writer.py`, what it means to those who ask.

Each blob begins with a checksum of itself and its place. The rows of segments,
which say what has to be there, are few and have one for them all: the seal.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

import orjson

from otel_audit.errors import OtelAuditError
from otel_audit.readers.index import segments
from otel_audit.readers.index.segments import LARGE, NO_TIME
from otel_audit.trail import database

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import apsw

_APPLICATION_ID: Final = 0x6F744149
"""PRAGMA application_id: "otAI"."""

_ROW: Final = struct.Struct("=5q")
_GUARD: Final = 4
"""Bytes of the checksum before each blob."""

_SHIFT: Final = 10
"""Bits of a bucket's number in its key."""

_VALUES: Final = 1_024
"""Values of a field in one segment that are counted by the index; for more the records are read."""

_LONGEST_VALUE: Final = 256

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE segment (
  start INTEGER PRIMARY KEY, span INTEGER NOT NULL, present INTEGER NOT NULL,
  first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, buckets BLOB NOT NULL,
  fields TEXT NOT NULL);
CREATE TABLE times (start INTEGER PRIMARY KEY, nanos BLOB NOT NULL);
CREATE TABLE bucket (id INTEGER PRIMARY KEY, terms BLOB NOT NULL);
CREATE TABLE facet (
  start INTEGER NOT NULL, field TEXT NOT NULL, "values" BLOB,
  PRIMARY KEY (start, field)) WITHOUT ROWID;
"""
_TEXT: Final = """
CREATE VIRTUAL TABLE text USING fts5(
  words, content='', detail='none', columnsize=0, tokenize='ascii');
"""
# Of what is beyond ASCII, that tokenizer makes no difference: what a word is, is said in one place,
# `query/words.py`. SQLite's other one knows the letters of Unicode 6.1, and splits otherwise.


class DamagedError(OtelAuditError, ValueError):
    """A part of the index is not what was written; the trail has to be read instead."""


class Segment(NamedTuple):
    """One segment's row; times are nanoseconds since 1970, of the records themselves.

    ``buckets`` has a bit for each bucket that is not empty; ``fields`` are the
    names of the fields that the records have, a JSON array.
    """

    start: int
    span: int
    present: int
    first_ns: int
    last_ns: int
    buckets: bytes
    fields: str

    @property
    def stop(self) -> int:
        """The sequence number after its last one."""
        return self.start + self.span


def fetch(
    connection: apsw.Connection, query: str, bindings: tuple[int | str | bytes, ...] = ()
) -> list[Any]:
    """Return all rows. Raises `DamagedError` for a text that is none any more."""
    try:
        return database.fetch(connection, query, bindings)
    except UnicodeDecodeError as error:
        raise DamagedError(_DAMAGED) from error


def make(connection: apsw.Connection, origin: str, key: bytes, *, full_text: bool) -> None:
    """Make the tables of an index of the trail with this origin."""
    with transaction(connection):
        connection.execute(_SCHEMA)
        if full_text:
            connection.execute(_TEXT)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("format", segments.FORMAT), ("origin", origin), ("key", key), ("last_hash", b"")],
        )
        seal(connection)
        connection.pragma("application_id", _APPLICATION_ID)


def is_new(connection: apsw.Connection) -> bool:
    """Whether nothing was ever written."""
    return connection.pragma("application_id") == 0 and not fetch(connection, _TABLES)


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Write all that the block writes, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has done so already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def position(connection: apsw.Connection) -> int:
    """Return the first sequence number that is not indexed."""
    rows = fetch(connection, "SELECT start + span FROM segment ORDER BY start DESC LIMIT 1")
    return int(rows[0][0]) if rows else 0


def _meta(connection: apsw.Connection, key: str) -> Any:  # noqa: ANN401 - text or bytes, as it was put there
    """Return what the index says about itself."""
    rows = fetch(connection, "SELECT value FROM meta WHERE key = ?", (key,))
    return rows[0][0] if rows else None


def key(connection: apsw.Connection) -> bytes:
    """Return the key of the index's terms."""
    return bytes(_meta(connection, "key"))


def last_hash(connection: apsw.Connection) -> bytes | None:
    """Return the hash of the last leaf that is indexed."""
    known: bytes | None = _meta(connection, "last_hash")
    return known


def serves(connection: apsw.Connection, origin: str) -> bool:
    """Whether this is an index of this form and of this trail."""
    return bool(
        connection.pragma("application_id") == _APPLICATION_ID
        and _meta(connection, "format") == segments.FORMAT
        and _meta(connection, "origin") == origin
        and isinstance(_meta(connection, "key"), bytes)
    )


def has_text(connection: apsw.Connection) -> bool:
    """Whether words can be looked up."""
    return bool(fetch(connection, f"{_TABLES} WHERE name = 'text'"))


def seal(connection: apsw.Connection) -> None:
    """Vouch for the rows of segments as they are now: the last thing in a transaction."""
    connection.execute("REPLACE INTO meta VALUES ('seal', ?)", (_checksum(connection),))


def check_seal(connection: apsw.Connection) -> None:
    """Raise `DamagedError` unless the rows of segments are those that were written."""
    try:
        sealed = _meta(connection, "seal") == _checksum(connection)
    except (AttributeError, struct.error, TypeError) as error:  # values of other types
        raise DamagedError(_DAMAGED) from error
    if not sealed:
        raise DamagedError(_DAMAGED)


def _checksum(connection: apsw.Connection) -> int:
    """Return the checksum of what terms are hashed with, and of all rows of segments."""
    parts = [bytes(_meta(connection, "key"))]
    for *numbers, buckets, fields in fetch(connection, "SELECT * FROM segment ORDER BY start"):
        parts += (_ROW.pack(*numbers), buckets, fields.encode())
    return crc32(b"".join(parts))


def _guard(table: str, place: object, blob: bytes | memoryview) -> bytes:
    """Return the checksum of a blob and of where it belongs."""
    return crc32(blob, crc32(f"{table} {place}".encode())).to_bytes(_GUARD, "big")


def _guarded(table: str, place: object, blob: bytes) -> bytes:
    return _guard(table, place, blob) + blob


def _unguarded(table: str, place: object, rows: Sequence[Sequence[object]]) -> memoryview:
    """Return the blob that has to be in this place."""
    stored = rows[0][0] if rows else None
    if isinstance(stored, bytes):
        blob = memoryview(stored)[_GUARD:]
        if _guard(table, place, blob) == stored[:_GUARD]:
            return blob
    raise DamagedError(_DAMAGED)


def bucket(connection: apsw.Connection, segment: Segment, number: int) -> memoryview | None:
    """Return a bucket of a segment, None if it is empty. Raises `DamagedError`."""
    if not segment.buckets[number >> 3] >> (number & 7) & 1:
        return None
    place = (segment.start << _SHIFT) | number
    rows = fetch(connection, "SELECT terms FROM bucket WHERE id = ?", (place,))
    return _unguarded("bucket", place, rows)


def times(connection: apsw.Connection, segment: Segment) -> memoryview:
    """Return the times of a segment's rows, for `segments.Times`. Raises `DamagedError`."""
    rows = fetch(connection, "SELECT nanos FROM times WHERE start = ?", (segment.start,))
    return _unguarded("times", segment.start, rows)


def store(
    connection: apsw.Connection,
    start: int,
    times: array[int],
    packed: Sequence[tuple[int, bytes]],
    facets: dict[str, bytes | None],
) -> None:
    """Write a segment: the times of its rows, its buckets, and the values of its fields."""
    known = [moment for moment in times if moment != NO_TIME]
    bits = bytearray(-(-segments.buckets(len(times)) // 8))
    for number, _ in packed:
        bits[number >> 3] |= 1 << (number & 7)
    connection.execute(
        "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
        Segment(
            start,
            len(times),
            len(known),
            min(known, default=0),
            max(known, default=0),
            bytes(bits),
            orjson.dumps(list(facets)).decode(),
        ),
    )
    blob = _guarded("times", start, segments.pack_times(times))
    connection.execute("INSERT INTO times VALUES (?, ?)", (start, blob))
    places = [((start << _SHIFT) | number, blob) for number, blob in packed]
    connection.executemany(
        "INSERT INTO bucket VALUES (?, ?)",
        [(place, _guarded("bucket", place, blob)) for place, blob in places],
    )
    connection.executemany(
        "INSERT INTO facet VALUES (?, ?, ?)",
        [
            (start, field, _guarded("facet", (start, field), b"null" if values is None else values))
            for field, values in facets.items()
        ],
    )


def store_last_hash(connection: apsw.Connection, leaf_hash: bytes) -> None:
    """Remember the hash of the last leaf that is indexed."""
    connection.execute("REPLACE INTO meta VALUES ('last_hash', ?)", (leaf_hash,))


def store_texts(connection: apsw.Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Write the words of records (`words.indexable`), each with its sequence number."""
    connection.executemany("INSERT INTO text (rowid, words) VALUES (?, ?)", texts)


def remove(connection: apsw.Connection, start: int, stop: int) -> None:
    """Delete the segments of a range."""
    connection.execute("DELETE FROM segment WHERE start >= ? AND start < ?", (start, stop))
    connection.execute("DELETE FROM times WHERE start >= ? AND start < ?", (start, stop))
    connection.execute("DELETE FROM facet WHERE start >= ? AND start < ?", (start, stop))
    connection.execute(
        "DELETE FROM bucket WHERE id >= ? AND id < ?", (start << _SHIFT, stop << _SHIFT)
    )


def facet(values: list[str]) -> bytes | None:
    """Return a field's values as they are kept, None when they are too many or too long."""
    if len(values) > _VALUES or any(len(value) > _LONGEST_VALUE for value in values):
        return None
    try:
        return orjson.dumps(values)
    except TypeError:  # a lone surrogate, which no record of ours has
        return None


def joined_facets(connection: apsw.Connection, start: int) -> dict[str, bytes | None]:
    """Join the values of the small segments' fields."""
    joined: dict[str, dict[str, None] | None] = {}
    for segment in segments_in(connection, start, start + LARGE):
        for field in orjson.loads(segment.fields):
            values = values_of(connection, segment, field)
            before = joined.setdefault(field, {})
            if values is None or before is None or len(before) > _VALUES:
                joined[field] = None
            else:
                before.update(dict.fromkeys(values))
    return {
        field: None if values is None else facet(list(values)) for field, values in joined.items()
    }


def identity(path: Path) -> tuple[int, int] | None:
    """Tell one file from another one of the same name."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def segment_at(connection: apsw.Connection, sequence: int) -> Segment | None:
    """Return the segment that covers a sequence number."""
    rows = fetch(connection, _SEGMENT_AT, (sequence,))
    found = Segment._make(rows[0]) if rows else None
    return found if found is not None and sequence < found.stop else None


def next_in_time(
    connection: apsw.Connection, sequence: int, times: tuple[int, int], *, descending: bool
) -> Segment | None:
    """Return the next segment from a sequence number on with records of these times."""
    query = _NEXT_BELOW if descending else _NEXT_ABOVE
    rows = fetch(connection, query, (sequence, *times))
    return Segment._make(rows[0]) if rows else None


def segments_in(connection: apsw.Connection, start: int, stop: int) -> list[Segment]:
    """Return the segments that begin in a range, in order."""
    return [Segment._make(row) for row in fetch(connection, _SEGMENTS_IN, (start, stop))]


def values_of(connection: apsw.Connection, segment: Segment, field: str) -> list[str] | None:
    """Return the values of a field in a segment, None when too many. Raises `DamagedError`."""
    if field not in orjson.loads(segment.fields):
        return []
    query = 'SELECT "values" FROM facet WHERE start = ? AND field = ?'
    rows = fetch(connection, query, (segment.start, field))
    values: list[str] | None = orjson.loads(_unguarded("facet", (segment.start, field), rows))
    return values


def words_in(connection: apsw.Connection, segment: Segment, match: str) -> list[int]:
    """Return the rows of a segment whose words match a query of SQLite's FTS5, in order."""
    rows = fetch(
        connection,
        "SELECT rowid - ? FROM text WHERE text MATCH ? AND rowid >= ? AND rowid < ? ORDER BY rowid",
        (segment.start, match, segment.start, segment.stop),
    )
    return [row[0] for row in rows]


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
_DAMAGED: Final = "a part of the query index was changed on the disk"
