"""Counting what Loki has, by queries that give numbers instead of lines.

`LokiCount` promises what reading each line would give: a record that was
shipped twice counts once, and buckets of time begin at their very nanosecond.
What Loki cannot count so is read, range by range. Loki makes a series of each
record to tell it from its copies, so ranges that hold too many are cut.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from otel_audit.readers.loki import LokiRefusedError
from otel_audit.readers.search.logql import BUCKET, VALUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_audit.readers.loki import Loki
    from otel_audit.readers.query.model import Counts
    from otel_audit.readers.search.logql import Counting

_MILLISECOND: Final = 1_000_000
"""The shortest range of LogQL."""

_SERIES: Final = 5_000
"""Of one query, as the bundled Loki allows; another one says what it allows."""

_REFUSED: Final = re.compile(r"series \((\d+)\)")


class LokiCount:
    """One count. ``read`` does it by reading lines; ``check_time`` raises when the time is up."""

    def __init__(
        self,
        loki: Loki,
        counting: Counting,
        read: Callable[[int, int], Counts],
        check_time: Callable[[], None],
    ) -> None:
        """Take where and what to ask."""
        self._loki = loki
        self._counting = counting
        self._read = read
        self._check_time = check_time
        self._series = _SERIES

    def between(self, low: int, high: int) -> Counts:
        """Count from one nanosecond until before another."""
        # Loki takes a range by the hour, and a year without a line as seriously as one with many.
        first, last = self._edge(low, high, oldest=True), self._edge(low, high, oldest=False)
        if first is None or last is None:
            return {}
        length = -(-(last + 1 - first) // _MILLISECOND) * _MILLISECOND
        if first + length > high:
            length -= _MILLISECOND
        stop = first + length
        try:
            counts = self._sure(first, stop) if length else {}
        except LokiRefusedError:
            counts = self._read(first, stop)
        return added((counts, self._read(stop, last + 1))) if last >= stop else counts

    def _edge(self, low: int, high: int, *, oldest: bool) -> int | None:
        """Return the time of the first or the last line that may be wanted."""
        self._check_time()
        found = self._loki.lines(self._counting.lines, low, high, oldest_first=oldest, limit=1)
        return found[0].unix_nano if found else None

    def _sure(self, low: int, high: int) -> Counts:
        if self._number(self._counting.unsure, low, high):
            return self._read(low, high)
        return self._counted(low, high, self._number(self._counting.among, low, high))

    def _counted(self, low: int, high: int, among: int) -> Counts:
        """Count records that are among so many lines."""
        if among > self._series:
            among = self._number(self._counting.total, low, high)
        if not among:
            return {}
        if among <= self._series:
            try:
                return self._distinct(low, high)
            except LokiRefusedError as error:
                allowed = _REFUSED.search(error.said)
                if allowed is None or int(allowed[1]) >= self._series:
                    raise
                self._series = int(allowed[1])
        if high - low <= _MILLISECOND:
            return self._read(low, high)
        # Some more than there need be, as records do not come evenly.
        parts = among * 3 // self._series // 2 + 2
        step = max(1, (high - low) // _MILLISECOND // parts) * _MILLISECOND
        ranges = [(start, min(high, start + step)) for start in range(low, high, step)]
        return added(self._counted(*each, self._series + 1) for each in ranges)

    def _distinct(self, low: int, high: int) -> Counts:
        counts: Counts = {}
        by, per = self._counting.by, self._counting.per
        for labels, number in self._numbers(self._counting.distinct, low, high):
            value = labels.get(VALUE) if by else None
            if value or not by:  # else it has no such field
                counts[None if per is None else int(labels[BUCKET]) * per, value] = number
        return counts

    def _number(self, logql: str, low: int, high: int) -> int:
        return sum(number for _, number in self._numbers(logql, low, high))

    def _numbers(self, logql: str, low: int, high: int) -> list[tuple[dict[str, str], int]]:
        self._check_time()
        # A range is what lies after its beginning, until its end and with that.
        length = (high - low) // _MILLISECOND
        return self._loki.numbers(self._counting.over(logql, length), high - 1)


def added(parts: Iterable[Counts]) -> Counts:
    """Add counts up."""
    counts: Counts = {}
    for part in parts:
        for key, number in part.items():
            counts[key] = counts.get(key, 0) + number
    return counts
