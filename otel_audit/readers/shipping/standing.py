"""How far each destination is, as anybody can read it; and moving it back.

Promises: looking changes nothing; `replay` only ever goes back, because
skipping records would drop them in silence. It needs no OpenTelemetry and no
destination's settings: a destination that was shipped to is known by its
cursor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.aside import Quarantine
from otel_audit.trail.layout import CURSORS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from otel_audit.trail.reader import TrailReader

_PREFIX: Final = "ship:"


def cursor_name(destination: str) -> str:
    """Name the cursor of a destination."""
    return _PREFIX + destination


@dataclass(frozen=True, slots=True)
class Standing:
    """One destination: what it has, what it refused, and what keeps it from having more.

    ``position`` is the first record that it does not have; ``waiting`` counts
    from there, ``oldest_unix_nano`` is when that record was committed, and
    ``delivered_unix_nano`` when the cursor was last moved (0: never).
    """

    destination: str
    position: int
    waiting: int
    oldest_unix_nano: int
    delivered_unix_nano: int
    set_aside: int
    to_be_sent_again: int
    trouble: str
    trouble_since_unix_nano: int


def known(directory: Path, configured: Iterable[str] = ()) -> list[str]:
    """Name the destinations that are configured or were shipped to. Raises `TrailError`."""
    found = dict.fromkeys(configured)
    if (directory / CURSORS).exists():
        cursors = Cursors(directory, read_only=True)
        try:
            names = [name for name in cursors.rows() if name.startswith(_PREFIX)]
        finally:
            cursors.close()
        found.update(dict.fromkeys(name.removeprefix(_PREFIX) for name in names))
    return list(found)


def standing(reader: TrailReader, destination: str) -> Standing:
    """Look how far one destination is. Raises `TrailError`."""
    size = reader.tree().size
    if not (reader.directory / CURSORS).exists():
        return Standing(destination, 0, size, _committed(reader, 0), 0, 0, 0, "", 0)
    cursors = Cursors(reader.directory, read_only=True)
    try:
        row = cursors.row(cursor_name(destination))
        quarantine = Quarantine(cursors, destination)
        position = 0 if row is None else min(row.position, size)
        trouble = {} if row is None else row.state.get("trouble", {})
        return Standing(
            destination,
            position,
            size - position,
            _committed(reader, position),
            0 if row is None else row.updated_unix_nano,
            quarantine.count(),
            quarantine.count(wanted=True),
            str(trouble.get("reason", "")),
            int(trouble.get("since_unix_nano", 0)),
        )
    finally:
        cursors.close()


def replay(reader: TrailReader, destination: str, position: int) -> int:
    """Let the destination be sent everything again from ``position``; return where it was.

    Also the checkpoints that cover more than the records before that. A
    destination that is not as far yet stays where it is. Raises `TrailError`.
    """
    cursors = Cursors(reader.directory)
    name = cursor_name(destination)
    try:
        while True:
            row = cursors.row(name)
            if row is None or row.position <= position:
                return 0 if row is None else row.position
            state = {**row.state, "checkpoint": _checkpoint_before(reader, position)}
            if cursors.advance(name, row, position, state):
                return row.position
    finally:
        cursors.close()


def first_at(reader: TrailReader, unix_nano: int) -> int:
    """Return the first record that was committed at that time or later (or the tree's size)."""
    low, high = 0, reader.tree().size
    while low < high:
        middle = (low + high) // 2
        # Retention may have left gaps: what follows a gap answers for it.
        leaf = next((found for found in reader.leaves(middle, high)), None)
        if leaf is not None and leaf.committed_unix_nano < unix_nano:
            low = leaf.sequence + 1
        else:
            high = middle
    return low


def _committed(reader: TrailReader, position: int) -> int:
    leaf = reader.leaf(position)
    return 0 if leaf is None else leaf.committed_unix_nano


def _checkpoint_before(reader: TrailReader, position: int) -> int:
    """Return the number of the last checkpoint that covers no record from ``position`` on."""
    number = 0
    while found := reader.checkpoints_after(number, 1_000):
        for following, stored in found:
            if stored.size > position:
                return number
            number = following
    return number
