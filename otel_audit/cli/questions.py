"""`query` and `timeline`: asking the trail.

Both make one `Query` of the parameters that HTTP has as well, and show what
`TrailSearch` answers; which records that are is none of their business.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json, open_reader, settings_for
from otel_audit.cli.outcome import UsageError
from otel_audit.cli.records import line_writer, parse_condition, raw_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.text import Text

    from otel_audit.readers.query import Backend, Counts, Entry, Query

_AT_A_TIME: Final = 200
_BAR: Final = 40
_MANY: Final = 2_000
"""Time buckets that are listed with nothing in them; beyond, only those that hold something."""

Start = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        show_default=False,
        help="From then on: 2026-01-31T08:00:00Z, 2026-01-31 (UTC), or relative: -15m, -24h, -7d.",
    ),
]
End = Annotated[
    str | None,
    typer.Option(metavar="TIME", show_default=False, help="Until before then, in the same forms."),
]


def _filter(name: str, meaning: str) -> object:
    return typer.Option(metavar=name, show_default=False, help=meaning)


_Texts = list[str] | None
Loki = Annotated[
    str | None,
    typer.Option(
        "--loki",
        metavar="URL",
        show_default=False,
        help="Ask this Loki, where the records of all hosts are, instead of the trail here.",
    ),
]
LokiTenant = Annotated[str, typer.Option(metavar="NAME", help="The tenant in Loki.")]


def query(  # noqa: PLR0913 - each filter is an option
    directory: Directory = None,
    *,
    start: Start = None,
    end: End = None,
    action: Annotated[_Texts, _filter("NAME", "The action's or the event's name.")] = None,
    event: Annotated[_Texts, _filter("NAME", "The event's name.")] = None,
    event_type: Annotated[_Texts, _filter("NAME", "The class of the event.")] = None,
    actor: Annotated[_Texts, _filter("ID", "Who did it.")] = None,
    client: Annotated[_Texts, _filter("ID", "What the client called itself.")] = None,
    client_ip: Annotated[_Texts, _filter("ADDRESS", "From where.")] = None,
    resource_type: Annotated[_Texts, _filter("NAME", "On what kind of thing.")] = None,
    resource: Annotated[_Texts, _filter("NAME", "On what, by its name.")] = None,
    server_name: Annotated[_Texts, _filter("NAME", "The field server_name.")] = None,
    outcome: Annotated[_Texts, _filter("OUTCOME", "success, failure or unknown.")] = None,
    level: Annotated[_Texts, _filter("LEVEL", "debug, info, warning, error or critical.")] = None,
    request_id: Annotated[_Texts, _filter("ID", "In which request.")] = None,
    trace_id: Annotated[_Texts, _filter("ID", "In which trace.")] = None,
    where: Annotated[
        _Texts, _filter("FIELD=VALUE", "Any field, also of your own; FIELD!=VALUE: not so.")
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            "--words",
            "-q",
            metavar="TEXT",
            show_default=False,
            help="Words that are in the record, all of them, or an id; WORD* for a beginning.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, metavar="N", help="How many; 0 for all.")
    ] = 50,
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    count_by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", show_default=False, help="Count by this field's values instead."
        ),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", show_default=False, help="Count by time: 1h is one bar an hour."
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    loki: Loki = None,
    loki_tenant: LokiTenant = "audit",
    as_json: Json = False,
) -> None:
    """Find records, newest first, or count them.

    An option may be given several times: any of the values will do; of
    different options, all have to hold. In values * stands for any text. With
    --json each line is a record's stored bytes, the same as in audit.log.
    """
    values = {
        "action": action, "event": event, "event_type": event_type, "actor": actor,
        "client": client, "client_ip": client_ip, "resource_type": resource_type,
        "resource_name": resource, "server_name": server_name, "outcome": outcome,
        "level": level, "request_id": request_id, "trace_id": trace_id,
        "start": start and [start], "end": end and [end], "q": words and [words],
        "order": ["oldest" if oldest else "newest"],
    }  # fmt: skip
    asked = _parsed(values, where)
    with _opened(directory, loki, loki_tenant) as search:
        if count_by is not None or per is not None:
            _count(search, asked, count_by, per, as_json=as_json, as_csv=as_csv)
        else:
            entries = _limited(search.stream(asked), limit)
            _write(entries, asked, as_json=as_json, as_csv=as_csv)


def timeline(  # noqa: PLR0913 - each filter is an option
    directory: Directory = None,
    *,
    request_id: Annotated[str | None, _filter("ID", "What happened in this request.")] = None,
    trace_id: Annotated[str | None, _filter("ID", "What happened in this trace.")] = None,
    actor: Annotated[str | None, _filter("ID", "What this actor did.")] = None,
    start: Start = None,
    end: End = None,
    loki: Loki = None,
    loki_tenant: LokiTenant = "audit",
    as_json: Json = False,
) -> None:
    """Tell what happened in a request or a trace, or what an actor did, oldest first.

    Each line begins with the time since the first one.
    """
    said = {"request_id": request_id, "trace_id": trace_id, "actor": actor}
    values = {name: [value] for name, value in said.items() if value is not None}
    if not values:
        message = "say whose timeline: --request-id, --trace-id or --actor"
        raise UsageError(message)
    times = {"start": start and [start], "end": end and [end]}
    asked = _parsed({**values, **times, "order": ["oldest"]}, None)
    with _opened(directory, loki, loki_tenant) as search:
        entries = search.stream(asked)
        write = raw_writer() if as_json else line_writer(since=True)
        _write_chunks(entries, write, as_json=as_json)


def _parsed(values: Mapping[str, Sequence[str] | None], where: Sequence[str] | None) -> Query:
    from otel_audit.readers.query import parse

    pairs = [(name, item) for name, items in values.items() for item in items or ()]
    asked, _ = parse(pairs)
    conditions = [parse_condition(text) for text in where or ()]
    return replace(asked, conditions=(*asked.conditions, *conditions))


@contextmanager
def _opened(directory: Path | None, loki: str | None, tenant: str) -> Iterator[Backend]:
    """Open the trail to ask it, or Loki, and say when there is no index to do so by."""
    from otel_audit.readers.loki_search import LokiSearch
    from otel_audit.readers.search import TrailSearch

    search: Backend
    if loki is not None:
        search = LokiSearch(loki, tenant=tenant)
    else:
        search = TrailSearch(open_reader(settings_for(directory)))
    try:
        progress = search.progress()
        behind = progress.size - progress.indexed
        if behind > _UNNOTICED:
            sys.stderr.write(
                f"otel-audit: {behind:,} of {progress.size:,} records are not in the index (yet) "
                "and are read one by one; the agent makes it\n"
            )
        yield search
    finally:
        search.close()


_UNNOTICED: Final = 100_000
"""Records that are read in less than a second."""


def _limited(entries: Iterator[Entry], limit: int) -> Iterator[Entry]:
    from itertools import islice

    return islice(entries, limit) if limit else entries


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    from itertools import islice

    while chunk := list(islice(entries, _AT_A_TIME)):
        yield chunk


def _write(entries: Iterator[Entry], asked: Query, *, as_json: bool, as_csv: bool) -> None:
    if as_csv:
        from otel_audit.readers.export import csv_head, csv_line

        sys.stdout.write(csv_head())
        sys.stdout.writelines(csv_line(entry, asked) for entry in entries)
        return
    write: Callable[[Sequence[Entry]], None] = raw_writer() if as_json else line_writer()
    _write_chunks(entries, write, as_json=as_json)


def _write_chunks(
    entries: Iterator[Entry], write: Callable[[Sequence[Entry]], None], *, as_json: bool
) -> None:
    found = False
    for chunk in _chunks(entries):
        found = True
        write(chunk)
    if not (found or as_json):
        # Not among the results: whoever counts lines counts none.
        sys.stderr.write("no record matches\n")


# counts


def _count(
    search: Backend, asked: Query, by: str | None, per: str | None, *, as_json: bool, as_csv: bool
) -> None:
    from otel_audit.readers.query import duration

    nanoseconds = None if per is None else duration("--per", per)
    counts = search.count(asked, by=by, per=nanoseconds)
    if not (as_json or as_csv):
        _write_bars(_ordered(counts), asked, nanoseconds)
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
    if not rows:
        target.print("no record matches")
        return
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
