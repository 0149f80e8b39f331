"""Event loops that probes run in, seen from another thread.

`LoopHandle` promises to say how long its loop has not answered, without
waiting for it: it asks the loop now and then for a sign of life, and looks at
how old the oldest unanswered question is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT_SECONDS: Final = 0.5
STALLED_SECONDS: Final = 1.0
"""A loop that has not answered for so long is stalled."""

_LEAVING_SECONDS: Final = 0.1


class LoopHandle:
    """One event loop of somebody else's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch ``loop``; nothing is asked yet."""
        self.loop = loop
        self.retired = False
        """Whether nothing is started in it any more."""
        self._asked: float | None = None
        self._asked_during: asyncio.Task[Any] | None = None
        self._answered = time.monotonic()

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Have the loop call a function soon; False when the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def beat(self, now: float) -> bool:
        """Ask for a sign of life if it is time to; False when the loop is closed."""
        if self._asked is not None or now - self._answered < BEAT_SECONDS:
            return True
        self._asked = now
        asked = self.call(self._answer)
        self._asked_during = self.current_task()
        return asked

    def silence(self, now: float) -> float:
        """Return for how many seconds the loop has not answered; 0 when it does."""
        asked = self._asked
        return 0.0 if asked is None else now - asked

    def stalled(self, now: float) -> bool:
        """Whether the loop has not answered for longer than a working one takes."""
        return self.silence(now) >= STALLED_SECONDS

    def blocker(self, now: float) -> asyncio.Task[Any] | None:
        """Return the task that has stalled the loop, if it is the same step of one task.

        It is, when that task was busy already when the loop was asked: between
        two steps of one task a loop does what has been waiting for it.
        """
        task = self.current_task()
        return task if task is self._asked_during and self.stalled(now) else None

    def current_task(self) -> asyncio.Task[Any] | None:
        """Return the task that keeps the loop busy at this moment, if one does."""
        with suppress(RuntimeError):
            return asyncio.current_task(self.loop)
        return None  # pragma: no cover - only if asking from another thread were forbidden

    def _answer(self) -> None:
        self._answered = time.monotonic()
        self._asked = None


class OwnLoop(LoopHandle):
    """An event loop in a daemon thread of its own, for who has none."""

    def __init__(self) -> None:
        """Start the thread."""
        super().__init__(asyncio.new_event_loop())
        thread = threading.Thread(target=self._run, name="otel-audit-health-loop", daemon=True)
        thread.start()

    def retire(self) -> None:
        """End the loop as soon as nothing blocks it any more; does not wait."""
        self.retired = True
        self.call(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            let_go(task)
        # A moment for those that tidy up; who swallows it is left behind.
        self.loop.run_until_complete(asyncio.sleep(_LEAVING_SECONDS))
        self.loop.close()


def let_go(task: asyncio.Task[Any]) -> None:
    """Cancel a task, in its loop, which MUST NOT wait for it any more when it ends.

    It may swallow that, and `asyncio.run` waits for every task that is registered.
    """
    task.cancel()
    asyncio._unregister_task(task)  # noqa: SLF001 - documented, for who makes tasks
    # The checker has told of it already, as a failure of the component.
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - what asyncio.gather does
