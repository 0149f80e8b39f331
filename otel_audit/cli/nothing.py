"""What is said of what is not shown: that there is more, or nothing, and of what times there is.

It goes to stderr, and nothing of it into what programs read: whoever counts
lines counts none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_audit.cli import output

if TYPE_CHECKING:
    from otel_audit.readers.query.model import Backend, Query


def say(search: Backend, asked: Query, by: str | None = None) -> None:
    """Say why there is nothing to show; ``by`` is the field that was counted by."""
    matching = 0 if by is None else sum(search.count(asked).values())
    if matching and by is not None:
        lacking = "the record that matches has no"
        if matching > 1:
            lacking = f"none of the {matching:,} records that match has a"
        message = f"{lacking} field {output.visible(by)}"
    else:
        message = _no_record(search)
    sys.stderr.write(f"{message}\n")


def say_more(shown: int) -> None:
    """Say that this is not all."""
    sys.stderr.write(f"{shown:,} shown, there are more: -n 0 for all\n")


def _no_record(search: Backend) -> str:
    from otel_audit.readers.query.model import Query
    from otel_audit.readers.query.words import moment_of
    from otel_audit.readers.search.trail import TrailSearch

    message = "no record matches"
    if not isinstance(search, TrailSearch):
        return message
    edges = [search.page(Query(limit=1, oldest_first=oldest)).entries for oldest in (True, False)]
    if not all(edges):
        return f"{message}: the trail is empty"
    moments = [moment_of(entry.fields, entry.committed_unix_nano) for (entry,) in edges]
    first, newest = (output.stamp(moment)[:19] + "Z" for moment in moments)
    return f"{message}; the trail's first record is of {first}, the newest of {newest}"
