"""`query` and `timeline`: asking the trail.

Both make one `Query` of the parameters that HTTP has as well, and show what
`TrailSearch` answers; which records that are is none of their business.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from otel_audit.cli import nothing
from otel_audit.cli.counts import show
from otel_audit.cli.filters import Chosen, filtered, option
from otel_audit.cli.lines import csv_writer, line_writer, raw_writer
from otel_audit.cli.options import Directory, Json, open_reader
from otel_audit.cli.outcome import UsageError
from otel_audit.cli.times import End, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from otel_audit.readers.query.model import Backend, Entry, Progress, Query

_AT_A_TIME: Final = 200
_MOST: Final = 50
"""Records that are shown when nobody says how many."""

Loki = Annotated[
    str | None,
    typer.Option(
        "--loki",
        metavar="URL",
        show_default=False,
        help="Ask this Loki, where the records of all hosts are, instead of the trail here.",
    ),
]
LokiTenant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default=False, help="The tenant there. Default: LOKI_TENANT, or audit."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say on stderr how the answer is found.")
]


@filtered
def query(  # noqa: PLR0913 - each is an option of the command line
    directory: Directory = None,
    *,
    start: Start = None,
    end: End = None,
    chosen: Chosen,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "--lines",
            "-n",
            min=0,
            metavar="N",
            show_default=False,
            help="How many; 0 for all. Default: 50, or all of --count-by.",
        ),
    ] = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    count_by: Annotated[
        list[str] | None, option("FIELD", "Count by this field's values instead.")
    ] = None,
    per: Annotated[
        list[str] | None, option("TIME", "Count by time: 1h is one bar an hour.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    loki: Loki = None,
    loki_tenant: LokiTenant = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Find records, newest first, or count them.

    An option may be given several times: any of the values will do; of
    different options, all have to hold. In values * stands for any text. With
    --json each line is a record's stored bytes, the same as in audit.log.
    """
    if as_csv and as_json:
        message = "--csv and --json are two forms of one answer: choose one of them"
        raise UsageError(message)
    by, time_bucket = _once("--count-by", count_by), _once("--per", per)
    if time_bucket is not None and limit is not None:
        message = "-n limits records, or the values of --count-by; a range of --per is limited by --start and --end"
        raise UsageError(message)
    asked = chosen.query(start=start, end=end, order="oldest" if oldest else "newest")
    with _opened(directory, loki, loki_tenant, verbose=verbose) as search:
        if by is not None or time_bucket is not None:
            show(search, asked, by, time_bucket, limit=limit, as_json=as_json, as_csv=as_csv)
        else:
            most = _MOST if limit is None else limit
            write = csv_writer(asked) if as_csv else raw_writer() if as_json else line_writer()
            _write(search, asked, most, write, quiet=as_csv or as_json)


def timeline(  # noqa: PLR0913 - each filter is an option
    directory: Directory = None,
    *,
    request_id: Annotated[str | None, option("ID", "What happened in this request.")] = None,
    trace_id: Annotated[str | None, option("ID", "What happened in this trace.")] = None,
    actor: Annotated[str | None, option("ID", "What this actor did.")] = None,
    start: Start = None,
    end: End = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "--lines", "-n", min=0, metavar="N", show_default="all", help="How many."
        ),
    ] = 0,
    loki: Loki = None,
    loki_tenant: LokiTenant = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Tell what happened in a request or a trace, or what an actor did, oldest first.

    Each line begins with the time since the first one.
    """
    said = {"request_id": request_id, "trace_id": trace_id, "actor": actor}
    if all(value is None for value in said.values()):
        message = "say whose timeline: --request-id, --trace-id or --actor"
        raise UsageError(message)
    asked = Chosen([], []).query(**said, start=start, end=end, order="oldest")
    with _opened(directory, loki, loki_tenant, verbose=verbose) as search:
        write = raw_writer() if as_json else line_writer(since=True)
        _write(search, asked, limit, write, quiet=as_json)


def _once(option: str, said: Sequence[str] | None) -> str | None:
    """Return what was said once; only one of several would count. Raises `UsageError`."""
    if said is not None and len(said) > 1:
        message = f"{option} is said {len(said)} times; say it once: there is one answer"
        raise UsageError(message)
    return said[0] if said else None


@contextmanager
def _opened(
    directory: Path | None, loki: str | None, tenant: str | None, *, verbose: bool
) -> Iterator[Backend]:
    """Open the trail to ask it, or Loki, and say when that takes long, or how it is done."""
    from otel_audit.destinations import shown_address
    from otel_audit.settings import Settings

    began = time.monotonic()
    settings = Settings.from_env(directory=directory, query_loki=loki, loki_tenant=tenant)
    where = settings.query_with
    search: Backend
    if loki is not None and where is not None:
        from otel_audit.readers.search.loki import LokiSearch

        search = LokiSearch(where)
        how, verbose_or_slow = f"Loki at {shown_address(where.endpoint)} is asked", verbose
    else:
        from otel_audit.readers.search.trail import TrailSearch

        search = TrailSearch(open_reader(settings))
        progress = search.progress()
        how = _how(progress)
        verbose_or_slow = verbose or progress.size - progress.indexed > _UNNOTICED
    try:
        if verbose_or_slow:
            sys.stderr.write(f"otel-audit: {how}\n")
        yield search
        if verbose:
            sys.stderr.write(f"otel-audit: answered in {time.monotonic() - began:.3f} s\n")
    finally:
        search.close()


def _how(progress: Progress) -> str:
    """Say which records an answer comes from."""
    from otel_audit.readers.index.segments import SMALL

    size, behind = progress.size, progress.size - progress.indexed
    if behind > _UNNOTICED:
        return (
            f"{behind:,} of {size:,} records are not in the index (yet) and are read one by one; "
            "the agent makes it, unless OTEL_AUDIT_INDEX is off"
        )
    if not size:
        return "the trail has no record yet"
    if size < SMALL:
        return f"all {size:,} records are read; with {SMALL:,} a trail gets an index, and needs one"
    return f"{size - behind:,} of {size:,} records are in the index, {behind:,} are read"


_UNNOTICED: Final = 100_000
"""Records that are read in less than a second."""


def _limited(entries: Iterator[Entry], limit: int) -> Iterator[Entry]:
    from itertools import islice

    return islice(entries, limit) if limit else entries


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    from itertools import islice

    while chunk := list(islice(entries, _AT_A_TIME)):
        yield chunk


def _write(
    search: Backend,
    asked: Query,
    limit: int,
    write: Callable[[Sequence[Entry]], None],
    *,
    quiet: bool,
) -> None:
    """Write what is found, ``limit`` at most, and say to people what is not shown."""
    found = search.stream(asked)
    number = _write_chunks(_limited(found, limit), write)
    if quiet:
        return
    if not number:
        nothing.say(search, asked)
    elif number == limit and next(found, None) is not None:
        nothing.say_more(number)


def _write_chunks(entries: Iterator[Entry], write: Callable[[Sequence[Entry]], None]) -> int:
    """Write all entries and return how many there were."""
    number = 0
    for chunk in _chunks(entries):
        write(chunk)
        number += len(chunk)
    return number
