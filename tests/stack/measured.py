"""The metrics that a service with otel-audit reports, sent by the OpenTelemetry SDK.

Names, units and attributes are those of docs/shipping.md and of health; values
are chosen so that every panel has something to show and every alert a reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping

TO = {"otel_audit.destination": "otlp"}
NOBODY: dict[str, str] = {}

GAUGES: tuple[tuple[str, str, Mapping[str, str], float], ...] = (
    ("otel_audit.queue.age", "s", TO, 900),
    ("otel_audit.quarantine.size", "{record}", TO, 1),
    ("otel_audit.checkpoint.age", "s", NOBODY, 120),
    ("otel_audit.checkpoint.pending", "{record}", NOBODY, 3),
    ("otel_audit.reconcile.age", "s", NOBODY, 30),
    ("otel_audit.reconcile.checked", "{record}", NOBODY, 100),
    ("otel_audit.reconcile.missing", "{record}", NOBODY, 1),
    ("otel_audit.reconcile.altered", "{record}", NOBODY, 0),
    ("otel_audit.reconcile.foreign", "{record}", NOBODY, 0),
    ("otel_audit.trail.disk.free", "By", NOBODY, 2**29),
    ("otel_audit.health.check.duration", "s", {"component": "database"}, 0.01),
    ("otel_audit.health.last_success.age", "s", {"component": "database"}, 60),
    ("otel_audit.health.status", "{state}", {"component": "database", "state": "unhealthy"}, 1),
    *(
        ("otel_audit.health.status", "{state}", {"component": "database", "state": state}, 0)
        for state in ("healthy", "degraded", "unknown")
    ),
    ("otel_audit.health.status", "{state}", {"component": "audit_trail", "state": "healthy"}, 1),
)


def observe(name: str) -> Callable[[CallbackOptions], list[Observation]]:
    """Make the callback of one gauge."""
    values = [
        Observation(value, attributes) for other, _, attributes, value in GAUGES if other == name
    ]
    return lambda _: values


def report(endpoint: str, service: str, stop: threading.Event, *, pause: float = 1.5) -> None:
    """Report once, and again until ``stop`` is set, everything that counts going up in between.

    A server that begins to scrape late sees it go up, too.
    """
    exporter = OTLPMetricExporter(endpoint=endpoint + "/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)
    resource = Resource({"service.name": service, "service.instance.id": "one"})
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meter = provider.get_meter("otel_audit")
    rounds = 0

    def depth(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(2_000 + 1_000 * rounds, TO)

    meter.create_observable_gauge("audit.queue.depth", [depth], "{record}")
    for name, unit in dict.fromkeys((name, unit) for name, unit, *_ in GAUGES):
        meter.create_observable_gauge(name, [observe(name)], unit)
    emitted = meter.create_counter("audit.records.emitted", "{record}")
    exported = meter.create_counter("audit.records.exported", "{record}")
    dropped = meter.create_counter("audit.records.dropped", "{record}")
    refused = meter.create_counter("otel_audit.export.failures", "{request}")
    checks = meter.create_counter("otel_audit.health.checks", "{check}")
    failures = meter.create_counter("otel_audit.health.failures", "{check}")
    commit = meter.create_histogram("otel_audit.commit.duration", "s")
    export = meter.create_histogram("audit.export.duration", "s")
    try:
        while rounds == 0 or not stop.wait(pause):
            rounds += 1
            emitted.add(100)
            exported.add(90, TO)
            dropped.add(1, {"otel_audit.reason": "failed"})
            refused.add(2, {**TO, "error.type": "503"})
            checks.add(3, {"component": "database"})
            failures.add(2, {"component": "database"})
            commit.record(0.002)
            export.record(0.02, TO)
            assert provider.force_flush()
    finally:
        provider.shutdown()
