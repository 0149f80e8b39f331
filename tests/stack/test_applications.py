"""Applications that others wrote and published, run as they are with nothing but environment variables."""

from __future__ import annotations

import socket
import sys
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import orjson
import pytest

from tests.stack.environments import environment, run
from tests.stack.launched import Launched, free_port
from tests.stack.servers import postgres

if TYPE_CHECKING:
    from pathlib import Path

FASTAPI = "0.165.0"
AUDITED = {"OTEL_AUDIT_RULE_SETS": "logins,sql", "OTEL_PYTHON_DISTRO": "otel_audit"}
FORM = "application/x-www-form-urlencoded"

TILED = """
authentication:
  providers:
  - provider: toy
    authenticator: tiled.authenticators:DictionaryAuthenticator
    args:
      users_to_passwords: {alice: "correct horse"}
  secret_keys: ["SECRET"]
database: {uri: "sqlite:///./auth.sqlite", init_if_not_exists: true}
trees:
- path: /
  tree: catalog
  args: {uri: "sqlite:///./catalog.sqlite", writable_storage: ./data, init_if_not_exists: true}
"""

pytestmark = pytest.mark.timeout(1_200)


def log_in(server: Launched, path: str, password: str) -> int:
    form = urlencode({"grant_type": "password", "username": "alice", "password": password})
    return server.ask(path, "POST", form.encode(), Content_Type=FORM)[0]


def check_log_ins(server: Launched, route: str) -> None:
    """One that failed and one that did not, each in the trace of its request."""
    outcomes = []
    for record in server.records(event="authentication"):
        (request,) = server.records(event="http.request", request_id=record["request_id"])
        assert record["trace_id"] == request["trace_id"]
        assert record["resource_name"] == request["route"] == route
        outcomes.append(record["outcome"])
    assert outcomes == ["failure", "success"]


@pytest.mark.parametrize("workers", [1, 2])
def test_tiled(tmp_path: Path, workers: int) -> None:
    """A data server for scientists: its command, and uvicorn with two workers."""
    (tmp_path / "config.yml").write_text(TILED)
    binaries = environment("applications")
    port = free_port()
    command = ("tiled", "serve", "config", "config.yml", "--port", str(port))
    with Launched(binaries, tmp_path, *command, port=port, **AUDITED) as server:
        if workers == 1:
            use_tiled(server)
    if workers == 1:
        check_tiled(server)
        return
    # The databases are there now: two processes would both want to make them.
    several = ("uvicorn", "tiled.server.app:app_factory", "--factory", "--workers", "2",
               "--port", str(port))  # fmt: skip
    with Launched(binaries, tmp_path, *several, port=port, **AUDITED) as server:
        use_tiled(server)
    check_tiled(server)


def use_tiled(server: Launched) -> None:
    assert server.ask("/api/v1/")[0] == 200
    assert log_in(server, "/api/v1/auth/provider/toy/token", "wrong") == 401
    assert log_in(server, "/api/v1/auth/provider/toy/token", "correct horse") == 200


def check_tiled(server: Launched) -> None:
    check_log_ins(server, "/api/v1/auth/provider/toy/token")
    (login,) = server.records(event="authentication", outcome="success")
    writes = server.records(event="database_write", trace_id=login["trace_id"])
    assert ("INSERT", "sessions") in [(one["action"], one["resource_name"]) for one in writes]
    assert all(one["request_id"] == login["request_id"] for one in writes)
    assert "correct horse" not in str(server.records())
    server.verify()


def test_piccolo_admin(tmp_path: Path) -> None:
    """An administration page with a database: its demonstration, which listens on port 8000."""
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is taken, and the demonstration listens nowhere else")
    binaries = environment("piccolo")
    with postgres() as port:
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "audit"}
        run("psql", "-h", "127.0.0.1", "-p", port, "-U", "audit", "-d", "postgres",
            "-c", "CREATE DATABASE piccolo_admin")  # fmt: skip
        command = ("admin_demo", "--engine=postgres")
        with Launched(binaries, tmp_path, *command, port=8000, **AUDITED, **place) as server:
            use_piccolo(server)
    outcomes = [record["outcome"] for record in server.records(event="authentication")]
    assert outcomes == ["failure", "success"]
    (login,) = server.records(event="authentication", outcome="success")
    (request,) = server.records(event="http.request", request_id=login["request_id"])
    assert login["trace_id"] == request["trace_id"]
    writes = server.records(event="database_write", trace_id=login["trace_id"])
    assert ("INSERT", "sessions") in [(one["action"], one["resource_name"]) for one in writes]
    assert "piccolo123" not in str(server.records())
    server.verify()


def use_piccolo(server: Launched) -> None:
    """Log in badly and well, as its page does."""
    _, _, headers = server.ask("/public/login/")
    cookie = headers["set-cookie"].split(";")[0]
    token = cookie.partition("=")[2]
    for password in ("wrong", "piccolo123"):
        form = urlencode({"username": "piccolo", "password": password, "csrftoken": token})
        said = {"Cookie": cookie, "X_CSRFToken": token, "Content_Type": FORM}
        status, body, _ = server.ask("/public/login/", "POST", form.encode(), **said)
        assert (status < 400) is (password != "wrong"), body


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetch the examples of FastAPI's documentation, which are in its source distribution."""
    place = tmp_path_factory.mktemp("fastapi")
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download",
        "--no-deps", "--no-binary", "fastapi", "--dest", place, f"fastapi=={FASTAPI}")  # fmt: skip
    with tarfile.open(place / f"fastapi-{FASTAPI}.tar.gz") as archive:
        archive.extractall(place, filter="data")
    return place / f"fastapi-{FASTAPI}" / "docs_src"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_documentation_s_log_in(tmp_path: Path, documentation: Path, workers: int) -> None:
    port = free_port()
    command = ("uvicorn", "tutorial003:app", "--app-dir", str(documentation / "security"),
               "--port", str(port), "--workers", str(workers))  # fmt: skip
    with Launched(environment("applications"), tmp_path, *command, port=port, **AUDITED) as server:
        assert log_in(server, "/token", "wrong") == 400
        assert log_in(server, "/token", "secret2") == 200
        assert server.ask("/users/me", Authorization="Bearer johndoe")[0] == 200
    check_log_ins(server, "/token")
    assert "secret2" not in str(server.records())
    server.verify()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_documentation_s_database(tmp_path: Path, documentation: Path, workers: int) -> None:
    port = free_port()
    command = ("uvicorn", "tutorial002:app", "--app-dir", str(documentation / "sql_databases"),
               "--port", str(port), "--workers", str(workers))  # fmt: skip
    hero = orjson.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"})
    with Launched(environment("applications"), tmp_path, *command, port=port, **AUDITED) as server:
        assert server.ask("/heroes/", "POST", hero, Content_Type="application/json")[0] == 200
        assert server.ask("/heroes/1", "DELETE")[0] == 200
    for method, action in (("POST", "INSERT"), ("DELETE", "DELETE")):
        (request,) = server.records(event="http.request", action=method)
        (write,) = server.records(event="database_write", trace_id=request["trace_id"])
        assert (write["action"], write["resource_name"]) == (action, "hero")
        assert write["request_id"] == request["request_id"]
    assert "Dive Wilson" not in str(server.records())
    server.verify()


def test_uninstalling_leaves_no_trace(tmp_path: Path) -> None:
    binaries = environment("uninstalled")
    (tmp_path / "app.py").write_text(
        "from fastapi import FastAPI\napp = FastAPI()\napp.get('/')(lambda: 'here')\n"
    )
    run(binaries / "pip", "uninstall", "--quiet", "--yes", "otel-audit")
    (packages,) = (binaries.parent / "lib").glob("python*/site-packages")
    assert [str(left) for left in packages.rglob("*otel?audit*")] == []
    assert not (binaries / "otel-audit").exists()
    port = free_port()
    command = ("uvicorn", "app:app", "--port", str(port))
    with Launched(binaries, tmp_path, *command, port=port) as server:
        status, _, headers = server.ask("/")
    assert (status, "x-request-id" in headers) == (200, False)
    assert not (tmp_path / "logs").exists()
    assert "otel_audit" not in server.said()
