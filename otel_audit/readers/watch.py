"""One duty of the agent, and what becomes of its failures.

`Watch` promises: whatever a duty raises, the other duties go on; it is counted,
logged as `Failures` says, and tried again after a pause.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from otel_audit.errors import TrailLockedError
from otel_audit.readers.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_SECONDS: Final = 1.0

_logger = logging.getLogger("otel_audit.agent")


class Watch:
    """Keeps the failures of one duty from ending the agent, and from filling the log."""

    def __init__(self, name: str) -> None:
        self.lasting = 0
        """Errors without those that end by themselves: a lock that another process still has."""
        self.report = ""
        """What fails now; empty when nothing does."""
        self._name = name
        self._failures = Failures(f"the agent's duty {name!r}", _logger)
        self._retry_at = 0.0

    @property
    def errors(self) -> int:
        """How often the duty failed."""
        return self._failures.total

    @property
    def due(self) -> bool:
        """Whether the pause after a failure is over."""
        return time.monotonic() >= self._retry_at

    def forget(self) -> None:
        """Try again at once."""
        self._retry_at = 0.0

    def attempt(self, work: Callable[[], bool]) -> bool:
        """Return what ``work`` returns, or False when it failed."""
        try:
            done = work()
        except Exception as error:  # noqa: BLE001 - whatever fails, the other duties go on
            self.lasting += not isinstance(error, TrailLockedError)
            self.report = f"{self._name}: {error}"
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._failures.add(error, RETRY_SECONDS)
            return False
        self.report = ""
        self._failures.end()
        return done
