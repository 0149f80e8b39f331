"""Failures that go on and on, counted and now and then worth a line of the log.

`Failures` promises: the first one is worth a line at once, of those that follow
one a minute; so a disk or a network that is down for a night does not fill a
log, and nobody looks at an old line and believes that it is over.
"""

from __future__ import annotations

import time
from typing import Final

from otel_audit.errors import OtelAuditError

_LINE_SECONDS: Final = 60.0


def unforeseen(error: Exception) -> Exception | None:
    """Return an error whose place in the code says more than its message, for `exc_info`.

    What we raise ourselves, and what the system refuses, says all in a line.
    """
    return None if isinstance(error, (OtelAuditError, OSError)) else error


class Failures:
    """Failures of one piece of work."""

    __slots__ = ("_line_at", "_quiet", "in_a_row", "total", "untold")

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0
        self.untold = 0
        """How many there were between the last two lines."""
        self._quiet = 0
        self._line_at: float | None = None

    def add(self) -> bool:
        """Count one more; True if it is worth a line."""
        self.total += 1
        self.in_a_row += 1
        now = time.monotonic()
        if self._line_at is not None and now - self._line_at < _LINE_SECONDS:
            self._quiet += 1
            return False
        self.untold, self._quiet, self._line_at = self._quiet, 0, now
        return True

    def end(self) -> int:
        """Return how many there were in a row; the next one is the first again."""
        ended, self.in_a_row, self._quiet, self._line_at = self.in_a_row, 0, 0, None
        return ended
