"""One request, several tasks at a time: who acts in which, and what each waits for."""

from __future__ import annotations

import asyncio
import fcntl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from otel_audit.api.context import Actor, RequestScope, acting_as, current_actor, set_actor
from otel_audit.api.current import configure
from otel_audit.api.logger import AuditLogger
from otel_audit.api.receipt import AuditReceipt, PendingReceipt
from otel_audit.errors import AuditTimeoutError, AuditUnavailableError
from otel_audit.record.event import AuditEvent
from otel_audit.trail.ticket import wake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.desk import Desk

EVENT = AuditEvent("order", "create")


@contextmanager
def request() -> Iterator[RequestScope]:
    scope = RequestScope("r-1")
    token = scope.attach()
    try:
        yield scope
    finally:
        scope.detach(token)


async def test_tasks_of_one_request_act_for_somebody_each_without_mixing() -> None:
    """The blocks overlap and end in the order in which they began."""
    seen: dict[str, list[str | None]] = {}
    turns = [asyncio.Event() for _ in range(4)]

    def note(task: str) -> None:
        actor = current_actor()
        seen.setdefault(task, []).append(actor and actor.id)

    async def first() -> None:
        with acting_as("a"):
            turns[0].set()
            await turns[1].wait()
            note("first")
        note("first")
        turns[2].set()

    async def second() -> None:
        await turns[0].wait()
        with acting_as("b"):
            turns[1].set()
            await turns[2].wait()
            note("second")
        note("second")

    with request():
        set_actor("ann")
        await asyncio.gather(first(), second())
        assert seen == {"first": ["a", "ann"], "second": ["b", "ann"]}
        assert current_actor() == Actor("ann")


async def test_who_acts_in_a_block_acts_in_what_the_block_starts() -> None:
    with request(), acting_as("job", "service"):
        assert await asyncio.to_thread(current_actor) == Actor("job", "service")
        assert await asyncio.create_task(_actor()) == Actor("job", "service")


async def _actor() -> Actor | None:
    return current_actor()


def test_who_acts_outside_does_not_act_in_a_request_that_begins_there() -> None:
    with acting_as("job"):
        with request():
            assert current_actor() is None
        assert current_actor() == Actor("job")


async def test_two_that_answer_at_a_time_both_wait_for_the_disk(desk: Desk) -> None:
    with request() as scope:
        with desk.held():
            desk.audit.emit(EVENT)
            barriers = [asyncio.create_task(scope.barrier()) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert not any(barrier.done() for barrier in barriers)
            assert scope.pending, "who looks now must see that there is something to wait for"
        await asyncio.gather(*barriers)
        assert scope.pending == []
    assert len(desk.records()) == 1


async def test_a_barrier_waits_for_each_record_and_not_only_for_the_first(desk: Desk) -> None:
    with request() as scope:
        await desk.audit.emit(EVENT)
        with desk.held():
            desk.audit.emit(EVENT)
            barrier = asyncio.create_task(scope.barrier())
            await asyncio.sleep(0.1)
            assert not barrier.done()
        await barrier


def fate(error: AuditUnavailableError | None = None) -> PendingReceipt:
    """Make a receipt whose record is settled when the test says so."""

    class Fate:
        def settle(
            self, ticket: PendingReceipt, _: AuditUnavailableError | None = None
        ) -> AuditReceipt:
            if error is not None:
                raise error
            return AuditReceipt(ticket.record_id, 0, b"", 0)

    receipt = PendingReceipt(b"", "r", "fail", Fate())
    receipt.timeout = 5.0
    receipt.error = error
    return receipt


async def test_each_who_waits_is_told_of_a_failure_before_the_last_record() -> None:
    scope = RequestScope("r-1")
    error = AuditUnavailableError("no")
    first, last = fate(error), fate()
    scope.pending += [first, last]
    barriers = [asyncio.create_task(scope.barrier()) for _ in range(2)]
    await asyncio.sleep(0)
    wake([first])
    await asyncio.sleep(0.01)
    wake([last])
    results = await asyncio.gather(*barriers, return_exceptions=True)
    assert results == [error, error]
    with pytest.raises(AuditUnavailableError):
        await scope.barrier()


async def test_a_barrier_waits_for_a_record_that_comes_later_than_one_emitted_after_it() -> None:
    """A signal handler's record is queued when the commit that it interrupted is over."""
    scope = RequestScope("r-1")
    late, newest = fate(), fate()
    scope.pending += [late, newest]
    barrier = asyncio.create_task(scope.barrier())
    await asyncio.sleep(0)
    wake([newest])
    await asyncio.sleep(0.02)
    assert not barrier.done()
    assert scope.pending == [late, newest]
    wake([late])
    await barrier
    assert scope.pending == []


async def test_a_barrier_waits_for_one_time_out_however_many_records_there_are(
    tmp_path: Path,
) -> None:
    provider = configure(directory=tmp_path / "trail", agent="off", timeout=0.3)
    audit = AuditLogger()
    with request() as scope, (provider.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        receipts = [audit.emit(EVENT) for _ in range(20)]
        began = time.monotonic()
        with pytest.raises(AuditUnavailableError) as caught:
            await scope.barrier()
        assert time.monotonic() - began < 3.0, "20 time-outs are 6 s"
        assert caught.value.record_id == receipts[0].record_id
        assert scope.pending == []


async def test_time_outs_end_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    """Also those that begin while the one timer of their loop is running already."""
    provider = configure(directory=tmp_path / "trail", agent="off", timeout=0.2)
    audit = AuditLogger()
    ended: list[int] = []

    async def wait(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        with pytest.raises(AuditUnavailableError):
            await audit.emit(EVENT)
        ended.append(number)

    with (provider.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await asyncio.gather(*map(wait, range(5)))
    assert ended == [0, 1, 2, 3, 4]


async def test_a_barrier_that_was_cancelled_leaves_its_records_to_the_next(desk: Desk) -> None:
    with request() as scope:
        with desk.held():
            for _ in range(3):
                desk.audit.emit(EVENT)
            barrier = asyncio.create_task(scope.barrier())
            await asyncio.sleep(0.05)
            barrier.cancel()
            await asyncio.gather(barrier, return_exceptions=True)
            assert len(scope.pending) == 3
        await scope.barrier()
        assert scope.pending == []
        assert len(desk.records()) == 3


async def test_two_that_wait_for_a_record_that_fails_are_both_told(tmp_path: Path) -> None:
    provider = configure(directory=tmp_path / "trail", agent="off", timeout=0.2)
    audit = AuditLogger()
    with request() as scope:
        with (provider.directory / "lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            pending = audit.emit(EVENT)
            results = await asyncio.gather(scope.barrier(), scope.barrier(), return_exceptions=True)
        assert len(results) == 2
        for result in results:
            assert isinstance(result, AuditUnavailableError)
            assert result.record_id == pending.record_id
        with pytest.raises(AuditUnavailableError):
            await scope.barrier()


async def test_a_receipt_that_times_out_names_its_record_and_is_counted_once(
    tmp_path: Path,
) -> None:
    """However often it is awaited, and although its group fails later on."""
    provider = configure(
        directory=tmp_path / "trail", agent="off", timeout=0.1, on_failure="continue"
    )
    with (provider.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        pending = AuditLogger().emit(EVENT)
        for _ in range(3):
            receipt = await pending
            assert not receipt
            assert receipt.record_id == pending.record_id
    await asyncio.to_thread(provider.flush)
    assert not await pending or (await pending).sequence_number == 0
    assert provider.statistics["not_recorded"] == 1


async def test_the_error_of_a_receipt_that_times_out_names_its_record(tmp_path: Path) -> None:
    provider = configure(directory=tmp_path / "trail", agent="off", timeout=0.1)
    with (provider.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Holds the committer's turn, so that ours waits in the queue.
        AuditLogger().emit(EVENT)
        pending = AuditLogger().emit(EVENT)
        with pytest.raises(AuditUnavailableError) as caught:
            await pending
    assert caught.value.record_id == pending.record_id
    assert isinstance(caught.value, AuditTimeoutError) or "lock" in str(caught.value)
