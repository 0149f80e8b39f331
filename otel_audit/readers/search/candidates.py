"""The rows of an index's segment that may match a query.

Promises: all records that match are among the candidates; which of the others
are, `certain` tells. Rows are bits of an integer, counted from the segment's
beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.readers.index import segments
from otel_audit.readers.index.segments import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otel_audit.readers.index.segments import Times
    from otel_audit.readers.index.tables import Segment
    from otel_audit.readers.index.view import Lookup
    from otel_audit.readers.query.model import Condition, Query


def candidates(lookup: Lookup, segment: Segment, query: Query) -> int:
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


def within(segment: Segment, query: Query) -> bool:
    """Whether every record of a segment is in the query's time."""
    return query.in_time(segment.first_ns) and query.in_time(segment.last_ns)


def clipped(rows: int, segment: Segment, low: int, high: int) -> int:
    """Keep the rows of the sequence numbers from ``low`` until before ``high``."""
    if high < segment.stop:
        rows &= (1 << max(0, high - segment.start)) - 1
    if low > segment.start:
        rows = rows >> (low - segment.start) << (low - segment.start)
    return rows


def in_time(rows: int, times: Times | None, query: Query) -> Iterator[Sequence[int]]:
    """Yield the rows in the query's time, in its order, some at a time."""
    low, high = bounds(query)
    for block, octets in segments.blocks(rows, backwards=not query.oldest_first):
        first, last = (low, low) if times is None else times.bounds(block)
        if last < low or first >= high:
            continue
        found = segments.rows_in(block, octets)
        if times is not None and (first < low or last >= high):
            found = [row for row in found if low <= times.of[row] < high]
        yield found if query.oldest_first else found[::-1]


def bounds(query: Query) -> tuple[int, int]:
    """Return the query's time range; whatever is not there (`NO_TIME`) is outside."""
    low = NO_TIME + 1 if query.start is None else query.start
    return low, (1 << 63) - 1 if query.end is None else query.end


def _quoted(word: str) -> str:
    """Write a word as FTS5 takes it; words are letters and digits, so nothing needs escaping."""
    return f'"{word[:-1]}"*' if word.endswith("*") else f'"{word}"'


def certain(lookup: Lookup, segment: Segment, query: Query) -> bool:
    """Whether the index knows the rows exactly, so that no record has to be looked at."""
    return not query.words and all(
        condition.exact
        or all(lookup.values(segment, name) is not None for name in condition.fields)
        for condition in query.conditions
    )
