"""Where a trail is that was looked for in the wrong directory: above, or a little below.

Promises: at most two levels below are looked at, and nothing is opened.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from otel_audit.trail.layout import DATABASE

if TYPE_CHECKING:
    from pathlib import Path

_BELOW: Final = (f"trail/{DATABASE}", f"*/trail/{DATABASE}")
"""LOG_DIR holds the trail in a directory of its own, and may itself be below what was named."""


def nearby(directory: Path) -> list[Path]:
    """Return the directories of trails that may be meant by ``directory``, which has none."""
    try:
        above = [path for path in (directory.absolute().parent / DATABASE,) if path.is_file()]
        below = chain.from_iterable(map(directory.glob, _BELOW))
        return [path.parent for path in (*above, *sorted(below))]
    except OSError:
        return []
