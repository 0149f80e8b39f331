"""`tail` and `show`: the newest records, and one record."""

from __future__ import annotations

import select
import signal
import sys
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.filters import Chosen, filtered
from otel_audit.cli.lines import as_text, line_writer, raw_writer
from otel_audit.cli.options import Directory, Json, RecordName, open_reader, settings_for
from otel_audit.cli.outcome import ExitCode, silence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.text import Text

    from otel_audit.cli.evidence import Proven
    from otel_audit.readers.query.model import Entry, Query
    from otel_audit.readers.search.trail import TrailSearch
    from otel_audit.trail.reader import Leaf, TrailReader

_POLL_SECONDS: Final = 0.2
_CHUNK: Final = 2_048
_SHOWN: Final = 200


@filtered
def tail(
    directory: Directory = None,
    *,
    lines: Annotated[
        int,
        typer.Option(
            "--lines",
            "--limit",
            "-n",
            min=0,
            metavar="N",
            help="How many records to begin with; 0 for none.",
        ),
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new records until Ctrl-C.")
    ] = False,
    chosen: Chosen,
    as_json: Json = False,
) -> None:
    """Show the newest records, and follow the trail with -f.

    A filter may be given several times: any of the values will do; of
    different filters, all have to hold. In values * stands for any text.
    With --json each line is a record's stored bytes, the same as in audit.log.
    A question mark behind the actor means that nobody verified it.
    """
    from otel_audit.readers.search.trail import TrailSearch

    query = chosen.query()
    search = TrailSearch(open_reader(settings_for(directory)))
    write = raw_writer() if as_json else line_writer()
    try:
        _tail(search, query, write, lines=lines, follow=follow)
    except BrokenPipeError:
        silence()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.OK) from None
    finally:
        search.close()


def show(record: RecordName, directory: Directory = None, *, as_json: Json = False) -> None:
    """Show one record, its place in the trail, and what covers it.

    The leaf hash is computed from the record's bytes, and the way from it to
    the root of the first checkpoint that covers it is checked, with the keys
    that the trail itself claims; use `verify` or `check-proof` with a public
    key from elsewhere where that matters.
    """
    from otel_audit.cli.evidence import find_leaf, hash_matches

    with open_reader(settings_for(directory)) as reader:
        leaf = find_leaf(reader, record)
        proven, trouble = _covered(reader, leaf)
        matches = hash_matches(leaf)
        if as_json:
            output.write_json(_as_json(reader, leaf, proven, trouble))
        else:
            _print_record(reader, leaf, proven, trouble)
    if not matches or trouble:
        raise typer.Exit(ExitCode.FOUND)


# tail


def _tail(
    search: TrailSearch,
    query: Query,
    write: Callable[[Sequence[Entry]], None],
    *,
    lines: int,
    follow: bool,
) -> None:
    from otel_audit.readers.search.matching import entry_of

    size = search.reader.tree().size
    stopped: list[int] = []
    if follow:
        # An exception out of nowhere can be swallowed where nobody may raise (a
        # finalizer, a callback); what is written down is not.
        signal.signal(signal.SIGINT, lambda number, _frame: stopped.append(number))
    # Numbers are kept, not records: of those there may be more than there is memory.
    places = array("q", (entry.sequence for entry in islice(search.stream(query, size), lines)))
    places.reverse()
    for first in range(0, len(places), _SHOWN):
        write([entry_of(leaf) for leaf in search.reader.pick(places[first : first + _SHOWN])])
    while follow and not stopped:
        grown = search.reader.tree().size
        while size < grown:
            stop = min(grown, size + _CHUNK)
            write(search.between(query, size, stop))
            size = stop
        _wait_while_read()


def _wait_while_read() -> None:
    """Wait for what may come next. Raises `BrokenPipeError` when nobody reads it any more.

    Writing would say so as well, but the next record may come in an hour.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # what ends a pipe is told without being asked for
    if poll.poll(_POLL_SECONDS * 1_000):
        raise BrokenPipeError


# show


def _covered(reader: TrailReader, leaf: Leaf) -> tuple[Proven | None, str | None]:
    """Prove the record by the first checkpoint that covers it; say what is wrong, if it is."""
    from otel_audit.cli.evidence import claimed_verifiers, covering, prove_leaf
    from otel_audit.errors import ProofError

    checkpoint = covering(reader, leaf.sequence)
    if checkpoint is None:
        return None, None
    try:
        return prove_leaf(reader, leaf, checkpoint.note, claimed_verifiers(reader)), None
    except ProofError as error:
        return None, str(error)


def _as_json(
    reader: TrailReader, leaf: Leaf, proven: Proven | None, trouble: str | None
) -> dict[str, Any]:
    from otel_audit.cli.evidence import checkpoint_json, hash_matches

    return {
        "origin": reader.origin,
        "sequence": leaf.sequence,
        "committed_at": output.stamp(leaf.committed_unix_nano),
        "leaf_hash": leaf.hash.hex(),
        "leaf_hash_matches": hash_matches(leaf),
        "checkpoint": None if proven is None else checkpoint_json(proven.checkpoint),
        "problem": trouble,
        "record": output.parsed(leaf.record),
        "resource": _resource(reader, output.parsed(leaf.record)),
        "bytes": leaf.record.decode(errors="backslashreplace"),
    }


def _print_record(
    reader: TrailReader, leaf: Leaf, proven: Proven | None, trouble: str | None
) -> None:
    target = output.console()
    fields = output.parsed(leaf.record)
    rows: list[tuple[str, str | Text]] = [
        ("trail", output.visible(reader.origin)),
        ("sequence", str(leaf.sequence)),
        ("committed", output.moment(leaf.committed_unix_nano / 1e9)),
        ("leaf hash", _hash_text(leaf)),
        ("checkpoint", _checkpoint_text(proven, trouble)),
        ("resource", _resource_text(_resource(reader, fields))),
    ]
    output.write_facts(target, rows)
    target.print()
    if fields is None:
        raw = output.visible(leaf.record.decode(errors="replace"))
        target.print(f"not a record: {raw}")
    else:
        print_fields(target, fields)


def _resource(reader: TrailReader, fields: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the attributes of the OpenTelemetry Resource that a record names by its hash.

    They are stored once in the trail; None where they are not there, or changed.
    """
    from otel_audit.trail.resource import Resource

    name = (fields or {}).get("resource")
    stored = reader.resource(name) if isinstance(name, str) else None
    if stored is None or Resource.of(stored).hash != name:
        return None
    return output.parsed(stored)


def print_fields(target: Console, fields: dict[str, Any]) -> None:
    """Print a record's fields in two columns, in the record's own order."""
    rows = [
        (output.visible(name), output.visible(as_text(value))) for name, value in fields.items()
    ]
    output.write_facts(target, rows)


def _resource_text(attributes: dict[str, Any] | None) -> Text:
    from rich.text import Text

    if attributes is None:
        return Text("the trail does not have it", style="yellow")
    said = (f"{name}={as_text(value)}" for name, value in attributes.items())
    return Text(output.visible(", ".join(said)))


def _hash_text(leaf: Leaf) -> Text:
    from rich.text import Text

    from otel_audit.cli.evidence import hash_matches

    if hash_matches(leaf):
        return Text.assemble(leaf.hash.hex(), ("  matches the record", "green"))
    return Text.assemble(
        leaf.hash.hex(), ("  DOES NOT MATCH the record: one of them was changed", "bold red")
    )


def _checkpoint_text(proven: Proven | None, trouble: str | None) -> Text:
    from rich.text import Text

    if trouble:
        return Text(output.visible(trouble), style="bold red")
    if proven is None:
        return Text("none covers it yet; the agent signs one within a second", style="yellow")
    signed = proven.checkpoint.timestamp
    when = "" if signed is None else f", signed {output.moment(signed)}"
    head = f"of {output.count(proven.checkpoint.checkpoint.size, 'record')}{when}"
    return Text.assemble(head, ("  the record is in its tree", "green"))
