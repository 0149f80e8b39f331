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
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeter, Observation

from otel_audit._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from otel_audit.api.provider import AuditProvider
    from otel_audit.trail.committer import Appender
    from otel_audit.trail.store import Commit

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


class MeasuredStore:
    """A store whose commits are timed."""

    def __init__(self, store: Appender) -> None:
        """Take the store that does the work."""
        self._store = store

    @property
    def interrupted(self) -> bool:
        """Whether this thread is in the middle of writing."""
        return self._store.interrupted

    def append(self, records: Sequence[bytes], resources: Mapping[str, bytes]) -> Commit:
        """Commit a group durably or raise `TrailError`."""
        began = time.perf_counter()
        commit = self._store.append(records, resources)
        # Whatever somebody's MeterProvider raises: the records are committed.
        with suppress(Exception):
            _commit.record(time.perf_counter() - began)
        return commit

    def probe(self) -> None:
        """Commit something harmless or raise `TrailError`."""
        self._store.probe()


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
