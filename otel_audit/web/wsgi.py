"""The WSGI middleware: context for each request, and the commit barrier before each answer.

Promises what `AuditMiddleware` does, for any WSGI application (PEP 3333): no
byte of a response reaches the server before everything that the request has
emitted until then is durable; a response that has not begun becomes a 503,
one that has begun is cut off. In a thread without an event loop `emit` waits
by itself; the barrier is for errors that somebody swallowed, and for views that
run in an event loop of their own.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import attach, get_current
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from otel_audit.errors import AuditUnavailableError
from otel_audit.web import problem
from otel_audit.web.activity import named
from otel_audit.web.binding import Binding, refusing_unknown_options
from otel_audit.web.bridges import WSGI, around
from otel_audit.web.identity import actor_from, checked_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context

    from otel_audit.api.context import RequestScope
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.activity import Activity
    from otel_audit.web.identity import IdentityHook

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], object]]
    WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]
    Headers = list[tuple[str, str]]
    ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | None

logger: Final = logging.getLogger("otel_audit.web")

SCOPE_KEY: Final = "otel_audit"
"""Where the environ holds what is known of the request, in the shape of an ASGI scope.

A framework's integration puts ``route`` (an object with ``path``) and
``path_params`` there; who finds it is nested in another middleware.
"""

_STATUS_LINE: Final = f"{problem.STATUS} Service Unavailable"


class AuditWSGIMiddleware:
    """Gives each request its audit context, and lets nothing out before it is durable.

    What a response consists of MUST NOT reach the server before every record
    that was emitted in the request until then is committed and synced.
    """

    @refusing_unknown_options
    def __init__(  # noqa: PLR0913 - each has a default, and all are checked here, once
        self,
        app: WSGIApp,
        *,
        provider: AuditProvider | None = None,
        identify: IdentityHook | None = None,
        trusted_proxies: Iterable[str] | None = None,
        proxy_header: str | None = None,
        session_cookie: str | None = "session",
        http_activity: str | None = None,
        exclude: Iterable[str] = (),
        request_id_header: str = "x-request-id",
        client_id_header: str | None = "x-client-id",
    ) -> None:
        """Wrap ``app``; the options are those of `AuditMiddleware`.

        ``identify`` gets the WSGI environ and is no coroutine function. Raises
        `AuditSettingsError`.
        """
        self.app = app
        self._identify = None if identify is None else checked_hook(identify)
        self._binding = Binding(
            provider=provider,
            trusted_proxies=trusted_proxies,
            proxy_header=proxy_header,
            session_cookie=session_cookie,
            http_activity=http_activity,
            exclude=exclude,
            request_id_header=request_id_header,
            client_id_header=client_id_header,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request (PEP 3333)."""
        if SCOPE_KEY in environ:
            return self.app(environ, start_response)
        scope = scope_of(environ)
        outer = around(WSGI, scope)
        if outer is not None:
            environ[SCOPE_KEY] = outer.inside = scope
            if self._identify is not None and outer.actor is None:
                outer.actor = actor_from(self._identify, environ)
            return self.app(environ, start_response)
        request, activity, id_header, refusal = self._binding.begin(WSGI, scope)
        environ[SCOPE_KEY] = scope
        exchange = _Exchange(scope, request, activity, start_response, id_header)
        if refusal is not None:
            return exchange.refuse(refusal)
        return exchange.run(self.app, environ, self._identify)


class _Exchange:
    """One request and its response; the response's iterable is what the server gets."""

    def __init__(
        self,
        scope: dict[str, Any],
        request: RequestScope,
        activity: Activity | None,
        start_response: StartResponse,
        id_header: bytes,
    ) -> None:
        self._scope = scope
        self._request = request
        self._activity = activity
        self._start_response = start_response
        self._id_header = id_header.decode("ascii")
        self._answer: tuple[str, Headers, ExcInfo] | None = None
        self._error: str | None = None
        self._span: NonRecordingSpan | None = None
        """Where the answer was made: OpenTelemetry may leave it before the body is."""
        self._write: Callable[[bytes], object] | None = None
        self._body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] = iter(())
        self._replaced = False
        self._closed = False

    def refuse(self, error: AuditUnavailableError) -> Iterable[bytes]:
        """Answer without calling the application."""
        return [self._replace(error, problem.refused(error, self._request.request_id))]

    def run(self, app: WSGIApp, environ: Environ, identify: IdentityHook | None) -> Iterable[bytes]:
        """Call the application, and return what the server sends."""
        request = self._request
        token = request.attach()
        try:
            if identify is not None and request.actor is None:
                request.actor = actor_from(identify, environ)
            self._body = app(environ, self._respond)
            if isinstance(self._body, (list, tuple)):
                # All is done: a server that asks for the length has it, and nothing else.
                return self._whole(self._body)
            self._chunks = iter(self._body)
        except AuditUnavailableError as error:
            return self._instead(error)
        except BaseException as error:
            failure = self._settle(error)
            if failure is not None and self._write is None:
                logger.exception("the application failed as well")
                return self._instead(failure)
            request.close()
            raise
        finally:
            request.detach(token)
        return self

    def __iter__(self) -> Iterator[bytes]:
        """Be the iterator of the response's body."""
        return self

    def __next__(self) -> bytes:
        """Return the next chunk, once what it answers for is durable."""
        token = self._enter()
        try:
            return self._next()
        finally:
            self._request.detach(token)

    def close(self) -> None:
        """End the request: the server calls it when all is sent, or the client has left."""
        if self._closed:
            return
        self._closed = True
        request = self._request
        token = self._enter()
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
            if self._activity is not None and not self._replaced:
                self._activity.request(None, "no response")
            self._barrier()
        except AuditUnavailableError as error:
            logger.error("records of a finished request are not confirmed: %s", error)  # noqa: TRY400 - where it happened says nothing
        finally:
            request.detach(token)
            request.close()

    def _enter(self) -> Token[Context]:
        """Be in the request, and in the span that its answer was made in unless there is another."""
        token = self._request.attach()
        if self._span is not None and not get_current_span().get_span_context().is_valid:
            attach(set_span_in_context(self._span))  # `token` restores what was before both
        return token

    def _respond(
        self, status: str, headers: Headers, exc_info: ExcInfo = None
    ) -> Callable[[bytes], object]:
        """Be the application's start_response: remember the answer, which nobody gets yet."""
        if self._write is not None:
            # Begun already: what the server does about it is in PEP 3333.
            return self._start_response(status, headers, exc_info)
        self._answer = status, headers, exc_info
        here = get_current_span().get_span_context()
        if here.is_valid:
            self._span = NonRecordingSpan(here)
        if self._activity is not None:
            # When the answer is let out, the server span of OpenTelemetry may have been left.
            self._activity.context = get_current()
            self._error = self._cause(int(status[:3]), exc_info)
        return self._written

    @staticmethod
    def _cause(code: int, exc_info: ExcInfo) -> str | None:
        if code < 500:  # noqa: PLR2004 - RFC 9110, section 15.6: the server's errors
            return None
        handled = exc_info[0] if exc_info else sys.exc_info()[0]
        return None if handled is None else named(handled)

    def _written(self, data: bytes) -> None:
        """Be the write() of old applications."""
        try:
            self._pass()
        except AuditUnavailableError as error:
            # Whoever swallows this error must still not get the rest sent.
            self._request.failure = error
            raise
        if self._write is not None:
            self._write(data)

    def _next(self) -> bytes:
        if self._replaced:
            raise StopIteration
        try:
            chunk = next(self._chunks)
        except StopIteration:
            return self._last()
        except AuditUnavailableError as error:
            return self._instead_of_next(error)
        except BaseException as error:
            failure = self._settle(error)
            if failure is not None and self._write is None:
                return self._instead_of_next(failure)
            raise
        return self._guarded(chunk)

    def _last(self) -> bytes:
        """Begin a response without a body, and let go."""
        if self._write is not None or self._answer is None:
            self._barrier()
            raise StopIteration
        replacement = self._guarded(b"")
        if not replacement:
            raise StopIteration
        return replacement

    def _guarded(self, chunk: bytes) -> bytes:
        try:
            self._pass()
        except AuditUnavailableError as error:
            return self._instead_of_next(error)
        return chunk

    def _whole(self, body: list[bytes] | tuple[bytes, ...]) -> Iterable[bytes]:
        self._pass()
        self._closed = True
        self._request.close()
        return body

    def _pass(self) -> None:
        """Let the server begin, once everything is durable."""
        begins = None if self._write is not None else self._answer
        if begins is not None and self._activity is not None:
            # Not before: until now the application may have called start_response again.
            self._activity.request(int(begins[0][:3]), self._error)
        self._barrier()
        if begins is not None:
            status, headers, exc_info = begins
            kept = [header for header in headers if header[0].lower() != self._id_header]
            kept.append((self._id_header, self._request.request_id))
            arguments = (status, kept) if exc_info is None else (status, kept, exc_info)
            self._write = self._start_response(*arguments)

    def _barrier(self) -> None:
        """Wait until all is durable. Raises `AuditUnavailableError`."""
        request = self._request
        if request.pending:
            asyncio.run(request.barrier())
        if request.failure is not None:
            raise request.failure

    def _settle(self, error: BaseException) -> AuditUnavailableError | None:
        """Record what the application raised; return why that is not confirmed, if it is not."""
        try:
            if self._activity is not None and self._write is None:
                self._activity.request(500, named(type(error)))
            self._barrier()
        except AuditUnavailableError as failure:
            return failure
        return None

    def _instead(self, error: AuditUnavailableError) -> Iterable[bytes]:
        """Answer with a 503 in place of the application's answer."""
        body = self._instead_of_next(error)
        self.close()
        return [body]

    def _instead_of_next(self, error: AuditUnavailableError) -> bytes:
        """Replace the response, or cut it off when it has begun."""
        if self._write is not None:
            raise error
        body = self._replace(error, problem.not_confirmed(error, self._request.request_id))
        if self._activity is not None:
            self._activity.unconfirmed(problem.STATUS, error)
        return body

    def _replace(self, error: AuditUnavailableError, body: bytes) -> bytes:
        scope = self._scope
        logger.error("%s %s is answered with 503: %s", scope["method"], scope["path"], error)
        self._replaced = True
        swallowed = self._answer[1] if self._answer else []
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in swallowed]
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in problem.headers(error, body, encoded)
        ]
        headers.append((self._id_header, self._request.request_id))
        self._write = self._start_response(_STATUS_LINE, headers)
        return body


def scope_of(environ: Environ) -> dict[str, Any]:
    """Return what the web layer looks at, in the shape of an ASGI scope."""
    headers = [
        (name[5:].replace("_", "-").lower().encode("latin-1"), str(value).encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    peer = environ.get("REMOTE_ADDR")
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return {
        "type": "http",
        "method": environ.get("REQUEST_METHOD", "GET"),
        # PEP 3333: texts hold bytes as latin-1; what they mean is UTF-8.
        "path": path.encode("latin-1", "replace").decode("utf-8", "replace") or "/",
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1", "replace"),
        "root_path": "",
        "headers": headers,
        "client": (peer, 0) if peer else None,
    }
