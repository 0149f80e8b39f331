"""What a provider reports never costs a record."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = """
import sys
from opentelemetry import metrics
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.metrics import NoOpHistogram
from otel_audit import AuditLogger

class Histogram(NoOpHistogram):
    def record(self, *args, **kwargs):
        print("asked", flush=True)
        raise RuntimeError("a broken instrument")

class Meter(NoOpMeter):
    def create_histogram(self, name, *args, **kwargs):
        return Histogram(name)

class Provider(NoOpMeterProvider):
    def get_meter(self, name, *args, **kwargs):
        return Meter(name)

metrics.set_meter_provider(Provider())
audit = AuditLogger(log_dir=sys.argv[1])
print(audit.log_event("login", "login").sequence_number)
"""


def test_an_instrument_that_raises_does_not_make_a_failure_of_a_commit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["asked", "0"], done.stderr


EMITS = """
import sys
from otel_audit import AuditLogger, get_health_checker
import otel_audit.readers.shipping.instruments

get_health_checker()
print(AuditLogger(log_dir=sys.argv[1]).log_event("login", "login").sequence_number)
"""


def test_a_meter_provider_that_cannot_be_loaded_costs_the_metrics_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EMITS, str(tmp_path)],
        env={**os.environ, "OTEL_PYTHON_METER_PROVIDER": "there_is_no_such_provider"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["0"], done.stderr
    assert done.stderr.count("otel-audit reports no metrics") == 1
