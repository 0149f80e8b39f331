"""How much of the processor a thread takes beside the application that it lives in.

`Pace` promises: over time a thread that rests as long as it is told takes no
more than its share of one processor while the rest of the process works, and
at most a half while that rests. A thread that computes holds up those that
emit, by the GIL; one that waits does not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_SHARE: Final = 0.5
_BUSY: Final = 0.3
"""Of one processor's time: what an application takes that is said to work."""


class Pace:
    """How long to rest after a piece of work, so that the share is kept. For one thread."""

    def __init__(
        self, share: float, clocks: Callable[[], tuple[float, float, float]] | None = None
    ) -> None:
        """Take clocks for this thread's processor time, the process's, and the wall's."""
        self._share = share
        self._clocks = clocks or _clocks
        self._own = self._all = self._clock = 0.0
        self._busy = True

    def begin(self) -> None:
        """Note that a piece of work begins, and how busy the process was since the last one."""
        own, everything, clock = self._clocks()
        others = (everything - self._all) - (own - self._own)
        self._busy = others > _BUSY * (clock - self._clock)
        self._own, self._all, self._clock = own, everything, clock

    def due(self) -> float:
        """Return how many seconds to rest after the work since `begin`."""
        share = self._share if self._busy else max(self._share, _IDLE_SHARE)
        return (self._clocks()[0] - self._own) * (1 - share) / share


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.monotonic()
