"""`tail` and `show`: reading records.

What a line shows is a choice; the whole record is in `show` and in ``--json``.
"""

from __future__ import annotations

import json
import signal
import time
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.filters import Chosen, filtered
from otel_audit.cli.options import Directory, Json, RecordName, open_reader, settings_for
from otel_audit.cli.outcome import ExitCode, silence
from otel_audit.web.routes import UNMATCHED

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
_OUTCOMES: Final = {"success": "green", "failure": "red"}
_LEVELS: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_WIDEST: Final = {"actor": 24, "event": 28, "action": 20}
_NARROWEST: Final = 6
"""Of these columns, on a terminal that has no room for them and for the resource."""

_RESOURCE: Final = 24
"""What is kept free for the resource, which tells records apart that are alike otherwise."""


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
            help="How many records to begin with.",
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
    size = search.reader.tree().size
    stopped: list[int] = []
    if follow:
        # An exception out of nowhere can be swallowed where nobody may raise (a
        # finalizer, a callback); what is written down is not.
        signal.signal(signal.SIGINT, lambda number, _frame: stopped.append(number))
    write(list(islice(search.stream(query, size), lines))[::-1])
    while follow and not stopped:
        grown = search.reader.tree().size
        while size < grown:
            stop = min(grown, size + _CHUNK)
            write(search.between(query, size, stop))
            size = stop
        time.sleep(_POLL_SECONDS)


def _as_text(value: object) -> str:
    """Return a value as it would be typed: texts as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def raw_writer() -> Callable[[Sequence[Entry]], None]:
    """Return what writes records as they are stored, one a line."""
    import sys

    def write(leaves: Sequence[Entry]) -> None:
        for leaf in leaves:
            sys.stdout.buffer.write(_as_bytes(leaf.record) + b"\n")
        sys.stdout.buffer.flush()

    return write


def line_writer(*, since: bool = False) -> Callable[[Sequence[Entry]], None]:
    """Return what writes records as aligned lines, in colour on a terminal.

    ``since``: with the time since the first record instead of the time of day.
    """
    target = output.console()
    widths: dict[str, int] = {"sequence": 4}
    elapsed = _Elapsed() if since else None

    def write(leaves: Sequence[Entry]) -> None:
        rows = [(leaf, _columns(leaf, elapsed)) for leaf in leaves]
        for _, columns in rows:
            for name, value in columns.items():
                limit = _WIDEST.get(name, len(value))
                widths[name] = max(widths.get(name, 0), min(len(value), limit))
        fitted = _fitted(widths, target.width) if target.is_terminal else widths
        for leaf, columns in rows:
            line = _line(columns, fitted, _level(leaf))
            if target.is_terminal:
                line.truncate(target.width, overflow="ellipsis")
            target.print(line)

    return write


def _fitted(widths: dict[str, int], whole: int) -> dict[str, int]:
    """Narrow the widest columns, until there is room for the resource."""
    fitted = {name: width for name, width in widths.items() if name != "rest"}
    columns = [name for name in _WIDEST if name in fitted]
    for _ in range(sum(fitted[name] for name in columns)):
        widest = max(columns, key=fitted.__getitem__)
        left = whole - sum(fitted.values()) - 2 * len(fitted)
        if left >= _RESOURCE or fitted[widest] <= _NARROWEST:
            break
        fitted[widest] -= 1
    return fitted


class _Elapsed:
    """Tells the time since the first record that it saw."""

    def __init__(self) -> None:
        self._first: int | None = None

    def __call__(self, entry: Entry) -> str:
        from otel_audit.readers.query.words import moment_of

        moment = moment_of(entry.fields, entry.committed_unix_nano)
        if self._first is None:
            self._first = moment
            return output.stamp(moment)[:23].replace("T", " ")
        return f"{(moment - self._first) / 1e9:+.3f} s".rjust(23)


def _as_bytes(record: object) -> bytes:
    """Return what a row holds as bytes: a row that was tampered with may hold anything."""
    return record if isinstance(record, bytes) else str(record).encode(errors="backslashreplace")


def _level(leaf: Entry) -> str:
    return str((output.parsed(leaf.record) or {}).get("level", ""))


def _columns(leaf: Entry, elapsed: _Elapsed | None) -> dict[str, str]:
    """Choose what a line says, in order; the last column may be of any length."""
    fields = output.parsed(leaf.record)
    if fields is None:
        raw = output.visible(_as_bytes(leaf.record).decode(errors="replace"))
        return {"sequence": str(leaf.sequence), "rest": f"not a record: {raw}"}

    def say(name: str) -> str:
        return output.visible(_as_text(fields.get(name, "")))

    actor = say("actor_id")
    if fields.get("actor_verified") is False and actor != "anonymous":
        actor += "?"
    said = [say("resource_type"), say("resource_name")]
    if fields.get("resource_name") == UNMATCHED:
        said.append(say("path"))  # which is all that such a request has to tell it by
    target = " ".join(filter(None, said))
    error = say("error")
    return {
        "sequence": str(leaf.sequence),
        "time": elapsed(leaf) if elapsed else say("timestamp")[:19].replace("T", " "),
        "outcome": say("outcome"),
        "actor": actor,
        "event": say("event"),
        "action": say("action"),
        "rest": ": ".join(filter(None, (target, error))),
    }


def _line(columns: dict[str, str], widths: dict[str, int], level: str) -> Text:
    from rich.text import Text

    styles = {
        "sequence": "dim",
        "time": "dim",
        "outcome": _OUTCOMES.get(columns.get("outcome", ""), "yellow"),
        "event": _LEVELS.get(level, "bold"),
    }
    line = Text.assemble((columns["sequence"].rjust(widths["sequence"]), styles["sequence"]))
    for name, value in columns.items():
        if name != "sequence":
            line.append("  ")
            cell = Text(value, style=styles.get(name) or "")
            if name != "rest":
                narrow = name in _WIDEST and widths[name] < min(len(value), _WIDEST[name])
                if narrow:
                    cell.truncate(widths[name], overflow="ellipsis")
                cell.pad_right(widths[name] - len(cell))
            line.append_text(cell)
    line.rstrip()
    return line


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
    ]
    output.write_facts(target, rows)
    target.print()
    if fields is None:
        raw = output.visible(leaf.record.decode(errors="replace"))
        target.print(f"not a record: {raw}")
    else:
        print_fields(target, fields)


def print_fields(target: Console, fields: dict[str, Any]) -> None:
    """Print a record's fields in two columns, in the record's own order."""
    rows = [
        (output.visible(name), output.visible(_as_text(value))) for name, value in fields.items()
    ]
    output.write_facts(target, rows)


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
