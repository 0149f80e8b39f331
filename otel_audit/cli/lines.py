"""Records, one a line, for `tail`, `query` and `timeline`: for people, as stored, as CSV.

Promises: a line for people is in colour on a terminal, where none is longer than
the terminal is wide, and what tells records apart stays: the event and the
resource. What a line shows is a choice; the whole record is in `show` and in
``--json``. Lines are written many at a time, and memory does not grow with them.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.cli import output
from otel_audit.web.routes import UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_audit.readers.query.model import Entry, Query

_OUTCOMES: Final = {"success": "green", "failure": "red"}
_LEVELS: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_BRIEF: Final = {"success": "ok", "failure": "fail", "initiated": "init"}
_WIDEST: Final = {"actor": 24, "event": 28, "action": 20}
"""What these columns have where nothing else limits them; a longer text runs over, whole."""

_RESOURCE: Final = 24
"""What is kept free for the resource, which tells records apart that are alike otherwise."""

_STATE_CHANGED: Final = "health.state_changed"
"""The health checker's event, by name: to import that package is slow."""

_GAP: Final = "  "
_YEAR: Final = len("2026-")
_ALL: Final = sys.maxsize


class _Concession(NamedTuple):
    """A column gives way until there are ``room`` columns for the resource.

    It goes down to ``least``, by what is missing or in one ``step``.
    """

    room: int
    column: str
    least: int = 0
    step: int = 0


_CONCESSIONS: Final = (
    *(_Concession(_RESOURCE, column, least=width) for column, width in _WIDEST.items()),
    _Concession(_RESOURCE, "time", step=_YEAR),
    _Concession(_RESOURCE, "outcome", step=len("success") - len("fail")),
    _Concession(_RESOURCE, "action", least=8),
    _Concession(_RESOURCE, "actor", least=12),
    _Concession(_RESOURCE, "action", step=_ALL),
    _Concession(16, "actor", least=8),
    _Concession(16, "event", least=16),
    _Concession(16, "actor", least=4),
    _Concession(8, "event", least=6),
    _Concession(8, "outcome", least=4),
    _Concession(8, "time", step=_ALL),
    _Concession(8, "actor", step=_ALL),
)
"""In this order: first what the event, or the line before, mostly says as well."""


def raw_writer() -> Callable[[Sequence[Entry]], None]:
    """Return what writes records as they are stored, one a line."""

    def write(entries: Sequence[Entry]) -> None:
        for entry in entries:
            sys.stdout.buffer.write(entry.record + b"\n")
        sys.stdout.buffer.flush()

    return write


def csv_writer(query: Query) -> Callable[[Sequence[Entry]], None]:
    """Return what writes records as CSV, below the names of the columns."""
    from otel_audit.readers.query.export import csv_head, csv_line

    sys.stdout.write(csv_head())

    def write(entries: Sequence[Entry]) -> None:
        sys.stdout.writelines(csv_line(entry, query) for entry in entries)

    return write


def line_writer(*, since: bool = False) -> Callable[[Sequence[Entry]], None]:
    """Return what writes records as aligned lines.

    ``since``: with the time since the first record instead of the time of day.
    """
    target = output.console()
    paint = output.painter(target)
    widths: dict[str, int] = {"sequence": 4}
    elapsed = _Elapsed() if since else None

    def write(entries: Sequence[Entry]) -> None:
        rows = [_columns(entry, elapsed) for entry in entries]
        for columns in rows:
            _widen(widths, columns, {} if target.is_terminal else _WIDEST)
        # Asked once for many lines: the terminal may have been resized, and to ask is slow.
        whole = target.width if target.is_terminal else None
        fitted = widths if whole is None else _fitted(widths, whole)
        lines = [
            _line(columns, fitted, _styles(columns, entry), paint, whole)
            for entry, columns in zip(entries, rows, strict=True)
        ]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()

    return write


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


def as_text(value: object) -> str:
    """Return a value as it would be typed: texts as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _columns(entry: Entry, elapsed: _Elapsed | None) -> dict[str, str]:
    """Choose what a line says, in order; the last column may be of any length."""
    fields = entry.fields or output.parsed(entry.record)
    if fields is None:
        raw = output.visible(entry.record.decode(errors="replace"))
        return {"sequence": str(entry.sequence), "rest": f"not a record: {raw}"}

    def say(name: str) -> str:
        return output.visible(as_text(fields.get(name, "")))

    actor = say("actor_id")
    if fields.get("actor_verified") is False and actor != "anonymous":
        actor += "?"
    said = [say("resource_type"), say("resource_name")]
    if fields.get("resource_type") == "route":
        # What tells requests apart that are alike otherwise.
        said.insert(0, say("status_code"))
        if fields.get("resource_name") == UNMATCHED:
            said[1:] = [say("path"), "(no route)"]
    target, error = " ".join(filter(None, said)), say("error")
    if fields.get("event") == _STATE_CHANGED:
        # The outcome is that of the change, whatever it is a change to.
        target = f"{say('component')}: {say('from')} -> {say('to')}"
        error = say("reason")
    return {
        "sequence": str(entry.sequence),
        "time": elapsed(entry) if elapsed else say("timestamp")[:19].replace("T", " "),
        # Not known is what a block that has begun will do: its own word says more.
        "outcome": say("status" if fields.get("outcome") == "unknown" else "outcome"),
        "actor": actor,
        "event": say("event"),
        "action": say("action"),
        "rest": ": ".join(filter(None, (target, error))),
    }


def _widen(widths: dict[str, int], columns: Mapping[str, str], widest: Mapping[str, int]) -> None:
    """Let the columns have room for what is in them, as much as each may have."""
    for name, value in columns.items():
        width = min(output.cells(value), widest.get(name, _ALL))
        if width > widths.get(name, 0):
            widths[name] = width


def _fitted(widths: Mapping[str, int], whole: int) -> dict[str, int]:
    """Let columns give way, until there is room for the resource; one of no width is left out."""
    fitted = {name: width for name, width in widths.items() if name != "rest"}
    for room, column, least, step in _CONCESSIONS:
        taken = sum(width + len(_GAP) for width in fitted.values() if width)
        missing = min(room, widths.get("rest", 0)) - (whole - taken)
        width = fitted.get(column, 0)
        if missing > 0 and width > least:
            fitted[column] = max(least, width - (step or missing))
    return fitted


def _styles(columns: Mapping[str, str], entry: Entry) -> dict[str, str]:
    return {
        "sequence": "dim",
        "time": "dim",
        "outcome": _OUTCOMES.get(columns.get("outcome", ""), "yellow"),
        "event": _LEVELS.get(str(entry.fields.get("level", "")), "bold"),
    }


def _line(
    columns: Mapping[str, str],
    widths: Mapping[str, int],
    styles: Mapping[str, str],
    paint: Callable[[str, str], str],
    whole: int | None,
) -> str:
    """Lay out one line, at most ``whole`` wide; nothing but colour is behind its last letter."""
    cells: list[tuple[str, str]] = []
    for name, value in columns.items():
        width = widths.get(name)
        if name == "rest":
            room = None if whole is None else whole - _taken(cells)
            cells.append((name, value if room is None else output.cut(value, room)))
        elif width:
            shown = value if whole is None else _shortened(name, value, width)
            cells.append((name, output.padded(shown, width, right=name == "sequence")))
    while cells and not cells[-1][1].strip():
        cells.pop()
    name, last = cells[-1]
    cells[-1] = name, last.rstrip()
    painted = [paint(text, styles.get(name, "")) for name, text in cells]
    return _GAP.join(painted) + "\n"


def _taken(cells: Sequence[tuple[str, str]]) -> int:
    return sum(output.cells(text) + len(_GAP) for _, text in cells)


def _shortened(name: str, value: str, width: int) -> str:
    """Say it in the room that there is."""
    if name == "time" and width < len(value):
        value = value[_YEAR:]
    elif name == "outcome" and width < len(value):
        value = _BRIEF.get(value, value)
    return output.cut(value, width)
