"""Counts in the terminal: bars, JSON or CSV; what is counted is said by `questions.py`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from otel_audit.cli import nothing, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from otel_audit.readers.query import Backend, Counts, Query

_BAR: Final = 40
_MANY: Final = 2_000
"""Time buckets that are listed with nothing in them; beyond, only those that hold something."""


def show(
    search: Backend, asked: Query, by: str | None, per: str | None, *, as_json: bool, as_csv: bool
) -> None:
    """Count what is asked, and show it in one of three forms."""
    from otel_audit.readers.times import duration

    nanoseconds = None if per is None else duration("--per", per)
    counts = search.count(asked, by=by, per=nanoseconds)
    if not (as_json or as_csv):
        if counts:
            _write_bars(_ordered(counts), asked, nanoseconds)
        else:
            nothing.say(search, asked, by)
        return
    rows = _filled(counts, asked, nanoseconds) if by is None else _ordered(counts)
    if as_json:
        _write_counts_json(rows, by, per)
    else:
        _write_counts_csv(rows, by, per)


_Row = tuple["int | None", "str | None", int]


def _ordered(counts: Counts) -> list[_Row]:
    """Order by time, then the most frequent first."""
    rows = [(bucket, value, number) for (bucket, value), number in counts.items()]
    return sorted(rows, key=lambda row: (row[0] or 0, -row[2], row[1] or ""))


def _filled(counts: Counts, asked: Query, per: int | None) -> list[_Row]:
    """Add the buckets in which nothing happened: what draws the counts needs each."""
    rows = _ordered(counts)
    if per is None or not rows:
        return rows
    known = {bucket: number for bucket, _, number in rows}
    first = rows[0][0] or 0
    if asked.start is not None:
        first = min(first, asked.start // per * per)
    buckets = range(first, (rows[-1][0] or 0) + 1, per)
    if len(buckets) > _MANY:
        return rows
    return [(bucket, None, known.get(bucket, 0)) for bucket in buckets]


def _moment(bucket: int | None) -> str:
    return "" if bucket is None else output.stamp(bucket)[:19] + "Z"


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
    from otel_audit.readers.export import csv_row, safe_cell

    named = [name for name, said in (("start", per), (by or "", by)) if said is not None]
    sys.stdout.write(csv_row([*named, "count"]))
    for bucket, value, number in rows:
        cells = [_moment(bucket)] if per is not None else []
        cells += [safe_cell(value or "")] if by is not None else []
        sys.stdout.write(csv_row([*cells, str(number)]))


def _write_bars(rows: Sequence[_Row], asked: Query, per: int | None) -> None:
    """Draw a bar for each count; of buckets with nothing in them a line for as many as follow."""
    from rich.text import Text

    target = output.console()
    most = max(number for _, _, number in rows)
    values = [output.visible(value or "")[:_BAR] for _, value, _ in rows]
    wide = max(map(len, values)), max(len(f"{number:,}") for _, _, number in rows)
    before = None if asked.start is None or per is None else asked.start // per * per - per
    for (bucket, _, number), value in zip(rows, values, strict=True):
        line = Text()
        if bucket is not None and per is not None:
            if before is not None and bucket - before > per:
                target.print(_gap(before + per, bucket - per, sum(wide) + 2 * bool(wide[0])))
            line.append(f"{_time(bucket) if bucket != before else '':<19}  ", style="dim")
            before = bucket
        if wide[0]:
            line.append(f"{value:<{wide[0]}}  ")
        line.append(f"{number:>{wide[1]},}  ", style="bold")
        line.append("█" * -(-number * _BAR // most), style="cyan")
        line.rstrip()
        target.print(line)


def _gap(first: int, last: int, wide: int) -> Text:
    """Say from when to when there is nothing: a gap is news, but not a screen of zeros."""
    from rich.text import Text

    until = "" if first == last else f"  until {_time(last)}"
    return Text(f"{_time(first)}  {0:>{wide}}{until}", style="dim")


def _time(bucket: int) -> str:
    return _moment(bucket).replace("T", " ").removesuffix("Z")
