"""The committer: groups, hand-over, limits, and what signals, forks and failures leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import random
import re
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditTimeoutError,
    TrailError,
    TrailLockedError,
)
from otel_audit.trail import merkle
from otel_audit.trail.committer import Committer
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import Commit, TrailStore
from otel_audit.trail.ticket import Ticket, wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import FrameType

    from typing_extensions import Self

    Make = Callable[..., Committer]
    Hold = Callable[[], AbstractContextManager[None]]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def run(*bodies: Callable[[], None], seconds: float = 60.0) -> None:
    """Run each body in a thread of its own; none may hang or raise."""
    raised: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - reported below
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if raised:
        raise raised[0]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def store(directory: Path) -> Iterator[TrailStore]:
    opened = TrailStore(directory, new_origin=lambda: "test/origin", timeout=5.0)
    yield opened
    opened.close()


@pytest.fixture
def make(store: TrailStore) -> Iterator[Make]:
    made: list[Committer] = []

    def build(**options: Any) -> Committer:
        made.append(Committer(store, **{"timeout": 5.0, **options}))
        return made[-1]

    yield build
    for committer in made:
        assert committer.close(30.0)


@pytest.fixture
def committer(make: Make) -> Committer:
    return make()


@pytest.fixture
def hold(directory: Path) -> Hold:
    """Hold the trail's lock, as another process would: until the block ends nothing commits."""

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        with (directory / "lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return held


def stored(directory: Path) -> list[bytes]:
    with TrailReader(directory) as reader:
        tree = reader.tree()
        leaves = list(reader.leaves())
        assert [leaf.sequence for leaf in leaves] == list(range(tree.size))
        assert merkle.edge_root(merkle.edge_at(tree.size, reader.hash_at)) == tree.root
    return [leaf.record for leaf in leaves]


# Order, groups and the hand-over of the lead


def test_a_ticket_is_done_when_its_record_can_be_read(
    committer: Committer, directory: Path
) -> None:
    for number in range(20):
        one = Ticket(b"%d" % number)
        committer.commit(one)
        assert (one.settled, one.error, one.sequence) == (True, None, number)
        with TrailReader(directory) as reader:
            leaf = reader.leaf(number)
        assert leaf is not None
        assert leaf.record == one.record
        assert leaf.committed_unix_nano == one.committed_unix_nano


def test_nothing_is_done_while_the_lock_is_held(committer: Committer, hold: Hold) -> None:
    tickets = [Ticket(b"%d" % number) for number in range(10)]
    with hold():
        threads = [
            threading.Thread(target=committer.commit, args=(one,), daemon=True) for one in tickets
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert not any(one.settled for one in tickets)
    for thread in threads:
        thread.join(30)
    assert sorted(one.sequence for one in tickets) == list(range(10))


def test_records_of_one_thread_keep_their_order(committer: Committer, directory: Path) -> None:
    def emit(name: int) -> None:
        for number in range(50):
            committer.commit(Ticket(b"%d %d" % (name, number)))

    run(*(lambda name=name: emit(name) for name in range(8)))
    numbers: dict[bytes, list[int]] = {}
    for record in stored(directory):
        name, number = record.split()
        numbers.setdefault(name, []).append(int(number))
    assert list(numbers.values()) == [list(range(50))] * 8


def test_records_that_an_event_loop_submits_keep_their_order(
    committer: Committer, directory: Path
) -> None:
    for number in range(5_000):
        committer.submit(Ticket(b"%d" % number))
    assert committer.drain(30.0)
    assert stored(directory) == [b"%d" % number for number in range(5_000)]


def test_thirty_two_threads_share_their_syncs(committer: Committer, directory: Path) -> None:
    def emit() -> None:
        for _ in range(30):
            committer.commit(Ticket(b"x"))

    run(*[emit] * 32)
    statistics = committer.statistics
    assert statistics.committed == len(stored(directory)) == 960
    assert statistics.groups < 960 / 2


def test_one_thread_waits_for_nobody(committer: Committer) -> None:
    for _ in range(10):
        committer.commit(Ticket(b"x"))
    assert committer.statistics.groups == 10


def test_a_group_has_at_most_512_records_and_about_four_megabytes(
    committer: Committer, hold: Hold
) -> None:
    with hold():
        for _ in range(1_025):
            committer.submit(Ticket(b"x"))
    assert committer.drain(30.0)
    assert committer.statistics.groups == 3
    with hold():
        for _ in range(131):
            committer.submit(Ticket(b"x" * 65_535))
    assert committer.drain(30.0)
    assert committer.statistics.groups == 3 + 3


def test_what_comes_while_another_process_has_the_trail_is_one_group(
    committer: Committer, hold: Hold
) -> None:
    with hold():
        led = threading.Thread(target=committer.commit, args=(Ticket(b"led"),))
        led.start()
        until(lambda: committer.waiting == 1)
        time.sleep(0.05)
        for _ in range(20):
            committer.submit(Ticket(b"x"))
    led.join(30.0)
    assert committer.drain(30.0)
    assert (committer.statistics.groups, committer.statistics.committed) == (1, 21)


def test_who_comes_while_the_trail_is_waited_for_in_vain_gets_a_turn_of_its_own(
    directory: Path,
) -> None:
    store = TrailStore(directory, new_origin=lambda: "test/origin", timeout=0.4)
    committer = Committer(store)
    with (directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        first, second = Ticket(b"first"), Ticket(b"second")
        committer.submit(first)
        time.sleep(0.2)
        committer.submit(second)
        until(lambda: first.settled)
        assert isinstance(first.error, TrailLockedError)
        assert not second.settled
    assert committer.drain(30.0)
    assert (second.error, second.sequence) == (None, 0)
    assert committer.close(30.0)
    store.close()


def test_the_resources_that_records_name_are_stored_with_them(make: Make, directory: Path) -> None:
    make(resources={"abc": b'{"service.name":"shop"}'}).commit(Ticket(b"x"))
    with TrailReader(directory) as reader:
        assert reader.resource("abc") == b'{"service.name":"shop"}'


def test_all_that_waited_for_the_trail_in_vain_are_told_at_once(directory: Path) -> None:
    """Not 512 or four megabytes a time-out: they have waited for as long as one may."""
    store = TrailStore(directory, new_origin=lambda: "test/origin", timeout=0.5)
    committer = Committer(store)
    with (directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Held up until all are queued, so that all are there when the lock is asked for.
        with store._handle.mutex:
            tickets = [Ticket(b"x" * 9_000) for _ in range(600)]
            with committer._mutex:
                for one in tickets:
                    committer.submit(one)
        until(lambda: tickets[0].settled)
        assert all(isinstance(one.error, TrailLockedError) for one in tickets)
    assert committer.close(30.0)
    store.close()


class Memory:
    """An `Appender` without a disk, for thousands of rounds a second; slow or failing at will."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.appending = 0
        self.most = 0
        self.probes = 0
        self.failure: Exception | None = None
        self.inside: Callable[[], None] = lambda: None

    def append_next(
        self, take: Callable[[], Sequence[bytes]], resources: Mapping[str, bytes]
    ) -> Commit:
        assert not resources
        self.appending += 1
        self.most = max(self.most, self.appending)
        try:
            records = take()
            assert records
            self.inside()
            if self.failure is not None:
                raise self.failure
            first = len(self.records)
            self.records += records
            return Commit(first, time.time_ns(), merkle.leaf_hashes(records))
        finally:
            self.appending -= 1

    @property
    def interrupted(self) -> bool:
        return False

    def probe(self) -> None:
        self.probes += 1
        self.inside()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def memory() -> Memory:
    return Memory()


class Stress:
    """Threads, loops, cancelled tasks and time-outs on one committer, and what came of them."""

    def __init__(self, committer: Committer) -> None:
        self.committer = committer
        self.emitted = 0
        self.late: list[Ticket] = []
        self.done: list[Ticket] = []

    def settle(self, one: Ticket) -> None:
        assert one.settled
        self.done.append(one)

    def thread(self) -> None:
        for number in range(1_500):
            one = Ticket(b"%d" % number)
            if random.random() < 0.3:
                time.sleep(random.uniform(0, 2e-4))
            try:
                self.committer.commit(one)
            except AuditTimeoutError:
                self.late.append(one)
            else:
                self.settle(one)

    async def task(self, number: int) -> None:
        one = Ticket(b"%d" % number)
        self.committer.submit(one)
        try:
            await one
        except AuditTimeoutError:
            self.late.append(one)
        else:
            self.settle(one)

    async def tasks(self) -> None:
        for _ in range(15):
            tasks = [asyncio.create_task(self.task(number)) for number in range(40)]
            await asyncio.sleep(0)
            for cancelled in tasks[::7]:
                cancelled.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def loop(self) -> None:
        asyncio.run(self.tasks())


@pytest.mark.parametrize("timeout", [5.0, 5e-4])
def test_the_lead_is_handed_over_thousands_of_times_and_nobody_hangs(
    memory: Memory, timeout: float
) -> None:
    memory.inside = lambda: time.sleep(random.choice((0, 0, 0, 2e-5, 3e-4)))
    committer = Committer(memory, timeout=timeout)
    stress = Stress(committer)
    run(*[stress.thread] * 5, *[stress.loop] * 3)
    assert committer.drain(30.0)
    assert memory.most == 1, "two led at a time"
    assert len(memory.records) == committer.statistics.committed == 5 * 1_500 + 3 * 15 * 40
    assert committer.statistics.groups > 1_000
    assert bool(stress.late) == (timeout < 1)
    until(lambda: all(one.settled for one in stress.late))
    settled = stress.done + stress.late
    assert len({one.sequence for one in settled}) == len(settled)
    assert all(memory.records[one.sequence] == one.record for one in settled)
    assert committer.close(30.0)


# Limits


def test_a_follower_waits_no_longer_than_the_time_out(make: Make, hold: Hold) -> None:
    committer = make(timeout=0.2)
    with hold():
        committer.submit(Ticket(b"leads"))
        began = time.monotonic()
        one = Ticket(b"follows")
        with pytest.raises(AuditTimeoutError, match=r"within 0\.2 s \(OTEL_AUDIT_TIMEOUT\)"):
            committer.commit(one)
        assert time.monotonic() - began > 0.15
        assert one.sequence == -1
    assert committer.drain(30.0)
    assert one.settled
    assert one.sequence == 1


async def test_a_task_waits_no_longer_than_the_time_out(make: Make, hold: Hold) -> None:
    committer = make(timeout=0.2)
    one = Ticket(b"x")
    with hold():
        committer.submit(one)
        with pytest.raises(AuditTimeoutError):
            await one
        assert not one.settled
    await asyncio.to_thread(committer.drain, 30.0)
    await one
    assert one.sequence == 0


def test_a_leader_that_gave_up_is_replaced(make: Make, hold: Hold) -> None:
    """Followers time out one after the other; whoever is named next may be gone already."""
    committer = make(timeout=0.05)
    with hold():
        committer.submit(Ticket(b"first"))
        run(*[lambda: _expect_timeout(committer)] * 8)
        later = Ticket(b"later")
        committer.submit(later)
    until(lambda: later.settled)
    assert later.sequence == 9


def _expect_timeout(committer: Committer) -> None:
    with pytest.raises(AuditTimeoutError):
        committer.commit(Ticket(b"x"))


def test_too_many_records_are_refused_at_once(make: Make, hold: Hold) -> None:
    committer = make(queue_size=10)
    with hold():
        waiting = [Ticket(b"x") for _ in range(10)]
        for one in waiting:
            committer.submit(one)
        for put in (committer.submit, committer.commit):
            with pytest.raises(
                AuditBackpressureError, match=r"10 records .* OTEL_AUDIT_QUEUE_SIZE"
            ):
                put(Ticket(b"x"))
        # It was not waited for a place: they would have had an answer after five seconds.
        assert not any(one.settled for one in waiting)
    assert committer.drain(30.0)
    assert (committer.statistics.refused, committer.statistics.committed) == (2, 10)


def test_too_many_bytes_are_refused_at_once(make: Make, hold: Hold) -> None:
    committer = make()
    with hold():
        big = b"x" * 65_535
        for _ in range(1_024):
            committer.submit(Ticket(big))
        with pytest.raises(AuditBackpressureError, match=r"1024 records \(67107840 bytes\)"):
            committer.submit(Ticket(big))
        committer.submit(Ticket(b"a small one still fits"))
    assert committer.drain(20.0)
    committer.submit(Ticket(big))
    assert committer.drain(30.0)


def test_a_closed_committer_refuses_and_finishes_what_it_has(
    committer: Committer, hold: Hold, directory: Path
) -> None:
    with hold():
        for number in range(50):
            committer.submit(Ticket(b"%d" % number))
        closing = threading.Thread(target=committer.close, args=(5.0,))
        closing.start()
        until(lambda: committer._closed)
        for put in (committer.submit, committer.commit):
            with pytest.raises(AuditClosedError, match=r"configure\(\) a new one"):
                put(Ticket(b"x"))
    closing.join(30)
    assert not closing.is_alive()
    assert len(stored(directory)) == 50
    writer = committer._writer
    assert writer is not None
    assert not writer.is_alive()


def test_close_says_when_records_remain(make: Make, hold: Hold) -> None:
    committer = make()
    one = Ticket(b"x")
    with hold():
        committer.submit(one)
        assert not committer.close(0.2)
        assert not one.settled


def test_drain_does_not_wait_for_what_comes_later(committer: Committer) -> None:
    """Under steady load somebody always leads; what was there before is done soon all the same."""
    stop = threading.Event()

    def emit() -> None:
        while not stop.is_set():
            committer.commit(Ticket(b"x"))

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert committer.drain(10.0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_drain_says_when_time_is_up(committer: Committer, hold: Hold) -> None:
    with hold():
        committer.submit(Ticket(b"x"))
        assert not committer.drain(0.1)
    assert committer.drain(30.0)


# Failure


class Failing:
    """Whether records can be stored: SQLite refuses to write, as on a medium that is write-protected."""

    def __init__(self, store: TrailStore) -> None:
        self._store = store

    def begin(self) -> None:
        with self._store._handle.use() as connection:
            connection.pragma("query_only", 1)

    def end(self) -> None:
        with self._store._handle.use() as connection:
            connection.pragma("query_only", 0)


@pytest.fixture
def failing(store: TrailStore) -> Failing:
    return Failing(store)


def test_a_failure_reaches_everybody_in_the_group_and_nobody_else(
    committer: Committer, failing: Failing, directory: Path
) -> None:
    committer.commit(Ticket(b"before"))
    failing.begin()
    tickets = [Ticket(b"%d" % number) for number in range(16)]
    run(*(lambda one=one: committer.commit(one) for one in tickets))
    assert all("readonly" in str(one.error) for one in tickets)
    failing.end()
    after = Ticket(b"after")
    committer.commit(after)
    assert (after.error, after.sequence) == (None, 1)
    assert committer.statistics.failed == 16
    assert stored(directory) == [b"before", b"after"]


def test_broken_heals_by_itself_once_the_trail_takes_records_again(
    committer: Committer, failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    failing.begin()
    committer.commit(Ticket(b"x"))
    assert "readonly" in str(committer.broken)
    time.sleep(1.3)
    assert committer.broken is not None
    failing.end()
    # Nobody asks meanwhile: the first who does must not hear of what is over.
    until(lambda: "takes records again" in caplog.text)
    assert committer.broken is None


def test_broken_is_logged_once_and_not_for_each_group(
    committer: Committer, failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    failing.begin()
    for _ in range(5):
        committer.commit(Ticket(b"x"))
    assert caplog.text.count("does not take records (1 not confirmed)") == 1
    failing.end()


def test_a_commit_that_does_not_end_counts_as_broken_and_asking_does_not_block(
    memory: Memory,
) -> None:
    disk = threading.Event()
    memory.inside = lambda: assert_true(disk.wait(10))
    committer = Committer(memory, timeout=0.1)
    one = Ticket(b"x")
    committer.submit(one)
    until(lambda: committer.broken is not None)
    assert re.search(r"under way for \d s; the disk may hang", str(committer.broken))
    # Whoever asks and waits for the commit has its answer after ten seconds.
    assert not one.settled
    disk.set()
    assert committer.drain(30.0)
    assert committer.broken is None
    assert committer.close(30.0)


def assert_true(value: object) -> None:
    assert value


@pytest.mark.parametrize("failure", [TrailError("no"), MemoryError()], ids=["trail", "memory"])
def test_what_the_store_raises_is_each_caller_s_answer(memory: Memory, failure: Exception) -> None:
    committer = Committer(memory)
    memory.failure = failure
    one = Ticket(b"x")
    committer.commit(one)
    assert one.error is memory.failure
    memory.failure = None
    committer.commit(Ticket(b"x"))
    assert committer.close(30.0)


def test_what_the_store_cannot_have_raised_reaches_who_was_interrupted(memory: Memory) -> None:
    """A worker's time limit is an ordinary exception, raised by a signal handler."""
    committer = Committer(memory)
    memory.failure = ZeroDivisionError("time is up")
    one, other = Ticket(b"x"), Ticket(b"y")
    with pytest.raises(ZeroDivisionError, match="time is up"):
        committer.commit(one)
    assert committer.drain(30.0)
    assert str(one.error) == "the commit was interrupted"
    committer.submit(other)
    assert committer.drain(30.0)
    assert str(other.error) == "the commit was interrupted"
    memory.failure = None
    committer.commit(Ticket(b"x"))
    assert committer.close(30.0)


def test_failures_that_nobody_waits_for_are_reported_with_their_tickets(
    make: Make, failing: Failing
) -> None:
    reported: list[Ticket] = []
    committer = make(unattended=lambda tickets, _: reported.extend(tickets))
    failing.begin()
    attended = Ticket(b"attended")
    committer.commit(attended)
    forgotten = [Ticket(b"%d" % number) for number in range(5)]
    for one in forgotten:
        committer.submit(one)
    assert committer.drain(30.0)
    until(lambda: reported == forgotten)
    assert all(one.told for one in forgotten)
    failing.end()


async def test_a_task_that_was_cancelled_does_not_attend_to_its_ticket(
    make: Make, failing: Failing, hold: Hold
) -> None:
    reported: list[Ticket] = []
    committer = make(unattended=lambda tickets, _: reported.extend(tickets))
    failing.begin()
    cancelled, awaited = Ticket(b"cancelled"), Ticket(b"awaited")
    with hold():
        tasks = []
        for one in (cancelled, awaited):
            committer.submit(one)
            tasks.append(asyncio.ensure_future(_wait_for(one)))
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
    await tasks[1]
    until(lambda: len(reported) > 0)
    assert reported == [cancelled]
    failing.end()


async def _wait_for(one: Ticket) -> None:
    await one


def test_who_timed_out_is_not_reported_a_second_time(memory: Memory) -> None:
    reported: list[Ticket] = []
    disk = threading.Event()
    memory.inside = lambda: assert_true(disk.wait(10))
    memory.failure = TrailError("no")
    committer = Committer(
        memory, timeout=0.05, unattended=lambda tickets, _: reported.extend(tickets)
    )
    committer.submit(Ticket(b"first"))
    _expect_timeout(committer)
    disk.set()
    assert committer.drain(30.0)
    assert [one.record for one in reported] == [b"first"]
    assert committer.close(30.0)


def test_a_report_that_raises_keeps_nobody_waiting(memory: Memory) -> None:
    def raises(tickets: list[Ticket], error: Exception) -> None:
        raise ValueError(tickets, error)

    committer = Committer(memory, unattended=raises)
    memory.failure = TrailError("no")
    committer.submit(Ticket(b"x"))
    assert committer.drain(30.0)
    memory.failure = None
    after = Ticket(b"after")
    run(lambda: committer.commit(after))
    assert after.sequence == 0
    assert committer.close(30.0)


def test_who_is_told_how_long_it_took_costs_no_record(memory: Memory) -> None:
    told: list[float] = []

    def raises(seconds: float) -> None:
        told.append(seconds)
        raise ValueError

    committer = Committer(memory, committed=raises)
    for sequence in range(2):
        led = Ticket(b"led")
        run(lambda one=led: committer.commit(one))  # type: ignore[misc] # mypy knows no default in a lambda
        assert led.sequence == 2 * sequence
        committer.submit(Ticket(b"queued"))
        assert committer.drain(30.0)
    assert len(told) == 4
    assert all(0 <= seconds < 5 for seconds in told)
    memory.failure = TrailError("no")
    committer.submit(Ticket(b"x"))
    assert committer.drain(30.0)
    assert len(told) == 4
    assert committer.close(30.0)


def test_a_lock_held_elsewhere_fails_the_group_after_the_stores_time_out(directory: Path) -> None:
    store = TrailStore(directory, new_origin=lambda: "test/origin", timeout=0.2)
    committer = Committer(store)
    with (directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        one = Ticket(b"x")
        committer.commit(one)
        assert isinstance(one.error, TrailLockedError)
        assert str(committer.broken) == str(one.error)
    committer.commit(Ticket(b"y"))
    assert committer.broken is None
    assert committer.close(30.0)
    store.close()


# Event loops


async def test_many_tasks_of_one_loop_share_groups(committer: Committer) -> None:
    async def emit() -> int:
        one = Ticket(b"x")
        committer.submit(one)
        await one
        return one.sequence

    sequences = await asyncio.gather(*(emit() for _ in range(500)))
    assert sorted(sequences) == list(range(500))
    assert committer.statistics.groups < 100


async def test_submitting_never_blocks_the_loop(committer: Committer, hold: Hold) -> None:
    with hold():
        tickets = [Ticket(b"%d" % number) for number in range(1_000)]
        for one in tickets:
            committer.submit(one)
        await asyncio.sleep(0.05)
        # Each that waits would do so until it has an answer, or for five seconds.
        assert not any(one.settled for one in tickets)
    for one in tickets:
        await one
    assert [one.sequence for one in tickets] == list(range(1_000))


async def test_a_ticket_may_be_awaited_by_several_tasks_and_again(
    committer: Committer, hold: Hold
) -> None:
    one = Ticket(b"x")
    with hold():
        committer.submit(one)
        tasks = [asyncio.ensure_future(_wait_for(one)) for _ in range(5)]
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    await one
    assert one.sequence == 0


def test_several_loops_await_the_same_committer(committer: Committer, directory: Path) -> None:
    async def emit() -> None:
        for _ in range(50):
            one = Ticket(b"x")
            committer.submit(one)
            await one

    async def many() -> None:
        await asyncio.gather(*(emit() for _ in range(8)))

    run(*[lambda: asyncio.run(many())] * 4)
    assert len(stored(directory)) == 4 * 8 * 50


class Hasty(asyncio.SelectorEventLoop):
    """A loop in which a ticket is done at the worst moment: after it was asked, before it waits."""

    before: Callable[[], None] | None = None

    def create_future(self) -> asyncio.Future[Any]:
        action, self.before = self.before, None
        if action is not None:
            action()
        return super().create_future()


def test_a_ticket_that_is_done_at_the_worst_moment_wakes_its_task() -> None:
    one = Ticket(b"x")
    one.timeout = 5.0
    loop = Hasty()

    async def body() -> None:
        loop.before = lambda: wake([one])
        await one

    loop.run_until_complete(body())  # not woken, it raises after five seconds
    loop.close()


def test_a_loop_closed_with_pending_tickets_harms_nobody(
    make: Make, hold: Hold, failing: Failing, directory: Path
) -> None:
    reported: list[Ticket] = []
    committer = make(unattended=lambda tickets, _: reported.extend(tickets))

    def abandon(one: Ticket) -> None:
        loop = asyncio.new_event_loop()
        committer.submit(one)
        waiting = _wait_for(one)
        task = loop.create_task(waiting)
        loop.run_until_complete(asyncio.sleep(0.02))
        waiting.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined] # the test is about this
        loop.close()

    stays, fails = Ticket(b"stays"), Ticket(b"fails")
    with hold():
        abandon(stays)
    committer.commit(Ticket(b"next"))
    assert stored(directory) == [b"stays", b"next"]
    failing.begin()
    with hold():
        abandon(fails)
    assert committer.drain(30.0)
    until(lambda: reported == [fails])
    failing.end()


# Signals


class Interrupt(BaseException):
    """What a signal handler raises, such as KeyboardInterrupt."""


class LimitError(Interrupt, TimeoutError):
    """A worker's time limit, which is an ordinary exception, and looks like the system's."""


class Shots:
    """Sends a signal to the main thread at random moments while somebody is the target."""

    def __init__(self, handler: Callable[[], None]) -> None:
        self.armed = False
        self._handler = handler
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._shoot, daemon=True)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, self._handle)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's form
        if self.armed:
            self.armed = False
            self._handler()

    def _shoot(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._stop.is_set():
            time.sleep(random.uniform(1e-5, 1.5e-3))
            signal.pthread_kill(main, signal.SIGUSR1)


def interrupt() -> None:
    raise random.choice((Interrupt, LimitError))


def interrupted(shots: Shots, body: Callable[[], None], seconds: float) -> list[Interrupt]:
    """Repeat ``body`` under fire; keep the exceptions, as a debugger or a REPL does."""
    kept: list[Interrupt] = []
    # Python drops an exception that strikes in a destructor or a weak reference's callback.
    gc.collect()
    gc.disable()
    deadline = time.monotonic() + seconds
    while len(kept) < 1_000 and time.monotonic() < deadline:
        try:
            shots.armed = True
            body()
            shots.armed = False
        except Interrupt as error:  # noqa: PERF203 - the next round is what is tested
            kept.append(error)
        finally:
            shots.armed = False
    gc.enable()
    return kept


@pytest.mark.usefixtures("unmeasured")
def test_an_exception_from_a_signal_handler_leaves_all_in_order_wherever_it_strikes(
    committer: Committer, directory: Path
) -> None:
    """The main thread leads and follows among others, and is interrupted a thousand times."""
    stop = threading.Event()
    tickets: list[Ticket] = []

    def emit(record: bytes = b"main") -> None:
        one = Ticket(record)
        committer.commit(one)
        tickets.append(one)

    def others() -> None:
        while not stop.is_set():
            emit(b"thread")

    threads = [threading.Thread(target=others, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Shots(interrupt) as shots:
        kept = interrupted(shots, emit, 4.0)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    assert len(kept) > 100
    last = Ticket(b"last")
    committer.commit(last)
    assert last.error is None
    errors = {str(one.error) for one in tickets if one.error is not None}
    assert errors <= {"the commit was interrupted"}
    records = stored(directory)
    assert all(records[one.sequence] == one.record for one in tickets if one.error is None)


@pytest.mark.usefixtures("unmeasured")
def test_an_interrupted_loop_thread_leaves_the_writer_in_charge(memory: Memory) -> None:
    committer = Committer(memory, timeout=2.0)
    committer.submit(Ticket(b"starts the writer"))
    with Shots(interrupt) as shots:
        kept = interrupted(shots, lambda: committer.submit(Ticket(b"x")), 1.0)
    assert kept
    assert committer.drain(30.0)
    one = Ticket(b"last")
    run(lambda: committer.commit(one))
    assert one.error is None
    assert committer.close(30.0)


@pytest.mark.usefixtures("unmeasured")
def test_a_writer_thread_left_by_an_interrupted_start_never_leads_beside_the_other(
    memory: Memory,
) -> None:
    committer = Committer(memory)
    assert committer._start_writer()
    assert committer._start_writer()
    memory.inside = lambda: time.sleep(2e-4)
    for _ in range(2_000):
        committer.submit(Ticket(b"x"))
        committer._nudge()
    assert committer.drain(30.0)
    assert memory.most == 1
    assert committer.close(30.0)


class Struck(Ticket):
    """A record that is looked at when a signal handler's exception strikes."""

    def __init__(self, record: bytes, error: Exception) -> None:
        self.strikes = error
        super().__init__(record)

    @property
    def record(self) -> bytes:
        if sys._getframe(1).f_code is Committer._take.__code__:
            raise self.strikes
        return self._record

    @record.setter
    def record(self, record: bytes) -> None:
        self._record = record


def test_an_error_while_a_group_is_taken_fails_what_was_taken_and_nothing_else(
    committer: Committer, hold: Hold, directory: Path
) -> None:
    limit = MemoryError()
    before, struck, after = Ticket(b"before"), Struck(b"struck", limit), Ticket(b"after")
    with hold():
        for one in (before, struck, after):
            committer.submit(one)
    assert committer.drain(30.0)
    assert (before.error, struck.error, after.error) == (limit, limit, None)
    assert stored(directory) == [b"after"]
    statistics = committer.statistics
    assert (statistics.failed, statistics.committed) == (2, 1)
    last = Ticket(b"last")
    run(lambda: committer.commit(last))
    assert last.sequence == 1


def test_a_signal_handler_may_write_into_the_trail_wherever_it_interrupts_the_committer(
    committer: Committer, store: TrailStore, hold: Hold
) -> None:
    """As it signs a checkpoint while this thread has the mutex and the writer has the trail."""
    queued = Ticket(b"queued")

    def interrupted() -> None:
        with contextlib.ExitStack() as held:
            held.enter_context(hold())
            committer.submit(queued)
            until(lambda: store._handle.writer is not None)
            with committer._mutex:
                held.close()
                store.describe({"handler": "was here"})

    run(interrupted)
    until(lambda: queued.settled)
    assert queued.sequence == 0


@pytest.mark.parametrize("times", [1, 2])
def test_the_writer_outlives_whatever_strikes_it(
    committer: Committer, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    take, left = committer._take, [MemoryError()] * times

    def taken(*bounds: int) -> list[bytes]:
        if left:
            raise left.pop()
        return take(*bounds)

    monkeypatch.setattr(committer, "_take", taken)
    first = Ticket(b"first")
    committer.submit(first)
    until(lambda: first.settled)
    next_one = Ticket(b"next")
    committer.submit(next_one)
    assert committer.drain(30.0)
    assert next_one.error is None


def test_a_follower_that_is_interrupted_does_not_take_the_lead_with_it(
    committer: Committer, hold: Hold
) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's form
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    shot = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1))
    try:
        with hold():
            committer.submit(Ticket(b"leads"))
            shot.start()
            with pytest.raises(Interrupt):
                committer.commit(Ticket(b"is interrupted"))
    finally:
        shot.join()
        signal.signal(signal.SIGUSR1, before)
    after = Ticket(b"after")
    committer.commit(after)
    assert after.sequence == 2


@pytest.mark.usefixtures("unmeasured")
def test_a_signal_handler_may_emit_in_the_middle_of_a_commit(
    committer: Committer, directory: Path
) -> None:
    """It must not wait for the thread that it interrupted, which is itself."""
    emitted: list[Ticket] = []

    def emit() -> None:
        one = Ticket(b"handler")
        committer.commit(one)
        emitted.append(one)

    with Shots(emit) as shots:
        deadline = time.monotonic() + 2.0
        # A slow disk takes longer for as many as it needs.
        while len(emitted) <= 50 or (len(emitted) < 300 and time.monotonic() < deadline):
            shots.armed = True
            one = Ticket(b"main")
            committer.commit(one)
            assert one.error is None
            assert one.settled
        shots.armed = False
    assert committer.drain(30.0)
    assert len(emitted) > 50
    assert any(one.sequence >= 0 for one in emitted)
    until(lambda: all(one.settled for one in emitted))
    assert all(one.error is None for one in emitted)
    assert stored(directory).count(b"handler") == len(emitted)


def test_a_mark_that_an_exception_left_behind_is_not_believed(
    committer: Committer, directory: Path
) -> None:
    """A handler's exception may strike after the last line that would take it back."""
    store = committer._store
    assert isinstance(store, TrailStore)
    me = threading.get_ident()
    committer._inside.add(me)
    store._handle.writer = me, TrailStore._transact.__code__
    one = Ticket(b"one")
    committer.commit(one)
    assert one.settled, "it was not postponed"
    assert committer.drain(30.0)
    store._handle.writer = me, TrailStore._transact.__code__
    store.probe()
    assert stored(directory) == [b"one"]


def test_what_a_signal_handler_emits_after_close_is_reported(memory: Memory) -> None:
    reported: list[Ticket] = []
    committer = Committer(memory, unattended=lambda tickets, _: reported.extend(tickets))
    nested = Ticket(b"nested")

    def inside() -> None:
        memory.inside = lambda: None
        committer.commit(nested)
        assert not nested.settled
        committer._closed = True

    memory.inside = inside
    committer.commit(Ticket(b"outer"))
    assert reported == [nested]
    assert isinstance(nested.error, AuditClosedError)


def test_where_no_thread_can_be_started_the_caller_commits_itself(
    committer: Committer, directory: Path
) -> None:
    before = threading.stack_size()
    threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        for number in range(3):
            one = Ticket(b"%d" % number)
            committer.submit(one)
            assert one.settled
    finally:
        threading.stack_size(before)
    committer.submit(Ticket(b"by the writer again"))
    assert committer.drain(30.0)
    assert len(stored(directory)) == 4


# Fork


def in_child(action: Callable[[], None]) -> int:
    """Fork, do it there, and return the exit code; a child that hangs is killed."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            signal.alarm(20)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_in_the_middle_of_traffic(committer: Committer, directory: Path) -> None:
    """Parent and children go on; what was queued in the parent is committed once, by the parent."""
    stop = threading.Event()
    emitted = [0] * 4
    failed: list[object] = []

    def emit(name: int) -> None:
        while not stop.is_set():
            one = Ticket(b"parent %d %d" % (name, emitted[name]))
            committer.commit(one)
            if one.error is not None:
                failed.append(one.error)
            emitted[name] += 1

    def child() -> None:
        assert committer.waiting == 0
        assert committer.statistics.committed == 0
        for _ in range(10):
            one = Ticket(b"child")
            committer.commit(one)
            assert one.error is None
        committer.submit(Ticket(b"child"))
        assert committer.drain(30.0)
        assert committer.statistics.committed == 11

    threads = [threading.Thread(target=emit, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    codes = [in_child(child) for _ in range(15)]
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 15
    assert not failed
    records = stored(directory)
    assert records.count(b"child") == 15 * 11
    of_parent = [record for record in records if record.startswith(b"parent")]
    assert len(of_parent) == len(set(of_parent)) == sum(emitted)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_does_not_inherit_the_queue(
    committer: Committer, hold: Hold, directory: Path
) -> None:
    with hold():
        for _ in range(10):
            committer.submit(Ticket(b"parent"))

        def child() -> None:
            assert committer.waiting == 0
            assert committer.broken is None
            assert committer.drain(0.0)

        assert in_child(child) == 0
    assert committer.drain(30.0)
    assert stored(directory) == [b"parent"] * 10
