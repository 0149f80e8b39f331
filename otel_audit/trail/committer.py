"""Group commit: many callers, one sync.

Promises: a ticket is done only after its record is synced to the disk or has
failed; records of one thread keep their order; nobody waits longer than the
time-out; the queue is bounded, and what does not fit is refused at once.

Leader and followers: the first caller that finds nobody committing takes all
that waits, its own record first, commits it as one group, wakes those who
waited, and only then names the next leader. A caller inside an event loop
never leads (it must not block); for it a writer thread does. Groups form by
themselves while a sync is under way, so there is no lingering.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditTimeoutError,
    TrailError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from otel_audit.trail.store import Commit

_GROUP_RECORDS: Final = 512
_GROUP_BYTES: Final = 4 << 20
_QUEUE_BYTES: Final = 64 << 20
_RETRY_SECONDS: Final = 1.0

_logger = logging.getLogger("otel_audit.trail")


class Appender(Protocol):
    """What the committer needs of a store."""

    def append(
        self, entries: Sequence[tuple[bytes, bytes]], resources: Mapping[str, bytes]
    ) -> Commit:
        """Commit a group durably or raise `TrailError`."""
        ...

    def probe(self) -> None:
        """Commit something harmless or raise `TrailError`."""
        ...


class Resource(NamedTuple):
    """An OTel Resource: its hash, which records name, and its JSON, stored once."""

    hash: str
    json: bytes


class Ticket:
    """One record on its way into the trail; awaitable.

    ``done`` turns true once, after ``error`` or ``sequence`` and
    ``committed_unix_nano`` were set.
    """

    __slots__ = (
        "committed_unix_nano",
        "done",
        "error",
        "lead",
        "leaf_hash",
        "lock",
        "loops",
        "owner",
        "record",
        "resource",
        "sequence",
        "timeout",
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
        self.lead = False
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


class Statistics:
    """Counts since the process began; a record counts once."""

    __slots__ = ("committed", "failed", "groups", "refused")

    def __init__(self) -> None:
        self.committed = 0
        self.failed = 0
        self.groups = 0
        self.refused = 0


class Committer:
    """The queue in front of a store."""

    _mutex: threading.Lock
    _queue: deque[Ticket]
    _queued_bytes: int
    _busy: bool
    """Whether somebody leads: the only one who may touch the store and the writer."""
    _wake: threading.Lock
    _writer: threading.Thread | None
    _broken: Exception | None
    _probe_due: float
    _probe_wanted: bool

    def __init__(
        self,
        store: Appender,
        *,
        queue_size: int = 65_536,
        timeout: float = 10.0,
        unattended: Callable[[list[Ticket], Exception], None] | None = None,
    ) -> None:
        """Bound the queue to ``queue_size`` records and each wait to ``timeout`` seconds.

        ``unattended`` is told of failed tickets that nobody waits for.
        """
        self.statistics = Statistics()
        self._store = store
        self._queue_size = queue_size
        self._timeout = timeout
        self._unattended = unattended
        self._closed = False
        self._start_empty()
        _committers.add(self)

    def commit(self, ticket: Ticket) -> None:
        """Block until the ticket is done; a failed commit is kept in its ``error``.

        Raises `AuditTimeoutError`, `AuditBackpressureError`, `AuditClosedError`.
        """
        lock = ticket.lock = threading.Lock()
        lock.acquire()
        if self._enqueue(ticket):
            self._lead()
        elif not lock.acquire(timeout=self._timeout):
            self._abandon(ticket)
        elif ticket.lead:
            self._lead()

    def submit(self, ticket: Ticket) -> None:
        """Queue the ticket and return at once; the writer thread commits it.

        Raises `AuditBackpressureError` and `AuditClosedError`.
        """
        ticket.timeout = self._timeout
        if self._enqueue(ticket):
            self._wake_writer()

    @property
    def waiting(self) -> int:
        """How many records wait for a commit now."""
        return len(self._queue)

    @property
    def broken(self) -> Exception | None:
        """The failure of the newest group, or None while the trail takes records.

        Never blocks. While there is one, the writer thread tries each second
        whether it is over, so that the answer heals by itself.
        """
        error = self._broken
        if error is not None and time.monotonic() >= self._probe_due:
            with self._mutex:
                self._probe_due = time.monotonic() + _RETRY_SECONDS
                self._probe_wanted = True
                idle = not (self._busy or self._closed)
                self._busy = self._busy or idle
            if idle:
                self._wake_writer()
        return error

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is queued or being committed; False when time is up."""
        deadline = time.monotonic() + timeout
        while self._busy:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self, timeout: float) -> bool:
        """Refuse new records, wait for those under way; False when some remain."""
        with self._mutex:
            self._closed = True
        drained = self.drain(timeout)
        writer = self._writer
        if writer is not None and drained:
            self._wake.release()
            writer.join(timeout)
        return drained

    def _start_empty(self) -> None:
        """Begin with nothing queued; also in a forked child, whose queue is its parent's."""
        self._mutex = threading.Lock()
        self._queue = deque()
        self._queued_bytes = 0
        self._busy = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._writer = None
        self._broken = None
        self._probe_due = 0.0
        self._probe_wanted = False

    def _enqueue(self, ticket: Ticket) -> bool:
        """Queue the ticket; True makes the caller the leader."""
        with self._mutex:
            if self._closed:
                self.statistics.refused += 1
                message = "the audit provider is closed; configure() a new one before emitting"
                raise AuditClosedError(message)
            if (
                len(self._queue) >= self._queue_size
                or self._queued_bytes + len(ticket.record) > _QUEUE_BYTES
            ):
                self.statistics.refused += 1
                message = (
                    f"{len(self._queue)} records ({self._queued_bytes} bytes) wait for the disk "
                    "already; emit more slowly, await the receipts, or raise "
                    "OTEL_AUDIT_QUEUE_SIZE"
                )
                raise AuditBackpressureError(message)
            self._queue.append(ticket)
            self._queued_bytes += len(ticket.record)
            leads = not self._busy
            self._busy = True
        return leads

    def _lead(self) -> None:
        """Commit one group and hand the lead on."""
        group = self._take()
        commit: Commit | None = None
        # What stands unless something else is known: also when an interrupt
        # passes through here, nobody may hang.
        failure: Exception = TrailError("the commit was interrupted")
        try:
            commit = self._store.append(
                [(ticket.leaf_hash, ticket.record) for ticket in group],
                {t.resource.hash: t.resource.json for t in group if t.resource is not None},
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is each caller's answer
            failure = error
        finally:
            self._finish(group, commit, failure)
            self._hand_on()

    def _take(self) -> list[Ticket]:
        group: list[Ticket] = []
        size = 0
        with self._mutex:
            queue = self._queue
            while queue and len(group) < _GROUP_RECORDS and size < _GROUP_BYTES:
                ticket = queue.popleft()
                size += len(ticket.record)
                group.append(ticket)
            self._queued_bytes -= size
        return group

    def _finish(self, group: list[Ticket], commit: Commit | None, failure: Exception) -> None:
        statistics = self.statistics
        statistics.groups += 1
        alone: list[Ticket] = []
        if commit is not None:
            statistics.committed += len(group)
            self._broken = None
            for sequence, ticket in enumerate(group, commit.first):
                ticket.sequence = sequence
                ticket.committed_unix_nano = commit.committed_unix_nano
        else:
            statistics.failed += len(group)
            self._mark_broken(failure, len(group))
            for ticket in group:
                ticket.error = failure
            alone = [t for t in group if t.lock is None and not t.loops]
        _wake_waiters(group)
        if alone and self._unattended is not None:
            self._unattended(alone, failure)

    def _hand_on(self) -> None:
        """Name the next leader: the first in the queue, or the writer for it."""
        with self._mutex:
            if not self._queue:
                if self._probe_wanted:
                    self._wake_writer()
                else:
                    self._busy = False
                return
            first = self._queue[0]
            lock = first.lock
            if lock is not None:
                first.lead = True
                lock.release()
                return
        self._wake_writer()

    def _abandon(self, ticket: Ticket) -> None:
        """Stop waiting for a ticket; a lead that just arrived goes to the writer."""
        with self._mutex:
            if ticket.done:
                return
            leads = ticket.lead
            ticket.lock = None
        if leads:
            self._wake_writer()
        raise _timed_out(self._timeout)

    def _mark_broken(self, failure: Exception, count: int) -> None:
        if self._broken is None:
            _logger.error("the trail does not take records (%d not confirmed): %s", count, failure)
        self._broken = failure
        self._probe_due = time.monotonic() + _RETRY_SECONDS

    def _wake_writer(self) -> None:
        if self._writer is None:
            # A daemon: whoever was answered is synced already, and a process
            # must be able to end while the disk hangs.
            self._writer = threading.Thread(
                target=self._write, args=(self._wake,), name="otel-audit-writer", daemon=True
            )
            self._writer.start()
        self._wake.release()

    def _write(self, wake: threading.Lock) -> None:
        """Run the writer thread: each release of ``wake`` is one turn as leader."""
        while True:
            wake.acquire()
            if self._closed and not self._busy:
                return
            self._work()

    def _work(self) -> None:
        if self._probe_wanted:
            self._probe_wanted = False
            self._probe()
        if self._queue:
            self._lead()
        else:
            self._hand_on()

    def _probe(self) -> None:
        try:
            self._store.probe()
        except Exception as error:  # noqa: BLE001 - the writer thread outlives every failure
            self._broken = error
        else:
            if self._broken is not None:
                _logger.warning("the trail takes records again")
            self._broken = None


def _wake_waiters(group: list[Ticket]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in group:
        ticket.done = True
        lock = ticket.lock
        if lock is not None:
            if lock.locked():
                lock.release()
        elif ticket.loops is not None:
            for loop, future in ticket.loops:
                loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        # A loop that was closed with receipts pending has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _give_up(future: asyncio.Future[None], timeout: float) -> None:
    if not future.done():
        future.set_exception(_timed_out(timeout))


def _timed_out(timeout: float) -> AuditTimeoutError:
    return AuditTimeoutError(
        f"the trail did not confirm the record within {timeout:g} s (OTEL_AUDIT_TIMEOUT); the "
        "disk may hang or another process may hold the trail's lock: see `otel-audit doctor`"
    )


_committers: weakref.WeakSet[Committer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for committer in list(_committers):
        committer._start_empty()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
