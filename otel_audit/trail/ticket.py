"""One record on its way into the trail, and how whoever waits for it is woken.

Promises: no wake-up is lost, whichever of the waiter and the committer comes
first; a waiter in an event loop never blocks it. When a ticket is done, and
how, is the committer's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from otel_audit.errors import AuditTimeoutError

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterable


class Ticket:
    """One record on its way into the trail; awaitable.

    ``settled`` turns true once, after ``error`` or ``sequence``, ``leaf_hash`` and
    ``committed_unix_nano`` were set. ``told`` says that somebody was told
    already that the record is not confirmed, so that it is not counted twice.
    A submitter who has more to say about a record makes a subclass.
    """

    __slots__ = (
        "committed_unix_nano",
        "error",
        "leaf_hash",
        "lock",
        "record",
        "sequence",
        "settled",
        "timeout",
        "told",
        "waiters",
    )

    def __init__(self, record: bytes) -> None:
        """Take a record."""
        self.record = record
        self.settled = False
        self.told = False
        self.error: Exception | None = None
        self.lock: threading.Lock | None = None
        self.waiters: list[asyncio.Future[None]] | None = None
        self.sequence = -1
        self.leaf_hash = b""
        self.committed_unix_nano = 0
        self.timeout = 0.0

    def __await__(self) -> Generator[object, None, None]:
        """Wait in the running event loop until ``settled``.

        Raises `AuditTimeoutError` when that takes too long; the error of a
        failed commit is not raised but kept in ``error``.
        """
        future = self.settling()
        if future is not None:
            yield from future

    def settling(self) -> asyncio.Future[None] | None:
        """Return what to await in the running event loop instead of the ticket; None if settled.

        It ends as awaiting the ticket does, with no frame of ours in between.
        """
        if self.settled:
            return None
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        # The committer sets `settled` before it reads `waiters`, we the other way
        # round: one of the two sides sees the other, so no wake-up is lost.
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(future)
        if self.settled:
            return None  # type: ignore[unreachable] # the committer's thread sets it
        _limit(loop, future, self.timeout)
        return future

    @property
    def attended(self) -> bool:
        """Whether somebody waits for it now: not a task that was cancelled, nor a closed loop."""
        if self.lock is not None:
            return True
        waiters = tuple(self.waiters or ())
        return any(not (future.done() or future.get_loop().is_closed()) for future in waiters)


def wake(tickets: Iterable[Ticket]) -> None:
    """Mark the tickets as settled and wake whoever waits for them. May be repeated."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in tickets:
        ticket.settled = True
        lock = ticket.lock
        if lock is not None:
            if lock.locked():
                lock.release()
        elif ticket.waiters is not None:
            for future in tuple(ticket.waiters):
                loops.setdefault(future.get_loop(), []).append(future)
    for loop, futures in loops.items():
        # A loop that was closed with receipts pending has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, futures)


def timed_out(timeout: float) -> AuditTimeoutError:
    """Say what it means that there was no confirmation within ``timeout`` seconds."""
    return AuditTimeoutError(
        f"the trail did not confirm the record within {timeout:g} s (OTEL_AUDIT_TIMEOUT); the "
        "disk may hang or another process may hold the trail's lock: see `otel-audit doctor`"
    )


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _limit(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], timeout: float) -> None:
    """Make the future raise `AuditTimeoutError` when it is not done in ``timeout`` seconds."""
    limits = _limits.get(loop)
    if limits is None:
        limits = _limits[loop] = {}
    limit = limits.get(timeout)
    if limit is None:
        limit = limits[timeout] = _Limit(timeout)
    limit.add(loop, future)


class _Limit:
    """One timer for all that wait in a loop equally long: nearly none of them ever needs it."""

    __slots__ = ("_armed", "_timeout", "_waiting")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._armed = False
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    def add(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        waiting = self._waiting
        # Whoever is done leaves in the order of coming, which is nearly that of being done.
        while waiting and waiting[0][1].done():
            waiting.popleft()
        deadline = loop.time() + self._timeout
        waiting.append((deadline, future))
        if not self._armed:
            self._armed = True
            loop.call_at(deadline, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed = False
        now = loop.time()
        waiting = self._waiting
        while waiting:
            deadline, future = waiting[0]
            if not future.done():
                if deadline > now:
                    self._armed = True
                    loop.call_at(deadline, self._look, loop)
                    return
                future.set_exception(timed_out(self._timeout))
            waiting.popleft()


_limits: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, _Limit]] = WeakKeyDictionary()
