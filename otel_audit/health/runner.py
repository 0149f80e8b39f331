"""Running probes so that none of them can hold up anything.

Promises: `Runner` never waits. A plain probe runs on a daemon thread, a
coroutine in an event loop: the application's where there is one, because
clients and pools belong to it, else one of ours. A run that exceeds its time is
cancelled if it can be, and abandoned in any case; what it returns later is
dropped. A run that was kept from running by somebody else, who blocks the
event loop, says nothing about its component, and so is no observation. A
coroutine that has stalled an event loop itself runs on a daemon thread, in a
loop of its own, from then on.

All methods are for one thread, the checker's.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from otel_audit.health.loops import STALLED_SECONDS, LoopHandle, OwnLoop, let_go
from otel_audit.health.probe import ProbeResult, failed, judged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from otel_audit.health.component import Component

_IDLE_WORKERS: Final = 4
"""Daemon threads that wait for the next probe; others end when they have nothing to do."""

_BLOCKS: Final = "it blocks its event loop: make the probe a plain function"
_APART: Final = (
    "it has blocked its event loop, and so runs in one of its own, where clients of the application "
    "may not work: make the probe a plain function"
)

_logger: Final = logging.getLogger("otel_audit.health")


class Outcome(NamedTuple):
    """What a run found; ``seconds`` is None when it did not end, ``result`` when it says nothing."""

    run: Run
    result: ProbeResult | None
    seconds: float | None


class Run:
    """One check of one component, under way."""

    __slots__ = (
        "abandoned", "asked", "awaitable", "begun", "blamed", "component", "handle", "launched", "loop_answers",
        "note", "returned", "task",
    )  # fmt: skip

    def __init__(self, component: Component, now: float) -> None:
        self.component = component
        self.launched = now
        self.begun: float | None = None
        """When the probe was called, which may be later where all threads are busy."""
        self.awaitable: Awaitable[object] | None = None
        """What a plain probe returned instead of an answer."""
        self.handle: LoopHandle | None = None
        """Of the loop that was asked to run it, if one was."""
        self.task: asyncio.Task[None] | None = None
        self.asked = False
        self.loop_answers = False
        """Whether its loop, asked after the time was up, has answered: it had its chance."""
        self.abandoned = False
        self.blamed = False
        """Whether it was given up as a failure of its component."""
        self.note = ""
        """What is to be said beside whatever it finds."""
        self.returned = False

    @property
    def ended(self) -> bool:
        """Whether the probe can be called again without two of its calls being under way."""
        if self.returned or self.handle is None:
            return self.returned
        if self.task is not None and self.task.cancelled():
            # By somebody else, before it began: else it would have returned.
            return True
        return self.handle.loop.is_closed() or (self.handle.retired and not self.blocks_its_loop)

    @property
    def blocks_its_loop(self) -> bool:
        """Whether its probe is what the event loop is busy with right now."""
        handle, task = self.handle, self.task
        return handle is not None and task is not None and handle.current_task() is task

    def noted(self, result: ProbeResult) -> ProbeResult:
        """Return a result of it with what is to be said beside that."""
        if not self.note:
            return result
        said = "; ".join(filter(None, (result.message, self.note)))
        return ProbeResult(result.status, said, result.details)

    def ask_loop(self) -> None:
        """Have its loop answer, to learn whether it is the probe or the loop that hangs."""
        self.asked = True
        if self.handle is not None:
            self.handle.call(setattr, self, "loop_answers", True)  # noqa: FBT003 - setattr's value

    def abandon(self) -> None:
        """Cancel it if that is possible; whatever comes of it does not count any more."""
        self.abandoned = True
        if self.handle is not None:
            self.handle.call(self._let_go)

    def _let_go(self) -> None:
        if self.task is not None:
            let_go(self.task)


class Runner:
    """Starts runs, and hands out what came of them."""

    def __init__(self) -> None:
        """Have nothing under way, and no thread."""
        self.loop: LoopHandle | None = None
        """The application's."""
        self._own: OwnLoop | None = None
        self._under_way: dict[Run, None] = {}
        self._finished: deque[tuple[Run, ProbeResult | Awaitable[object], float]] = deque()
        self._jobs: SimpleQueue[Run | None] = SimpleQueue()
        self._idle: set[int] = set()
        self._starved = False
        self._coroutines: WeakSet[Component] = WeakSet()
        self._blocking: WeakSet[Component] = WeakSet()
        self._tasks: dict[asyncio.Task[None] | None, Run] = {}

    @property
    def busy(self) -> bool:
        """Whether something is under way that has to be looked after."""
        return bool(self._under_way)

    def start(self, components: Iterable[Component], now: float) -> list[Run]:
        """Start checks and return them."""
        runs = [Run(component, now) for component in components]
        in_loop = []
        for run in runs:
            self._under_way[run] = None
            if run.component in self._blocking:
                run.note = _APART
                self._jobs.put(run)
            elif run.component.is_coroutine or run.component in self._coroutines:
                in_loop.append(run)
            else:
                self._jobs.put(run)
        if in_loop:
            self._call_in_loop(in_loop)
        self._staff()
        return runs

    def outcomes(self, now: float) -> list[Outcome]:
        """Return what ended, and what is overdue as of ``now``."""
        self._beat(now)
        found = list(self._ended())
        overdue = [run for run in self._under_way if now > self._deadline(run)]
        found += [outcome for run in overdue for outcome in self._given_up(run, now)]
        self._staff()
        return found

    def stop(self) -> None:
        """Cancel what can be cancelled, let threads go; waits for nothing."""
        for run in self._under_way:
            run.abandon()
        self._under_way.clear()
        self._jobs.put(None)
        if self._own is not None:
            self._own.retire()
            self._own = None

    # in the checker's thread

    def _call_in_loop(self, runs: list[Run]) -> None:
        """Have an event loop start the runs, at once for all: each call wakes it up."""
        handle = self._handle()
        for run in runs:
            run.handle = handle
        if not handle.call(self._begin, runs):
            # Closed this very moment: there is another one the next time.
            for run in runs:
                self._finished.append((run, ProbeResult.unhealthy("its event loop ended"), 0.0))

    def _handle(self) -> LoopHandle:
        """Return the application's loop, or ours."""
        if self.loop is not None:
            return self.loop
        if self._own is None:
            self._own = OwnLoop()
        return self._own

    def _beat(self, now: float) -> None:
        if self.loop is not None:
            self._look_for_blockers(self.loop, now)
            if not self.loop.beat(now):
                self.loop = None
        if self._own is not None:
            self._look_for_blockers(self._own, now)
            self._own.beat(now)
            if self._own.stalled(now):
                # Whoever blocks it keeps it; the others go on in another one.
                self._own.retire()
                self._own = None

    def _look_for_blockers(self, handle: LoopHandle, now: float) -> None:
        """Have a probe that stalls a loop run elsewhere from now on."""
        task = handle.blocker(now)
        run = self._tasks.get(task)
        if run is not None and run.component not in self._blocking:
            self._blocking.add(run.component)
            run.note = _BLOCKS
            _logger.warning("%s: %s; it runs in a loop of its own now", run.component.name, _BLOCKS)

    def _staff(self) -> None:
        """Provide threads: one at first, one for each waiting probe when that one is held up."""
        waiting = self._jobs.qsize()
        if not waiting:
            self._starved = False
            return
        wanted = waiting if self._starved else int(not self._idle)
        self._starved = True
        # Without threads left in the process, what waits becomes unknown with time.
        with suppress(RuntimeError):
            for _ in range(wanted):
                name = "otel-audit-health-probe"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def _ended(self) -> Iterable[Outcome]:
        while self._finished:
            run, found, seconds = self._finished.popleft()
            if not isinstance(found, ProbeResult):
                self._await_elsewhere(run, found)
                continue
            run.returned = True
            if run in self._under_way:
                del self._under_way[run]
                yield Outcome(run, run.noted(found), seconds)

    def _await_elsewhere(self, run: Run, answer: Awaitable[object]) -> None:
        """Have an event loop await what a plain probe returned."""
        if run.abandoned:
            run.returned = True
            _drop(answer)
            return
        # From now on it is called where its answer has to be awaited anyway.
        self._coroutines.add(run.component)
        run.awaitable = answer
        self._call_in_loop([run])

    def _deadline(self, run: Run) -> float:
        return (run.launched if run.begun is None else run.begun) + run.component.timeout

    def _given_up(self, run: Run, now: float) -> Iterable[Outcome]:
        """Give up on a run that is overdue, once it is known whose fault that is."""
        if run.ended:
            # Without a word, so that nothing is known.
            del self._under_way[run]
            self._tasks.pop(run.task, None)
            yield Outcome(run, None, 0.0)
            return
        result = ProbeResult.unhealthy(f"no answer within {run.component.timeout:g} s")
        blamed = run.begun is not None
        if run.blocks_its_loop:
            run.note = run.note or _BLOCKS
        elif run.handle is not None and not run.loop_answers:
            if not run.asked:
                run.ask_loop()
            if now - self._deadline(run) < STALLED_SECONDS:
                return
            blamed = False
        del self._under_way[run]
        run.blamed = blamed
        run.abandon()
        yield Outcome(run, run.noted(result) if run.blamed else None, None)

    # in an event loop

    def _begin(self, runs: list[Run]) -> None:
        loop = asyncio.get_running_loop()
        for run in runs:
            if run.abandoned:
                self._finished.append((run, ProbeResult(), 0.0))
                continue
            run.begun = run.begun or time.monotonic()
            run.task = loop.create_task(self._await(run), name=run.component.name)
            self._tasks[run.task] = run

    async def _await(self, run: Run) -> None:
        result = ProbeResult()
        begun = time.monotonic()
        try:
            answer: Any = run.component.probe() if run.awaitable is None else run.awaitable
            if inspect.isawaitable(answer):
                answer = await answer
            result = judged(answer)
        except BaseException as error:  # noqa: BLE001 - a probe may raise what it likes
            result = failed(error)
        self._tasks.pop(run.task, None)
        self._finished.append((run, result, time.monotonic() - begun))

    # in a worker

    def _work(self) -> None:
        me = threading.get_ident()
        while len(self._idle) < _IDLE_WORKERS:
            self._idle.add(me)
            run = self._jobs.get()
            self._idle.discard(me)
            if run is None:
                # For the next one that waits, or will.
                self._jobs.put(None)
                return
            self._finish(run)

    def _finish(self, run: Run) -> None:
        begun = run.begun = time.monotonic()
        found: ProbeResult | Awaitable[object]
        try:
            alone = run.component in self._blocking
            answer = asyncio.run(_called(run)) if alone else run.component.probe()
            found = answer if inspect.isawaitable(answer) else judged(answer)
        except BaseException as error:  # noqa: BLE001 - a probe may raise what it likes
            found = failed(error)
        self._finished.append((run, found, time.monotonic() - begun))


async def _called(run: Run) -> object:
    """Return the answer of a probe that has this loop for itself; `Run.abandon` cancels it."""
    run.task = asyncio.current_task()
    run.handle = LoopHandle(asyncio.get_running_loop())
    answer = run.component.probe()
    return await answer if inspect.isawaitable(answer) else answer


def _drop(answer: Awaitable[object]) -> None:
    """Let go of an answer that nobody will await, without a warning of Python's."""
    if inspect.iscoroutine(answer):
        answer.close()
