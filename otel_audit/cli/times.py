"""Times on the command line, and places in the trail that a time names.

Promises: every command takes a time in the same words, which are those of a
query (`readers/query/times.py`), and by the same two names of its option.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from otel_audit.cli.options import sequence_in
from otel_audit.cli.outcome import AbsentError, UsageError

if TYPE_CHECKING:
    from otel_audit.trail.reader import TrailReader

_FORMS: Final = (
    "2026-01-31T08:00:00Z; 2026-01-31, today, yesterday (in UTC); or relative: -15m, -24h, -7d, now"
)
_BEGIN: Final = ("--start", "--from")
_END: Final = ("--end", "--to")

Start = Annotated[
    str | None,
    typer.Option(*_BEGIN, metavar="TIME", show_default=False, help=f"From then on: {_FORMS}."),
]
End = Annotated[
    str | None,
    typer.Option(
        *_END, metavar="TIME", show_default=False, help="Until before then, in the same forms."
    ),
]
FirstRecord = Annotated[
    str,
    typer.Option(
        *reversed(_BEGIN),
        metavar="WHEN",
        help=f"The first record: a sequence number, or when it was committed: {_FORMS}.",
    ),
]
RecordAfter = Annotated[
    str | None,
    typer.Option(
        *reversed(_END),
        metavar="WHEN",
        show_default=False,
        help="The record after the last, likewise. Default: all that was delivered.",
    ),
]


def position_of(reader: TrailReader, when: str) -> int:
    """Turn a sequence number or a time into a sequence number, of the next record at most.

    Raises `UsageError` and `AbsentError`.
    """
    from otel_audit.errors import QueryError
    from otel_audit.readers.query.times import moment
    from otel_audit.readers.shipping.standing import first_at

    number = sequence_in(when)
    if number is not None:
        size = reader.tree().size
        if number > size:
            message = f"there is no record {number}: the next one of this trail will be {size}"
            raise AbsentError(message)
        return number
    try:
        return first_at(reader, moment("WHEN", when.strip(), time.time_ns()))
    except QueryError as error:
        message = f"{when!r} is neither a sequence number nor a time such as {_FORMS}"
        raise UsageError(message) from error
