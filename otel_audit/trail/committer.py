"""Group commit: many callers, one sync.

Promises: a ticket is done only after its record is synced to the disk or has
failed; records of one thread keep their order; nobody waits for others longer
than the time-out (who leads waits as long as the store does); the queue is
bounded, and what does not fit is refused at once. A signal handler may raise
(KeyboardInterrupt) or emit at any point in here: nobody hangs, nothing is lost
in silence.

Leader and followers: the first caller that finds nobody committing takes all
that waits, its own record first, commits it as one group, wakes those who
waited, and only then names the next leader. A caller inside an event loop
never leads (it must not block); for it a writer thread does. Groups form by
themselves while a sync is under way, so there is no lingering; and as a group
is taken only when the trail is ours, also while another process has it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditUnavailableError,
    TrailError,
    TrailLockedError,
)
from otel_audit.trail.interruption import on_the_stack
from otel_audit.trail.ticket import Ticket, timed_out, wake

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_audit.trail.store import Commit

_GROUP_RECORDS: Final = 512
_GROUP_BYTES: Final = 4 << 20
_QUEUE_BYTES: Final = 64 << 20
_RETRY_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.001

_WRITER: Final = Ticket(b"")
"""Stands for the writer where a leader is named."""
_AT_WORK: Final = Ticket(b"")
"""Stands for the writer that has noticed."""

_INTERRUPTED: Final = TrailError("the commit was interrupted")
"""What became of a group unless something else is known."""

_logger = logging.getLogger("otel_audit.trail")


class Appender(Protocol):
    """What the committer needs of a store."""

    def append_next(
        self, take: Callable[[], Sequence[bytes]], resources: Mapping[str, bytes]
    ) -> Commit:
        """Commit durably what ``take`` returns, once, when it is our turn.

        Raises `TrailError`, or MemoryError; nothing else by itself.
        """
        ...

    def probe(self) -> None:
        """Commit something harmless or raise `TrailError`."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the calling thread is in the middle of writing."""
        ...


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

    statistics: Statistics
    _mutex: threading.RLock
    """Reentrant: a signal handler may interrupt its holder, and emit."""
    _inside: set[int]
    """The threads inside `commit` and `submit`; who comes there again must not wait."""
    _late: deque[Ticket]
    """What those emitted; queued when the thread leaves."""
    _queue: deque[Ticket]
    _queued_bytes: int
    _enqueued: int
    _settled: int
    """How many of those that were ever queued are done."""
    _leader: Ticket | None
    """Who leads: the only one who may touch the store, the group and its result."""
    _group: list[Ticket]
    """What is being committed: kept until all in it are woken, whoever leads by then."""
    _result: tuple[Commit | None, Exception]
    _since: float
    _wake: threading.Lock
    """Released to make the writer look whether it leads; made when the writer is."""
    _writer: threading.Thread | None
    _broken: Exception | None
    _probe_wanted: bool

    def __init__(
        self,
        store: Appender,
        *,
        queue_size: int = 65_536,
        timeout: float = 10.0,
        resources: Mapping[str, bytes] = MappingProxyType({}),
        unattended: Callable[[list[Ticket], Exception], None] | None = None,
        committed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Bound the queue to ``queue_size`` records and each wait to ``timeout`` seconds.

        ``resources`` are the OTel Resources (hash to JSON) that the records
        name. ``unattended`` is told of failed tickets that nobody waits for,
        ``committed`` how many seconds each commit took.
        """
        self._store = store
        self._resources = resources
        self._queue_size = queue_size
        self._timeout = timeout
        self._unattended = unattended
        self._committed = committed
        self._closed = False
        self._start_empty()
        _committers.add(self)

    def commit(self, ticket: Ticket) -> None:
        """Block until the ticket is done; a failed commit is kept in its ``error``.

        It only queues the ticket, which is not done then, in a signal handler
        or finalizer that interrupted this thread in here: it would wait for
        itself. Raises `AuditTimeoutError`, `AuditBackpressureError`,
        `AuditClosedError`.
        """
        me = threading.get_ident()
        if me in self._inside and on_the_stack(*_ENTRIES):
            self._postpone(ticket)
            return
        if self._store.interrupted:
            # By whom it was, is not known here: only the writer will look at the queue.
            self._postpone(ticket)
            self._wake_writer()
            return
        lock = ticket.lock = threading.Lock()
        lock.acquire()
        try:
            self._inside.add(me)
            if not self._enqueue(ticket) and not lock.acquire(timeout=self._timeout):
                self._check_done(ticket)
            elif self._leader is ticket and self._lead():
                self._wake_writer()
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            self._inside.discard(me)
            if self._late:
                self._queue_late()

    def submit(self, ticket: Ticket) -> None:
        """Queue the ticket and return at once; the writer thread commits it.

        Raises `AuditBackpressureError` and `AuditClosedError`.
        """
        me = threading.get_ident()
        if me in self._inside and on_the_stack(*_ENTRIES):
            self._postpone(ticket)
            return
        ticket.timeout = self._timeout
        try:
            self._inside.add(me)
            if self._enqueue(ticket):
                self._wake_writer()
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            self._inside.discard(me)
            if self._late:
                self._queue_late()

    @property
    def waiting(self) -> int:
        """How many records wait for a commit now."""
        return len(self._queue)

    @property
    def broken(self) -> Exception | None:
        """The failure of the newest group, or None while the trail takes records.

        Also a commit that goes on for longer than the time-out is one. Never
        blocks. While there is one, the writer thread tries each second whether
        it is over, so that the answer heals by itself.
        """
        error, since = self._broken, self._since
        if error is not None:
            return error
        lasted = time.monotonic() - since if since else 0.0
        return _endless(lasted) if lasted > self._timeout else None

    @property
    def interrupted(self) -> bool:
        """Whether this thread is in here: a signal handler or finalizer asks.

        It cannot wait for anything in here; that would be waiting for itself.
        """
        inside = threading.get_ident() in self._inside and on_the_stack(*_ENTRIES)
        return inside or self._store.interrupted

    def drain(self, timeout: float) -> bool:
        """Wait until all that is queued now is done; False when time is up, and if `interrupted`."""
        if self.interrupted:
            return False
        deadline = time.monotonic() + timeout
        wanted = self._enqueued
        while self._settled < wanted or self._late:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self, timeout: float) -> bool:
        """Refuse new records, wait for those under way; False when some remain.

        If `interrupted` it does not wait.
        """
        deadline = time.monotonic() + timeout
        with self._mutex:
            self._closed = True
        if self.interrupted:
            return False
        while self._leader is not None or self._queue:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        writer = self._writer
        if writer is not None:
            self._nudge()
            writer.join(timeout)
        return True

    def _start_empty(self) -> None:
        """Begin with nothing queued; also in a forked child, whose queue is its parent's."""
        self.statistics = Statistics()
        self._mutex = threading.RLock()
        self._inside = set()
        self._late = deque()
        self._queue = deque()
        self._queued_bytes = 0
        self._enqueued = 0
        self._settled = 0
        self._leader = None
        self._group = []
        self._result = (None, _INTERRUPTED)
        self._since = 0.0
        self._writer = None
        self._broken = None
        self._probe_wanted = False

    def _enqueue(self, ticket: Ticket) -> bool:
        """Queue the ticket; True makes the caller, or for it the writer, the leader."""
        size = len(ticket.record)
        with self._mutex:
            if self._closed:
                self.statistics.refused += 1
                message = "the audit provider is closed; configure() a new one before emitting"
                raise AuditClosedError(message)
            if len(self._queue) >= self._queue_size or self._queued_bytes + size > _QUEUE_BYTES:
                self.statistics.refused += 1
                message = (
                    f"{len(self._queue)} records ({self._queued_bytes} bytes) wait for the disk "
                    "already; emit more slowly, await the receipts, or raise "
                    "OTEL_AUDIT_QUEUE_SIZE"
                )
                raise AuditBackpressureError(message)
            self._queue.append(ticket)
            self._enqueued += 1
            self._queued_bytes += size
            leads = self._leader is None
            if leads:
                self._leader = _WRITER if ticket.lock is None else ticket
        return leads

    def _lead(self) -> bool:
        """Commit one group and hand the lead on; True: to the writer."""
        took = None
        self._since = time.monotonic()
        there = len(self._queue)
        try:
            commit = self._store.append_next(self._take, self._resources)
            took = time.monotonic() - self._since
            self._result = (commit, _INTERRUPTED)
        except (TrailError, MemoryError) as error:
            # All else is a signal handler's, such as a time limit, and its thread has to hear it.
            self._part()
            if not self._group:
                self._take_failed(error, there)
            self._result = (None, error)
        self._finish()
        if took is not None:
            # All are woken; what this raises must not keep the next ones waiting.
            with suppress(Exception):
                self._committed(took)
        return self._hand_on()

    def _take(self, most: int = _GROUP_RECORDS, most_bytes: int = _GROUP_BYTES) -> list[bytes]:
        """Move the next group out of the queue; see `_part` for who is interrupted.

        Without the mutex: the trail is held meanwhile, and who has the mutex
        may be in a signal handler that waits for the trail. Nobody but the
        leader takes anything out of the queue.
        """
        queue = self._queue
        group: list[Ticket] = []
        size = 0
        self._result = (None, _INTERRUPTED)
        self._group = group
        while queue and len(group) < most and size < most_bytes:
            ticket = queue[0]
            group.append(ticket)
            del queue[0]
            size += len(ticket.record)
        return [ticket.record for ticket in group]

    def _take_failed(self, error: Exception, there: int) -> None:
        """Take those whose attempt has failed before there was a group."""
        if isinstance(error, TrailLockedError):
            # All of them have waited for as long as one may, and who came since has not.
            self._take(there, _QUEUE_BYTES)
        else:
            self._take(min(there, _GROUP_RECORDS))

    def _part(self) -> None:
        """Take out of the queue what is in the group already, where `_take` was interrupted."""
        if self._group and self._queue and self._queue[0] is self._group[-1]:
            del self._queue[0]

    def _finish(self) -> None:
        """Tell everybody in the group what became of it. May be repeated."""
        group, (commit, failure) = self._group, self._result
        unattended: list[Ticket] = []
        if commit is not None:
            committed = zip(group, commit.leaf_hashes, strict=True)
            for sequence, (ticket, leaf_hash) in enumerate(committed, commit.first):
                ticket.sequence = sequence
                ticket.leaf_hash = leaf_hash
                ticket.committed_unix_nano = commit.committed_unix_nano
        else:
            for ticket in group:
                if not ticket.settled:
                    ticket.error = failure
                    if not (ticket.told or ticket.attended):
                        ticket.told = True
                        unattended.append(ticket)
        wake(group)
        statistics = self.statistics
        with self._mutex:
            self._since = 0.0
            self._group = []
            self._queued_bytes -= sum(len(ticket.record) for ticket in group)
            self._settled = self._enqueued - len(self._queue)
            statistics.groups += 1
            if commit is None:
                statistics.failed += len(group)
            else:
                statistics.committed += len(group)
        if commit is None:
            self._report(failure, len(group), unattended)
            return
        self._broken = None

    def _report(self, failure: Exception, count: int, unattended: list[Ticket]) -> None:
        """Log a failure; what logging raises must not keep the others waiting."""
        known, self._broken = self._broken, failure
        with suppress(Exception):
            self._wake_writer()  # which tries from now on whether it is over
            if known is None:
                _logger.error(
                    "the trail does not take records (%d not confirmed): %s", count, failure
                )
            if unattended and self._unattended is not None:
                self._unattended(unattended, failure)

    def _hand_on(self) -> bool:
        """Name the next leader: the first in the queue, or the writer for it (True)."""
        with self._mutex:
            if self._queue:
                first = self._queue[0]
                lock = first.lock
                if lock is not None:
                    self._leader = first
                    lock.release()
                    return False
            elif not self._probe_wanted:
                self._leader = None
                self._queued_bytes = 0
                return False
            self._leader = _WRITER
            return True

    def _check_done(self, ticket: Ticket) -> None:
        if not ticket.settled:
            raise timed_out(self._timeout)

    def _leave(self, ticket: Ticket) -> None:
        """Give up a ticket, after a refusal, a time-out, or an exception from a signal handler.

        The last may have struck anywhere: the caller may be the leader, or
        have been about to wake the next one.
        """
        with self._mutex:
            ticket.lock = None
            ticket.told = True
            leader = self._leader
            if leader is ticket or (leader is None and self._queue):
                self._leader = leader = _WRITER
                # The store may have been left in the middle: let it find that out now.
                self._probe_wanted = True
            if leader is not None and leader.lock is not None and leader.lock.locked():
                # Once more, where it has been done, does no harm: it is awake then.
                leader.lock.release()
        if leader is _WRITER:
            self._wake_writer()

    def _postpone(self, ticket: Ticket) -> None:
        ticket.timeout = self._timeout
        self._late.append(ticket)

    def _queue_late(self) -> None:
        while True:
            try:
                ticket = self._late.popleft()
            except IndexError:
                return
            try:
                if self._enqueue(ticket):
                    self._wake_writer()
            except AuditUnavailableError as error:
                ticket.error = error
                unattended = not ticket.attended
                wake([ticket])
                if unattended and self._unattended is not None:
                    self._unattended([ticket], error)

    def _wake_writer(self) -> None:
        with self._mutex:
            started = self._writer is not None or self._start_writer()
        if started:
            self._nudge()
        else:
            self._stand_in()

    def _start_writer(self) -> bool:
        # Made with the thread, as what gevent makes of both is of no use to the other's original.
        wake = threading.Lock()
        wake.acquire()
        # A daemon: whoever was answered is synced already, and a process must
        # be able to end while the disk hangs.
        writer = threading.Thread(
            target=self._write, args=(wake,), name="otel-audit-writer", daemon=True
        )
        try:
            writer.start()
        except RuntimeError:
            return False
        self._wake, self._writer = wake, writer
        return True

    def _nudge(self) -> None:
        # It has been nudged already when the lock is free.
        with suppress(RuntimeError):
            self._wake.release()

    def _write(self, wake: threading.Lock) -> None:
        """Run the writer thread, which leads whenever it is named."""
        me = threading.get_ident()
        while True:
            told = wake.acquire(timeout=_RETRY_SECONDS if self._broken else -1)
            self._inside.add(me)
            try:
                if not told:
                    self._want_probe()
                self._stand_in()
            except Exception:  # the next ones must be served, whatever has struck: MemoryError
                with suppress(Exception):
                    _logger.exception("the writer was interrupted, and goes on")
                time.sleep(_POLL_SECONDS)
                self._nudge()
            self._inside.discard(me)
            if self._late:
                self._queue_late()
            if self._closed and self._leader is None:
                return

    def _want_probe(self) -> None:
        """Try whether the trail takes records again, now or as soon as nobody else leads."""
        with self._mutex:
            self._probe_wanted = True
            if self._leader is None and not self._closed:
                self._leader = _WRITER

    def _stand_in(self) -> None:
        """Lead while the writer is named: as its thread, or where none can be started."""
        while True:
            with self._mutex:
                if self._leader is not _WRITER:
                    return
                self._leader = _AT_WORK
            try:
                self._work()
            except BaseException:
                with self._mutex:
                    if self._leader is _AT_WORK:
                        self._leader = _WRITER
                raise

    def _work(self) -> None:
        if self._group:
            self._recover()
        if self._probe_wanted:
            self._probe_wanted = False
            self._probe()
        if self._queue:
            self._lead()
        else:
            self._hand_on()

    def _recover(self) -> None:
        """Finish for a leader that an exception from a signal handler took away."""
        self._part()
        self._finish()

    def _probe(self) -> None:
        self._since = time.monotonic()
        try:
            self._store.probe()
        except Exception as error:  # noqa: BLE001 - the writer thread outlives every failure
            self._broken = error
        else:
            if self._broken is not None:
                _logger.warning("the trail takes records again")
            self._broken = None
        self._since = 0.0


_ENTRIES: Final = tuple(
    entry.__code__
    for entry in (Committer.commit, Committer.submit, Committer._write)  # noqa: SLF001 - same module
)
"""Where a thread is that is in a committer."""


def _endless(seconds: float) -> TrailError:
    message = (
        f"a commit has been under way for {seconds:.0f} s; the disk may hang: look at the "
        "kernel's log (dmesg)"
    )
    return TrailError(message)


_committers: weakref.WeakSet[Committer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for committer in list(_committers):
        committer._start_empty()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
