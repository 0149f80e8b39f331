"""What shipping, checkpoints and reconciliation report as metrics.

Promises: names of the draft audit signal where it has one (docs/otep-0267.md),
``otel_audit.`` before all others; everything goes through the global
MeterProvider, whenever that is set; a callback reads numbers that are in
memory already. Only the process that serves a trail reports its gauges, so
that a sum over processes is right.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Protocol

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_audit.api.metrics import our_meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from opentelemetry.context import Context

    from otel_audit.readers.shipping.otlp.answer import Answer
    from otel_audit.readers.shipping.outbound import Item

DESTINATION = "otel_audit.destination"

_meter = our_meter()

_exported = _meter.create_counter(
    "audit.records.exported", "{record}", "Records that a destination has confirmed."
)
_duration = _meter.create_histogram(
    "audit.export.duration",
    "s",
    "Time of one request to a destination.",
    explicit_bucket_boundaries_advisory=[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)
_failures = _meter.create_counter(
    "otel_audit.export.failures", "{request}", "Requests that delivered nothing."
)


class Gauges(Protocol):
    """Whatever can be observed: names of `_GAUGES` with their value and attributes."""

    def observe(self) -> Iterable[tuple[str, float, Mapping[str, str]]]:
        """Return what is true now; nothing while another process serves the trail."""
        ...


_observed: weakref.WeakSet[Gauges] = weakref.WeakSet()

_GAUGES = (
    ("audit.queue.depth", "{record}", "Records in the trail that a destination does not have yet."),
    ("otel_audit.queue.age", "s", "Age of the first of them."),
    ("otel_audit.quarantine.size", "{record}", "Records that a destination refused."),
    ("otel_audit.checkpoint.age", "s", "Age of the last signed checkpoint."),
    ("otel_audit.checkpoint.pending", "{record}", "Records that no checkpoint covers yet."),
    ("otel_audit.trail.disk.free", "By", "Bytes that are free where the trail is kept."),
    ("otel_audit.reconcile.age", "s", "Time since Loki was last compared with the trail."),
    ("otel_audit.reconcile.checked", "{record}", "Records that the last comparison looked for."),
    ("otel_audit.reconcile.missing", "{record}", "... that were not in Loki."),
    ("otel_audit.reconcile.altered", "{record}", "... that were not what the trail has."),
    ("otel_audit.reconcile.foreign", "{record}", "... that the trail never had."),
)


def watch(gauges: Gauges) -> None:
    """Observe it as long as it exists."""
    _observed.add(gauges)


def _callback(name: str) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for gauges in list(_observed):
            for found, value, attributes in gauges.observe():
                if found == name:
                    yield Observation(value, attributes)

    return observe


for _name, _unit, _meaning in _GAUGES:
    _meter.create_observable_gauge(_name, [_callback(_name)], _unit, _meaning)


class ExportMeter:
    """Counts the requests to one destination."""

    def __init__(self, destination: str) -> None:
        """Remember the destination's name."""
        self._attributes = {DESTINATION: destination}

    def sent(self, items: Sequence[Item], seconds: float, answer: Answer) -> None:
        """Count one request that took ``seconds``, with a record of it as the exemplar."""
        attributes = self._attributes
        if answer.verdict == "delivered":
            records = sum(item.kind == "record" for item in items)
            _exported.add(records, attributes)
        else:
            attributes = {**attributes, "error.type": answer.kind}
            _failures.add(1, attributes)
        _duration.record(seconds, attributes, context=_sampled(items))


def age(unix_nano: int) -> float:
    """Return the seconds since a moment; never less than 0."""
    return max(0.0, (time.time_ns() - unix_nano) / 1e9)


def _sampled(items: Sequence[Item]) -> Context | None:
    """Return the context of the last record that a sampled trace has."""
    for item in reversed(items):
        trace_id, span_id, flags = item.trace
        if flags & TraceFlags.SAMPLED:
            where = SpanContext(
                int.from_bytes(trace_id, "big"),
                int.from_bytes(span_id, "big"),
                is_remote=True,
                trace_flags=TraceFlags(flags),
            )
            return set_span_in_context(NonRecordingSpan(where))
    return None
