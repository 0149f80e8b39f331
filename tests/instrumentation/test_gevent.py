"""gevent replaces threads and locks by its own: in good time, or after ours were made."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from collector.stack.servers import free_port
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify
from tests.instrumentation.test_launch import BIN, QUIET, asked, records

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION = """
from flask import Flask
from otel_audit import get_audit_logger

app = Flask("app")


@app.post("/first")
def first():
    return "1"


@app.get("/<marker>")
def mark(marker):
    get_audit_logger().audit_event("marked", "mark", "marker", marker)
    return "marked"
"""
REQUESTS = 60
PATCHED_FIRST = {"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": "patch_all"}


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--preload"], {}), ([], {}), (["--preload"], PATCHED_FIRST)],
    ids=["preloaded", "loaded by the worker", "patched first"],
)
def test_greenlets_wait_for_each_other_and_nothing_freezes(
    tmp_path: Path, options: list[str], said: dict[str, str]
) -> None:
    """The writer's thread is a greenlet there, which must not block the only thread there is."""
    (tmp_path / "app.py").write_text(APPLICATION)
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "opentelemetry-instrument", BIN / "gunicorn", "-k", "gevent", "-w", "2",
             "-b", f"127.0.0.1:{port}", *options, "app:app"],
            cwd=tmp_path,
            env={**os.environ, **QUIET, **said, "LOG_DIR": str(tmp_path / "logs")},
            stdout=log,
            stderr=log,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def ask(number: int) -> int:
        with urllib.request.urlopen(f"{address}/{number}", timeout=30) as answer:  # noqa: S310 - ours
            status: int = answer.status
            return status

    try:
        asked(f"{address}/first", server)
        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(REQUESTS)))
        assert time.monotonic() - began < 10  # a record that waits in vain waits that long
    finally:
        server.terminate()
        server.wait(30)
    assert answers == [200] * REQUESTS
    with TrailReader(tmp_path / "logs" / "trail") as reader:
        assert verify(reader).ok
    marked = [
        one["resource_name"] for one in records(tmp_path / "logs") if one["event"] == "marked"
    ]
    assert sorted(marked, key=int) == [str(number) for number in range(REQUESTS)]
