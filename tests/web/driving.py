"""The server's side of ASGI, played by hand: what arrives, and what was sent until now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_audit.web.asgi import ASGIApp, Message, Scope

Headers = list[tuple[bytes, bytes]]

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"done"}
CHUNK: Message = {"type": "http.response.body", "body": b"part", "more_body": True}
ACCEPT: Message = {"type": "websocket.accept", "headers": []}
SEND: Message = {"type": "websocket.send", "text": "hello"}


class Wire:
    """One connection as the server has it."""

    def __init__(self, *incoming: Message) -> None:
        self.sent: list[Message] = []
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        for message in incoming:
            self.incoming.put_nowait(message)

    async def receive(self) -> Message:
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def types(self) -> list[str]:
        """What kinds of messages were sent."""
        return [message["type"] for message in self.sent]

    @property
    def status(self) -> int:
        """The response's status."""
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        """The response's body."""
        return b"".join(message.get("body", b"") for message in self.sent)

    def header(self, name: bytes) -> list[bytes]:
        """All values of one header of the first message."""
        return [value for key, value in self.sent[0]["headers"] if key.lower() == name]


def http(
    path: str = "/", method: str = "GET", headers: Headers | None = None, **more: Any
) -> Scope:
    """Make the scope of an HTTP request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers or [],
        "client": ("192.0.2.7", 50_000),
        "server": ("127.0.0.1", 80),
        "state": {},
        **more,
    }


def websocket(path: str = "/ws", headers: Headers | None = None, **more: Any) -> Scope:
    """Make the scope of a WebSocket connection."""
    scope = http(path, headers=headers, **more)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": []}


async def request(app: ASGIApp, scope: Scope | None = None) -> Wire:
    """Send a request without body and return what came of it."""
    wire = Wire({"type": "http.request", "body": b"", "more_body": False})
    await app(scope or http(), wire.receive, wire.send)
    return wire


async def connect(app: ASGIApp, *incoming: Message, scope: Scope | None = None) -> Wire:
    """Open a WebSocket, deliver ``incoming`` and return what came of it."""
    wire = Wire({"type": "websocket.connect"}, *incoming)
    await app(scope or websocket(), wire.receive, wire.send)
    return wire
