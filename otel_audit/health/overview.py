"""What the states of all components make of the whole.

| critical components | others | the whole |
|---|---|---|
| one is unhealthy | | unhealthy |
| one is unknown | | unknown |
| one is degraded | one is degraded, unhealthy or unknown | degraded |
| all healthy | all healthy | healthy |

Without components everything is healthy. An overview is immutable and says how
long it holds at least, so that whoever reads it compares one number.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from otel_audit.health.probe import HealthStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.health.component import ComponentState


class Overview(NamedTuple):
    """The whole, as of one moment."""

    status: HealthStatus
    started: bool
    """Whether every critical component has been well once since the start."""
    fresh_until: float
    """Monotonic time until which no state becomes too old."""


def overview_of(states: Iterable[ComponentState], now: float) -> Overview:
    """Look at all states at a monotonic time."""
    fresh_until = inf
    started = True
    worst = HealthStatus.HEALTHY
    for state in states:
        if now <= state.fresh_until:
            fresh_until = min(fresh_until, state.fresh_until)
        status = _weighed(state.at(now), critical=state.critical)
        if status is not worst and status.severity > worst.severity:
            worst = status
        started = started and (state.succeeded or not state.critical)
    return Overview(worst, started, fresh_until)


def _weighed(status: HealthStatus, *, critical: bool) -> HealthStatus:
    """Return what a component's status means for the whole."""
    if critical or status is HealthStatus.HEALTHY:
        return status
    return HealthStatus.DEGRADED
