"""Beside each other distribution: audit runs, and nobody's provider is replaced."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from collector.stack.servers import free_port
from tests.stack.environments import environment
from tests.stack.launched import Launched
from tests.stack.published import (
    documented_database,
    documented_log_in,
    mcp_atlassian,
    piccolo_admin,
    tiled,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DISTRIBUTIONS = (
    "alone",
    "opentelemetry-distro",
    "elastic-opentelemetry",
    "splunk-opentelemetry",
    "logfire",
    "azure-monitor-opentelemetry",
)
FULL_OF_LIES = ("Overriding of current", "already instrumented", "NOTHING is audited", "Traceback")
AZURE = (
    "InstrumentationKey=00000000-0000-0000-0000-000000000000;IngestionEndpoint=http://127.0.0.1:9"
)

APPLICATION = """
from fastapi import FastAPI
from opentelemetry import trace

app = FastAPI()


@app.post("/items/{item}")
async def make(item: str):
    return {
        "trace": format(trace.get_current_span().get_span_context().trace_id, "032x"),
        "provider": type(trace.get_tracer_provider()).__module__,
    }
"""
LOGFIRE = """
import logfire

logfire.configure(send_to_logfire=False, console=False)
logfire.instrument_fastapi(app)
"""
RULES = """
spans:
  - match: {kind: server, name: "POST *"}
    event: served
    resource_name: "{http.route}"
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("chosen", [None, "otel_audit"], ids=["default", "ours"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_audit_runs_beside_it(tmp_path: Path, name: str, chosen: str | None) -> None:
    """Whichever is chosen: one span, one record inside it, and no warning about providers."""
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "policy.yaml").write_text(RULES)
    said = {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_AUDIT_POLICY_FILE": str(tmp_path / "policy.yaml"),
        "APPLICATIONINSIGHTS_CONNECTION_STRING": AZURE,
        # An exporter must not be what makes a record durable.
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    if chosen:
        said["OTEL_PYTHON_DISTRO"] = chosen
    port = free_port()
    binaries = environment(name)
    command = ("uvicorn", "app:app", "--port", str(port))
    with Launched(binaries, tmp_path, *command, port=port, **said) as server:
        status, body, _ = server.ask("/items/7", "POST")
    assert status == 200
    trace_id = body.decode().split('"trace":"')[1][:32]
    (request,) = server.records(event="http.request")
    assert request["route"] == "/items/{item}"
    assert request["trace_id"] == trace_id != "0" * 32
    (served,) = server.records(event="served")
    assert served["trace_id"] == trace_id
    assert served["resource_name"] == "/items/{item}"
    assert [lie for lie in FULL_OF_LIES if lie in server.said()] == [], server.said()
    server.verify()


OURS = {"OTEL_PYTHON_DISTRO": "otel_audit"}
APPLICATIONS: dict[str, tuple[Callable[..., Launched], dict[str, str]]] = {
    "tiled": (tiled, {}),
    "tiled, 2 workers": (partial(tiled, workers=2), {}),
    "piccolo_admin": (piccolo_admin, OURS),
    "mcp-atlassian": (mcp_atlassian, {}),
    "mcp-atlassian, 2 workers": (partial(mcp_atlassian, workers=2), OURS),
    "documented log-in, 2 workers": (partial(documented_log_in, workers=2), {}),
    "documented database, 2 workers": (partial(documented_database, workers=2), OURS),
}
"""Applications that others published, and which distribution is chosen: the first that is found, or ours."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("run", "chosen"), APPLICATIONS.values(), ids=APPLICATIONS)
@pytest.mark.parametrize("name", DISTRIBUTIONS[1:])
def test_published_applications_are_audited_beside_it(
    tmp_path: Path, name: str, run: Callable[..., Launched], chosen: dict[str, str]
) -> None:
    """Their log-ins, database writes and credentials' use, in the traces of their requests."""
    said = {"APPLICATIONINSIGHTS_CONNECTION_STRING": AZURE, **chosen}
    server = run(environment("published", name), tmp_path, **said)
    assert [lie for lie in FULL_OF_LIES if lie in server.said()] == [], server.said()


@pytest.mark.timeout(900)
def test_a_provider_that_is_set_later_is_handled(tmp_path: Path) -> None:
    """Logfire is configured by the application, after we were."""
    (tmp_path / "app.py").write_text(APPLICATION + LOGFIRE)
    (tmp_path / "policy.yaml").write_text(RULES)
    said = {
        "OTEL_PYTHON_CONFIGURATOR": "nobody",
        "OTEL_AUDIT_POLICY_FILE": str(tmp_path / "policy.yaml"),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi",
    }
    port = free_port()
    command = ("uvicorn", "app:app", "--port", str(port))
    with Launched(environment("logfire"), tmp_path, *command, port=port, **said) as server:
        status, body, _ = server.ask("/items/7", "POST")
    assert status == 200
    assert b'"provider":"logfire' in body
    (served,) = server.records(event="served")
    assert served["trace_id"] == server.records(event="http.request")[0]["trace_id"]
    assert [lie for lie in FULL_OF_LIES if lie in server.said()] == [], server.said()
    server.verify()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_broken_exporter_costs_no_record(tmp_path: Path, name: str) -> None:
    said: dict[str, Any] = {
        "OTEL_TRACES_EXPORTER": "there_is_no_such_exporter",
        "OTEL_PYTHON_DISTRO": "otel_audit",
        "APPLICATIONINSIGHTS_CONNECTION_STRING": AZURE,
    }
    code = "from otel_audit import get_audit_logger as l; l().audit_event('ran', 'run')"
    launched = Launched(environment(name), tmp_path, "python", "-c", code, **said)
    assert launched.process.wait(120) == 0, launched.said()
    assert len(launched.records(event="ran")) == 1
