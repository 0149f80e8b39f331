"""Compose, Dockerfiles and Kubernetes manifests, as far as they can be checked without an engine.

The configurations that they mount run in the other tests, as plain processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from collector.stack.build import COLLECTOR, binary
from collector.stack.servers import CONFIGURATION, Collector

ROOT = COLLECTOR.parent
KUBERNETES = COLLECTOR / "kubernetes"
HEALTH = ROOT / "packaging" / "kubernetes"
DOCKERFILES = sorted(COLLECTOR.glob("*Dockerfile"))
MANIFESTS = [
    (file.name, document)
    for file in sorted([*KUBERNETES.glob("*.yaml"), *HEALTH.glob("*.yaml")])
    if file.name not in {"kustomization.yaml", "to-gateway.yaml"}
    for document in yaml.safe_load_all(file.read_text())
]
OLDEST, NEWEST = "1.29", "1.37"
"""Kubernetes's sidecars came with 1.29."""


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """Return what the library of Docker Compose reads in our file."""
    done = subprocess.run(
        [str(binary("compose")), "-format", "json", "compose.yaml"],
        cwd=COLLECTOR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_compose_brings_up_everything(composed: dict[str, Any]) -> None:
    servers = {"collector", "loki", "prometheus", "alertmanager", "tempo", "grafana"}
    assert set(composed["services"]) == servers | {"agenthub"}


def test_what_compose_mounts_is_there(composed: dict[str, Any]) -> None:
    mounted = [
        Path(volume["source"])
        for service in composed["services"].values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert len(mounted) >= 10
    assert [path for path in mounted if not path.exists()] == []


def test_compose_publishes_on_the_loopback_interface_only(composed: dict[str, Any]) -> None:
    ports = [port for service in composed["services"].values() for port in service.get("ports", ())]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_compose_sets_only_what_the_configurations_read(composed: dict[str, Any]) -> None:
    """A variable that is misspelt would be passed over in silence."""
    read = {
        "collector": CONFIGURATION.read_text(),
        "loki": (COLLECTOR / "loki" / "loki.yaml").read_text(),
    }
    for name, text in read.items():
        variables = composed["services"][name]["environment"]
        assert [
            one for one in variables if f"{{{one}:-" not in text and f":{one}:-" not in text
        ] == []


def test_the_collector_accepts_its_configuration_with_composes_variables(
    composed: dict[str, Any], tmp_path: Path
) -> None:
    variables = composed["services"]["collector"]["environment"]
    Collector(tmp_path, settings={**variables, "AUDIT_QUEUE_DIR": str(tmp_path)}).validate()


def test_prometheus_in_compose_scrapes_what_its_jobs_name() -> None:
    configuration = yaml.safe_load((COLLECTOR / "prometheus" / "prometheus.yml").read_text())
    files = {
        Path(file).name
        for job in configuration["scrape_configs"]
        for discovery in job["file_sd_configs"]
        for file in discovery["files"]
    }
    targets = {file.name for file in (COLLECTOR / "compose" / "prometheus-targets").iterdir()}
    assert targets == files | {"alertmanager.json"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda one: one.name)
def test_hadolint_finds_nothing_in_it(file: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda one: one.name)
def test_what_it_copies_is_there(file: Path) -> None:
    context = COLLECTOR if file.name == "Dockerfile" else ROOT
    lines = file.read_text().replace("\\\n", " ").splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    sources = [source for parts in copies if "--from" not in parts[0] for source in parts[:-1]]
    assert sources
    assert [source for source in sources if not (context / source).exists()] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    ("file", "manifest"), MANIFESTS, ids=lambda one: one if isinstance(one, str) else one["kind"]
)
def test_kubernetes_knows_it(file: str, manifest: dict[str, Any], version: str) -> None:
    assert file
    kubernetes_validate.validate(manifest, version, strict=True)


def test_kubernetes_refuses_a_mistake() -> None:
    _, manifest = next(one for one in MANIFESTS if one[1]["kind"] == "DaemonSet")
    wrong = json.loads(json.dumps(manifest))
    wrong["spec"]["template"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def collectors() -> list[tuple[str, dict[str, Any]]]:
    """Return the containers that run the Collector."""
    return [
        (f"{manifest['kind']} {manifest['metadata']['name']}", container)
        for _, manifest in MANIFESTS
        if manifest["kind"] in {"DaemonSet", "StatefulSet"}
        for container in manifest["spec"]["template"]["spec"]["containers"]
        if container["name"] == "otelcol"
    ]


@pytest.mark.parametrize(
    ("name", "container"), collectors(), ids=lambda one: one if isinstance(one, str) else ""
)
def test_the_collector_accepts_its_configuration_in_kubernetes(
    name: str, container: dict[str, Any], tmp_path: Path
) -> None:
    """With the files of its arguments, and the variables of its manifest."""
    generated = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (files,) = [one["files"] for one in generated["configMapGenerator"]]
    mounted = dict(one.split("=") if "=" in one else (one, one) for one in files)
    names = [one.rpartition("/")[2] for one in container["args"]]
    configurations = [(KUBERNETES / mounted[one]).resolve() for one in names]
    assert configurations[0] == CONFIGURATION, name
    variables = {one["name"]: one["value"] for one in container["env"]}
    known = "".join(one.read_text() for one in configurations)
    assert [one for one in variables if f":{one}:-" not in known] == ["GOMEMLIMIT"], name
    settings = {**variables, "AUDIT_QUEUE_DIR": str(tmp_path)}
    Collector(tmp_path, overlays=configurations[1:], settings=settings).validate()
