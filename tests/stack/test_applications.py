"""Applications that others wrote and published, run as they are with nothing but environment variables."""

from __future__ import annotations

import sys
import tarfile
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.stack.environments import environment, run
from tests.stack.launched import Launched, free_port
from tests.stack.published import (
    AUDITED,
    check_log_ins,
    log_in,
    mcp_atlassian,
    piccolo_admin,
    tiled,
    tiled_databases,
)

if TYPE_CHECKING:
    from pathlib import Path

FASTAPI = "0.165.0"

pytestmark = pytest.mark.timeout(600)


def test_tiled(tmp_path: Path) -> None:
    """By its own command, and with two workers."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    tiled(environment("published"), one)
    tiled_databases(one, two)
    tiled(environment("published"), two, workers=2)


def test_piccolo_admin(tmp_path: Path) -> None:
    piccolo_admin(environment("published"), tmp_path)


def test_mcp_atlassian(tmp_path: Path) -> None:
    mcp_atlassian(environment("published"), tmp_path)


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
    with Launched(environment("published"), tmp_path, *command, port=port, **AUDITED) as server:
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
    with Launched(environment("published"), tmp_path, *command, port=port, **AUDITED) as server:
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
