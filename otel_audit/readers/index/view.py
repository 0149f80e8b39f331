"""A trail's query index, for reading.

`IndexView` promises one consistent view at a time, whatever is written
meanwhile, and that an index that was deleted, replaced or made anew is noticed.
What a query means is left to `readers/search`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from otel_audit.readers.index import segments, tables
from otel_audit.readers.index.segments import Bucket, Terms, Times
from otel_audit.trail.database import Handle
from otel_audit.trail.layout import INDEX
from otel_audit.trail.reader import open_read_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.readers.index.tables import Segment


class IndexView:
    """A trail's index, for reading; usable from several threads and after a fork.

    Each method that reads raises `apsw.Error` or `DamagedError` when the index
    is of no use any more; whoever asks reads the trail instead.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        """Remember where it would be; nothing is opened yet."""
        self.path = directory / INDEX
        self._origin = origin
        self._handle = Handle(self._connect)
        self._file: tuple[int, int] | None = None
        self._terms: Terms | None = None
        self._checked: int | None = None
        """The version of the index that was found whole."""

    @contextmanager
    def use(self) -> Iterator[Lookup | None]:
        """Lend one consistent view of the index; None when there is none of this trail."""
        if self._terms is None or self._file != tables.identity(self.path):
            self.close()
        try:
            with self._handle.use() as connection:
                terms = self._terms
                if terms is None:
                    yield None
                    return
                connection.execute("BEGIN")
                try:
                    self._check(connection)
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

    def _check(self, connection: apsw.Connection) -> None:
        """Look whether the index is whole: again only when somebody has written."""
        tables.position(connection)  # what is read from here on is of one moment
        version = connection.data_version()
        if version != self._checked:
            tables.check_seal(connection)
            self._checked = version

    def _connect(self) -> apsw.Connection:
        self._terms, self._file = None, tables.identity(self.path)
        self._checked = None
        if self._file is None:
            return apsw.Connection(":memory:")
        try:
            connection = open_read_only(self.path)
        except apsw.Error:
            return apsw.Connection(":memory:")
        try:
            if tables.serves(connection, self._origin):
                self._terms = Terms(tables.key(connection))
        except apsw.Error:
            pass
        return connection


class Lookup:
    """What one view of the index knows."""

    def __init__(self, connection: apsw.Connection, terms: Terms) -> None:
        """Take a connection in a transaction."""
        self._connection = connection
        self._terms = terms
        self._hashed: dict[tuple[str, str], int] = {}

    @property
    def position(self) -> int:
        """The first sequence number that is not indexed."""
        return tables.position(self._connection)

    @property
    def full_text(self) -> bool:
        """Whether words can be looked up."""
        return tables.has_text(self._connection)

    def segment_at(self, sequence: int) -> Segment | None:
        """Return the segment that covers a sequence number, or None."""
        return tables.segment_at(self._connection, sequence)

    def next_in_time(
        self, sequence: int, times: tuple[int, int], *, descending: bool
    ) -> Segment | None:
        """Return the next segment from a sequence number on with records of these times, or None."""
        return tables.next_in_time(self._connection, sequence, times, descending=descending)

    def rows(self, segment: Segment, field: str, value: str) -> int:
        """Return the rows whose field has this value, as a bitmap."""
        named = field, value
        term = self._hashed.get(named)
        if term is None:
            term = self._hashed[named] = self._terms(field, value)
        number = segments.bucket_of(term, segment.span)
        blob = tables.bucket(self._connection, segment, number)
        return 0 if blob is None else Bucket(blob, segment.span).bitmap(term)

    def times(self, segment: Segment) -> Times:
        """Return the times of the rows."""
        return Times(tables.times(self._connection, segment), segment.span)

    def values(self, segment: Segment, field: str) -> list[str] | None:
        """Return the values of a field in a segment, None when they are too many."""
        return tables.values_of(self._connection, segment, field)

    def text(self, segment: Segment, match: str) -> int:
        """Return the rows whose words match a query of SQLite's FTS5, as a bitmap."""
        return segments.bitmap(tables.words_in(self._connection, segment, match))
