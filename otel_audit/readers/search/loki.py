"""Answers queries from Loki, where the records of many hosts meet.

`LokiSearch` takes the same `Query` as `TrailSearch` and promises the same
answer for the same records: LogQL chooses lines that may match, by time and by
what has to be in them, and each is held against the query here, because the
line is the record's own bytes. A record that was shipped twice is given once.
Counts are Loki's own where LogQL can say what is asked (`loki_count.py`).
Positions are times in nanoseconds; a page ends where the time changes, so it may
be longer than its limit by records of one and the same nanosecond.

It shows what arrived: whether that is everything, the trail knows.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from otel_audit.errors import QueryError
from otel_audit.readers.loki import WINDOW, Loki
from otel_audit.readers.query.model import Counts, Entry, Page, Progress, check_buckets
from otel_audit.readers.query.words import fields_of, moment_of, texts_of
from otel_audit.readers.search import logql
from otel_audit.readers.search.loki_count import LokiCount, added

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.destinations import Destination
    from otel_audit.readers.loki import Line
    from otel_audit.readers.query.model import Query

_FURTHEST: Final = 3 * 366 * 86_400 * 1_000_000_000
"""How far back it looks when nothing is said: as long as the bundled Loki keeps anything."""

_AHEAD: Final = 600 * 1_000_000_000
"""Clocks of other hosts may be ahead."""

_REMEMBERED: Final = 20_000
"""Records that are known when they come again; what is shipped twice comes close together."""


class LokiSearch:
    """One Loki to ask. For one thread at a time."""

    def __init__(self, where: Destination) -> None:
        """Take where Loki is; nothing is opened yet."""
        self._loki = Loki(where)

    def close(self) -> None:
        """Close the connection."""
        self._loki.close()

    def progress(self) -> Progress:
        """Return zeros: Loki has an index of its own."""
        return Progress(0, 0, full_text=False)

    def page(
        self, query: Query, position: int | None = None, *, seconds: float | None = None
    ) -> Page:
        """Return about ``query.limit`` records from ``position`` on."""
        deadline = None if seconds is None else time.monotonic() + seconds
        entries: list[Entry] = []
        last: int | None = None
        for entry, moment in self._found(query, position):
            if entry is not None:
                if len(entries) >= query.limit and moment != last:
                    return Page(entries, moment if query.oldest_first else moment + 1, True)  # noqa: FBT003 - a page's fields in order
                entries.append(entry)
                last = moment
            elif deadline is not None and time.monotonic() >= deadline:
                return Page(entries, moment, complete=False)
        return Page(entries, None, complete=True)

    def stream(self, query: Query, position: int | None = None) -> Iterator[Entry]:
        """Yield all records of the answer, as of now."""
        for entry, _ in self._found(query, position):
            if entry is not None:
                yield entry

    def count(
        self,
        query: Query,
        *,
        by: str | None = None,
        per: int | None = None,
        seconds: float | None = None,
    ) -> Counts:
        """Count the records, by the values of a field, by time buckets, or both."""
        if by is not None:
            by = query.counted(by)
        check_buckets(query, per)
        check_time = _limited(seconds)

        def read(low: int, high: int) -> Counts:
            return self._read(replace(query, start=low, end=high), by, per, check_time)

        low, high = _range(query)
        if low >= high:
            return {}
        counting = logql.counting(query, by, per)
        if counting is None:
            return read(low, high)
        counted = LokiCount(self._loki, counting, read, check_time)
        starts = range(low, high, WINDOW)
        return added(counted.between(start, min(high, start + WINDOW)) for start in starts)

    def _read(
        self, query: Query, by: str | None, per: int | None, check_time: Callable[[], None]
    ) -> Counts:
        """Count by looking at each line."""
        counts: Counts = {}
        for entry in self.stream(query):
            check_time()
            moment = moment_of(entry.fields, entry.committed_unix_nano)
            bucket = None if per is None else moment // per * per
            values = [None] if by is None else list(dict.fromkeys(texts_of(entry.fields, by)))
            for value in values:
                counts[bucket, value] = counts.get((bucket, value), 0) + 1
        return counts

    def _found(self, query: Query, position: int | None) -> Iterator[tuple[Entry | None, int]]:
        """Yield records with their times, and after each answer of Loki's None with the next one."""
        low, high = _range(query)
        if position is not None:
            low, high = (position, high) if query.oldest_first else (low, min(high, position))
        seen: dict[str, None] = {}
        for lines, turn in self._loki.pages(
            logql.lines(query), low, high, oldest_first=query.oldest_first
        ):
            for line in lines:
                entry, moment = _entry(line), line.unix_nano
                name = str(entry.fields.get("record_id", line.text))
                if name not in seen and query.matches(
                    entry.fields, moment_of(entry.fields, moment)
                ):
                    seen[name] = None
                    if len(seen) > _REMEMBERED:
                        del seen[next(iter(seen))]
                    yield entry, moment
            yield None, turn


def _range(query: Query) -> tuple[int, int]:
    """Return the times between which Loki is asked."""
    now = time.time_ns() + _AHEAD
    low = now - _FURTHEST if query.start is None else query.start
    return low, now if query.end is None else min(query.end, now)


def _limited(seconds: float | None) -> Callable[[], None]:
    """Return what raises `QueryError` when the time is up."""
    deadline = None if seconds is None else time.monotonic() + seconds

    def check() -> None:
        if deadline is not None and time.monotonic() >= deadline:
            message = "this count takes too long here; narrow it by start and end"
            raise QueryError(message)

    return check


def _entry(line: Line) -> Entry:
    record = line.text.encode()
    number = line.labels.get("audit_sequence_number", "")
    committed = line.labels.get("observed_timestamp", "")
    return Entry(
        int(number) if number.isdecimal() else -1,
        int(committed) if committed.isdecimal() else line.unix_nano,
        record,
        fields_of(record),
    )
