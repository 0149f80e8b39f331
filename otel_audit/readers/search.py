"""Answers queries from the trail of this host, by its index as far as there is one.

`TrailSearch` promises: an answer is whole and right however far the index is,
also without one and with a damaged one, which only cost time; every record that
it gives comes from the trail and was held against the query; memory does not
grow with the answer. It writes nothing, and works on a copied trail.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import QueryError
from otel_audit.readers import segments
from otel_audit.readers.index_file import DamagedError
from otel_audit.readers.index_view import IndexView
from otel_audit.readers.query import (
    Counts,
    Entry,
    Page,
    Progress,
    Query,
    check_buckets,
    needles,
    where,
)
from otel_audit.readers.segments import NO_TIME, SMALL
from otel_audit.readers.times import stamp
from otel_audit.readers.words import fields_of, moment_of, stamp_of, texts_of
from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from otel_audit.readers.index_file import Segment
    from otel_audit.readers.index_view import Lookup
    from otel_audit.readers.query import Condition
    from otel_audit.readers.segments import Times
    from otel_audit.trail.reader import Leaf

_FETCHED: Final = 512
"""Records that are read at a time, when the first few were not enough."""

_LOOKED_AT: Final = 64
"""Segments that are looked at in one view of the index, before somebody looks at the clock."""

_CHEAPER: Final = 4
"""To read a record costs as much as to look this many values up."""


_Found = tuple["Segment | None", "Iterator[Sequence[int]]", int]


class TrailSearch:
    """One trail to ask; usable by one thread at a time, and after a fork."""

    def __init__(self, reader: TrailReader) -> None:
        """Take a reader, which is closed with the search."""
        self.reader = reader
        self._index = IndexView(reader.directory, reader.origin)

    @classmethod
    def open(cls, directory: Path) -> TrailSearch:
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
        return None if leaf is None else (leaf, _entry(leaf))

    def between(self, query: Query, start: int, stop: int) -> list[Entry]:
        """Return what matches of the records from ``start`` until before ``stop``, in their order.

        For whoever follows the trail: they are read from there, a few at a time.
        """
        return _matching(self.reader.leaves(start, stop), query)

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
        counting = _Counting(self.reader, query, by, per, seconds)
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
            entries = _matching(self._leaves(query, begin, end), query)
            yield (entries, end) if query.oldest_first else (entries[::-1], begin)
            step *= 4

    def _looked_up(self, query: Query, low: int, high: int) -> _Found | None:
        """Go from segment to segment until one has rows that may match; None without an index.

        Segments in which nothing is of the query's time are passed over at once.
        """
        oldest, times = query.oldest_first, _bounds(query)
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
                    rows = _clipped(_rows(lookup, segment, query), segment, low, high)
                    if rows:
                        needed = None if _within(segment, query) else lookup.times(segment)
                        then = min(high, segment.stop) if oldest else max(low, segment.start)
                        return segment, _in_time(rows, needed, query), then
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
                entries = _matching(self.reader.pick(sequences), query)
                if not query.oldest_first:
                    entries.reverse()
                yield entries, _after(query, sequences[-1])


def _after(query: Query, sequence: int) -> int:
    """Return the position after a record in the query's order."""
    return sequence + 1 if query.oldest_first else sequence


def _entry(leaf: Leaf) -> Entry:
    record = _as_bytes(leaf.record)
    return Entry(leaf.sequence, leaf.committed_unix_nano, record, fields_of(record))


def _matching(leaves: Iterable[Leaf], query: Query) -> list[Entry]:
    """Return those that the query asks for; what each has to contain is looked for first."""
    wanted = needles(query)
    # Letters beyond ASCII have more than one form, and are left to the thorough look.
    words = [word.removesuffix("*").encode() for word in query.words if word.isascii()]
    early, late = _stamps(query)
    entries = []
    for leaf in leaves:
        record = _as_bytes(leaf.record)
        if any(needle not in record for needle in wanted):
            continue
        if (early or late) and _outside(record, early, late):
            continue
        if words and not _has_all(words, record.lower()):
            continue
        fields = fields_of(record)
        if query.matches(fields, moment_of(fields, leaf.committed_unix_nano)):
            entries.append(Entry(leaf.sequence, leaf.committed_unix_nano, record, fields))
    return entries


def _stamps(query: Query) -> tuple[bytes, bytes]:
    """Return the query's time range as records write it; empty is unbounded."""
    start, end = query.start, query.end
    try:
        return (
            b"" if start is None else stamp(start).encode(),
            b"" if end is None else stamp(end).encode(),
        )
    except OverflowError:  # no year that a record could name
        return b"", b""


def _outside(record: bytes, early: bytes, late: bytes) -> bool:
    """Whether a record says, where it says it as ours do, that it is of another time."""
    moment = stamp_of(record)
    return moment is not None and (moment < early or (late != b"" and moment >= late))


def _has_all(words: Iterable[bytes], lowered: bytes) -> bool:
    return all(word in lowered for word in words)


def _as_bytes(record: object) -> bytes:
    """Return what a row holds as bytes: a row that was tampered with may hold anything."""
    return record if isinstance(record, bytes) else str(record).encode(errors="backslashreplace")


# rows of a segment


def _rows(lookup: Lookup, segment: Segment, query: Query) -> int:
    """Return the rows that may match: all that do are among them; times are not looked at."""
    if segment.present == 0 or not _overlaps(segment, query):
        return 0
    rows = (1 << segment.span) - 1
    for condition in query.conditions:
        rows &= _rows_of(lookup, segment, condition, rows)
        if not rows:
            return 0
    if query.words and lookup.full_text:
        rows &= lookup.text(segment, " AND ".join(_quoted(word) for word in query.words))
    return rows


def _rows_of(lookup: Lookup, segment: Segment, condition: Condition, among: int) -> int:
    found = 0
    for name in condition.fields:
        if condition.exact:
            values: Sequence[str] | None = condition.values
        else:
            known = lookup.values(segment, name)
            values = None if known is None else [v for v in known if condition.covers(v)]
        if values is None:  # too many values to know: each record has to be looked at
            return among
        for value in values:
            found |= lookup.rows(segment, name, value)
    return found if condition.wanted else among & ~found


def _overlaps(segment: Segment, query: Query) -> bool:
    return (query.start is None or segment.last_ns >= query.start) and (
        query.end is None or segment.first_ns < query.end
    )


def _within(segment: Segment, query: Query) -> bool:
    """Whether every record of a segment is in the query's time."""
    return query.in_time(segment.first_ns) and query.in_time(segment.last_ns)


def _clipped(rows: int, segment: Segment, low: int, high: int) -> int:
    """Keep the rows of the sequence numbers from ``low`` until before ``high``."""
    if high < segment.stop:
        rows &= (1 << max(0, high - segment.start)) - 1
    if low > segment.start:
        rows = rows >> (low - segment.start) << (low - segment.start)
    return rows


def _in_time(rows: int, times: Times | None, query: Query) -> Iterator[Sequence[int]]:
    """Yield the rows in the query's time, in its order, some at a time."""
    low, high = _bounds(query)
    for block, octets in segments.blocks(rows, backwards=not query.oldest_first):
        first, last = (low, low) if times is None else times.bounds(block)
        if last < low or first >= high:
            continue
        found = segments.rows_in(block, octets)
        if times is not None and (first < low or last >= high):
            found = [row for row in found if low <= times.of[row] < high]
        yield found if query.oldest_first else found[::-1]


def _bounds(query: Query) -> tuple[int, int]:
    """Return the query's time range; whatever is not there (`NO_TIME`) is outside."""
    low = NO_TIME + 1 if query.start is None else query.start
    return low, (1 << 63) - 1 if query.end is None else query.end


def _quoted(word: str) -> str:
    """Write a word as FTS5 takes it; words are letters and digits, so nothing needs escaping."""
    return f'"{word[:-1]}"*' if word.endswith("*") else f'"{word}"'


# counts


class _Counting:
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
        segment = lookup.next_in_time(position - 1, _bounds(self._query), descending=True)
        if segment is None:
            return 0
        rows = _rows(lookup, segment, self._query)
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
        if not (known and cheap and _certain(lookup, segment, query)):
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
        for entry in _matching(leaves, self._query):
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
        return None if one and whole and _within(segment, self._query) else lookup.times(segment)

    def _add(self, segment: Segment, rows: int, times: Times | None, value: str | None) -> None:
        per = self._per
        if times is None:
            if rows:
                bucket = None if per is None else segment.first_ns - segment.first_ns % per
                self._count(bucket, value, rows.bit_count())
            return
        low, high = _bounds(self._query)
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
        low, high = _bounds(self._query)
        per = self._per
        held = [moment for row in rows if low <= (moment := times.of[row]) < high]
        found = Counter(None if per is None else moment // per * per for moment in held)
        for bucket, number in found.items():
            self._count(bucket, value, number)

    def _count(self, bucket: int | None, value: str | None, number: int) -> None:
        key = (bucket, value)
        self.counts[key] = self.counts.get(key, 0) + number


def _certain(lookup: Lookup, segment: Segment, query: Query) -> bool:
    """Whether the index knows the rows exactly, so that no record has to be looked at."""
    return not query.words and all(
        condition.exact
        or all(lookup.values(segment, name) is not None for name in condition.fields)
        for condition in query.conditions
    )
