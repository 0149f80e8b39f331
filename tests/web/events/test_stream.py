"""Streams: every record once and in order, whoever wrote it, and whatever the clients do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson
import pytest

from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.trail.layout import TOKENS
from otel_audit.web.events import AuditEvents
from otel_audit.web.events import stream as stream_module
from otel_audit.web.tokens import TokenFile
from tests.web.driving import http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from otel_audit.web.asgi import Message

ROOT = Path(__file__).parents[3]

APPLICATION = """
import os
from fastapi import FastAPI
from otel_audit import AuditEvent, AuditLogger, configure, instrument_app
from otel_audit.web.events import audit_router

configure(service_name="hub")
app = FastAPI()
app.include_router(audit_router(per_minute=0, max_streams=2_000))
instrument_app(app, exclude=["/audit/stream"])

@app.post("/emit/{name}")
async def emit(name: str) -> dict[str, object]:
    await AuditLogger().aemit(AuditEvent(name, "emit", fields={"pid": os.getpid()}))
    return {"pid": os.getpid()}
"""


class Listener:
    """A client of a stream, played by hand."""

    def __init__(self, app: AuditEvents, token: str, query: bytes = b"", last: str = "") -> None:
        headers = [(b"authorization", f"Bearer {token}".encode())]
        if last:
            headers.append((b"last-event-id", last.encode()))
        self.scope = {**http("/audit/stream", headers=headers), "query_string": query}
        self.app = app
        self.sent: list[Message] = []
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.gone = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.app(self.scope, self.receive, self.send))
        await until(lambda: len(self.sent) > 1 or self.task is None or self.task.done())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gone.set()
        self.blocked.set()
        if self.task is not None:
            await asyncio.wait_for(self.task, 30)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        await self.blocked.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def ids(self) -> list[int]:
        events = [event for event in self.body.split(b"\n\n") if b"event: record" in event]
        return [int(event.splitlines()[0].removeprefix(b"id: ")) for event in events]

    @property
    def numbers(self) -> list[int]:
        lines = [line for line in self.body.splitlines() if line.startswith(b"data: ")]
        return [orjson.loads(line[6:])["record"]["number"] for line in lines]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def token(provider: AuditProvider) -> str:
    return TokenFile(provider.directory / TOKENS).create("ann", ["read"])[0]


@pytest.fixture
def app(provider: AuditProvider) -> AuditEvents:
    return AuditEvents(provider=provider, per_minute=0)


async def emit(provider: AuditProvider, *numbers: int, event: str = "tick") -> None:
    audit = AuditLogger(provider=provider)
    for number in numbers:
        await audit.audit_event(event, "tick", number=number)


async def test_a_stream_gives_what_is_new_once_and_in_order(
    provider: AuditProvider, app: AuditEvents, token: str
) -> None:
    await emit(provider, 0, 1)
    async with Listener(app, token) as one, Listener(app, token, b"event=tock") as two:
        assert one.sent[0]["status"] == 200
        assert dict(one.sent[0]["headers"])[b"content-type"] == b"text/event-stream"
        await emit(provider, 2, 3)
        await emit(provider, 4, event="tock")
        await until(lambda: one.numbers == [2, 3, 4] and two.numbers == [4])
        async with Listener(app, token, last=str(one.ids[0])) as late:
            await until(lambda: late.numbers == [3, 4])
            await emit(provider, *range(5, 60))
            await until(lambda: one.numbers == list(range(2, 60)))
            await until(lambda: late.numbers == list(range(3, 60)))
        assert one.ids == sorted(set(one.ids))
        assert two.numbers == [4]
        assert one.body.startswith(b"retry: 2000\nid: 2\n\n")


async def test_a_stream_goes_on_from_any_place_also_beyond_what_is_kept(
    provider: AuditProvider, app: AuditEvents, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_KEPT", 16)
    await emit(provider, *range(300))
    async with Listener(app, token, last="0") as everything:
        await until(lambda: everything.numbers == list(range(1, 300)))
        await emit(provider, *range(300, 420))
        await until(lambda: everything.numbers == list(range(1, 420)), 20)


async def test_records_of_queries_are_left_out_unless_they_are_asked_for(
    provider: AuditProvider, app: AuditEvents, token: str
) -> None:
    async with (
        Listener(app, token) as plain,
        Listener(app, token, b"queries=true") as all_of_it,
        Listener(app, token, b"outcome=failure"),
    ):
        await emit(provider, 1)
        await until(lambda: plain.numbers == [1])
        await until(lambda: b'"event":"audit.stream"' in all_of_it.body)
    assert b"audit.stream" not in plain.body
    with provider.reader() as reader:
        opened = [orjson.loads(leaf.record) for leaf in reader.leaves()]
    streams = [record for record in opened if record["event"] == "audit.stream"]
    assert len(streams) == 3
    assert orjson.loads(streams[2]["query_filter"]) == {"outcome": ["failure"]}
    assert streams[0]["actor_id"] == "ann"


async def test_a_slow_client_holds_nobody_up_and_misses_nothing(
    provider: AuditProvider, app: AuditEvents, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_KEPT", 32)
    async with Listener(app, token) as slow, Listener(app, token) as quick:
        slow.blocked.clear()
        for first in range(0, 200, 20):
            await emit(provider, *range(first, first + 20))
            await until(lambda first=first: quick.numbers == list(range(first + 20)))  # type: ignore[misc]
        held = len(slow.sent)
        assert len(slow.numbers) < 200
        await asyncio.sleep(0.1)
        assert len(slow.sent) == held
        slow.blocked.set()
        await until(lambda: slow.numbers == list(range(200)))


async def test_a_stream_ends_when_the_rights_do(provider: AuditProvider) -> None:
    file = TokenFile(provider.directory / TOKENS)
    text, _ = file.create("ann", ["read"])
    app = AuditEvents(provider=provider, per_minute=0, heartbeat=0.05)
    async with Listener(app, text) as listener:
        await until(lambda: b": still here" in listener.body)
        file.revoke("ann")
        await until(lambda: listener.task is not None and listener.task.done())
        assert listener.sent[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize(
    ("query", "last", "status"),
    [
        (b"limit=5", "", 400),
        (b"cursor=x", "", 400),
        (b"order=oldest", "", 400),
        (b"end=now", "", 400),
        (b"queries=maybe", "", 400),
        (b"queries=true&queries=false", "", 400),
        (b"unknown=1", "", 400),
        (b"", "-1", 400),
        (b"", "x" * 100, 400),
        (b"", "9" * 30, 400),
    ],
)
async def test_what_a_stream_cannot_do_is_said(
    app: AuditEvents, token: str, query: bytes, last: str, status: int
) -> None:
    async with Listener(app, token, query, last) as listener:
        assert listener.sent[0]["status"] == status
        assert orjson.loads(listener.body)["detail"]


async def test_there_are_only_so_many_streams(provider: AuditProvider, token: str) -> None:
    app = AuditEvents(provider=provider, per_minute=0, max_streams=1)
    async with Listener(app, token) as one:
        await until(lambda: len(one.sent) > 1)
        await asyncio.sleep(0.05)
        async with Listener(app, token) as two:
            assert two.sent[0]["status"] == 503
            assert b"open already" in two.body
    async with Listener(app, token) as three:
        assert three.sent[0]["status"] == 200


# real servers


@contextmanager
def serving(directory: Path, workers: int, *options: str) -> Iterator[Served]:
    """Serve the application by uvicorn."""
    (directory / "served.py").write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "served:app", "--port", str(port),
         "--workers", str(workers), "--log-level", "warning", "--backlog", "4096", *options],
        cwd=directory,
        env={**os.environ, "OTEL_AUDIT_DIR": str(directory / "trail"), "PYTHONPATH": f"{ROOT}:{directory}"},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    served = Served(port, process)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError):
                ask(port, "POST /emit/first")
                break
            time.sleep(0.1)
        yield served
    finally:
        process.terminate()
        served.said()


class Served(NamedTuple):
    """A running server."""

    port: int
    process: subprocess.Popen[str]

    def said(self) -> str:
        """Wait for its end; return what it wrote on stderr."""
        return self.process.communicate(timeout=30)[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """Serve the application by two workers; give the port."""
    with serving(tmp_path, 2) as served:
        yield served.port


def ask(port: int, line: str, token: str = "") -> bytes:
    with opened(port, line, token) as connection:
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
        return b"".join(parts)


def opened(port: int, line: str, token: str = "", last: str = "") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
    if last:
        head += f"Last-Event-ID: {last}\r\n"
    connection.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
    return connection


def pid_of(answer: bytes) -> int:
    pid: int = orjson.loads(answer.partition(b"\r\n\r\n")[2])["pid"]
    return pid


def test_a_stream_shows_what_another_worker_wrote_within_a_second(
    server: int, tmp_path: Path
) -> None:
    token, _ = TokenFile(tmp_path / "trail" / TOKENS).create("ann", ["read"])
    listener = opened(server, "GET /audit/stream?event=hello", token)
    seen = b""
    while b"retry:" not in seen:
        seen += listener.recv(65_536)
    times: list[float] = []
    in_time: set[int] = set()
    for _ in range(60):
        writer = pid_of(ask(server, "POST /emit/hello"))
        began = time.monotonic()
        before = seen.count(b"event: record")
        while seen.count(b"event: record") == before:
            seen += listener.recv(65_536)
        times.append(time.monotonic() - began)
        # The first may have come right before somebody looked; each of the others came right after.
        if len(times) > 1 and times[-1] < 1:
            in_time.add(writer)
        if len(in_time) == 2:
            break
    # The listener is served by one of the two, so one of the writers was another one. What a loaded
    # machine shows later is passed over.
    assert len(in_time) == 2, times
    listener.close()


@pytest.mark.usefixtures("unmeasured")
def test_a_thousand_clients_that_are_slow_or_vanish_harm_no_emit(
    server: int, tmp_path: Path
) -> None:
    token, _ = TokenFile(tmp_path / "trail" / TOKENS).create("ann", ["read"])
    clients: list[socket.socket] = []
    for number in range(1_000):
        client = opened(server, "GET /audit/stream", token)
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()  # with a reset
        else:
            clients.append(client)
    good = opened(server, "GET /audit/stream?event=proof", token)
    seen = b""
    while b"retry:" not in seen:
        seen += good.recv(65_536)
    answered: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: answered.extend(ask(server, "POST /emit/proof") for _ in range(50))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == 100
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answered)
    while seen.count(b"event: record") < 100:
        seen += good.recv(65_536)
    for client in [good, *clients]:
        client.close()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_streams_end_with_the_server_and_go_on_with_the_next_one(
    tmp_path: Path, workers: int, signal_number: int
) -> None:
    """Without a time-out for what is open: it would be waited for."""
    with serving(tmp_path, workers) as served:
        token, _ = TokenFile(tmp_path / "trail" / TOKENS).create("ann", ["read"])
        listeners = [
            Follow(served.port, f"GET /audit/stream?event={event}", token)
            for event in ("hello", "hello", "later")
        ]
        ask(served.port, "POST /emit/hello")
        for listener in listeners[:2]:
            listener.read_until(b"event: record")
        served.process.send_signal(signal_number)
        for listener in listeners:
            listener.read_to_the_end()
            assert listener.seen.endswith(
                b"0\r\n\r\n"
            )  # of a whole answer, not of a broken connection
        said = served.said()
        assert "Traceback" not in said
        assert "ERROR" not in said
    settings = Settings.from_env({}, directory=tmp_path / "trail", agent="off", service_name="hub")
    provider = AuditProvider(settings)
    for event in ("hello", "later"):
        AuditLogger(provider=provider).audit_event(event, "emit", pid=0)
    provider.close()
    with serving(tmp_path, workers) as served:
        for listener in listeners[1:]:
            again = Follow(served.port, listener.line, token, listener.last_id)
            again.read_until(b"event: record")
            again.close()
            assert b'"pid":0' in again.seen
            assert again.seen.count(b"event: record") == 1


class Follow:
    """A client of a stream over a socket."""

    def __init__(self, port: int, line: str, token: str, last: str = "") -> None:
        self.line = line
        self.seen = b""
        self._socket = opened(port, line, token, last)
        self.read_until(b"retry:")

    @property
    def last_id(self) -> str:
        """What a browser would send as Last-Event-ID."""
        return re.findall(rb"^id: (\d+)$", self.seen, re.MULTILINE)[-1].decode()  # type: ignore[no-any-return]

    def read_until(self, part: bytes) -> None:
        while part not in self.seen:
            more = self._socket.recv(65_536)
            assert more, self.seen
            self.seen += more

    def read_to_the_end(self) -> None:
        while more := self._socket.recv(65_536):
            self.seen += more
        self.close()

    def close(self) -> None:
        self._socket.close()


def test_a_provider_of_its_own_serves_a_stream_after_a_fork_as_well(tmp_path: Path) -> None:
    settings = Settings.from_env({}, directory=tmp_path / "trail", agent="off", service_name="hub")
    provider = AuditProvider(settings)
    token, _ = TokenFile(provider.directory / TOKENS).create("ann", ["read"])
    app = AuditEvents(provider=provider, per_minute=0)

    async def listen() -> list[int]:
        async with Listener(app, token) as listener:
            await emit(provider, 1)
            await until(lambda: listener.numbers == [1])
            return listener.numbers

    assert asyncio.run(listen()) == [1]
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            code = 0 if asyncio.run(listen()) == [1] else 1
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(listen()) == [1]
    provider.close()
