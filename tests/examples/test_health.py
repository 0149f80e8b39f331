"""The example's health, asked as a load balancer, a person and an auditor ask."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from examples.agenthub.config import Config
from tests.examples.hubs import RunningHub, running_hub, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[RunningHub]:
    data = tmp_path_factory.mktemp("hub") / "data"
    with running_hub(data, AGENTHUB_HEALTH_PORTS=str(port)) as hub:
        wait_until(lambda: httpx.get(f"{hub.url}/health").status_code == 200)
        yield hub


def test_everybody_hears_whether_it_is_well(hub: RunningHub, port: int) -> None:
    assert httpx.get(f"{hub.url}/health").json() == {"status": "healthy"}
    assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
    command = [sys.executable, "-m", "otel_audit.cli", "health", f"{hub.url}/health"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_details_are_for_those_who_may_see_the_trail(hub: RunningHub) -> None:
    assert httpx.get(f"{hub.url}/health/detailed").status_code == 403
    with hub.signed_in("olga") as operator:
        assert operator.get("/health/detailed").status_code == 403
    with hub.signed_in("aurel") as auditor:
        shown = auditor.get("/health/detailed").json()
    wrong = {"Authorization": "Bearer guess"}
    assert httpx.get(f"{hub.url}/health/detailed", headers=wrong).status_code == 401
    assert set(shown["components"]) == {"audit_trail", "database", "disk", "mcp_servers"}
    assert shown["components"]["audit_trail"]["details"]["records"] > 0


def test_a_server_that_crashes_makes_it_degraded_and_is_a_record(hub: RunningHub) -> None:
    with hub.signed_in("olga") as operator:
        name = operator.get("/api/servers").json()[0]["name"]
        assert operator.post(f"/api/servers/{name}/start").status_code == 200
        for process in hub.servers():
            psutil.Process(process.pid).kill()
        wait_until(lambda: httpx.get(f"{hub.url}/health").json() == {"status": "degraded"}, 40)
        assert httpx.get(f"{hub.url}/health").status_code == 200
    changes = [
        (record["component"], record["from"], record["to"])
        for record in hub.records()
        if record["event"] == "health.state_changed"
    ]
    assert ("mcp_servers", "healthy", "degraded") in changes
    assert ("audit_trail", "unknown", "healthy") in changes
    paths = [record.get("path") for record in hub.records() if record["event"] == "http.request"]
    assert paths
    assert not any(str(path).startswith("/health") for path in paths)


@pytest.mark.parametrize(
    ("said", "ports"), [("", ()), ("9000", (9000,)), ("9000-9002", (9000, 9001, 9002))]
)
def test_ports_are_one_or_a_range(said: str, ports: tuple[int, ...]) -> None:
    assert Config.from_env({"AGENTHUB_HEALTH_PORTS": said}).health_ports == ports
