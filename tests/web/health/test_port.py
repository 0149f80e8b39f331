"""Health on a port of its own: real sockets, and an event loop that is really blocked."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.health.checker import HealthChecker
from otel_audit.health.loops import STALLED_SECONDS
from otel_audit.web.access import Access, RefusedError
from otel_audit.web.health import port as health_port
from otel_audit.web.health.answers import HealthAnswers
from otel_audit.web.health.port import HealthPort
from tests.health.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def checker() -> Iterator[HealthChecker]:
    """Give a checker that runs, and knows that its only component is well."""
    made = HealthChecker(watch_trail=False)
    made.register("db", lambda: None, interval=0.1)
    made.start()
    wait_until(lambda: made.started)
    yield made
    made.stop()


def serve(checker: HealthChecker, **options: Any) -> closing[HealthPort]:
    options = {"details": "open", **options}
    return closing(HealthPort(HealthAnswers(checker, "/health", **options), "127.0.0.1", [0]))


def ask(
    port: int, path: str = "/health", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
        client.request(method, path, headers=headers)
        response = client.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def raw(port: int, data: bytes) -> bytes:
    """Send bytes, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(data)
        received = b""
        while more := client.recv(65_536):
            received += more
        return received


def test_the_routes_are_those_of_the_application(checker: HealthChecker) -> None:
    with serve(checker) as served:
        status, headers, body = ask(served.port)
        assert (status, body) == (200, b'{"status":"healthy"}')
        assert headers["cache-control"] == "no-store"
        assert ask(served.port, "/health?x=1")[0] == 200
        assert ask(served.port, method="HEAD")[::2] == (200, b"")
        assert ask(served.port, method="POST")[0] == 405
        assert ask(served.port, "/")[0] == 404
        for path in ("/health/live", "/health/ready", "/health/startup"):
            assert ask(served.port, path)[0] == 200
        detailed = json.loads(ask(served.port, "/health/detailed")[2])
        assert detailed["components"]["db"]["status"] == "healthy"
        ietf = ask(served.port, Accept="application/health+json")
        assert ietf[2] == b'{"status":"pass"}'


def test_details_need_the_same_permission(checker: HealthChecker) -> None:
    async def coroutine(_scope: object) -> bool:
        return True

    def refuse(_scope: object) -> Access | None:
        message = "the token has expired"
        raise RefusedError(message)

    with serve(checker, details="authorized", token="s3cret") as served:
        assert ask(served.port, "/health/detailed")[0] == 401
        assert ask(served.port, "/health/detailed", Authorization="Bearer s3cret")[0] == 200
    with serve(checker, details="authorized", authorize=lambda _scope: True) as served:
        assert ask(served.port, "/health/detailed")[0] == 200
    with serve(checker, details="authorized", authorize=coroutine) as served:
        assert ask(served.port, "/health/detailed")[0] == 403
    with serve(checker, details="authorized", authorize=refuse) as served:
        status, _, body = ask(served.port, "/health/detailed")
        assert (status, body) == (401, b'{"detail":"the token has expired"}')


@pytest.mark.parametrize("how", ["sleeping", "computing"])
def test_it_answers_while_the_event_loop_is_blocked_and_says_so(how: str) -> None:
    checker = HealthChecker(watch_trail=False)
    checker.register("db", lambda: None, interval=0.1)
    started = threading.Event()
    release = threading.Event()

    async def application() -> None:
        checker.start()
        while not checker.started:  # noqa: ASYNC110 - another thread starts it
            await asyncio.sleep(0.01)
        started.set()
        await asyncio.sleep(0.05)
        while not release.is_set():
            if how == "sleeping":
                release.wait()

    thread = threading.Thread(target=asyncio.run, args=(application(),))
    thread.start()
    try:
        with serve(checker) as served:
            assert started.wait(10)
            with closing(http.client.HTTPConnection("127.0.0.1", served.port)) as client:

                def timed(path: str) -> tuple[float, int, dict[str, Any]]:
                    begun = time.perf_counter()
                    client.request("GET", path)
                    response = client.getresponse()
                    body = json.loads(response.read())
                    return time.perf_counter() - begun, response.status, body

                wait_until(lambda: timed("/health")[1] == 503, seconds=5)
                times = []
                for _ in range(20):
                    seconds, status, body = timed("/health")
                    times.append(seconds)
                    assert status == 503
                    assert body["status"] == "unhealthy"
                    assert body["event_loop_blocked_s"] >= STALLED_SECONDS
                # A loaded machine lets most of them wait, and not all.
                assert min(times) < (0.01 if how == "sleeping" else 0.1)
                for path in ("/health/live", "/health/ready", "/health/detailed"):
                    assert timed(path)[1] == 503
                assert timed("/health/startup")[1] == 200
                release.set()
                thread.join()
    finally:
        release.set()
        thread.join()
        checker.stop()


def test_a_connection_is_kept_and_questions_may_follow_each_other(checker: HealthChecker) -> None:
    with serve(checker) as served:
        question = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answers = raw(served.port, question + question + last)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert answers.count(b"connection: close") == 1


@pytest.mark.parametrize(
    "question",
    [
        b"GET http://shop.example/health?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\nConnection: te\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n\r\n",
    ],
)
def test_requests_are_read_as_the_standard_says(checker: HealthChecker, question: bytes) -> None:
    with serve(checker) as served:
        answer = raw(served.port, question)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in answer


def test_a_question_may_come_in_pieces(checker: HealthChecker) -> None:
    with serve(checker) as served, socket.create_connection(("127.0.0.1", served.port)) as client:
        for piece in (b"GET /health/li", b"ve HTTP/1.0\r", b"\n\r\n"):
            client.sendall(piece)
            time.sleep(0.02)
        client.settimeout(5)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "nonsense", [b"hello\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET /health HTTP/1.1\r\nhost\r\n\r\n"]
)
def test_nonsense_is_answered_and_closed(checker: HealthChecker, nonsense: bytes) -> None:
    with serve(checker) as served:
        assert raw(served.port, nonsense).startswith(b"HTTP/1.1 400 ")
        assert ask(served.port)[0] == 200


def test_what_never_ends_is_closed(checker: HealthChecker) -> None:
    with serve(checker) as served:
        assert raw(served.port, b"GET /" + b"x" * 20_000) == b""
        assert ask(served.port)[0] == 200


def test_a_body_is_not_read_and_the_connection_ends(checker: HealthChecker) -> None:
    with serve(checker) as served:
        answer = raw(served.port, b"POST /health HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"connection: close" in answer


class Clients(ExitStack):
    """Connections to a port, which are all closed in the end."""

    def connect(self, port: int) -> socket.socket:
        return self.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))


def answered(client: socket.socket, question: bytes = b"GET /health HTTP/1.1\r\n\r\n") -> bool:
    client.sendall(question)
    return client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_who_asks_takes_the_place_of_who_is_silent(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who has asked before keeps his, as long as there are others."""
    with serve(checker) as served, Clients() as clients:
        monkeypatch.setattr(health_port, "_CONNECTIONS", 8)
        balancer = clients.connect(served.port)
        for _ in range(2):
            assert answered(balancer)
            silent = [clients.connect(served.port) for _ in range(20)]
            assert answered(clients.connect(served.port))
            assert silent[0].recv(1) == b""


def test_nobody_is_put_out_whose_request_has_come(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, release = threading.Event(), threading.Event()

    def hold_up(_scope: object) -> bool:
        busy.set()
        return release.wait(5)

    with serve(checker, details="authorized", authorize=hold_up) as served, Clients() as clients:
        monkeypatch.setattr(health_port, "_CONNECTIONS", 2)
        first, second = clients.connect(served.port), clients.connect(served.port)
        second.sendall(b"GET /health/detailed HTTP/1.1\r\n\r\n")
        assert busy.wait(5)
        third = clients.connect(served.port)
        first.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        release.set()
        assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert answered(third)


@pytest.mark.parametrize(
    ("begins", "patience"),
    [(b"GET /health HTTP/1.1\r\n", "_FIRST_SECONDS"), (b"GET / HTTP/1.1\r\n\r\n", "_IDLE_SECONDS")],
    ids=["asks nothing", "asks no more"],
)
def test_silence_ends_a_connection(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch, begins: bytes, patience: str
) -> None:
    monkeypatch.setattr(health_port, patience, 0.1)
    monkeypatch.setattr(health_port, "_SWEEP_SECONDS", 0.05)
    with serve(checker) as served:
        assert raw(served.port, begins).count(b"HTTP/1.1") == begins.count(b"\r\n\r\n")


def test_an_answer_that_fails_is_a_500(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(checker) as served:
        with monkeypatch.context() as patch:
            patch.setattr(HealthChecker, "loop_silence", lambda _self: 1 / 0)
            assert ask(served.port)[0] == 500
        assert ask(served.port)[0] == 200
    assert "cannot answer /health" in caplog.text


def test_closing_frees_the_port(checker: HealthChecker) -> None:
    with serve(checker) as served:
        port = served.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    answers = HealthAnswers(checker, "/health")
    again = HealthPort(answers, "127.0.0.1", [port])
    assert again.port == port
    again.close()


def test_ipv6_is_served(checker: HealthChecker) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with closing(HealthPort(HealthAnswers(checker, "/health"), "::1", [0])) as served:
        client = http.client.HTTPConnection("::1", served.port, timeout=5)
        client.request("GET", "/health")
        assert client.getresponse().status == 200
        client.close()
