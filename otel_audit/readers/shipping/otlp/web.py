"""One HTTP server, spoken to patiently: TLS, proxy, time-outs, kept connections.

`Site.ask` promises an answer that was read to its end, or an `OSError` that
says what happened; it takes ``timeout`` seconds at most, however slowly the far
end reads and sends, and before that as long for each address of the host that
takes no connection; it follows no redirect, and it starts no span. Files
(certificates, token) are read anew after each failure, so that renewed ones
are found.
"""

from __future__ import annotations

import http.client
import io
import ssl
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast
from urllib.parse import urlsplit

import urllib3
from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY as SUPPRESS

from otel_audit._version import __version__
from otel_audit.destinations import without_credentials

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from otel_audit.destinations import Destination

_LONGEST_ANSWER: Final = 64 << 20
_CHUNK: Final = 64 << 10


class Reply(NamedTuple):
    """A whole HTTP answer; ``headers`` finds names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Site:
    """Speaks to the server of a destination. For one thread at a time."""

    def __init__(self, destination: Destination) -> None:
        """Remember where it is; nothing is opened yet."""
        self._destination = destination
        self.url, self._basic = without_credentials(destination.endpoint)
        self._pool: urllib3.PoolManager | None = None
        self._headers: dict[str, str] = {}

    def ask(
        self,
        method: str,
        rest: str = "",
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request to the destination's address with ``rest`` behind it. Raises `OSError`."""
        quiet = otel_context.set_value(SUPPRESS, True)  # noqa: FBT003 - the API has no name for it
        clock = _Clock(self._destination.timeout)
        token = otel_context.attach(otel_context.set_value(_CLOCK, clock, quiet))
        try:
            return self._ask(method, self.url + rest, body, headers or {})
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            raise _explained(error, self.url) from error
        finally:
            otel_context.detach(token)

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.clear()

    def _ask(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        if self._pool is None:
            self._pool = self._open()
        timeout = self._destination.timeout
        response = self._pool.request(
            method,
            url,
            body=body,
            headers={**self._headers, **headers},
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            content = _read(response)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Reply(response.status, response.headers, content)

    def _open(self) -> urllib3.PoolManager:
        """Make a pool from the files as they are now. Raises `OSError`."""
        destination = self._destination
        self._headers = {
            "user-agent": f"otel-audit/{__version__}",
            "accept-encoding": "identity",
            **dict(destination.headers),
        }
        if self._basic is not None:
            self._headers["authorization"] = self._basic
        if destination.token_file is not None:
            secret = destination.token_file.read_text("utf-8").strip()
            self._headers["authorization"] = f"Bearer {secret}"
        context = tls(destination) if destination.secure else None
        pool = (
            urllib3.ProxyManager(destination.proxy, num_pools=1, ssl_context=context)
            if destination.proxy
            else urllib3.PoolManager(num_pools=1, ssl_context=context)
        )
        pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
        return pool


class _Clock:
    """What is left of the time of one request."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._until = time.monotonic() + self._seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises `TimeoutError` when none are."""
        left = self._until - time.monotonic()
        if left <= 0:
            message = f"the far end did not take the request and answer it in {self._seconds:g} s"
            raise TimeoutError(message)
        return left


_CLOCK: Final = otel_context.create_key("otel_audit_request_clock")


def _clock() -> _Clock:
    """Return that of the request that is made: urllib3 hands nothing down to its connections."""
    return cast("_Clock", otel_context.get_value(_CLOCK))


class _Timely(io.RawIOBase):
    """Reads from a socket for as long as the request has time, not for so long each time."""

    def __init__(self, sock: socket.socket, source: io.RawIOBase) -> None:
        self._sock = sock
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        self._sock.settimeout(_clock().left())
        return self._source.readinto(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()


class _Lines:
    """Reads the head of an answer, and remembers its last line."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.close, self.flush = source.close, source.flush
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self._source.readline(limit)
        return self.last


class _Response(http.client.HTTPResponse):
    """Has an end in time, and knows headers that ended from a connection that did.

    The standard library gives each read the whole time-out, and takes one end for the other.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Timely(sock, self.fp.detach()))

    def begin(self) -> None:
        whole = self.fp
        lines = _Lines(whole)
        self.fp = lines  # type: ignore[assignment]  # all that is asked of it before the body
        super().begin()
        self.fp = whole
        if not lines.last:
            message = "the connection ended within the answer's headers"
            raise ConnectionError(message)


class _Plain(urllib3.connection.HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _clock().restart()
        return sock

    def send(self, data: bytes) -> None:  # type: ignore[override]  # urllib3 sends nothing else
        if self.sock is not None:
            self.sock.settimeout(_clock().left())
        super().send(data)


class _Secure(_Plain, urllib3.connection.HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


def tls(destination: Destination) -> ssl.SSLContext:
    """Trust the given authorities, or else the system's; show our certificate if there is one.

    Raises `OSError`.
    """
    context = ssl.create_default_context(
        cafile=None if destination.certificate is None else str(destination.certificate)
    )
    if destination.client_certificate is not None:
        context.load_cert_chain(destination.client_certificate, destination.client_key)
    return context


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(_CHUNK, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > _LONGEST_ANSWER:
            message = f"the answer has more than {_LONGEST_ANSWER >> 20} MiB"
            raise OSError(message)
    return b"".join(parts)


def _explained(error: Exception, url: str) -> OSError:
    """Say what happened, without urllib3's wrappers around it."""
    if isinstance(error, OSError) and error.filename is not None:
        return OSError(f"{error.filename} cannot be read: {error.strerror}")
    cause: BaseException = error
    while isinstance(cause, urllib3.exceptions.HTTPError):
        inner = cause.__cause__ or next(
            (argument for argument in reversed(cause.args) if isinstance(argument, Exception)), None
        )
        if inner is None:
            break
        cause = inner
    split = urlsplit(url)
    text = str(cause) or type(cause).__name__
    return OSError(f"{split.scheme}://{split.netloc}: {text}")
