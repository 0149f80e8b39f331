"""Health on a port of its own, by a thread of its own: it answers while the event loop is blocked.

Promises: a request is answered without the application's event loop, and says
so when that loop does not answer: 503 on every route but `startup`. What is
slow, silent or too much costs its own connection; where there are too many, who
is new takes the place of who has been silent for longest, first of those that
never asked. HTTP/1.1, GET and HEAD, keep-alive.

Each system call of a thread gives up the interpreter's lock, and while another
thread computes, getting it back takes up to 5 ms (`sys.getswitchinterval`): so
a request takes as few calls as possible.
"""

from __future__ import annotations

import inspect
import logging
import selectors
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from otel_audit.web.health.answers import NOT_ALLOWED, Answer, allowed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.web.asgi import Scope
    from otel_audit.web.health.answers import HealthAnswers

_CONNECTIONS: Final = 128
_LONGEST_REQUEST: Final = 16_384
_IDLE_SECONDS: Final = 75.0
"""Longer than load balancers keep a connection, so that it is they who close it."""

_FIRST_SECONDS: Final = 5.0
"""How long somebody who has asked nothing yet may take to do so."""

_SWEEP_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 1.0
_END: Final = b"\r\n\r\n"
_BODIES: Final = frozenset({b"content-length", b"transfer-encoding"})

_logger: Final = logging.getLogger("otel_audit.health")
_NOT_FOUND: Final = Answer.of(404, {"detail": "only health is here"})
_MALFORMED: Final = Answer.of(400, {"detail": "this is no HTTP/1.1 request"})
_BROKEN: Final = Answer.of(500, {"detail": "this request cannot be answered"})


class HealthPort:
    """A small HTTP server for health only."""

    def __init__(self, answers: HealthAnswers, host: str, ports: Iterable[int]) -> None:
        """Listen on the first of ``ports`` that is free. Raises `OSError` when none is."""
        self._answers = answers
        self._socket = _listen(host, ports)
        self.port: int = self._socket.getsockname()[1]
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        # What is written here wakes the thread up, to end.
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(
            target=self._serve, name="otel-audit-health-port", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and close what is open."""
        self._stopping = True
        with suppress(OSError):
            self._bell.send(b"\0")
        self._thread.join(_JOIN_SECONDS)

    def _serve(self) -> None:
        swept = time.monotonic()
        try:
            while not self._stopping:
                # Newcomers last: they may put somebody out, but nobody whose request has come.
                ready = [key for key, _ in self._selector.select(_SWEEP_SECONDS)]
                for key in sorted(ready, key=lambda key: key.fileobj is self._socket):
                    if key.fileobj is self._socket:
                        self._accept()
                    elif isinstance(key.data, _Connection):
                        self._read(key.data)
                if time.monotonic() - swept > _SWEEP_SECONDS:
                    swept = time.monotonic()
                    self._sweep(swept)
        except Exception:
            _logger.exception("a defect of otel-audit: the health port %d ended", self.port)
        finally:
            self._close_all()

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            # Whoever came has left again, or there are no file descriptors.
            return
        accepted.settimeout(0)
        connections = self._connections()
        if len(connections) >= _CONNECTIONS:
            self._forget(min(connections, key=_Connection.worth))
        connection = _Connection(accepted)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        # Most send their request at once: it spares a call of select to look now.
        self._read(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or not self._answer(connection, data):
            self._forget(connection)

    def _answer(self, connection: _Connection, data: bytes) -> bool:
        """Answer all complete requests; False when the connection is to be closed."""
        # Empty lines before a request are to be passed over (RFC 9112, section 2.2).
        connection.buffer = (connection.buffer + data).lstrip(b"\r\n")
        while _END in connection.buffer:
            connection.asked = True
            connection.since = time.monotonic()
            head, _, behind = connection.buffer.partition(_END)
            connection.buffer = behind.lstrip(b"\r\n")
            response, goes_on = self._response(head)
            try:
                connection.socket.sendall(response)
            except OSError:
                # Including one who does not read what was answered: a few hundred bytes always fit.
                return False
            if not goes_on:
                return False
        return len(connection.buffer) <= _LONGEST_REQUEST

    def _response(self, head: bytes) -> tuple[bytes, bool]:
        """Return the bytes of a response, and whether the connection goes on."""
        try:
            scope = _scope(head)
        except ValueError:
            return _bytes(_MALFORMED, head_only=False, goes_on=False), False
        headers = scope["headers"]
        wishes = b",".join(value for name, value in headers if name == b"connection").lower()
        goes_on = (
            scope["http_version"] == "1.1"
            and b"close" not in map(bytes.strip, wishes.split(b","))
            and not any(name in _BODIES for name, _ in headers)
        )
        try:
            answer = self._find(scope)
        except Exception:
            _logger.exception("the health port cannot answer %s", scope["path"])
            answer = _BROKEN
        head_only = scope["method"] == "HEAD"
        return _bytes(answer, head_only=head_only, goes_on=goes_on), goes_on

    def _find(self, scope: Scope) -> Answer:
        answers = self._answers
        path = scope["path"]
        route = answers.routes.get(path)
        if route is None and path != answers.detailed_path:
            return _NOT_FOUND
        if not allowed(scope):
            return NOT_ALLOWED
        blocked = answers.checker.loop_silence()
        if route is not None:
            return (
                answers.blocked(blocked) if blocked and route != answers.startup else route(scope)
            )
        refusal = answers.refusal(scope)
        if refusal is None:
            return answers.blocked(blocked) if blocked else answers.detailed(scope)
        if isinstance(refusal, Answer):
            return refusal
        # The hook is a coroutine, whose loop may be the one that is blocked.
        if inspect.iscoroutine(refusal):
            refusal.close()
        return answers.refused

    def _sweep(self, now: float) -> None:
        for connection in self._connections():
            patience = _IDLE_SECONDS if connection.asked else _FIRST_SECONDS
            if now - connection.since > patience:
                self._forget(connection)

    def _connections(self) -> list[_Connection]:
        keys = self._selector.get_map().values()
        return [key.data for key in keys if isinstance(key.data, _Connection)]

    def _forget(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            fileobj: Any = key.fileobj
            fileobj.close()
        self._bell.close()
        self._selector.close()


class _Connection:
    """One client, and what it has sent so far."""

    __slots__ = ("asked", "buffer", "since", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.buffer = b""
        self.asked = False
        """Whether a whole request has come."""
        self.since = time.monotonic()
        """When the newest one came, or the client."""

    def worth(self) -> tuple[bool, float]:
        """Rank it: the least is closed first where there are too many."""
        return self.asked, self.since


def _listen(host: str, ports: Iterable[int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    tried: list[int] = []
    for port in ports:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_CONNECTIONS)
        except OSError as error:
            listening.close()
            tried.append(port)
            reason = error
            continue
        listening.settimeout(0)
        return listening
    message = (
        f"health cannot listen on {host}, port {', '.join(map(str, tried))}: "
        f"{reason and reason.strerror}; each worker process needs a port of its own: give as many, "
        "such as port=range(9000, 9004)"
    )
    raise OSError(message) from reason


def _scope(head: bytes) -> Scope:
    """Read a request's head into an ASGI scope. Raises `ValueError`."""
    first, *lines = head.split(b"\r\n")
    method, target, version = first.decode("latin-1").split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    path, _, query = target.partition("?")
    if not target.startswith("/"):
        # A proxy may have said scheme and host, too (RFC 9112, section 3.2.2).
        path = urlsplit(path).path
    headers = []
    for line in lines:
        name, separator, value = line.partition(b":")
        if not separator:
            raise ValueError(line)
        headers.append((name.strip().lower(), value.strip()))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": version.removeprefix("HTTP/"),
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }


def _bytes(answer: Answer, *, head_only: bool, goes_on: bool) -> bytes:
    reason = HTTPStatus(answer.status).phrase
    lines = [b"HTTP/1.1 %d %s" % (answer.status, reason.encode())]
    lines += [b"%s: %s" % header for header in answer.headers]
    if not goes_on:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + _END + (b"" if head_only else answer.body)
