"""A reader in a thread of its own beside the agent, for as long as that serves the trail.

`Beside` promises: work that fails is counted, logged at most once a minute and
tried again; it keeps nobody else from going on; it takes no more than its share
of one processor, a few milliseconds at a time, because a thread that computes
holds up those that emit. `stop` waits for a bounded time.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from otel_audit.readers.failures import Failures
from otel_audit.readers.pace import Pace, Share

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE: Final = Share(0.05, least=0.02)
"""Nothing waits for this."""

_TICK: Final = 0.2
_RETRY_SECONDS: Final = 1.0
_PATIENCE: Final = 5.0
_LEAST_PATIENCE: Final = 1.0

_logger = logging.getLogger("otel_audit.agent")


class Beside:
    """Calls ``work`` again and again; it returns whether there is more to do at once."""

    def __init__(
        self,
        name: str,
        work: Callable[[], bool],
        *,
        share: Share = SHARE,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        """``share`` is what ``work`` may take of a processor, through `breathe`.

        ``rest`` is called in the thread before it ends, to let go of files.
        """
        self.name = name
        self._failures = Failures(f"the {name}", _logger)
        self.last_error: str | None = None
        self._work = work
        self._rest = rest
        self._pace = Pace(share)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def errors(self) -> int:
        """How often the work failed."""
        return self._failures.total

    @property
    def follows(self) -> tuple[str, ...]:
        """No row of `cursors.db`: where ``work`` keeps its place is its own business."""
        return ()

    def start(self) -> None:
        """Start the thread; harmless when it runs."""
        if self._thread is not None:
            return
        stopping = self._stopping = threading.Event()
        thread = threading.Thread(
            target=self._serve,
            args=(stopping,),
            name=f"otel-audit-{self.name.replace(' ', '-')}",
            daemon=True,
        )
        thread.start()
        self._thread = thread

    def drain(self, timeout: float) -> None:
        """Do nothing: whoever comes next goes on where this one ended."""

    def stop(self, timeout: float = _PATIENCE) -> None:
        """Let the thread end, and wait for it for at most ``timeout`` seconds."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            # One that still works must not meet its successor.
            thread.join(max(timeout, _LEAST_PATIENCE))

    def forget(self) -> None:
        """Know nothing of the thread: it stayed in the process that forked."""
        self._thread = None

    def breathe(self) -> None:
        """Rest for as long as the share asks; to be called by ``work`` every few milliseconds."""
        pause = self._pace.due()
        if pause > 0:
            self._stopping.wait(pause)
        self._pace.begin()

    def _serve(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            stopping.wait(self._turn())
        self._rest()

    def _turn(self) -> float:
        """Work once; return how many seconds to rest."""
        # For what the last turn did after its last breath.
        self.breathe()
        try:
            more = self._work()
        except Exception as error:  # noqa: BLE001 - whatever fails, it is tried again
            self.last_error = f"{self.name}: {error}"
            self._failures.add(error, _RETRY_SECONDS)
            return _RETRY_SECONDS
        self.last_error = None
        self._failures.end()
        return 0.0 if more else _TICK
