"""A service that is audited: each POST is answered when its record is durable.

Run by uvicorn in tests/stack; metrics go out when an endpoint for them is set.
"""

from __future__ import annotations

import os
import time
from itertools import cycle

from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_audit import AuditLogger, AuditProvider, instrument_app
from otel_audit.api.current import set_audit_provider

if "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" in os.environ:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=500)
    metrics.set_meter_provider(MeterProvider([reader], Resource.create()))

# Hours by which the clock of this host is wrong, in turn: "0,-5,48".
SKEW = [float(hours) for hours in os.environ.get("SHOP_SKEW_HOURS", "0").split(",")]
skews = cycle(SKEW)
PAD = "ü" * int(os.environ.get("SHOP_PAD", "50"))


def clock() -> int:
    """Tell a time that jumps by hours at each look."""
    return time.time_ns() + int(next(skews) * 3_600e9)


trace.set_tracer_provider(TracerProvider())
provider = AuditProvider(clock=clock)
set_audit_provider(provider)
audit = AuditLogger(provider=provider)
app = FastAPI()
instrument_app(app)


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Say that it is there."""
    return {"ready": True}


@app.post("/orders/{number}")
def order(number: int) -> dict[str, str]:
    """Record one order and answer with the record's id."""
    with trace.get_tracer("shop").start_as_current_span("order"):
        receipt = audit.audit_event("order.placed", "create", "order", f"o-{number}", pad=PAD)
    return {"id": receipt.record_id}
