"""One record on its way into the trail, and how whoever waits for it is woken.

Promises: no wake-up is lost, whichever of the waiter and the committer comes
first; a waiter in an event loop never blocks it. When a ticket is done, and
how, is the committer's business.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_audit.errors import AuditTimeoutError

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterable


class Resource(NamedTuple):
    """An OTel Resource: its hash, which records name, and its JSON, stored once."""

    hash: str
    json: bytes


class Ticket:
    """One record on its way into the trail; awaitable.

    ``done`` turns true once, after ``error`` or ``sequence`` and
    ``committed_unix_nano`` were set. ``told`` says that somebody was told
    already that the record is not confirmed, so that it is not counted twice.
    """

    __slots__ = (
        "committed_unix_nano",
        "done",
        "error",
        "leaf_hash",
        "lock",
        "loops",
        "owner",
        "record",
        "resource",
        "sequence",
        "timeout",
        "told",
    )

    def __init__(
        self,
        record: bytes,
        leaf_hash: bytes,
        resource: Resource | None,
        owner: Any = None,  # noqa: ANN401 - the submitter's own, never looked at here
    ) -> None:
        """Take a record; ``owner`` is whatever the submitter wants to find in it again."""
        self.record = record
        self.leaf_hash = leaf_hash
        self.resource = resource
        self.owner = owner
        self.done = False
        self.told = False
        self.error: Exception | None = None
        self.lock: threading.Lock | None = None
        self.loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] | None = None
        self.sequence = -1
        self.committed_unix_nano = 0
        self.timeout = 0.0

    def __await__(self) -> Generator[object, None, None]:
        """Wait in the running event loop until ``done``.

        Raises `AuditTimeoutError` when that takes too long; the error of a
        failed commit is not raised but kept in ``error``.
        """
        if self.done:
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        # The committer sets `done` before it reads `loops`, we the other way
        # round: one of the two sides sees the other, so no wake-up is lost.
        if self.loops is None:
            self.loops = []
        self.loops.append((loop, future))
        if self.done:
            return  # type: ignore[unreachable] # the committer's thread sets it
        timer = loop.call_later(self.timeout, _give_up, future, self.timeout)
        try:
            yield from future
        finally:
            timer.cancel()

    @property
    def attended(self) -> bool:
        """Whether somebody waits for it now: not a task that was cancelled, nor a closed loop."""
        if self.lock is not None:
            return True
        return any(
            not (future.done() or loop.is_closed()) for loop, future in tuple(self.loops or ())
        )


def wake(tickets: Iterable[Ticket]) -> None:
    """Mark the tickets as done and wake whoever waits for them. May be repeated."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in tickets:
        ticket.done = True
        lock = ticket.lock
        if lock is not None:
            if lock.locked():
                lock.release()
        elif ticket.loops is not None:
            for loop, future in tuple(ticket.loops):
                loops.setdefault(loop, []).append(future)
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


def _give_up(future: asyncio.Future[None], timeout: float) -> None:
    if not future.done():
        future.set_exception(timed_out(timeout))
