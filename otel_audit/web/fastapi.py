"""One line for FastAPI and Starlette: ``instrument_app(app)``.

Promises the right place for `AuditMiddleware`, whenever the line runs: around
all other middleware and all error handlers, so that what they emit is under
the barrier as well, and inside the server span of
opentelemetry-instrumentation-fastapi, so that records have its trace id. No
class is patched; the application gets a ``build_middleware_stack`` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from otel_audit.web.middleware import AuditMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Unpack

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp
    from otel_audit.web.identity import IdentityHook

_ATTRIBUTE: Final = "_otel_audit"
_BUILD: Final = "build_middleware_stack"


class AuditOptions(TypedDict, total=False):
    """What `instrument_app` takes by name; `AuditMiddleware` says what each means."""

    provider: AuditProvider | None
    identify: IdentityHook | None
    trusted_proxies: Iterable[str] | None
    proxy_header: str | None
    session_cookie: str | None
    http_activity: str | None
    exclude: Iterable[str]
    request_id_header: str
    client_id_header: str | None


def instrument_app(app: ASGIApp, **options: Unpack[AuditOptions]) -> ASGIApp:
    """Audit an application.

    A FastAPI or Starlette application is changed in place and returned; of any
    other ASGI application the audited form is returned. ``identify`` gets a
    `starlette.requests.HTTPConnection`, elsewhere the ASGI scope. Calling it
    again changes nothing but the options that are given. Raises
    `AuditSettingsError`.
    """
    if not hasattr(app, _BUILD):
        return app if isinstance(app, AuditMiddleware) else AuditMiddleware(app, **options)
    before: _Instrumentation | None = getattr(app, _ATTRIBUTE, None)
    if before is None:
        _Instrumentation(app, options).install()
    elif options:
        before.reconfigure(options)
    return app


def uninstrument_app(app: ASGIApp) -> ASGIApp:
    """Take back what `instrument_app` did; return the application as it was."""
    instrumentation: _Instrumentation | None = getattr(app, _ATTRIBUTE, None)
    if instrumentation is not None:
        instrumentation.remove()
    return app.app if isinstance(app, AuditMiddleware) else app


def is_instrumented(app: ASGIApp) -> bool:
    """Whether `instrument_app` has audited this very application."""
    return isinstance(app, AuditMiddleware) or hasattr(app, _ATTRIBUTE)


class _Instrumentation:
    """The middleware of one application, and how it gets into the stack."""

    def __init__(self, app: Any, options: AuditOptions) -> None:  # noqa: ANN401 - a Starlette, which is not imported here
        self._app = app
        self._options = options
        self._middleware = _middleware(app, options)
        self._original: Callable[[], ASGIApp] = app.build_middleware_stack
        self._active = True

    def install(self) -> None:
        """Be asked for the stack, or change the one that is built already."""
        app = self._app
        setattr(app, _ATTRIBUTE, self)
        app.build_middleware_stack = self.build
        if app.middleware_stack is not None:
            app.middleware_stack = self._placed(app.middleware_stack)

    def build(self) -> ASGIApp:
        """Build the stack as before, with the middleware in it."""
        stack = self._original()
        return self._placed(stack) if self._active else stack

    def reconfigure(self, options: AuditOptions) -> None:
        """Put a middleware with the additional ``options`` in the old one's place."""
        merged: AuditOptions = {**self._options, **options}
        old, new = self._middleware, _middleware(self._app, merged)
        new.app = old.app
        self._options, self._middleware = merged, new
        self._exchange(old, new)

    def remove(self) -> None:
        """Leave the application."""
        app = self._app
        self._active = False
        # Whoever has wrapped `build` since keeps it, and gets the stack as it was before.
        if app.build_middleware_stack == self.build:
            app.build_middleware_stack = self._original
        delattr(app, _ATTRIBUTE)
        self._exchange(self._middleware, self._middleware.app)

    def _placed(self, stack: Any) -> ASGIApp:  # noqa: ANN401 - a middleware, told by its attributes
        """Put the middleware inside the server span, if there is one, else around everything."""
        middleware = self._middleware
        tracing = _tracing(stack)
        if tracing is not None:
            middleware.app = tracing.app
            tracing.app = middleware
            return _as_asgi(stack)
        middleware.app = stack
        if self._app.build_middleware_stack == self.build:
            return middleware
        # Somebody has wrapped us. OpenTelemetry's instrumentation does, and it goes only around
        # an error middleware, of which it keeps what is inside.
        return _as_asgi(type(stack)(middleware))

    def _exchange(self, old: AuditMiddleware, new: ASGIApp) -> None:
        """Put ``new`` where ``old`` stands in the stack that is built, if it is."""
        app = self._app
        if app.middleware_stack is old:
            app.middleware_stack = new
            return
        for node in _chain(app.middleware_stack):
            if node.app is old:
                node.app = new
                return


def _middleware(app: Any, options: AuditOptions) -> AuditMiddleware:  # noqa: ANN401 - a Starlette, which is not imported here
    hook = options.get("identify")
    if hook is not None and callable(hook):  # else the middleware says what is wrong
        options = {**options, "identify": _for_connections(hook)}
    return AuditMiddleware(app, **options)


def _for_connections(hook: IdentityHook) -> IdentityHook:
    """Give the hook the request as Starlette shows it."""
    from starlette.requests import HTTPConnection  # noqa: PLC0415 - only a Starlette comes here

    return lambda scope: hook(HTTPConnection(scope))


def _tracing(stack: Any) -> Any:  # noqa: ANN401 - a middleware, told by its name
    """Return the OpenTelemetry middleware at the top of the stack, if it stands there."""
    inside = (node for node in _chain(stack) if type(node).__name__ != "ServerErrorMiddleware")
    first = next(inside, None)
    return first if type(first).__name__ == "OpenTelemetryMiddleware" else None


def _chain(stack: Any) -> Iterator[Any]:  # noqa: ANN401 - middleware of any kind
    """Yield the middleware from the outermost to the last one that says what it wraps."""
    while hasattr(stack, "app"):
        yield stack
        stack = stack.app


def _as_asgi(app: Any) -> ASGIApp:  # noqa: ANN401 - what it is typed as is the point
    return app  # type: ignore[no-any-return]  # a Starlette, which is not imported here
