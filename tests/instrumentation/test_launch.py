"""opentelemetry-instrument: a real launcher, in processes of their own."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify

BIN = Path(sys.executable).parent
QUIET = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_PYTHON_DISTRO": "otel_audit",
}
EMITS = "from otel_audit import get_audit_logger as l; print(bool(l().audit_event('ran', 'run')))"
SERVES = """
from fastapi import FastAPI
from opentelemetry import trace

app = FastAPI()


@app.post("/items/{item}")
async def make(item: str):
    return format(trace.get_current_span().get_span_context().trace_id, "032x")
"""


def launched(code: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "opentelemetry-instrument", sys.executable, "-c", code],
        env={**os.environ, **QUIET, "LOG_DIR": str(directory), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def records(directory: Path) -> list[dict[str, Any]]:
    with TrailReader(directory / "trail") as reader:
        return [orjson.loads(leaf.record) for leaf in reader.leaves()]


def unusable(directory: Path) -> str:
    """Return a directory that nobody can make, root included."""
    (directory / "file").write_text("in the way")
    return str(directory / "file" / "trail")


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_AUDIT_DIR": "{unusable}"},
        {"OTEL_AUDIT_TIMEOUT": "soon"},
        {"OTEL_AUDIT_POLICY_FILE": "{unusable}"},
        {"OTEL_AUDIT_DIR": "{unusable}", "OTEL_SDK_DISABLED": "true"},
    ],
    ids=["directory", "setting", "policy", "without the SDK"],
)
def test_an_unusable_configuration_ends_with_78_before_the_application(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    said = {name: value.format(unusable=unusable(tmp_path)) for name, value in environment.items()}
    ended = launched("print('the application')", tmp_path, **said)
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert "the audit trail cannot be used, so the application is not started" in ended.stderr
    assert next(iter(said.values())) in ended.stderr


def test_a_part_of_ours_that_cannot_be_imported_is_no_reason_to_run_unaudited(
    tmp_path: Path,
) -> None:
    """As with an SQLite that is too old, or a shared library that is not there."""
    (tmp_path / "apsw.py").write_text("raise ImportError('libsqlite3.so: no such file')")
    ended = launched("print('the application')", tmp_path, PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "is not started: ImportError: libsqlite3.so: no such file" in ended.stderr
    asked = {"PYTHONPATH": str(tmp_path), "OTEL_AUDIT_ON_FAILURE": "continue"}
    ended = launched("print('the application')", tmp_path, **asked)
    assert (ended.returncode, ended.stdout) == (0, "the application\n")
    assert "NOTHING is audited" in ended.stderr


def test_it_runs_unaudited_where_that_is_asked_for(tmp_path: Path) -> None:
    code = "import keyring; print(type(keyring.get_keyring()).__module__)"
    ended = launched(
        code, tmp_path, OTEL_AUDIT_DIR=unusable(tmp_path), OTEL_AUDIT_ON_FAILURE="continue"
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith("keyring.")
    assert "NOTHING is audited" in ended.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_SDK_DISABLED": "true", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"},
        {"OTEL_TRACES_EXPORTER": "there_is_no_such_exporter"},
        {"OTEL_PYTHON_METER_PROVIDER": "there_is_no_such_provider"},
        {"OTEL_PYTHON_TRACER_PROVIDER": "there_is_no_such_provider"},
    ],
    ids=["disabled", "broken exporter", "no such meter provider", "no such tracer provider"],
)
def test_records_are_durable_whatever_becomes_of_opentelemetry(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    ended = launched(EMITS, tmp_path, **environment)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
    assert [record["event"] for record in records(tmp_path)] == ["ran"]
    assert "Overriding of current" not in ended.stderr
    assert "is not loaded" not in ended.stderr


def test_an_application_without_a_line_of_ours_is_audited(tmp_path: Path) -> None:
    """One server span, the record inside it, and a trail that verifies."""
    (tmp_path / "app.py").write_text(SERVES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "opentelemetry-instrument", sys.executable, "-m", "uvicorn", "app:app",
             "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, **QUIET, "LOG_DIR": str(tmp_path / "logs")},
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        trace_id = asked(f"http://127.0.0.1:{port}/items/7", server)
    finally:
        end(server)
    (record,) = records(tmp_path / "logs")
    assert record["event"] == "http.request"
    assert record["route"] == "/items/{item}"
    assert record["trace_id"] == trace_id
    with TrailReader(tmp_path / "logs" / "trail") as reader:
        assert verify(reader).ok


def listening(url: str, server: subprocess.Popen[bytes]) -> str:
    """Wait until the server listens, and return its host and port."""
    address = urlsplit(url)
    deadline = time.monotonic() + 30
    with closing(socket.socket()) as probe:
        while probe.connect_ex((str(address.hostname), int(address.port or 0))):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return address.netloc


def asked(url: str, server: subprocess.Popen[bytes]) -> str:
    """Wait until the server listens, then post."""
    address = urlsplit(url)
    listening(url, server)
    with closing(http.client.HTTPConnection(address.netloc, timeout=30)) as connection:
        connection.request("POST", address.path)
        text: str = orjson.loads(connection.getresponse().read())
        return text


OTHER = """
from opentelemetry.instrumentation.distro import BaseDistro


class Distro(BaseDistro):
    def _configure(self, **kwargs):
        print("the other distribution")

    def load_instrumentor(self, entry_point, **kwargs):
        print("instrumentor", entry_point.name)


class Configurator:
    def configure(self, **kwargs):
        print("the other configurator")
        raise OSError("it cannot be configured")


class Broken(Distro):
    def _configure(self, **kwargs):
        raise OSError("it is broken")
"""


def installed(place: Path, *entry_points: str, **modules: str) -> None:
    """Leave what pip leaves of a package."""
    metadata = place / "other-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(entry_points))
    for name, code in modules.items():
        (place / f"{name}.py").write_text(code)


@pytest.mark.parametrize("distro", ["Distro", "Broken"])
def test_another_distribution_does_its_work_and_may_fail(tmp_path: Path, distro: str) -> None:
    """Ours is chosen, the other one configures; what it raises does not cost the audit."""
    place = tmp_path / "site"
    installed(
        place,
        f"[opentelemetry_distro]\nother = other:{distro}",
        "[opentelemetry_configurator]\nother = other:Configurator",
        other=OTHER,
    )
    ended = launched(EMITS, tmp_path, PYTHONPATH=str(place))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("True\n")
    assert "the other configurator" in ended.stdout
    assert "OpenTelemetry cannot be configured" in ended.stderr
    assert "not loaded" not in ended.stderr
    if distro == "Distro":
        assert "the other distribution" in ended.stdout
        assert "instrumentor otel_audit_keyring" in ended.stdout
    else:
        assert "cannot be used; audit goes on" in ended.stderr
    assert [record["event"] for record in records(tmp_path)] == ["ran"]


DETECTOR = """
from opentelemetry.sdk.resources import Resource, ResourceDetector

import other


class Detector(ResourceDetector):
    def detect(self):
        return Resource({"detected": "yes"})
"""


def test_resource_detectors_of_another_distribution_in_a_worker(tmp_path: Path) -> None:
    """The environment names them before it is imported; they need it, and it needs the SDK."""
    place = tmp_path / "site"
    installed(
        place,
        "[opentelemetry_distro]\nother = other:Distro",
        "[opentelemetry_resource_detector]\nother = detector:Detector",
        other=f"from opentelemetry.sdk._logs import LoggerProvider\n{OTHER}",
        detector=DETECTOR,
    )
    ended = launched(
        EMITS, tmp_path, PYTHONPATH=str(place), OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="other"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "the other distribution" in ended.stdout
    assert [record["event"] for record in records(tmp_path)] == ["ran"]


RULES = """
spans:
  - match: {kind: client, name: "q*"}
    event: query
"""
CONFIGURES = """
from opentelemetry import trace
from otel_audit import configure

tracer = trace.get_tracer("db")
configure(policy_file="policy.yaml")
with tracer.start_as_current_span("q1", kind=trace.SpanKind.CLIENT):
    pass
"""


def test_a_policy_that_the_application_configures_has_span_rules(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(RULES)
    code = CONFIGURES.replace("policy.yaml", str(tmp_path / "policy.yaml"))
    ended = launched(code, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [record["event"] for record in records(tmp_path)] == ["query"]


SPANNED = """
from otel_audit import audit_span

with audit_span("ran", "run"):
    print("done")
"""


def test_a_tracer_provider_that_cannot_be_loaded_costs_the_spans_only(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(RULES)
    said = {
        "OTEL_PYTHON_TRACER_PROVIDER": "there_is_no_such_provider",
        "OTEL_AUDIT_POLICY_FILE": str(tmp_path / "policy.yaml"),
    }
    ended = launched(SPANNED, tmp_path, **said)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert "span rules see no spans" in ended.stderr
    assert [record["event"] for record in records(tmp_path)] == ["ran"]


def test_rules_for_spans_that_nothing_here_makes_are_said(tmp_path: Path) -> None:
    """An application with SQLite gets no record of an INSERT, and nobody would know."""
    code = "import sqlite3; sqlite3.connect(':memory:').execute('CREATE TABLE t (a)')"
    ended = launched(code, tmp_path, OTEL_AUDIT_RULE_SETS="logins,sql")
    assert ended.returncode == 0
    said = "rule set sql: no instrumentation that could make such spans is installed, so"
    assert ended.stderr.count(said) == 1
    beside = version("opentelemetry-instrumentation")
    assert f"opentelemetry-instrumentation-sqlite3=={beside}" in ended.stderr
    off = {"OTEL_AUDIT_RULE_SETS": "sql", "OTEL_AUDIT_DISABLED_INSTRUMENTATIONS": "spans"}
    assert launched(code, tmp_path, **off).stderr == ""


def end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    server.wait(30)


def test_what_is_wrong_is_said_once_by_a_service_with_workers(tmp_path: Path) -> None:
    """Not by its parent, two workers and a helper of multiprocessing; and the helper is not audited."""
    (tmp_path / "app.py").write_text(SERVES)
    log = tmp_path / "server.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    wrong = {
        "OTEL_AUDIT_RULE_SETS": "logins,sql",
        "OTEL_AUDIT_DIRR": "nowhere",
        "OTEL_AUDIT_DISABLED_INSTRUMENTATIONS": "guitar",
    }
    with log.open("wb") as written:
        server = subprocess.Popen(
            [BIN / "opentelemetry-instrument", sys.executable, "-m", "uvicorn", "app:app",
             "--port", str(port), "--workers", "2"],
            cwd=tmp_path,
            env={**os.environ, **QUIET, **wrong, "LOG_DIR": str(tmp_path / "logs")},
            stdout=written,
            stderr=written,
        )  # fmt: skip
    try:
        asked(f"http://127.0.0.1:{port}/items/7", server)
        deadline = time.monotonic() + 30
        while log.read_text().count("Application startup complete") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        end(server)
    said = log.read_text()
    assert said.count("rule set sql: no instrumentation") == 1, said
    assert said.count("names 'guitar'") == 1, said
    assert said.count("OTEL_AUDIT_DIRR is not a setting of otel-audit; did you mean") == 1, said


def test_a_helper_of_multiprocessing_has_no_trail(tmp_path: Path) -> None:
    """It would wait for the trail's lock and warn, and runs nothing of the application."""
    code = "from multiprocessing.resource_tracker import main; print('it tracks')"
    done = launched(code, tmp_path, OTEL_AUDIT_DIR=unusable(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "it tracks\n", "")


def test_instrumentations_can_be_left_out_by_name(tmp_path: Path) -> None:
    code = "import keyring; print(type(keyring.get_keyring()).__module__)"
    ended = launched(code, tmp_path, OTEL_AUDIT_DISABLED_INSTRUMENTATIONS="keyring, guitar")
    assert ended.stdout.startswith("keyring.")
    assert "names 'guitar'; known are starlette, " in ended.stderr
