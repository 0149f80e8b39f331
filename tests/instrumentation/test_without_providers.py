"""No provider of OpenTelemetry's at all: nobody configured one, and records are durable all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from collector.stack.servers import free_port
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify
from tests.instrumentation.test_launch import BIN, QUIET, asked, records

if TYPE_CHECKING:
    from pathlib import Path

PROVIDERS = """
from opentelemetry import _logs, metrics, trace


def providers():
    found = (trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider())
    return " ".join(sorted({type(one).__module__ for one in found}))
"""
EMITS = (
    PROVIDERS
    + """
import asyncio, os, signal
from otel_audit import audit_span, get_audit_logger

audit = get_audit_logger()


async def later():
    await audit.audit_event("awaited", "run")
    async with audit_span("spanned", "run"):
        pass


audit.audit_event("blocking", "run")
asyncio.run(later())
print(providers(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
)
SERVES = (
    PROVIDERS
    + """
from fastapi import FastAPI
from otel_audit import get_audit_logger

app = FastAPI()
INSTRUMENT


@app.post("/items/{item}")
async def make(item: str):
    get_audit_logger().audit_event("made", "make", "item", item)
    return providers()
"""
)
NONE_OF_THE_SDK = (
    "opentelemetry._logs._internal opentelemetry.metrics._internal opentelemetry.trace"
)
LAUNCHER = str(BIN / "opentelemetry-instrument")
WAYS = {
    "alone": ((), {}),
    "launched": ((LAUNCHER,), {"OTEL_PYTHON_CONFIGURATOR": "nobody"}),
}

ways = pytest.mark.parametrize(("launcher", "said"), WAYS.values(), ids=WAYS)


@ways
def test_records_are_durable_without_a_provider(
    tmp_path: Path, launcher: tuple[str, ...], said: dict[str, str]
) -> None:
    """From a thread, awaited, and of a span: the process is killed right after its receipts."""
    ended = subprocess.run(
        [*launcher, sys.executable, "-c", EMITS],
        env={**os.environ, **QUIET, **said, "LOG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout.split() == NONE_OF_THE_SDK.split()
    assert [record["event"] for record in records(tmp_path)] == ["blocking", "awaited", "spanned"]
    assert [one for one in records(tmp_path) if "trace_id" in one] == []
    with TrailReader(tmp_path / "trail") as reader:
        assert verify(reader).ok


@ways
def test_answers_wait_for_their_records_without_a_provider(
    tmp_path: Path, launcher: tuple[str, ...], said: dict[str, str]
) -> None:
    """The server is killed as soon as it has answered."""
    line = "" if launcher else "import otel_audit; otel_audit.instrument_app(app)"
    (tmp_path / "app.py").write_text(SERVES.replace("INSTRUMENT", line))
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*launcher, sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, **QUIET, **said, "LOG_DIR": str(tmp_path / "logs")},
            stdout=log,
            stderr=log,
        )
    try:
        answer = asked(f"http://127.0.0.1:{port}/items/7", server)
    finally:
        server.kill()
        server.wait(30)
    assert answer.split() == NONE_OF_THE_SDK.split()
    assert {record["event"] for record in records(tmp_path / "logs")} == {"made", "http.request"}
    with TrailReader(tmp_path / "logs" / "trail") as reader:
        assert verify(reader).ok
