"""How much of the processor a thread takes beside the application that it lives in.

`Pace` promises: over time a thread that rests as long as it is told takes no
more than its `Share` while the rest of the process works, and at most a half of
one processor while that rests. A thread that computes holds up those that emit,
by the GIL; one that waits does not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_SHARE: Final = 0.5
_OF_THE_REST: Final = 0.5
"""Of what an application that works leaves of one processor. That it leaves it does not mean that
it is free: others may have taken it. So the share is the most that is taken."""
_BUSY: Final = 0.3
"""Of one processor's time: what an application takes that is said to work."""


class Share(NamedTuple):
    """Parts of one processor's time.

    ``most`` is for beside an application that works, ``least`` for beside one
    that takes nearly all of a processor: in between, a half of what it leaves.
    """

    most: float
    least: float


ALL: Final = Share(1.0, 1.0)


class Pace:
    """How long to rest after a piece of work, so that the share is kept. For one thread."""

    def __init__(
        self, share: Share, clocks: Callable[[], tuple[float, float, float]] | None = None
    ) -> None:
        """Take clocks for this thread's processor time, the process's, and the wall's."""
        self._given = share
        self._share = share.most
        self._clocks = clocks or _clocks
        self._own = self._all = self._clock = 0.0

    def begin(self) -> None:
        """Note that a piece of work begins, and how busy the process was since the last one."""
        own, everything, clock = self._clocks()
        others = (everything - self._all) - (own - self._own)
        passed = clock - self._clock
        if others <= _BUSY * passed:
            self._share = max(self._given.most, _IDLE_SHARE)
        else:
            left = 1 - others / passed if passed else 0.0
            self._share = max(self._given.least, min(self._given.most, _OF_THE_REST * left))
        self._own, self._all, self._clock = own, everything, clock

    def due(self) -> float:
        """Return how many seconds to rest after the work since `begin`."""
        return (self._clocks()[0] - self._own) * (1 - self._share) / self._share


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.monotonic()
