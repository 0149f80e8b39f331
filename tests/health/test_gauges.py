"""What a real metrics reader sees, also of a MeterProvider that comes later."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_audit.health import gauges
from otel_audit.health.probe import HealthStatus
from tests.health.conftest import state, wait_until

if TYPE_CHECKING:
    from otel_audit.health.checker import HealthChecker

FAST: dict[str, Any] = {"interval": 0.05, "timeout": 0.1}


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def points(metric: Any, component: str) -> dict[str, float]:
    return {
        point.attributes.get("state", ""): point.value
        for point in metric.data.data_points
        if point.attributes["component"] == component
    }


def test_a_reader_sees_states_durations_ages_and_counts(checker: HealthChecker) -> None:
    release = threading.Event()
    checker.register("db", lambda: None, **FAST)
    checker.register("hangs", lambda: release.wait(30), **FAST)
    checker.start()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instruments = gauges.instruments(provider.get_meter("test"))
    assert len(instruments) == 5
    wait_until(lambda: state(checker, "hangs").status is HealthStatus.UNHEALTHY)
    wait_until(lambda: state(checker, "db").status is HealthStatus.HEALTHY)
    seen = collected(reader)
    release.set()
    status = seen["otel_audit.health.status"]
    assert status.unit == "{state}"
    assert points(status, "db") == {"healthy": 1, "degraded": 0, "unhealthy": 0, "unknown": 0}
    assert points(status, "hangs") == {"healthy": 0, "degraded": 0, "unhealthy": 1, "unknown": 0}
    assert 0 <= points(seen["otel_audit.health.check.duration"], "db")[""] < 1
    assert points(seen["otel_audit.health.check.duration"], "hangs") == {}
    assert 0 <= points(seen["otel_audit.health.last_success.age"], "db")[""] < 10
    assert points(seen["otel_audit.health.last_success.age"], "hangs") == {}
    assert points(seen["otel_audit.health.checks"], "db")[""] >= 1
    assert points(seen["otel_audit.health.failures"], "hangs")[""] >= 3
    assert seen["otel_audit.health.checks"].data.is_monotonic
    provider.shutdown()


LATE = """
import time
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_audit import get_health_checker

checker = get_health_checker()
checker.register("db", lambda: None)
checker.start()
checker.start()
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
while checker.get_http_status_code() != 200:
    time.sleep(0.01)
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        names = sorted(metric.name for metric in scope.metrics)
        print(scope.scope.name, *(name for name in names if ".health." in name))
"""


def test_a_meter_provider_that_is_set_later_has_them_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [
        "otel_audit",
        "otel_audit.health.check.duration",
        "otel_audit.health.checks",
        "otel_audit.health.failures",
        "otel_audit.health.last_success.age",
        "otel_audit.health.status",
    ], done.stderr
