"""The checker: runs all probes in the background, and answers from memory.

`HealthChecker` promises (MUST): reading a state never does I/O and never waits
for a probe; no probe, whatever it does, delays another one or an answer; a
state that nothing confirms any more is unknown when it is read, also if the
checker itself has died; every change of a component's state becomes an audit
record.

It has a thread of its own, which never waits for anything but the time, so
that a blocked event loop or a full thread pool of the application does not
stop it. In a forked child nothing runs until `start` is called, or a state is
read, there; every process knows its own states.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import random
import threading
import time
import weakref
from math import inf
from typing import TYPE_CHECKING, Final

from otel_audit.api.current import get_audit_provider, is_configured
from otel_audit.errors import AuditSettingsError
from otel_audit.health import gauges
from otel_audit.health.announcer import Announcer, Change
from otel_audit.health.component import Component, ComponentState
from otel_audit.health.loops import BEAT_SECONDS, STALLED_SECONDS, LoopHandle
from otel_audit.health.overview import Overview, overview_of
from otel_audit.health.probe import HealthStatus, ProbeResult
from otel_audit.health.probes.trail import trail_probe
from otel_audit.health.report import HealthReport
from otel_audit.health.runner import Outcome, Runner

if TYPE_CHECKING:
    from otel_audit.api.provider import AuditProvider
    from otel_audit.health.probe import Probe
    from otel_audit.health.runner import Run

TRAIL: Final = "audit_trail"
"""The component that registers itself: the trail that this process writes to."""

_TICK: Final = 0.05
"""How often is looked at what is under way; due checks of one tick start together."""

_MANY: Final = 200
"""Components above which ticks are twice as long: each tick wakes three threads up."""

_JITTER: Final = 0.1
_STARTING_SECONDS: Final = 1.0
"""The longest interval of a component that has not been well yet."""

_JOIN_SECONDS: Final = 2.0
_FLUSH_SECONDS: Final = 0.5

_logger: Final = logging.getLogger("otel_audit.health")


class HealthChecker:
    """Keeps watch over components. Safe for threads and forks."""

    _watched: dict[str, _Watched]
    _due: list[tuple[float, int, _Watched]]
    """A heap: when, a number that makes each entry differ, what."""
    _loop: LoopHandle | None
    """The application's event loop."""
    _thread: threading.Thread | None
    _all: tuple[_Watched, ...]
    """The same as in ``_watched``, for readers that take no lock."""
    _overview: Overview
    _ages_at: float
    """Monotonic time until which no state becomes too old, as the checker's thread knows it."""

    def __init__(self, *, provider: AuditProvider | None = None, watch_trail: bool = True) -> None:
        """Make a checker without components, which does not run yet.

        ``provider`` records the changes and is watched (default: the global
        one, as soon as there is one). ``watch_trail=False`` leaves the trail
        unwatched.
        """
        self._provider = provider
        self._watch_trail = watch_trail
        self._trail_of: AuditProvider | None = None
        self._reset()
        _checkers.add(self)

    def register(
        self,
        name: str,
        probe: Probe,
        critical: bool = True,  # noqa: FBT001, FBT002 - the signature that callers know
        interval: float = 5.0,
        timeout: float = 3.0,
        failure_threshold: int = 3,
        success_threshold: int = 2,
        degraded_after_ms: float | None = None,
    ) -> None:
        """Watch a component; at any time, also while running and from a probe.

        ``critical``: without it the whole is not healthy; else degraded.
        ``interval``, ``timeout``: seconds. The thresholds say after how many
        results in a row it is believed to be worse, or better. A success that
        took longer than ``degraded_after_ms`` counts as degraded. Raises
        `AuditSettingsError`, also for a name that is taken.
        """
        component = Component(
            name,
            probe,
            critical,
            interval,
            timeout,
            failure_threshold,
            success_threshold,
            degraded_after_ms,
        )
        with self._mutex:
            if name in self._watched:
                message = (
                    f"a component named {name!r} is registered already: choose another name, or "
                    "unregister() it first"
                )
                raise AuditSettingsError(message)
            self._watch(component)
        self._wake.set()

    def unregister(self, name: str) -> bool:
        """Watch a component no longer; False when there is none of that name."""
        with self._mutex:
            watched = self._watched.pop(name, None)
            if watched is None:
                return False
            watched.removed = True
            self._all = tuple(self._watched.values())
            self._look(time.monotonic())
            return True

    def start(self) -> None:
        """Begin to check, all components at once; a second call changes nothing.

        Called where an event loop runs, coroutine probes run in that loop:
        their clients and pools belong to it. Else in a loop of the checker's own.
        """
        loop = _running_loop()
        with self._mutex:
            if loop is not None and (self._loop is None or self._loop.loop is not loop):
                self._loop = LoopHandle(loop)
            if self._thread is not None:
                return
            self._forked = False
            now = time.monotonic()
            self._due = []
            for watched in self._watched.values():
                watched.run = None
                self._schedule(watched, now)
            self._thread = threading.Thread(target=self._run, name="otel-audit-health", daemon=True)
            self._look(now)
            self._thread.start()
        gauges.show(self)

    def stop(self) -> None:
        """Check no more. States are kept, and become unknown with time; waits for no probe.

        Changes that are not in the trail yet get half a second; what is left is logged.
        """
        with self._mutex:
            thread, self._thread = self._thread, None
            self._loop = None
        gauges.hide(self)
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
            if self._configured() is not None and not self._announcer.flush(_FLUSH_SECONDS):
                _logger.error(
                    "%d changes of health are not in the audit trail, which does not take them; "
                    "they are lost when the process ends now",
                    self._announcer.waiting,
                )

    @property
    def running(self) -> bool:
        """Whether the checker checks, in this process."""
        return self._thread is not None

    def get_quick_status(self) -> HealthStatus:
        """Return how the whole is. Never blocks."""
        overview = self._overview
        if time.monotonic() > overview.fresh_until:
            overview = self._review()
        return overview.status

    def get_http_status_code(self) -> int:
        """Return 200 while the whole is healthy or degraded, else 503. Never blocks."""
        return self.get_quick_status().http_status

    def report(self) -> HealthReport:
        """Return everything that is known now. Never blocks."""
        status = self.get_quick_status()
        return HealthReport(status, self._overview.started, self.states, time.monotonic())

    @property
    def states(self) -> tuple[ComponentState, ...]:
        """The newest state of each component, immutable."""
        return tuple(watched.state for watched in self._all)

    @property
    def started(self) -> bool:
        """Whether every critical component has been well once since the start."""
        return self._overview.started

    def loop_silence(self) -> float:
        """Return for how many seconds the application's event loop has been blocked, or 0."""
        handle = self._loop
        silence = 0.0 if handle is None else handle.silence(time.monotonic())
        return silence if silence >= STALLED_SECONDS else 0.0

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all changes are in the trail; False when ``timeout`` is up first. Blocks."""
        return self._announcer.flush(timeout)

    def _reset(self) -> None:
        """Begin with nothing but what the constructor was told."""
        self._mutex = threading.RLock()
        self._wake = threading.Event()
        self._watched = {}
        self._due = []
        self._order = 0
        self._announcer = Announcer(self._configured)
        self._loop = None
        self._thread = None
        self._forked = False
        self._all = ()
        self._overview = _NOT_STARTED
        self._ages_at = inf

    def _configured(self) -> AuditProvider | None:
        """Return who records, without making anybody do so."""
        if self._provider is not None:
            return self._provider
        return get_audit_provider() if is_configured() else None

    def _after_fork_in_child(self) -> None:
        """Take new locks: threads that may hold the parent's are not here."""
        running = self._thread is not None
        components = [watched.component for watched in self._watched.values()]
        self._reset()
        for component in components:
            self._watch(component)
        if running:
            self._forked = True
            self._overview = _LOOK_AGAIN

    # with the mutex held

    def _watch(self, component: Component) -> None:
        watched = _Watched(component)
        self._watched[component.name] = watched
        self._all = tuple(self._watched.values())
        if self._thread is not None:
            self._schedule(watched, time.monotonic())
        self._look(time.monotonic())

    def _schedule(self, watched: _Watched, when: float) -> None:
        self._order += 1
        heapq.heappush(self._due, (when, self._order, watched))

    def _look(self, now: float) -> list[Change]:
        """Look at all states, publish them, and return which ones became too old."""
        changes = [
            watched.shown(now)
            for watched in self._watched.values()
            if watched.state.at(now) is not watched.visible
        ]
        if self._thread is not None:
            self._overview = overview_of(self.states, now)
            self._ages_at = self._overview.fresh_until
        return changes

    # by whoever reads

    def _review(self) -> Overview:
        """Look again: since the last time a state became too old, or the process forked."""
        if self._forked:
            self.start()
        with self._mutex:
            self._overview = overview_of(self.states, time.monotonic())
            return self._overview

    # in the checker's thread

    def _run(self) -> None:
        thread = threading.current_thread()
        runner = Runner()
        while self._thread is thread:
            self._wake.clear()
            try:
                pause = self._turn(runner)
            except Exception:
                _logger.exception("a defect of otel-audit: a turn of the health checker failed")
                pause = 1.0
            self._wake.wait(pause)
        runner.stop()

    def _turn(self, runner: Runner) -> float:
        """Do what there is to do, and return for how long there will be nothing."""
        now = time.monotonic()
        self._adopt_trail()
        runner.loop = self._loop
        outcomes = runner.outcomes(now)
        if runner.loop is None:
            self._loop = None
        with self._mutex:
            due = self._take_due(now)
            changes = self._take(outcomes, due, now)
            if changes or now > self._ages_at:
                changes += self._look(now)
        ready = [watched for watched in due if watched.run is None]
        for watched, run in zip(
            ready, runner.start([one.component for one in ready], now), strict=True
        ):
            watched.run = run
        for change in changes:
            self._announcer.tell(change)
        self._announcer.pursue()
        return self._pause(runner, now)

    def _pause(self, runner: Runner, now: float) -> float:
        tick = _TICK if len(self._all) < _MANY else 2 * _TICK
        if runner.busy:
            return tick
        with self._mutex:
            next_due = self._due[0][0] - now if self._due else BEAT_SECONDS
        return min(max(next_due, tick), BEAT_SECONDS)

    def _take_due(self, now: float) -> list[_Watched]:
        """Return the components to check now, and schedule the check after that."""
        due = []
        while self._due and self._due[0][0] <= now:
            _, _, watched = heapq.heappop(self._due)
            if not watched.removed:
                due.append(watched)
                self._schedule(watched, now + watched.next_interval())
        return due

    def _take(self, outcomes: list[Outcome], due: list[_Watched], now: float) -> list[Change]:
        """Learn from what was found; also that what should be checked again still hangs."""
        changes = []
        for outcome in outcomes:
            watched = self._watched.get(outcome.run.component.name)
            # Another component of that name may have taken the place of a removed one.
            if watched is not None and watched.run is outcome.run:
                changes += watched.learn(outcome, now)
        for watched in due:
            if watched.run is not None and watched.run.ended:
                watched.run = None
            elif watched.run is not None and watched.run.blamed:
                hangs = now - watched.run.launched
                result = ProbeResult.unhealthy(f"no answer for {hangs:.0f} s; it still hangs")
                result = watched.run.noted(result)
                changes += watched.learn(Outcome(watched.run, result, None), now)
        return changes

    def _adopt_trail(self) -> None:
        """Watch the trail that this process writes to, as soon as there is one."""
        if not self._watch_trail:
            return
        provider = self._configured()
        if provider is not None and (provider.closed or provider.disabled):
            provider = None
        if provider is self._trail_of:
            return
        if self._trail_of is not None:
            self.unregister(TRAIL)
        self._trail_of = provider
        if provider is not None and TRAIL not in self._watched:
            self.register(TRAIL, trail_probe(provider))


class _Watched:
    """A component, its state, and the check of it that is under way."""

    __slots__ = ("component", "removed", "run", "state", "visible")

    def __init__(self, component: Component) -> None:
        self.component = component
        self.state = ComponentState(component.name, component.critical)
        self.visible = HealthStatus.UNKNOWN
        """The status that was last told of."""
        self.run: Run | None = None
        self.removed = False

    def next_interval(self) -> float:
        """Return the seconds until the check after the one that is due now."""
        interval = self.component.interval
        if self.state.status is HealthStatus.UNKNOWN:
            interval = min(interval, _STARTING_SECONDS)
        elif self.state.checks <= 1:
            # What started together is spread out once, and drifts apart afterwards.
            return interval * random.uniform(0.2, 1.0)  # noqa: S311 - spreads load, hides nothing
        return interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - the same

    def learn(self, outcome: Outcome, now: float) -> list[Change]:
        """Take an observation; return what changed by it."""
        if outcome.seconds is not None:
            self.run = None
        if outcome.result is None:
            return []
        seconds = outcome.seconds
        result = outcome.result
        if seconds is not None:
            result = self.component.judge(result, seconds)
        self.state = self.state.after(self.component, result, seconds, now=now, unix=time.time())
        return [] if self.state.at(now) is self.visible else [self.shown(now)]

    def shown(self, now: float) -> Change:
        """Note that the status of now is being told of, and return it."""
        before, self.visible = self.visible, self.state.at(now)
        return Change(
            self.component.name,
            before,
            self.visible,
            self.state.message_at(now),
            self.state.checks,
            time.time(),
        )


_NOT_STARTED: Final = Overview(HealthStatus.UNKNOWN, started=False, fresh_until=inf)
_LOOK_AGAIN: Final = Overview(HealthStatus.UNKNOWN, started=False, fresh_until=-inf)

_checkers: weakref.WeakSet[HealthChecker] = weakref.WeakSet()
_global: list[HealthChecker] = []
_global_mutex = threading.Lock()


def get_health_checker() -> HealthChecker:
    """Return the checker of this process, made on first use."""
    with _global_mutex:
        if not _global:
            _global.append(HealthChecker())
        return _global[0]


def set_health_checker(checker: HealthChecker | None) -> HealthChecker | None:
    """Make a checker the one of this process; return the one before, which is stopped."""
    with _global_mutex:
        before = _global[0] if _global else None
        _global[:] = [] if checker is None else [checker]
    if before is not None and before is not checker:
        before.stop()
    return before


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _after_fork_in_child() -> None:
    global _global_mutex  # noqa: PLW0603 - the parent's may be held by a thread that is not here
    _global_mutex = threading.Lock()
    for checker in list(_checkers):
        checker._after_fork_in_child()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
