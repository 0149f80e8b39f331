"""The manifests of an application: its trail outlives its pods, and its probes ask the right routes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ("packaging/kubernetes/statefulset.yaml", "collector/kubernetes/application.yaml")


@dataclass
class Application:
    """The workload of a manifest, the container with the application, and its service."""

    workload: dict[str, Any]
    service: dict[str, Any]

    @property
    def pod(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.workload["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        found: dict[str, Any] = container
        return found


@pytest.fixture(params=MANIFESTS)
def application(request: pytest.FixtureRequest) -> Application:
    documents = list(yaml.safe_load_all((ROOT / request.param).read_text()))
    of_kind = {one["kind"]: one for one in documents}
    return Application(of_kind["StatefulSet"], of_kind["Service"])


def test_each_probe_asks_its_own_route(application: Application) -> None:
    """A liveness probe that asks for more restarts every pod while a database is down."""
    container = application.container
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
    }
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/health/startup",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    assert {probe["port"] for probe in probes.values()} <= {
        port["name"] for port in container["ports"]
    }


def test_a_trail_is_on_a_volume_that_outlives_its_pod(application: Application) -> None:
    variables = {one["name"]: one.get("value", "") for one in application.container["env"]}
    directory = Path(variables["OTEL_AUDIT_DIR"])
    (mount,) = [
        one["name"]
        for one in application.container["volumeMounts"]
        if Path(one["mountPath"]) in directory.parents
    ]
    spec = application.workload["spec"]
    assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == [mount]
    assert mount not in {volume["name"] for volume in application.pod.get("volumes", ())}
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}


def test_a_pod_runs_as_a_user_that_is_known_not_to_be_root(application: Application) -> None:
    context = application.pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["fsGroup"] == context["runAsGroup"]
    assert context["fsGroupChangePolicy"] == "OnRootMismatch"


def test_requests_come_in_and_health_stays_inside(application: Application) -> None:
    assert [port["targetPort"] for port in application.service["spec"]["ports"]] == ["http"]
    assert application.workload["spec"]["serviceName"] == application.service["metadata"]["name"]
