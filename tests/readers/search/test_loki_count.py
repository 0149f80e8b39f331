"""Counts by numbers, from a small Loki that lies about nothing but refuses much."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.destinations import Destination
from otel_audit.errors import QueryError
from otel_audit.readers.loki import Line, Loki, LokiRefusedError
from otel_audit.readers.query.model import Query
from otel_audit.readers.search.logql import BUCKET, VALUE, Counting, counting
from otel_audit.readers.search.loki_count import LokiCount

if TYPE_CHECKING:
    from otel_audit.readers.query.model import Counts

PER = 1_000_000


def told(by: str | None = None, per: int | None = None) -> Counting:
    found = counting(Query(), by, per)
    assert found is not None
    return found


class Small(Loki):
    """Holds lines: time, record, value. Makes at most so many series, and says so."""

    def __init__(self, kind: Counting, held: list[tuple[int, int, str]], series: int) -> None:
        super().__init__(Destination("loki", "http://loki:3100", "X"))
        self.held = sorted(held)
        self.unsure: set[int] = set()
        self.asked: list[str] = []
        self._kind = kind
        self._series = series

    def lines(
        self, logql: str, start: int, end: int, *, oldest_first: bool, limit: int = 1
    ) -> list[Line]:
        assert logql == self._kind.lines
        found = [Line(at, "", {}) for at, *_ in self.held if start <= at < end]
        return (found if oldest_first else found[::-1])[:limit]

    def numbers(self, logql: str, at: int) -> list[tuple[dict[str, str], int]]:
        match = re.search(r"\[(\d+)ms\]", logql)
        assert match is not None
        kinds = ("distinct", "total", "among", "unsure")
        kind = next(
            each
            for each in kinds
            if logql == self._kind.over(getattr(self._kind, each), int(match[1]))
        )
        self.asked.append(kind)
        begin = at - int(match[1]) * 1_000_000
        found = [line for line in self.held if begin < line[0] <= at]
        if kind == "distinct":
            return self._grouped(set(found))
        number = len([line for line in found if kind != "unsure" or line[0] in self.unsure])
        return [({}, number)] if number else []

    def _grouped(self, found: set[tuple[int, int, str]]) -> list[tuple[dict[str, str], int]]:
        if len(found) > self._series:
            message = f"maximum of series ({self._series}) reached for a single query"
            raise LokiRefusedError(message, message)
        groups: dict[tuple[tuple[str, str], ...], int] = {}
        for at, _, value in found:
            labels = {VALUE: value} if self._kind.by else {}
            if self._kind.per:
                labels[BUCKET] = str(at // self._kind.per)
            name = tuple(labels.items())
            groups[name] = groups.get(name, 0) + 1
        return [(dict(name), number) for name, number in groups.items()]


def counted(site: Small, kind: Counting, low: int, high: int) -> tuple[Counts, list[int]]:
    """Return what is counted, and what of it was read instead: how many lines."""
    read: list[int] = []

    def reading(start: int, end: int) -> Counts:
        found = {line for line in site.held if start <= line[0] < end}
        read.append(len(found))
        return by_hand(found, kind)

    return LokiCount(site, kind, reading, lambda: None).between(low, high), read


def by_hand(lines: set[tuple[int, int, str]], kind: Counting) -> Counts:
    counts: Counts = {}
    for at, _, value in lines:
        if kind.by and not value:
            continue
        key = (at // kind.per * kind.per if kind.per else None, value if kind.by else None)
        counts[key] = counts.get(key, 0) + 1
    return counts


RECORDS = st.lists(
    st.tuples(st.integers(0, 6_000_000), st.sampled_from(["", "a", "b"]), st.integers(1, 3)),
    max_size=30,
)


@settings(max_examples=400)
@given(
    RECORDS,
    st.integers(0, 2_000_000),
    st.integers(0, 6_000_000),
    st.integers(1, 8),
    st.sampled_from([None, "event"]),
)
def test_a_count_is_that_of_distinct_records(
    records: list[tuple[int, str, int]], low: int, length: int, series: int, by: str | None
) -> None:
    kind = told(by, PER if by else None)
    held = [
        (at, number, value)
        for number, (at, value, copies) in enumerate(records)
        for _ in range(copies)
    ]
    site = Small(kind, held, series)
    wanted = {line for line in held if low <= line[0] < low + length}
    assert counted(site, kind, low, low + length)[0] == by_hand(wanted, kind)


def test_what_is_not_sure_is_read() -> None:
    kind = told("event")
    site = Small(kind, [(number * 1_000_000, number, "a") for number in range(10)], 500)
    assert counted(site, kind, 0, 10_000_000) == ({(None, "a"): 10}, [])
    site.unsure = {3_000_000}
    assert counted(site, kind, 0, 10_000_000) == ({(None, "a"): 10}, [10])
    assert counted(site, kind, 4_000_000, 10_000_000) == ({(None, "a"): 6}, [])


def test_nothing_is_asked_of_a_range_without_lines() -> None:
    kind = told()
    site = Small(kind, [(5, 1, "")], 500)
    assert counted(site, kind, 6, 9_000_000) == ({}, [])
    assert site.asked == []


def test_a_limit_that_was_met_once_is_kept_in_mind() -> None:
    kind = told()
    site = Small(kind, [(number * 1_000_000, number, "") for number in range(100)], 10)
    counts, read = counted(site, kind, 0, 100_000_000)
    assert (counts, read) == ({(None, None): 100}, [])
    assert site.asked[:3] == ["unsure", "among", "distinct"]
    assert site.asked.count("distinct") - 1 <= 25


def test_what_no_range_is_short_enough_for_is_read() -> None:
    kind = told()
    moments = (0, 0, 10, 3_000_000, 5_000_000, 5_000_001)
    site = Small(kind, [(at, number or 1, "") for number, at in enumerate(moments)], 1)
    assert counted(site, kind, 0, 6_000_000) == ({(None, None): 5}, [2, 2])


def test_a_loki_that_counts_nothing_at_all_is_read_from() -> None:
    kind = told()

    class Old(Small):
        def numbers(self, logql: str, at: int) -> list[tuple[dict[str, str], int]]:
            message = f"parse error at {at}: {logql}"
            raise LokiRefusedError(message, message)

    site = Old(kind, [(1, 1, ""), (2_000_000, 2, "")], 10)
    assert counted(site, kind, 0, 3_000_000) == ({(None, None): 2}, [2])

    class Odd(Small):
        def _grouped(self, found: set[tuple[int, int, str]]) -> list[tuple[dict[str, str], int]]:
            message = f"not this one, of {len(found)}"
            raise LokiRefusedError(message, message)

    odd = Odd(kind, [(1, 1, ""), (2_000_000, 2, "")], 10)
    assert counted(odd, kind, 0, 3_000_000) == ({(None, None): 2}, [2])


def test_a_count_ends_when_its_time_is_up() -> None:
    kind = told()
    site = Small(kind, [(1, 1, "")], 10)

    def check() -> None:
        message = "it takes too long"
        raise QueryError(message)

    with pytest.raises(QueryError):
        LokiCount(site, kind, lambda *_: {}, check).between(0, 10)
