"""How much of the processor a thread takes beside the application that it lives in.

`Pace` promises: over time a thread that rests as long as it is told takes no
more than half of what the rest of the process leaves of one processor, or its
least share where that is more. A thread that computes holds up those that
emit, by the GIL; one that waits does not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_OF_THE_REST: Final = 0.5


class Pace:
    """How long to rest after a piece of work, so that the share is kept. For one thread."""

    def __init__(
        self, least: float, clocks: Callable[[], tuple[float, float, float]] | None = None
    ) -> None:
        """Take the least share, and clocks for this thread's processor time, the process's, the wall's."""
        self._least = self._share = least
        self._clocks = clocks or _clocks
        self._own = self._all = self._clock = 0.0

    def begin(self) -> None:
        """Note that a piece of work begins, and what the process left since the last one."""
        own, everything, clock = self._clocks()
        others = (everything - self._all) - (own - self._own)
        passed = clock - self._clock
        left = 1 - others / passed if passed else 0.0
        self._share = max(self._least, _OF_THE_REST * left)
        self._own, self._all, self._clock = own, everything, clock

    def due(self) -> float:
        """Return how many seconds to rest after the work since `begin`."""
        return (self._clocks()[0] - self._own) * (1 - self._share) / self._share


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.monotonic()
