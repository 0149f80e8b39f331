"""The file `index.db`: its schema, and its rows in and out of a connection.

The only module that knows the tables. Promises: what is asked for and not there
is None, empty or 0; nothing begins or ends a transaction but `transaction`. When
something is written is left to `index.py`, what it means to those who ask.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from otel_audit.readers import segments
from otel_audit.readers.segments import LARGE, NO_TIME
from otel_audit.trail.database import fetch

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import apsw

DATABASE: Final = "index.db"
_APPLICATION_ID: Final = 0x6F744149
"""PRAGMA application_id: "otAI"."""

_SHIFT: Final = 10
"""Bits of a bucket's number in its key."""

_VALUES: Final = 1_024
"""Values of a field in one segment that are counted by the index; for more the records are read."""

_LONGEST_VALUE: Final = 256

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


def make(connection: apsw.Connection, origin: str, key: bytes, *, full_text: bool) -> None:
    """Make the tables of an index of the trail with this origin."""
    with transaction(connection):
        connection.execute(_SCHEMA)
        if full_text:
            connection.execute(_TEXT)
        about = {"format": segments.FORMAT, "origin": origin, "key": key, "last_hash": b""}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", list(about.items()))
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


def bucket(connection: apsw.Connection, start: int, number: int) -> bytes | None:
    """Return a bucket of the segment that begins with ``start``."""
    query = "SELECT terms FROM bucket WHERE id = ?"
    rows = fetch(connection, query, ((start << _SHIFT) | number,))
    return rows[0][0] if rows else None


def times(connection: apsw.Connection, start: int) -> bytes:
    """Return the times of a segment's rows, as `segments.Times` takes them."""
    rows = fetch(connection, "SELECT nanos FROM times WHERE start = ?", (start,))
    return bytes(rows[0][0]) if rows else b""


def segment_of(start: int, span: int, times: array[int]) -> Segment:
    """Return the row of a segment whose records have these times."""
    known = [moment for moment in times if moment != NO_TIME]
    return Segment(start, span, len(known), min(known, default=0), max(known, default=0))


def store(
    connection: apsw.Connection,
    segment: Segment,
    times: array[int],
    packed: Sequence[tuple[int, bytes]],
    facets: dict[str, bytes | None],
) -> None:
    """Write a segment, its times, its buckets, and the values of its fields."""
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


def store_last_hash(connection: apsw.Connection, leaf_hash: bytes) -> None:
    """Remember the hash of the last leaf that is indexed."""
    connection.execute("REPLACE INTO meta VALUES ('last_hash', ?)", (leaf_hash,))


def store_texts(connection: apsw.Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Write the words of records, each with its sequence number."""
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
    query = 'SELECT field, "values" FROM facet WHERE start >= ? AND start < ? ORDER BY start'
    joined: dict[str, dict[str, None] | None] = {}
    for field, blob in fetch(connection, query, (start, start + LARGE)):
        before = joined.setdefault(field, {})
        if blob is None or before is None or len(before) > _VALUES:
            joined[field] = None
        else:
            before.update(dict.fromkeys(orjson.loads(blob)))
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


def values_of(connection: apsw.Connection, start: int, field: str) -> list[str] | None:
    """Return the values of a field in a segment, None when they are too many."""
    query = 'SELECT "values" FROM facet WHERE start = ? AND field = ?'
    rows = fetch(connection, query, (start, field))
    if not rows:
        return []
    if rows[0][0] is None:
        return None
    values: list[str] = orjson.loads(rows[0][0])
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
