"""Counting what a query asks for, by the values of a field and by time.

`Counting` promises the numbers that reading every record would give; it reads
those of which the index does not know enough.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from otel_audit.errors import QueryError
from otel_audit.readers.index import segments
from otel_audit.readers.index.segments import NO_TIME
from otel_audit.readers.query.words import moment_of, texts_of
from otel_audit.readers.search.candidates import bounds, candidates, certain, within
from otel_audit.readers.search.matching import matching

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_audit.readers.index.segments import Times
    from otel_audit.readers.index.tables import Segment
    from otel_audit.readers.index.view import Lookup
    from otel_audit.readers.query.model import Counts, Query
    from otel_audit.trail.reader import Leaf, TrailReader

_FETCHED: Final = 512
"""Records that are read at a time."""

_CHEAPER: Final = 4
"""To read a record costs as much as to look this many values up."""


class Counting:
    """Adds up one answer."""

    def __init__(
        self,
        reader: TrailReader,
        query: Query,
        by: str | None,
        per: int | None,
        seconds: float | None,
    ) -> None:
        self.counts: Counts = {}
        self._reader = reader
        self._query = query
        self._by = by
        self._per = per
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def check_time(self) -> None:
        """Raise `QueryError` when the time is up."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            message = (
                "this count takes too long here; narrow it by start and end, or wait until the "
                "index is complete"
            )
            raise QueryError(message)

    def next_segment(self, lookup: Lookup, position: int) -> int:
        """Add the next segment below with records of the query's time; return where it begins.

        All of it is added, or nothing when the index turns out to be damaged.
        """
        segment = lookup.next_in_time(position - 1, bounds(self._query), descending=True)
        if segment is None:
            return 0
        rows = candidates(lookup, segment, self._query)
        total, self.counts = self.counts, {}
        try:
            if rows:
                self._segment(lookup, segment, rows)
            for key, number in self.counts.items():
                total[key] = total.get(key, 0) + number
        finally:
            self.counts = total
        return segment.start

    def _segment(self, lookup: Lookup, segment: Segment, rows: int) -> None:
        by, query = self._by, self._query
        values: list[str] | None = None if by is None else lookup.values(segment, by)
        known = by is None or values is not None
        cheap = values is None or len(values) <= _CHEAPER * rows.bit_count()
        if not (known and cheap and certain(lookup, segment, query)):
            self._read(segment, rows)
            return
        times = self._times(lookup, segment)
        if values is None or by is None:
            self._add(segment, rows, times, None)
            return
        for value in values:
            self._add(segment, rows & lookup.rows(segment, by, value), times, value)

    def _read(self, segment: Segment, rows: int) -> None:
        """Add the records of these rows one by one."""
        wanted = segments.ascending(rows)
        for begin in range(0, len(wanted), _FETCHED):
            part = [segment.start + row for row in wanted[begin : begin + _FETCHED]]
            self.leaves(self._reader.pick(part))
            self.check_time()

    def leaves(self, leaves: Iterable[Leaf]) -> None:
        """Add records one by one."""
        for entry in matching(leaves, self._query):
            bucket = None
            if self._per is not None:
                moment = moment_of(entry.fields, entry.committed_unix_nano)
                bucket = moment - moment % self._per
            values: Sequence[str | None] = [None]
            if self._by is not None:
                values = list(dict.fromkeys(texts_of(entry.fields, self._by)))
            for value in values:
                self._count(bucket, value, 1)

    def _times(self, lookup: Lookup, segment: Segment) -> Times | None:
        """Return the rows' times, None when all rows are there, in the range and in one bucket."""
        per = self._per
        one = per is None or segment.first_ns // per == segment.last_ns // per
        whole = segment.present == segment.span
        return None if one and whole and within(segment, self._query) else lookup.times(segment)

    def _add(self, segment: Segment, rows: int, times: Times | None, value: str | None) -> None:
        per = self._per
        if times is None:
            if rows:
                bucket = None if per is None else segment.first_ns - segment.first_ns % per
                self._count(bucket, value, rows.bit_count())
            return
        low, high = bounds(self._query)
        for block, octets in segments.blocks(rows):
            first, last = times.bounds(block)
            if low <= first and last < high and (per is None or first // per == last // per):
                bucket = None if per is None else first - first % per
                # What was removed is among the rows that were asked for without a condition.
                if not self._query.conditions and value is None and segment.present < segment.span:
                    held = [times.of[row] for row in segments.rows_in(block, octets)]
                    self._count(bucket, value, len(held) - held.count(NO_TIME))
                else:
                    self._count(bucket, value, int.from_bytes(octets, "little").bit_count())
            elif last >= low and first < high:
                self._add_each(segments.rows_in(block, octets), times, value)

    def _add_each(self, rows: Sequence[int], times: Times, value: str | None) -> None:
        """Add rows whose times have to be looked at one by one."""
        low, high = bounds(self._query)
        per = self._per
        held = [moment for row in rows if low <= (moment := times.of[row]) < high]
        found = Counter(None if per is None else moment // per * per for moment in held)
        for bucket, number in found.items():
            self._count(bucket, value, number)

    def _count(self, bucket: int | None, value: str | None, number: int) -> None:
        key = (bucket, value)
        self.counts[key] = self.counts.get(key, 0) + number
