"""`make stack` brings everything up, lets the example ship, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from collector.stack.build import CACHE, COLLECTOR
from tests.stack.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 90


class Stack:
    """The program of ``make stack``, and the addresses that it printed."""

    def __init__(self, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collector.stack", "--data", str(data)],
            cwd=COLLECTOR.parent,
            # Tests have a home of their own, and the servers are in the developer's.
            env={**os.environ, "XDG_CACHE_HOME": str(CACHE.parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self.children: list[psutil.Process] = []

    def wait_until_it_says_where(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if "Ctrl-C stops everything" in line:
                break
        else:
            pytest.fail(self.said)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def address(self, name: str) -> str:
        found = re.search(rf"^ *{name} +(http://127\.0\.0\.1:\d+)", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    def word(self, before: str) -> str:
        found = re.search(rf"{before} (\S+)", self.said)
        assert found, self.said
        return found[1]

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=SECONDS)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    try:
        stack.wait_until_it_says_where()
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.end(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_answers_where_it_says_and_leaves_no_process_behind(
    stack: Stack, number: signal.Signals
) -> None:
    names = {child.name().rpartition("/")[2].partition("-")[0] for child in stack.children}
    assert {"loki", "prometheus", "otelcol"} <= names
    for name, path in (("AgentHub", "/"), ("Loki", "/ready"), ("Prometheus", "/-/ready")):
        assert httpx.get(stack.address(name) + path, trust_env=False).is_success, name
    began = time.monotonic()
    stack.end(number)
    assert time.monotonic() - began < SECONDS
    assert [child for child in stack.children if child.is_running()] == []


def test_what_people_do_in_the_example_is_in_loki_and_on_the_meters(stack: Stack) -> None:
    driver = [sys.executable, "-m", "examples.agenthub.driver", "--rounds", "1", "--url"]
    played = subprocess.run(
        [*driver, stack.address("AgentHub"), "--check", stack.word("reconcile --dir")],
        cwd=COLLECTOR.parent,
        env={**os.environ, "AGENTHUB_PASSWORD": stack.word("password"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    compare = ["reconcile", "--dir", stack.word("reconcile --dir"), "--loki", stack.address("Loki")]

    def alike() -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "otel_audit.cli", *compare],
            cwd=COLLECTOR.parent,
            env={**os.environ, "LOKI_TENANT": "audit"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0

    wait_until(alike)

    def measured() -> bool:
        answer = httpx.get(
            stack.address("Prometheus") + "/api/v1/query",
            params={"query": 'audit_records_exported_total{service_name="agenthub"} > 0'},
            trust_env=False,
        )
        return bool(answer.json()["data"]["result"])

    wait_until(measured)
