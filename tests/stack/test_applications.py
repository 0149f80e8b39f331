"""Applications that others wrote and published, run as they are with nothing but environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.stack.servers import free_port
from tests.stack.environments import environment, run
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

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "application", [tiled, mcp_atlassian, documented_log_in, documented_database]
)
def test_it_is_audited(tmp_path: Path, application: Callable[..., Launched], workers: int) -> None:
    application(environment("published"), tmp_path, workers)


def test_piccolo_admin(tmp_path: Path) -> None:
    """Its demonstration has one worker."""
    piccolo_admin(environment("published"), tmp_path)


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
