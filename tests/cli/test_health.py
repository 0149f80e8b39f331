"""`otel-audit health` against a real server: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.cli.app import run
from otel_audit.health.checker import HealthChecker
from otel_audit.web.health.answers import HealthAnswers
from otel_audit.web.health.port import HealthPort
from tests.cli.conftest import on_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Service:
    """A service with a database and a cache, both of which can be broken."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.checker = HealthChecker(watch_trail=False)
        for name, critical in (("database", True), ("cache", False)):
            self.checker.register(
                name, self._probe(name), critical, interval=0.05, failure_threshold=1
            )
        self.url = ""

    def _probe(self, name: str) -> Any:
        def probe() -> None:
            if name in self.broken:
                message = f"{name} \x1b[31mrefused"
                raise ConnectionError(message)

        return probe

    def become(self, status: str) -> None:
        deadline = time.monotonic() + 10
        while self.checker.get_quick_status().value != status:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextmanager
def serving(**options: Any) -> Iterator[Service]:
    service = Service()
    answers = HealthAnswers(service.checker, "/health", **{"details": "open", **options})
    with closing(HealthPort(answers, "127.0.0.1", [0])) as port:
        service.url = f"http://127.0.0.1:{port.port}/health"
        service.checker.start()
        service.become("healthy")
        yield service
        service.checker.stop()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["health", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_exit_code_is_what_a_container_wants(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(capsys, service.url) == (0, f"healthy  {service.url}\n", "")
    service.broken.add("cache")
    service.become("degraded")
    assert ask(capsys, service.url)[:2] == (0, f"degraded  {service.url}\n")
    service.broken.add("database")
    service.become("unhealthy")
    assert ask(capsys, service.url)[:2] == (1, f"unhealthy  {service.url}\n")


@pytest.mark.parametrize("path", ["", "/", "/health/", "/health?details=1#now"])
def test_the_address_that_is_shown_is_the_one_that_was_asked(
    service: Service, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """Of a host alone, its usual health route is asked."""
    url = service.url.removesuffix("/health") + path
    assert ask(capsys, url) == (0, f"healthy  {service.url}\n", "")
    assert json.loads(ask(capsys, "--json", url)[1])["url"] == service.url


def test_details_are_a_table_in_which_nothing_moves_the_cursor(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.broken.add("cache")
    service.become("degraded")
    code, out, _ = ask(capsys, "--details", service.url)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:3] == ["component", "status", "ms"]
    assert lines[2][:2] == ["cache", "unhealthy"]
    assert lines[3][:2] == ["database", "healthy"]
    assert "\x1b" not in out
    assert "\\x1b[31mrefused" in out


LONG = (
    "ship:otlp has not delivered for 42 min: HTTP 401 from the far end, which wants another token"
)


def test_a_message_can_be_read_on_a_narrow_terminal(service: Service) -> None:
    service.checker.register("ship:otlp", _long, critical=False, interval=0.05, failure_threshold=1)
    service.become("degraded")
    for columns in (60, 80):
        lines = on_terminal("health", "-d", service.url, columns=columns)
        assert max(map(len, lines[1:])) <= columns
        place = lines[1].index("message")
        shown = [line for line in lines[2:] if not line.startswith(("cache", "database"))]
        assert LONG in " ".join(line[place:] for line in shown)
        assert all(not line[:place].strip() for line in shown[1:])
        assert "checks" not in lines[1]
    lines = on_terminal("health", "-d", service.url, columns=250)
    assert LONG in lines[-1]
    assert re.search(r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  ", lines[-1])


def _long() -> None:
    raise ConnectionError(LONG)


def test_json_is_what_the_service_says(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(ask(capsys, "--json", service.url)[1]) == {
        "url": service.url,
        "status": "healthy",
    }
    shown = json.loads(ask(capsys, "--json", "-d", service.url)[1])
    assert shown["summary"]["healthy"] == 2
    assert shown["components"]["database"]["status"] == "healthy"


def test_details_that_are_refused_leave_the_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving(details="authorized", token="s3cret") as service:
        code, out, err = ask(capsys, "-d", service.url)
        assert (code, out) == (0, f"healthy  {service.url}\n")
        assert "--token-file" in err
        (tmp_path / "token").write_text("s3cret\n")
        code, out, err = ask(capsys, "-d", "--token-file", str(tmp_path / "token"), service.url)
        assert (code, err) == (0, "")
        assert "database" in out
        assert ask(capsys, "--token-file", str(tmp_path / "none"), service.url)[0] == 2


def test_no_answer_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/health"
        code, out, err = ask(capsys, "--timeout", "0.2", url)
        assert (code, out) == (1, f"unreachable  {url}\n")
        assert "does not answer: timed out" in err
    code, _, err = ask(capsys, "--json", url)
    assert code == 1
    assert "refused" in json.loads(err)["message"]
    assert ask(capsys, "https://127.0.0.1:1/health")[0] == 1


def test_an_answer_that_is_no_health_is_not_taken_for_one(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ask(capsys, service.url.replace("/health", "/other"))
    assert code == 1
    assert out.startswith("unknown  ")
    assert "HTTP status 404" in err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/health", "http://", "http://x:99999/"])
def test_what_is_no_address_is_wrong_usage(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert ask(capsys, url)[0] == 2


def test_proxies_of_the_environment_are_not_asked(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(capsys, service.url)[0] == 0


def watching(service: Service, *options: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "otel_audit.cli", "health", "--watch", "--interval", "0.1"]
    return subprocess.Popen([*command, *options, service.url], text=True, **more)


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_prints_a_line_for_each_change(service: Service, *, as_json: bool) -> None:
    process = watching(service, *(["--json"] if as_json else []), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        service.broken.add("cache")
        second = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    if as_json:
        assert json.loads(first) == {
            "status": "healthy",
            "components": {"cache": "healthy", "database": "healthy"},
        }
        assert json.loads(second)["components"]["cache"] == "unhealthy"
    else:
        assert (first, second) == ("healthy\n", "degraded: cache unhealthy\n")


def test_watching_on_a_terminal_is_a_live_table(service: Service) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = watching(service, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(master, 65_536)
            except OSError:
                return
            seen.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        broken = False
        while b"refused" not in seen and time.monotonic() < deadline:
            if b"database" in seen and not broken:
                service.broken.add("database")
                broken = True
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        thread.join(5)
        os.close(master)
    assert b"unhealthy" in seen
    assert b"ConnectionError" in seen
