"""What a process that emits reports as metrics.

Promises: names of the draft audit signal (docs/otep-0267.md), ``otel_audit.``
before all others; everything goes through the global MeterProvider, whenever
that is set; a record costs nothing extra, a group commit one measurement, which
carries the caller's span as an exemplar where the SDK samples one. A
MeterProvider that cannot be used costs the metrics, never the audit.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeter, Observation

from otel_audit._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.api.provider import AuditProvider

_DROPPED: Final = ("failed", "refused")
"""Of `AuditProvider.statistics`: not confirmed by the disk; not let into the queue."""

_logger: Final = logging.getLogger("otel_audit")


@functools.cache
def our_meter() -> Meter:
    """Return the meter of all our metrics: one that does nothing where the global one is broken.

    OpenTelemetry loads what OTEL_PYTHON_METER_PROVIDER names when it is asked for the first time,
    and raises what that raises.
    """
    try:
        return metrics.get_meter("otel_audit", __version__)
    except Exception:
        _logger.exception("otel-audit reports no metrics, as the MeterProvider cannot be used")
        return NoOpMeter("otel_audit", __version__)


_meter = our_meter()
_commit = _meter.create_histogram(
    "otel_audit.commit.duration",
    "s",
    "Time of one group commit, with its sync.",
    explicit_bucket_boundaries_advisory=[
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5,
    ],
)  # fmt: skip
_providers: weakref.WeakSet[AuditProvider] = weakref.WeakSet()


def committed(seconds: float) -> None:
    """Report how long a group commit took, in the context of who led it."""
    _commit.record(seconds)


def watch(provider: AuditProvider) -> None:
    """Report the provider's counts as long as it exists."""
    _providers.add(provider)


def _emitted(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(sum(each.statistics.get("committed", 0) for each in list(_providers)))


def _dropped(_: CallbackOptions) -> Iterator[Observation]:
    for reason in _DROPPED:
        count = sum(each.statistics.get(reason, 0) for each in list(_providers))
        yield Observation(count, {"otel_audit.reason": reason})


_meter.create_observable_counter(
    "audit.records.emitted", [_emitted], "{record}", "Records that are durable in the trail."
)
_meter.create_observable_counter(
    "audit.records.dropped",
    [_dropped],
    "{record}",
    "Records that were not confirmed; their callers were told.",
)
