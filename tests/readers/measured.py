"""A program that emits and ships with a MeterProvider, and prints what was measured.

    python -m tests.readers.measured DIRECTORY

A process of its own, because the global MeterProvider is set once.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from otel_audit import AuditLogger, AuditProvider, Settings
from tests.readers.bench import wait_for
from tests.readers.farend import HttpFarEnd, Reply


def measured(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return unit, and the points with value, attributes and exemplars' traces, by name."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: {
            "unit": metric.unit,
            "points": [
                {
                    "attributes": dict(point.attributes or {}),
                    "value": getattr(point, "value", None),
                    "count": getattr(point, "count", None),
                    "traces": [
                        f"{exemplar.trace_id:032x}"
                        for exemplar in point.exemplars
                        if exemplar.trace_id
                    ],
                }
                for point in metric.data.data_points
            ],
        }
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def main() -> None:
    """Emit five records, of which two are shipped after a failure, and print the metrics."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader], exemplar_filter=TraceBasedExemplarFilter()))
    trace.set_tracer_provider(TracerProvider())
    with HttpFarEnd() as far_end:
        far_end.answers.append(Reply(503))
        settings = Settings.from_env(
            {
                "OTEL_AUDIT_DIR": sys.argv[1],
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": far_end.url,
            }
        )
        provider = AuditProvider(settings)
        audit = AuditLogger(provider=provider)
        with trace.get_tracer("test").start_as_current_span("order") as span:
            for number in range(5):
                audit.audit_event("order", "place", "order", f"o-{number}")
        wait_for(lambda: len(far_end.records) == 5)
        wait_for(lambda: any("checkpoint" in body.decode() for body in far_end.bodies))
        time.sleep(0.3)
        found = measured(reader)
        provider.close()
    json.dump({"trace": f"{span.get_span_context().trace_id:032x}", "metrics": found}, sys.stdout)


if __name__ == "__main__":
    main()
