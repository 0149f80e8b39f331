"""Failures that go on and on, counted and now and then told in the log.

`Failures` promises: the first one is told at once, of those that follow one a
minute, and also that it is over; so a disk or a network that is down for a
night does not fill a log, and nobody looks at an old line and believes that it
is over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from otel_audit.errors import OtelAuditError

if TYPE_CHECKING:
    import logging

_LINE_SECONDS: Final = 60.0


class Failures:
    """Failures of one piece of work."""

    __slots__ = ("_line_at", "_logger", "_what", "in_a_row", "total")

    def __init__(self, what: str, logger: logging.Logger) -> None:
        """Begin with none; ``what`` fails or works, in the log of ``logger``."""
        self.total = 0
        self.in_a_row = 0
        self._what = what
        self._logger = logger
        self._line_at: float | None = None

    def add(self, reason: Exception | str, pause: float) -> None:
        """Count one more, after which it is tried again in ``pause`` seconds."""
        self.total += 1
        self.in_a_row += 1
        now = time.monotonic()
        if self._line_at is not None and now - self._line_at < _LINE_SECONDS:
            return
        self._line_at = now
        self._logger.error(
            "%s failed (%d in a row, tried again in %.1f s): %s",
            self._what,
            self.in_a_row,
            pause,
            reason,
            # What we raise ourselves, and what the system refuses, says all in a line.
            exc_info=None if isinstance(reason, (str, OtelAuditError, OSError)) else reason,
        )

    def end(self) -> None:
        """Say that it works again, if it did not; the next failure is the first again."""
        if self.in_a_row:
            self._logger.warning("%s works again, after %d failures", self._what, self.in_a_row)
            self.in_a_row, self._line_at = 0, None
