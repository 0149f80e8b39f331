"""Health for web applications: ``setup_health_check_routes(app)``.

Promises: the routes of `answers.py` are answered by the outermost ASGI
layer, before any middleware, router, trace or audit record, from prebuilt
bytes; the checker starts when the application has started, in its event loop,
and stops with it. Everything else passes through untouched.

A FastAPI or Starlette application is changed in place. It is not enough to put
a middleware around its stack, as others do so later, and OpenTelemetry insists
on what it finds there: so the application gets a class of its own, whose call
asks for health first. No class of anybody else's is changed.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Literal

from otel_audit.errors import AuditSettingsError
from otel_audit.health.checker import get_health_checker
from otel_audit.web.health.answers import NOT_ALLOWED, Answer, HealthAnswers, allowed
from otel_audit.web.health.port import HealthPort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_audit.health.checker import HealthChecker
    from otel_audit.web.asgi import ASGIApp, Message, Receive, Scope, Send
    from otel_audit.web.health.answers import LetsIn

_STARTED: Final = "lifespan.startup.complete"
_STOPPING: Final = "lifespan.shutdown"


def setup_health_check_routes(
    app: ASGIApp,
    path: str = "/health",
    *,
    checker: HealthChecker | None = None,
    details: Literal["authorized", "open"] = "authorized",
    authorize: LetsIn | None = None,
    token: str | None = None,
    port: int | Sequence[int] | None = None,
    host: str = "127.0.0.1",
) -> ASGIApp:
    """Answer health in an application, and have its lifespan start and stop the checker.

    A FastAPI or Starlette application is changed in place and returned; of any
    other ASGI application the form with health is returned.

    ``checker``: default is `get_health_checker()`. ``details``: who may see
    ``{path}/detailed``: those who send ``token`` as a bearer token, those whom
    ``authorize`` lets in, or everybody ("open"). It is called with the ASGI
    scope and may be a coroutine function: an `access.Authorize`, such as a
    `TokenFile`, or a hook that says only whether. ``port``: serve the same on a
    port of its own too, by a thread that answers while the event loop is
    blocked; of several the first that is free, one for each worker. Raises
    `AuditSettingsError`.
    """
    answers = HealthAnswers(
        get_health_checker() if checker is None else checker,
        path,
        details=details,
        authorize=authorize,
        token=token,
    )
    ports = (port,) if isinstance(port, int) else tuple(port or ())
    if not all(0 <= number <= 65_535 for number in ports):  # noqa: PLR2004 - the range of TCP ports
        message = f"port={port!r} cannot be used: a port is 0 (any) to 65535"
        raise AuditSettingsError(message)
    layer = HealthLayer(app, answers, host, ports)
    if not hasattr(app, "build_middleware_stack"):
        return layer
    layer.app = _with_health(app, layer)
    return app


class HealthLayer:
    """The outermost ASGI layer: answers health, and passes everything else on."""

    __slots__ = ("_answers", "_host", "_managed", "_port", "_ports", "_root", "_routes", "app")

    def __init__(
        self, app: ASGIApp, answers: HealthAnswers, host: str, ports: Sequence[int]
    ) -> None:
        """Wrap ``app``; ``ports`` are those of which one is to be served on ``host``."""
        self.app = app
        self._answers = answers
        self._routes = answers.routes
        # FastAPI's own, which it makes the scope's when it is called.
        self._root: str = getattr(app, "root_path", "")
        self._host = host
        self._ports = ports
        self._port: HealthPort | None = None
        self._managed = False
        """Whether a lifespan starts and stops the checker."""

    @property
    def port(self) -> int | None:
        """The port of its own that is served now, if one is."""
        return None if self._port is None else self._port.port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3.0)."""
        kind = scope["type"]
        if kind == "http":
            path = scope["path"]
            route = self._routes.get(path)
            if route is not None:
                await self._send(send, scope, route(scope) if allowed(scope) else NOT_ALLOWED)
                return
            root = self._root or scope.get("root_path", "")
            if root or path == self._answers.detailed_path:
                answer = await self._rarer(scope, path.removeprefix(root))
                if answer is not None:
                    await self._send(send, scope, answer)
                    return
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _rarer(self, scope: Scope, path: str) -> Answer | None:
        """Answer details, and what is asked for below a root path; None for everything else."""
        route = self._routes.get(path)
        if route is None and path != self._answers.detailed_path:
            return None
        if not allowed(scope):
            return NOT_ALLOWED
        if route is not None:
            return route(scope)
        refusal = self._answers.refusal(scope)
        if refusal is not None and not isinstance(refusal, Answer):
            refusal = await self._answers.awaited(refusal)
        return self._answers.detailed(scope) if refusal is None else refusal

    async def _send(self, send: Send, scope: Scope, answer: Answer) -> None:
        if not (self._managed or self._answers.checker.running):
            # Nobody told us that the application has started: a server without lifespan.
            self._answers.checker.start()
        # A list of its own: whoever stands outside may add headers to it.
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": list(answer.headers),
            }
        )
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        checker = self._answers.checker

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == _STOPPING:
                self._stop()
            return message

        async def sending(message: Message) -> None:
            if message["type"] == _STARTED:
                try:
                    self._open_port()
                except OSError as error:
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
                else:
                    self._managed = True
                    # Now: what the probes use is there since the application's own start.
                    checker.start()
            await send(message)

        await self.app(scope, receiving, sending)

    def _open_port(self) -> None:
        if self._ports:
            self._port = HealthPort(self._answers, self._host, self._ports)

    def _stop(self) -> None:
        self._answers.checker.stop()
        port, self._port = self._port, None
        if port is not None:
            port.close()


def _with_health(app: Any, layer: HealthLayer) -> ASGIApp:  # noqa: ANN401 - a Starlette, which is not imported here
    """Give the application a class of its own, and return how it was called before."""
    kind = type(app)

    async def call(_self: Any, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ANN401 - the application
        await layer(scope, receive, send)

    names = {"__call__": call, "__doc__": kind.__doc__, "__module__": kind.__module__}
    app.__class__ = type(kind.__name__, (kind,), names)
    return MethodType(kind.__call__, app)
