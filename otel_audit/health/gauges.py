"""Health on OpenTelemetry's meters, through the global MeterProvider.

| instrument | unit | is |
|---|---|---|
| `otel_audit.health.status` | `{state}` | 1 for the state that a component is in, 0 for the others |
| `otel_audit.health.check.duration` | `s` | how long the newest check took that ended |
| `otel_audit.health.last_success.age` | `s` | how long ago a check last succeeded |
| `otel_audit.health.checks` | `{check}` | checks, including those that failed |
| `otel_audit.health.failures` | `{check}` | failed checks |

Promises: a callback only reads immutable tuples, so that no collection waits for
a probe or for the disk; a MeterProvider that is set later than the first checker
starts has the instruments as well. Attributes: `component`, and `state` of the first.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation

from otel_audit.api.metrics import our_meter
from otel_audit.health.probe import HealthStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, Meter

    from otel_audit.health.checker import HealthChecker
    from otel_audit.health.component import ComponentState

_shown: weakref.WeakSet[HealthChecker] = weakref.WeakSet()
_mutex = threading.Lock()
_instrumented: list[object] = []
"""The instruments, once there are some: whoever made them has to keep them."""


def show(checker: HealthChecker) -> None:
    """Have the meters show a checker from now on."""
    with _mutex:
        _shown.add(checker)
        if not _instrumented:
            # The API's meter passes on to whichever MeterProvider is set later.
            _instrumented.extend(instruments(our_meter()))


def hide(checker: HealthChecker) -> None:
    """Show a checker no longer."""
    with _mutex:
        _shown.discard(checker)


def instruments(meter: Meter) -> list[object]:
    """Make the instruments on a meter."""
    return [
        meter.create_observable_gauge(
            "otel_audit.health.status",
            [_status],
            unit="{state}",
            description="1 for the state that a component is in, 0 for the others",
        ),
        meter.create_observable_gauge(
            "otel_audit.health.check.duration",
            [_each(lambda state, _: _seconds(state))],
            unit="s",
            description="how long the newest check took that ended",
        ),
        meter.create_observable_gauge(
            "otel_audit.health.last_success.age",
            [_each(_age)],
            unit="s",
            description="how long ago a check last succeeded",
        ),
        meter.create_observable_counter(
            "otel_audit.health.checks",
            [_each(lambda state, _: state.checks)],
            unit="{check}",
            description="checks, including those that failed",
        ),
        meter.create_observable_counter(
            "otel_audit.health.failures",
            [_each(lambda state, _: state.failures)],
            unit="{check}",
            description="failed checks",
        ),
    ]


_STATES: Final = tuple((status, status.value) for status in HealthStatus)


def _states() -> Iterator[ComponentState]:
    for checker in list(_shown):
        yield from checker.states


def _status(_options: CallbackOptions) -> Iterable[Observation]:
    now = time.monotonic()
    return [
        Observation(int(status is current), {"component": state.name, "state": name})
        for state in _states()
        for current in (state.at(now),)
        for status, name in _STATES
    ]


def _each(
    value: Callable[[ComponentState, float], float | None],
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Make a callback that observes one value of each component that has it."""

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        unix = time.time()
        found = ((state.name, value(state, unix)) for state in _states())
        return [
            Observation(number, {"component": name}) for name, number in found if number is not None
        ]

    return observe


def _seconds(state: ComponentState) -> float | None:
    return None if state.response_time_ms is None else state.response_time_ms / 1_000


def _age(state: ComponentState, unix: float) -> float | None:
    return None if state.last_success is None else max(0.0, unix - state.last_success)
