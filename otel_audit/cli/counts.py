"""Counts in the terminal: bars, JSON or CSV; what is counted is said by `questions.py`."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from otel_audit.cli import nothing, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from otel_audit.readers.query.model import Backend, Counts, Query

_BAR: Final = 40
_SHORTEST: Final = 8
"""Of the longest bar, on a terminal that has no room for it."""

_STAMP: Final = len("2026-01-31 08:00:00")


def show(
    search: Backend,
    asked: Query,
    by: str | None,
    per: str | None,
    *,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Count what is asked, and show it in one of three forms; ``limit``: the most frequent only."""
    from otel_audit.readers.query.model import filled
    from otel_audit.readers.query.times import duration

    nanoseconds = None if per is None else duration("--per", per)
    everything = search.count(asked, by=by, per=nanoseconds)
    counts = _most_frequent(everything, limit)
    if not (as_json or as_csv):
        if counts:
            _write_bars(counts, asked, nanoseconds)
            if len(counts) < len(everything):
                nothing.say_more(len(counts))
        else:
            nothing.say(search, asked, by)
        return
    if by is None and nanoseconds is not None:
        counts = filled(counts, asked, nanoseconds)
    rows = _ordered(counts)
    if as_json:
        _write_counts_json(rows, by, per)
    else:
        _write_counts_csv(rows, by, per)


_Row = tuple["int | None", "str | None", int]


def _most_frequent(counts: Counts, limit: int | None) -> Counts:
    if not limit:
        return counts
    return {(bucket, value): number for bucket, value, number in _ordered(counts)[:limit]}


def _ordered(counts: Counts) -> list[_Row]:
    """Order by time, then the most frequent first."""
    rows = [(bucket, value, number) for (bucket, value), number in counts.items()]
    return sorted(rows, key=lambda row: (row[0] or 0, -row[2], row[1] or ""))


def _moment(bucket: int | None) -> str:
    from otel_audit.readers.query.times import stamp_of_bucket

    return "" if bucket is None else stamp_of_bucket(bucket)


def _write_counts_json(rows: Sequence[_Row], by: str | None, per: str | None) -> None:
    output.write_json(
        {
            "by": by,
            "per": per,
            "counts": [
                {"start": _moment(bucket) or None, "value": value, "count": number}
                for bucket, value, number in rows
            ],
        }
    )


def _write_counts_csv(rows: Sequence[_Row], by: str | None, per: str | None) -> None:
    from otel_audit.readers.query.export import csv_row, safe_cell

    named = [name for name, said in (("start", per), (by or "", by)) if said is not None]
    sys.stdout.write(csv_row([*named, "count"]))
    for bucket, value, number in rows:
        cells = [_moment(bucket)] if per is not None else []
        cells += [safe_cell(value or "")] if by is not None else []
        sys.stdout.write(csv_row([*cells, str(number)]))


def _write_bars(counts: Counts, asked: Query, per: int | None) -> None:
    """Draw a bar for each count; of buckets with nothing in them a line for as many as follow."""
    from rich.text import Text

    target, mark = output.console(), _mark()
    rows = _ordered(counts)
    most = max(number for _, _, number in rows)
    values = [output.visible(value or "")[:_BAR] for _, value, _ in rows]
    wide = max(map(len, values)), max(len(f"{number:,}") for _, _, number in rows)
    taken = sum(wide) + 2 * bool(wide[0])
    longest = _longest(target, taken + (0 if per is None else _STAMP + 2))
    gaps = {} if per is None else _gaps(counts, asked, per, taken)
    before = None
    for (bucket, _, number), value in zip(rows, values, strict=True):
        line = Text()
        if bucket in gaps:
            target.print(gaps.pop(bucket))
        if bucket is not None:
            line.append(f"{_time(bucket) if bucket != before else '':<{_STAMP}}  ", style="dim")
            before = bucket
        if wide[0]:
            line.append(f"{value:<{wide[0]}}  ")
        line.append(f"{number:>{wide[1]},}  ", style="bold")
        line.append(mark * -(-number * longest // most), style="cyan")
        line.rstrip()
        target.print(line)
    for gap in gaps.values():  # what is left is after the last
        target.print(gap)


def _longest(target: Console, taken: int) -> int:
    """Return how long the longest bar is: on a terminal, as long as there is room beside it."""
    return min(_BAR, max(_SHORTEST, target.width - taken - 2)) if target.is_terminal else _BAR


def _mark() -> str:
    """Return what bars are made of: where the output has no blocks, each would be an escape."""
    try:
        "█".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "#"
    return "█"


def _gaps(counts: Counts, asked: Query, per: int, wide: int) -> dict[int | None, Text]:
    """Return a line for each gap, by the bucket that follows it."""
    from otel_audit.readers.query.model import edges

    first, last = edges(counts, asked, per) or (0, 0)
    held = sorted({bucket for bucket, _ in counts if bucket is not None})
    pairs = pairwise([first - per, *held, last + per])
    return {
        after: _gap(before + per, after - per, wide)
        for before, after in pairs
        if after - before > per
    }


def _gap(first: int, last: int, wide: int) -> Text:
    """Say from when to when there is nothing: a gap is news, but not a screen of zeros."""
    from rich.text import Text

    until = "" if first == last else f"  until {_time(last)}"
    return Text(f"{_time(first)}  {0:>{wide}}{until}", style="dim")


def _time(bucket: int) -> str:
    return _moment(bucket).replace("T", " ").removesuffix("Z")
