"""Writing results: aligned text for people, JSON for programs.

Promises: no colour and no wrapping where the output is not a terminal, or
where NO_COLOR is set; nothing that a record holds can move the cursor, change
the terminal or hide itself, because control characters are shown as escapes.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console
    from rich.text import Text

# C0, C1, line and paragraph separators, and what changes the direction of text (CVE-2021-42574).
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SHORT: Final = 0xFF
_NANO: Final = 1_000_000_000
_NARROW: Final = 40


def console(*, stderr: bool = False) -> Console:
    """Return a console that adds colour on a terminal and changes nothing else."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `outcome.report`: Rich would exit with 1, which means something else."""
            raise BrokenPipeError

    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def write_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_facts(target: Console, rows: Iterable[tuple[str | Text, str | Text]]) -> None:
    """Print labels and values in two columns; on a terminal, long values are wrapped.

    A label that is a text of Rich keeps its style.
    """
    from rich.text import Text

    rows = list(rows)
    indent = max((len(label) for label, _ in rows), default=0) + 2
    for label, value in rows:
        text = Text(value) if isinstance(value, str) else value
        lines = [text]
        if target.is_terminal and target.width - indent >= _NARROW:
            lines = wrapped(text, target.width - indent)
        for number, line in enumerate(lines):
            head = label if number == 0 else ""
            dim = Text(head, style="dim") if isinstance(head, str) else head
            target.print(Text.assemble(dim, " " * (indent - len(head)), line))


def wrapped(text: Text, width: int) -> list[Text]:
    """Break between words; a word that is too long stays whole, so that it can be copied."""
    lines: list[Text] = []
    for word in text.split(" ", allow_blank=True):
        if lines and lines[-1].cell_len + 1 + word.cell_len <= width:
            lines[-1].append(" ").append_text(word)
        else:
            lines.append(word)
    return lines or [text]


def visible(value: object) -> str:
    """Return text in which each control character shows as an escape."""
    return _UNSAFE.sub(_escaped, str(value))


def moment(unix_seconds: float) -> str:
    """Format a time for people: UTC, to the second."""
    try:
        when = datetime.fromtimestamp(unix_seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return "an impossible time"
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def stamp(unix_nano: int) -> str:
    """Format nanoseconds by RFC 3339, with nine digits, for programs."""
    seconds, fraction = divmod(unix_nano, _NANO)
    when = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def span(seconds: float) -> str:
    """Name a length of time in one unit: ``4 s``, ``12 min``, ``3 h``, ``5 days``."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def painter(target: Console) -> Callable[[str, str], str]:
    """Return what puts a style around a text, as the console would.

    For who writes many lines: Rich works out each anew, which takes 50 times as long.
    """
    from rich.text import Text

    marks: dict[str, tuple[str, str]] = {}

    def paint(text: str, style: str) -> str:
        if style not in marks:
            with target.capture() as painted:
                target.print(Text("x", style), end="")
            before, _, after = painted.get().partition("x")
            marks[style] = before, after
        before, after = marks[style]
        return f"{before}{text}{after}"

    return paint


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Fill a text up with blanks to so many columns, ``right``: before it."""
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks


def cut(text: str, width: int) -> str:
    """Return a text that takes at most ``width`` columns; an ellipsis stands for what is cut."""
    if cells(text) <= width:
        return text
    if width <= 0:
        return ""
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip() + "…"


def count(number: int, noun: str) -> str:
    """Name a number of things: ``1 record``, ``1,234 records``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def parsed(record: object) -> dict[str, Any] | None:
    """Return a record's fields, or None when it is not the JSON object that it should be."""
    try:
        fields = json.loads(record)  # type: ignore[arg-type]  # a changed row may hold anything
    except (ValueError, TypeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in _NAMED:
        return _NAMED[match[0]]
    return f"\\x{code:02x}" if code <= _SHORT else f"\\u{code:04x}"
