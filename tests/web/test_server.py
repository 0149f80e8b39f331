"""Under a real server: what a client reads from its socket, and when."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from otel_audit.api.logger import AuditLogger
from otel_audit.web.fastapi import instrument_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from otel_audit.api.provider import AuditProvider
    from tests.web.conftest import Hold, Records


@contextmanager
def serving(app: FastAPI, http: str = "h11") -> Iterator[int]:
    """Run uvicorn in a thread; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=http, log_level="critical", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            port: int = listener.getsockname()[1]
            yield port
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def make_app(provider: AuditProvider, file: Path) -> FastAPI:
    """Make an application that emits a record at each kind of place."""
    audit = AuditLogger(provider=provider)
    app = FastAPI()

    @app.get("/plain")
    async def plain() -> str:
        audit.audit_event("work", "do")
        return "done"

    @app.get("/stream")
    async def stream(length: int | None = None) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"begun "
            audit.audit_event("work", "do")
            yield b"confirmed"

        return StreamingResponse(
            chunks(), headers={"content-length": str(length)} if length else {}
        )

    @app.get("/file")
    async def download() -> FileResponse:
        audit.audit_event("file", "download")
        return FileResponse(file)

    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        if "early" in websocket.query_params:
            audit.audit_event("chat", "join")
        await websocket.accept()
        await echoing(websocket, audit)

    instrument_app(app, provider=provider, http_activity="off")
    return app


async def echoing(websocket: WebSocket, audit: AuditLogger) -> None:
    """Send back what is received, until the client leaves."""
    with suppress(WebSocketDisconnect):
        while True:
            text = await websocket.receive_text()
            audit.audit_event("chat", "write")
            await websocket.send_text(text)
    audit.audit_event("chat", "leave")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a file to download."""
    path = tmp_path / "report.txt"
    path.write_text("confirmed")
    return path


class Reader(threading.Thread):
    """A client that sends one request and keeps what it reads until the connection closes."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__()
        self.read = b""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        self._socket.sendall(request.encode())
        self.start()

    def run(self) -> None:
        with self._socket as connection:
            while chunk := connection.recv(65_536):
                self.read += chunk


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    ("path", "early"),
    [
        ("/plain", b""),
        ("/file", b""),
        ("/stream", b"begun "),
        ("/stream?length=15", b"begun "),
    ],
)
def test_no_byte_arrives_before_the_commit(
    provider: AuditProvider,
    records: Records,
    hold: Hold,
    file: Path,
    path: str,
    early: bytes,
    http: str,
) -> None:
    """What stands behind the barrier is read only after the trail is let go."""
    with serving(make_app(provider, file), http) as port:
        with hold():
            reader = Reader(port, path)
            for _ in range(3000):
                if early in reader.read:
                    break
                time.sleep(0.01)
            time.sleep(0.3)
            before = reader.read
            assert records() == []
        reader.join(30)
    assert b"confirmed" not in before
    assert (early in before) if early else (before == b"")
    assert b"done" in reader.read or b"confirmed" in reader.read
    assert len(records()) == 1


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["/stream", "/stream?length=15"])
def test_the_client_sees_a_broken_connection(
    make_provider: Callable[..., AuditProvider], hold: Hold, file: Path, path: str, http: str
) -> None:
    """Nothing that a client could take for a complete answer, also if it knows the length."""
    provider = make_provider(timeout=0.2)
    with (
        serving(make_app(provider, file), http) as port,
        hold(),
        pytest.raises(httpx.RemoteProtocolError),
    ):
        httpx.get(f"http://127.0.0.1:{port}{path}")


@pytest.mark.parametrize("path", ["/plain", "/file"])
def test_the_client_sees_a_503(
    make_provider: Callable[..., AuditProvider], hold: Hold, file: Path, path: str
) -> None:
    """On a connection that is kept alive, so that the next request can go over it."""
    provider = make_provider(timeout=0.2)
    with (
        serving(make_app(provider, file)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        with hold():
            response = client.get(path)
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        for _ in range(300):
            response = client.get(path)
            if response.status_code == 200:
                break
            time.sleep(0.1)
        assert response.status_code == 200


def test_a_websocket(provider: AuditProvider, records: Records, hold: Hold, file: Path) -> None:
    """An echo is heard only when its record is durable."""
    with serving(make_app(provider, file)) as port, connect(f"ws://127.0.0.1:{port}/ws") as client:
        with hold():
            client.send("hello")
            with pytest.raises(TimeoutError):
                client.recv(timeout=0.3)
        assert client.recv(timeout=30) == "hello"
        assert [record["action"] for record in records()] == ["write"]
    assert [record["action"] for record in records()] == ["write", "leave"]


def test_a_websocket_that_is_open(
    make_provider: Callable[..., AuditProvider], hold: Hold, file: Path
) -> None:
    """Close code 1011: the echo does not arrive."""
    provider = make_provider(timeout=0.2)
    with (
        serving(make_app(provider, file)) as port,
        hold(),
        connect(f"ws://127.0.0.1:{port}/ws") as client,
    ):
        client.send("hello")
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_a_websocket_that_is_not_open_yet(
    make_provider: Callable[..., AuditProvider], hold: Hold, file: Path
) -> None:
    """The client gets the 503 itself in place of the handshake's answer."""
    provider = make_provider(timeout=0.2)
    with (
        serving(make_app(provider, file)) as port,
        hold(),
        pytest.raises(InvalidStatus) as denied,
    ):
        connect(f"ws://127.0.0.1:{port}/ws?early=true")
    assert denied.value.response.status_code == 503
    assert denied.value.response.headers["content-type"] == "application/problem+json"


def test_the_end_of_the_server_signs(provider: AuditProvider, file: Path) -> None:
    """Uvicorn raises SIGTERM again after its own clean-up: only lifespan is left to do ours."""
    with serving(make_app(provider, file)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/plain").status_code == 200
    with provider.reader() as reader:
        assert reader.last_checkpoint() is not None


PROGRAM = """
from fastapi import FastAPI
from otel_audit.web.fastapi import instrument_app
app = FastAPI()
instrument_app(app)
"""


def test_a_server_with_an_unusable_trail_does_not_start(tmp_path: Path) -> None:
    """Uvicorn shows our message and exits with 3."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "trail").write_text("a file where the directory should be")
    environment = {**os.environ, "OTEL_AUDIT_DIR": str(tmp_path / "trail")}
    command = [sys.executable, "-m", "uvicorn", "program:app", "--port", "0"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "the audit trail cannot be used, so the application is not started" in done.stderr
    assert str(tmp_path / "trail") in done.stderr


async def test_a_client_that_leaves_is_on_record(provider: AuditProvider, records: Records) -> None:
    """Uvicorn tells an application that listens; the request is recorded as failed."""
    app = FastAPI()
    asked = threading.Event()

    @app.get("/slow")
    async def slow(request: Any) -> str:
        return str(request)

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        await receive()
        asked.set()
        assert (await receive())["type"] == "http.disconnect"

    audited: Any = instrument_app(listening, provider=provider)
    with serving(audited) as port:
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await writer.drain()
        await asyncio.to_thread(asked.wait, 5)
        writer.close()
        await writer.wait_closed()
        for _ in range(50):
            if records():
                break
            await asyncio.sleep(0.05)
    (record,) = records()
    assert record["error"] == "the client disconnected before the response"
    assert record["client_ip"] == "127.0.0.1"
