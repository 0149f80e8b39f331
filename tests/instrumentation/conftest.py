"""A real trail for each test, as the global provider, and OpenTelemetry's spans in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_audit.testing import AuditTrail, audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def measures_programs() -> bool:
    """Say yes: `opentelemetry-instrument` starts programs."""
    return True


@pytest.fixture
def trail() -> Iterator[AuditTrail]:
    with audit_trail() as trail:
        yield trail


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracers(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()
