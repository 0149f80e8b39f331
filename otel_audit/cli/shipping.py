"""`ship status`, `ship replay`, `ship requeue`: what the destinations have, and sending again."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json, open_reader, own, sequence_in, settings_for
from otel_audit.cli.outcome import AbsentError, UsageError
from otel_audit.cli.times import FirstRecord, position_of

if TYPE_CHECKING:
    from otel_audit.readers.shipping.standing import Standing
    from otel_audit.settings import Settings

Destination = Annotated[
    str | None,
    typer.Option(
        "--destination",
        metavar="NAME",
        show_default=False,
        help="Only this destination. Default: all of them.",
    ),
]

_SECOND: Final = 1_000_000_000


def status(directory: Directory = None, *, as_json: Json = False) -> None:
    """Show how far each destination is, what it refused, and what is wrong.

    Reads cursors only: it asks no destination. Whether Loki really has the
    records is the business of `reconcile`.
    """
    from otel_audit.readers.shipping.standing import standing

    settings = settings_for(directory)
    with open_reader(settings) as reader:
        rows = [standing(reader, name) for name in _known(settings)]
    if as_json:
        addresses = _addresses(settings)
        shown = [{**asdict(row), "endpoint": addresses.get(row.destination)} for row in rows]
        output.write_json({"directory": str(settings.trail_directory), "destinations": shown})
        return
    if not rows:
        output.console().print("records are shipped nowhere: no destination is configured")
    for row in rows:
        _print(row, _addresses(settings).get(row.destination))


def replay(
    directory: Directory = None,
    *,
    start: FirstRecord,
    destination: Destination = None,
    as_json: Json = False,
) -> None:
    """Send everything again from a record, or a time, on.

    For a far end that lost what it had. Whoever serves the trail does the
    sending. Records that are there already arrive twice; Loki shows them once.
    """
    from otel_audit.readers.shipping import standing

    settings = settings_for(directory)
    own(settings.trail_directory)
    with open_reader(settings) as reader:
        position = position_of(reader, start)
        done = [
            {
                "destination": name,
                "was": standing.replay(reader, name, position),
                "now": standing.standing(reader, name).position,
            }
            for name in _chosen(settings, destination)
        ]
    if as_json:
        output.write_json({"from": position, "destinations": done})
        return
    for each in done:
        output.console().print(
            f"{output.visible(each['destination'])}: was at record {each['was']}, goes on at {each['now']}"
        )


def requeue(
    records: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECORD]...",
            help="Sequence numbers. Default: all that were set aside.",
            show_default=False,
        ),
    ] = None,
    directory: Directory = None,
    *,
    destination: Destination = None,
    as_json: Json = False,
) -> None:
    """Send records again that a destination refused, when the cause is gone.

    Whoever serves the trail does the sending. What is refused once more is set
    aside once more.
    """
    from otel_audit.readers.cursors import Cursors
    from otel_audit.readers.shipping.aside import Quarantine

    settings = settings_for(directory)
    numbers = [_number(each) for each in records] if records else None
    own(settings.trail_directory)
    open_reader(settings).close()
    cursors = Cursors(settings.trail_directory)
    try:
        done = {
            name: Quarantine(cursors, name).want(numbers) for name in _chosen(settings, destination)
        }
    finally:
        cursors.close()
    if as_json:
        queued = [{"destination": name, "records": number} for name, number in done.items()]
        output.write_json({"queued": queued})
    else:
        for name, number in done.items():
            waiting = output.count(number, "record")
            output.console().print(f"{output.visible(name)}: {waiting} to be sent again")
    if numbers is not None and not any(done.values()):
        message = (
            "none of these records is set aside; `otel-audit ship status` counts those that are"
        )
        raise AbsentError(message)


def _number(name: str) -> int:
    number = sequence_in(name)
    if number is None:
        message = f"{name!r} is not a sequence number"
        raise UsageError(message)
    return number


def _known(settings: Settings) -> list[str]:
    from otel_audit.readers.shipping.standing import known

    return known(settings.trail_directory, (each.name for each in settings.destinations))


def _chosen(settings: Settings, destination: str | None) -> list[str]:
    names = _known(settings)
    if destination is None and names:
        return names
    if destination in names:
        return [destination]
    known = ", ".join(names) or "none"
    message = f"there is no destination {destination or 'yet'}; known are: {known}"
    raise AbsentError(message)


def _addresses(settings: Settings) -> dict[str, str]:
    from otel_audit.destinations import shown_address

    return {each.name: shown_address(each.endpoint) for each in settings.destinations}


def _print(row: Standing, address: str | None) -> None:
    now = time.time_ns()
    waiting = output.count(row.waiting, "record")
    if row.oldest_unix_nano:
        waiting += f", the first for {output.span((now - row.oldest_unix_nano) / _SECOND)}"
    facts: list[tuple[str, Any]] = [
        ("destination", output.visible(row.destination)),
        ("endpoint", output.visible(address or "not configured here")),
        ("delivered", f"up to record {row.position - 1}" if row.position else "nothing yet"),
        ("waiting", waiting),
        ("set aside", output.count(row.set_aside, "record")),
    ]
    if row.to_be_sent_again:
        facts.append(("to be sent again", output.count(row.to_be_sent_again, "record")))
    if row.trouble:
        since = output.span((now - row.trouble_since_unix_nano) / _SECOND)
        facts.append(("trouble", f"for {since}: {output.visible(row.trouble)}"))
    output.write_facts(output.console(), facts)
