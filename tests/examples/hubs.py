"""Starts the example as its user does: a process of its own, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from otel_audit import TrailReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PASSWORD = "correct-horse-battery"
HIDDEN = ("OTEL_", "LOKI_", "AUDIT_", "LOG_DIR", "XDG_", "AGENTHUB_")


@dataclass
class RunningHub:
    process: subprocess.Popen[str]
    url: str
    banner: str
    data: Path

    @property
    def trail(self) -> Path:
        return self.data / "logs" / "trail"

    def records(self) -> list[dict[str, Any]]:
        with TrailReader(self.trail) as reader:
            return [json.loads(leaf.record) for leaf in reader.leaves()]

    @contextlib.contextmanager
    def signed_in(self, name: str) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            response = client.post("/api/login", json={"name": name, "password": PASSWORD})
            assert response.status_code == 200, response.text
            yield client

    def servers(self) -> list[psutil.Process]:
        """Find the MCP servers, whichever worker of the hub started them."""
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "mcp_server.py" in " ".join(child.cmdline())
        ]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def running_hub(data: Path, *arguments: str, **environment: str) -> Iterator[RunningHub]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    own = {"AGENTHUB_DATA": str(data), "AGENTHUB_PASSWORD": PASSWORD, "PYTHONUNBUFFERED": "1"}
    with (data.parent / "hub.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.agenthub", "--port", "0", *arguments],
            cwd=ROOT,
            env={**inherited, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        banner = read_banner(process)
        match = re.search(r"http://127\.0\.0\.1:\d+", banner)
        assert match, (data.parent / "hub.log").read_text()
        wait_until(lambda: answers(match[0]))
        yield RunningHub(process, match[0], banner, data)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def read_banner(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops" in line:
            break
    return "".join(lines)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def all_bytes(directory: Path) -> bytes:
    """Everything in all files below, also what a database has deleted but not overwritten."""
    return b"\n".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
