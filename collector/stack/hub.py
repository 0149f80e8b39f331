"""The example application, with its metrics and traces on the way to the Collector.

Its audit records need nothing of this: they are shipped by otel-audit, which
reads ``OTEL_EXPORTER_OTLP_AUDIT_*``.
"""

from __future__ import annotations

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from examples.agenthub.__main__ import main as serve

METRICS_MILLISECONDS = 5_000


def main() -> None:
    """Set the OpenTelemetry SDK up, then start the hub."""
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(), export_interval_millis=METRICS_MILLISECONDS
    )
    metrics.set_meter_provider(MeterProvider([reader]))
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracers)
    serve()


if __name__ == "__main__":
    main()
