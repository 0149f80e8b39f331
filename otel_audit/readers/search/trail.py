"""Answers queries from the trail of this host, by its index as far as there is one.

`TrailSearch` promises: an answer is whole and right however far the index is,
also without one and with a damaged one, which only cost time; every record that
it gives comes from the trail and was held against the query; memory does not
grow with the answer. It writes nothing, and works on a copied trail.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.readers.index.segments import SMALL
from otel_audit.readers.index.tables import DamagedError
from otel_audit.readers.index.view import IndexView
from otel_audit.readers.query.model import (
    Counts,
    Entry,
    Page,
    Progress,
    Query,
    check_buckets,
    needles,
    where,
)
from otel_audit.readers.search.candidates import bounds, candidates, clipped, in_time, within
from otel_audit.readers.search.counting import Counting
from otel_audit.readers.search.matching import entry_of, matching
from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from otel_audit.readers.index.tables import Segment
    from otel_audit.readers.index.view import Lookup
    from otel_audit.trail.reader import Leaf

_FETCHED: Final = 512
"""Records that are read at a time, when the first few were not enough."""

_LOOKED_AT: Final = 64
"""Segments that are looked at in one view of the index, before somebody looks at the clock."""


_Found = tuple["Segment | None", "Iterator[Sequence[int]]", int]


class TrailSearch:
    """One trail to ask; usable by one thread at a time, and after a fork."""

    def __init__(self, reader: TrailReader) -> None:
        """Take a reader, which is closed with the search."""
        self.reader = reader
        self._index = IndexView(reader.directory, reader.origin)

    @classmethod
    def open(cls, directory: str | Path) -> TrailSearch:
        """Open the trail in ``directory``. Raises `TrailError`."""
        return cls(TrailReader(directory))

    def close(self) -> None:
        """Close trail and index."""
        self._index.close()
        self.reader.close()

    def progress(self) -> Progress:
        """Return how far the index is."""
        size = self.reader.tree().size
        try:
            with self._index.use() as lookup:
                if lookup is None:
                    return Progress(0, size, full_text=False)
                return Progress(min(size, lookup.position), size, lookup.full_text)
        except (apsw.Error, DamagedError):
            return Progress(0, size, full_text=False)

    def page(
        self, query: Query, position: int | None = None, *, seconds: float | None = None
    ) -> Page:
        """Return up to ``query.limit`` records from ``position`` on.

        ``seconds`` is how long it may look; then the page ends where it was.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        entries: list[Entry] = []
        limit = query.limit
        for chunk, then in self._chunks(query, position, limit + 1):
            entries += chunk
            if len(entries) > limit:
                last = entries[limit - 1].sequence
                return Page(entries[:limit], _after(query, last), complete=True)
            if deadline is not None and time.monotonic() >= deadline:
                return Page(entries, then, complete=False)
        return Page(entries, None, complete=True)

    def stream(self, query: Query, position: int | None = None) -> Iterator[Entry]:
        """Yield all records of the answer, as of now."""
        for chunk, _ in self._chunks(query, position, _FETCHED):
            yield from chunk

    def find(self, name: str) -> tuple[Leaf, Entry] | None:
        """Return one record by its id or its sequence number: as it is stored, and read."""
        if name.isdecimal():
            place = int(name)
        else:
            wanted = Query(where({"record_id": name.lower()}))
            place = next((entry.sequence for entry in self.stream(wanted)), -1)
        leaf = self.reader.leaf(place) if 0 <= place < 1 << 62 else None
        return None if leaf is None else (leaf, entry_of(leaf))

    def between(self, query: Query, start: int, stop: int) -> list[Entry]:
        """Return what matches of the records from ``start`` until before ``stop``, in their order.

        For whoever follows the trail: they are read from there, a few at a time.
        """
        return matching(self.reader.leaves(start, stop), query)

    def count(
        self,
        query: Query,
        *,
        by: str | None = None,
        per: int | None = None,
        seconds: float | None = None,
    ) -> Counts:
        """Count the records, by the values of a field, by time buckets, or both.

        A record whose field is a list counts once for each item. Raises
        `QueryError`, also when ``seconds`` were not enough.
        """
        if by is not None:
            by = query.counted(by)
        check_buckets(query, per)
        counting = Counting(self.reader, query, by, per, seconds)
        position = self.reader.tree().size
        while position > 0:
            counting.check_time()
            try:
                with self._index.use() as lookup:
                    covering = lookup and lookup.segment_at(position - 1)
                    if lookup and covering and covering.stop <= position:
                        position = counting.next_segment(lookup, position)
                        continue
                    start = self._unindexed_from(lookup, position)
            except (apsw.Error, DamagedError):
                start = max(0, position - SMALL)
            counting.leaves(self._leaves(query, start, position))
            position = start
        return counting.counts

    def _leaves(self, query: Query, start: int, stop: int) -> list[Leaf]:
        """Read what is not indexed, as far as it contains what is asked for."""
        return self.reader.containing(needles(query), start, stop)

    def _unindexed_from(self, lookup: Lookup | None, position: int) -> int:
        indexed = 0 if lookup is None else lookup.position
        start = max(0, position - SMALL)
        return max(start, indexed) if indexed < position else start

    # pages

    def _chunks(
        self, query: Query, position: int | None, first: int
    ) -> Iterator[tuple[list[Entry], int]]:
        """Yield records in order, some at a time, each with the position that follows."""
        size = self.reader.tree().size
        if query.oldest_first:
            place = 0 if position is None else max(0, position)
            while place < size:
                for chunk, place in self._part(query, place, size, first):  # noqa: B020 - the part says how far it came
                    yield chunk, place
        else:
            place = size if position is None else min(size, position)
            while place > 0:
                for chunk, place in self._part(query, 0, place, first):  # noqa: B020 - the part says how far it came
                    yield chunk, place

    def _part(
        self, query: Query, low: int, high: int, first: int
    ) -> Iterator[tuple[list[Entry], int]]:
        """Look through the next segment of a range, or through as many records without one."""
        oldest = query.oldest_first
        looked_up = self._looked_up(query, low, high)
        if looked_up is None:
            start, stop = (
                (low, min(high, low + SMALL)) if oldest else (max(low, high - SMALL), high)
            )
            yield from self._unindexed(query, start, stop, first)
            return
        segment, found, then = looked_up
        if segment is not None:
            yield from self._fetched(query, segment, found, first)
        yield [], then

    def _unindexed(
        self, query: Query, start: int, stop: int, first: int
    ) -> Iterator[tuple[list[Entry], int]]:
        """Read records one by one: first as many as may be enough, then more and more at a time."""
        step = first
        while start < stop:
            if query.oldest_first:
                begin, end = start, min(stop, start + step)
                start = end
            else:
                begin, end = max(start, stop - step), stop
                stop = begin
            entries = matching(self._leaves(query, begin, end), query)
            yield (entries, end) if query.oldest_first else (entries[::-1], begin)
            step *= 4

    def _looked_up(self, query: Query, low: int, high: int) -> _Found | None:
        """Go from segment to segment until one has rows that may match; None without an index.

        Segments in which nothing is of the query's time are passed over at once.
        """
        oldest, times = query.oldest_first, bounds(query)
        place = low if oldest else high - 1
        try:
            with self._index.use() as lookup:
                if lookup is None or lookup.segment_at(place) is None:
                    return None
                end = min(high, lookup.position) if oldest else low
                for _ in range(_LOOKED_AT):
                    segment = lookup.next_in_time(place, times, descending=not oldest)
                    if segment is None or segment.start >= high or segment.stop <= low:
                        return None, iter(()), end
                    rows = clipped(candidates(lookup, segment, query), segment, low, high)
                    if rows:
                        needed = None if within(segment, query) else lookup.times(segment)
                        then = min(high, segment.stop) if oldest else max(low, segment.start)
                        return segment, in_time(rows, needed, query), then
                    place = segment.stop if oldest else segment.start - 1
                    if place >= end if oldest else place < low:
                        return None, iter(()), end
                return None, iter(()), place if oldest else place + 1
        except (apsw.Error, DamagedError):
            return None

    def _fetched(
        self, query: Query, segment: Segment, found: Iterator[Sequence[int]], first: int
    ) -> Iterator[tuple[list[Entry], int]]:
        """Read the records of these rows, which are in order."""
        step = min(first, _FETCHED)
        waiting: list[int] = []
        for rows in chain(found, (None,)):
            waiting += rows or ()
            while len(waiting) >= step or (rows is None and waiting):
                sequences = [segment.start + row for row in waiting[:step]]
                del waiting[:step]
                entries = matching(self.reader.pick(sequences), query)
                if not query.oldest_first:
                    entries.reverse()
                yield entries, _after(query, sequences[-1])


def _after(query: Query, sequence: int) -> int:
    """Return the position after a record in the query's order."""
    return sequence + 1 if query.oldest_first else sequence
