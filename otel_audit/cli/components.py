"""The components of a service's health as a table.

Promises: a message can be read whole: on a terminal it is wrapped below itself,
and where that leaves it little room, columns that say less are left out. What
is not shown is in ``--json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from otel_audit.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COLOURS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "unknown": "red"}
_NUMBERS: Final = ("ms", "checks", "failures")
"""Columns that are aligned to the right."""

_LEAVING: Final = ("checks", "ms", "failures", "since")
"""Columns that leave, in this order, for the message."""

_READABLE: Final = 36
"""Columns in which a message can be read."""

_GAP: Final = "  "
_SECOND: Final = len("2026-01-31T08:00:00")


def table(components: Mapping[str, Mapping[str, Any]], width: int | None) -> Iterator[Text]:
    """Yield the lines of the table; ``width`` is the terminal's, None where there is none."""
    rows = [_row(name, facts) for name, facts in sorted(components.items())]
    cells = [{name: name for name in rows[0]}, *rows]
    widths = {name: max(output.cells(row[name]) for row in cells) for name in cells[0]}
    longest = widths.pop("message")
    room = longest if width is None else _make_room(widths, longest, width)
    for number, row in enumerate(cells):
        style = "" if number else "dim"
        head = Text(style=style)
        for name, wide in widths.items():
            colour = COLOURS.get(row[name], "") if name == "status" else ""
            cell = output.padded(row[name], wide, right=name in _NUMBERS)
            head.append(cell + _GAP, colour)
        message = Text(row["message"], style)
        lines = [message] if width is None else output.wrapped(message, room)
        for place, line in enumerate(lines):
            text = (head if place == 0 else Text(" " * head.cell_len)) + line
            text.rstrip()
            yield text


def _make_room(widths: dict[str, int], longest: int, whole: int) -> int:
    """Leave columns out until a message has room; return how much it has."""
    wanted = min(longest, _READABLE)
    for name in _LEAVING:
        if whole - _taken(widths) >= wanted:
            break
        del widths[name]
    return max(whole - _taken(widths), _READABLE // 2)


def _taken(widths: Mapping[str, int]) -> int:
    return sum(width + len(_GAP) for width in widths.values())


def _row(name: str, facts: Mapping[str, Any]) -> dict[str, str]:
    took = facts.get("response_time_ms")
    return {
        "component": _shown(name),
        "status": _shown(facts.get("status")),
        "ms": f"{took:.1f}" if isinstance(took, (int, float)) else "",
        "checks": _shown(facts.get("checks")),
        "failures": _shown(facts.get("failures")),
        # As other times are shown: whose clock has milliseconds, nobody reads them.
        "since": _shown(facts.get("since"))[:_SECOND].replace("T", " "),
        "message": _shown(facts.get("message")),
    }


def _shown(value: object) -> str:
    return "" if value is None else output.visible(value)
