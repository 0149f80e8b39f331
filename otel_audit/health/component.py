"""One component: when its state changes, and when nothing is known about it any more.

Promises: a component gets worse only after ``failure_threshold`` observations
in a row that are worse than its state, and better only after
``success_threshold`` that are better; so a flapping probe changes nothing. A
component that has never been well is unknown, not unhealthy, until the
failures reach the threshold; the first success makes it what it says at once.
A state that no new observation confirms within ``max_age`` is unknown.

Nothing here looks at a clock or runs a probe.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_audit.errors import AuditSettingsError
from otel_audit.health.probe import HealthStatus, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.health.probe import Probe

_LONGEST_NAME = 100
_DAY = 86_400


@dataclass(frozen=True, eq=False)
class Component:
    """What is checked, how often, and what it takes to change its state. Times in seconds."""

    name: str
    probe: Probe
    critical: bool = True
    interval: float = 5.0
    timeout: float = 3.0
    failure_threshold: int = 3
    success_threshold: int = 2
    degraded_after_ms: float | None = None

    @cached_property
    def is_coroutine(self) -> bool:
        """Whether the probe is a coroutine function, or an object that is called like one."""
        call = getattr(self.probe, "__call__", None)  # noqa: B004 - asks how it is called, not whether it can be
        return inspect.iscoroutinefunction(self.probe) or inspect.iscoroutinefunction(call)

    def __post_init__(self) -> None:
        """Check everything once. Raises `AuditSettingsError`."""
        name: object = self.name
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            _refuse(f"a component needs a name of up to {_LONGEST_NAME} characters: {self.name!r}")
        probe: object = self.probe
        if not callable(probe):
            _refuse(f"{self.name}: the probe {probe!r} cannot be called; give a function")
        for option in ("interval", "timeout"):
            if not _is_within(getattr(self, option), _DAY):
                _refuse(f"{self.name}: {option} is seconds, more than 0 and at most a day")
        for option in ("failure_threshold", "success_threshold"):
            if not isinstance(getattr(self, option), int) or getattr(self, option) < 1:
                _refuse(f"{self.name}: {option} is a whole number of at least 1")
        if self.degraded_after_ms is not None and not _is_within(self.degraded_after_ms, inf):
            _refuse(f"{self.name}: degraded_after_ms is milliseconds, more than 0, or None")

    @property
    def max_age(self) -> float:
        """How long an observation counts: two intervals that were missed, and a second."""
        return 2 * self.interval + self.timeout + 1.0

    def judge(self, result: ProbeResult, seconds: float) -> ProbeResult:
        """Call a success that took too long degraded."""
        limit = self.degraded_after_ms
        slow = limit is not None and seconds * 1_000 > limit
        if slow and result.status is HealthStatus.HEALTHY:
            message = f"it took {seconds * 1_000:.0f} ms, more than {limit:g} ms"
            return ProbeResult(HealthStatus.DEGRADED, message, result.details)
        return result


class ComponentState(NamedTuple):
    """What is known about a component, as of its newest observation; immutable.

    ``status`` is what was last established; `at` says whether that still counts.
    Times are Unix seconds, but ``fresh_until`` is monotonic.
    """

    name: str
    critical: bool
    status: HealthStatus = HealthStatus.UNKNOWN
    message: str = ""
    details: Mapping[str, Any] | None = None
    response_time_ms: float | None = None
    checks: int = 0
    failures: int = 0
    last_success: float | None = None
    since: float | None = None
    fresh_until: float = inf
    succeeded: bool = False
    """Whether it has been healthy or degraded since the start."""
    streak: tuple[HealthStatus, ...] = ()
    """The newest observations in a row that contradict the status in one direction."""

    def at(self, now: float) -> HealthStatus:
        """Return the status at a monotonic time: unknown when it is too old."""
        return self.status if now <= self.fresh_until else HealthStatus.UNKNOWN

    def message_at(self, now: float) -> str:
        """Return what is to be said beside the status of that time."""
        if now <= self.fresh_until:
            return self.message
        return f"no result for {now - self.fresh_until:.0f} s longer than it may take"

    def after(
        self, component: Component, result: ProbeResult, seconds: float | None, *, now: float,
        unix: float,
    ) -> ComponentState:  # fmt: skip
        """Return the state after one more observation, which took ``seconds`` if it ended."""
        good = result.status is not HealthStatus.UNHEALTHY
        status, streak = self._settled(component, result.status)
        changed = status is not self.status
        # By the constructor: _replace() costs three times as much, at each check.
        return ComponentState(
            name=self.name,
            critical=self.critical,
            status=status,
            message=result.message,
            details=result.details,
            response_time_ms=None if seconds is None else round(seconds * 1_000, 3),
            checks=self.checks + 1,
            failures=self.failures + (not good),
            last_success=unix if good else self.last_success,
            since=unix if changed or self.since is None else self.since,
            fresh_until=now + component.max_age,
            succeeded=self.succeeded or good,
            streak=streak,
        )

    def _settled(
        self, component: Component, seen: HealthStatus
    ) -> tuple[HealthStatus, tuple[HealthStatus, ...]]:
        """Return the status after ``seen``, and the streak that goes on."""
        current = self.status
        if current is HealthStatus.UNKNOWN and seen is not HealthStatus.UNHEALTHY:
            return seen, ()
        if seen is current:
            return current, ()
        # From unknown, which is before the first success, only worse is left.
        worse = seen.severity > current.severity
        streak = (*self.streak, seen)
        if self.streak and (self.streak[0].severity > current.severity) != worse:
            streak = (seen,)
        needed = component.failure_threshold if worse else component.success_threshold
        if len(streak) < needed:
            return current, streak
        # Down to the mildest, up to the worst of what was seen: what all of them support.
        choose = min if worse else max
        return choose(streak, key=lambda status: status.severity), ()


def _is_within(value: object, most: float) -> bool:
    """Whether it is a number above 0, and not above ``most``."""
    return isinstance(value, int | float) and 0 < value <= most


def _refuse(message: str) -> None:
    raise AuditSettingsError(message)
