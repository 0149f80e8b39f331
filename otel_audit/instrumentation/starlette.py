"""Starlette and FastAPI: every application is audited when it is first called.

Promises what `instrument_app` does, for applications that do not call it: the
first call comes after the application has been built and after
OpenTelemetry's own instrumentation, so the middleware finds its place whatever
was loaded first. An application inside another audited one is left alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.web.asgi import REQUEST_KEY
from otel_audit.web.fastapi import instrument_app, is_instrumented, uninstrument_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.web.asgi import Receive, Scope, Send


class StarletteInstrumentor(AuditInstrumentor):
    """Audits applications of Starlette, and so of FastAPI; takes the options of `instrument_app`."""

    name = "starlette"
    requires = "starlette >= 0.27"

    def _instrument(self, **options: Any) -> None:
        self._apps: WeakSet[Any] = WeakSet()

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            async def call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
                if REQUEST_KEY not in scope and not is_instrumented(app):
                    instrument_app(app, **options)
                    self._apps.add(app)
                await original(app, scope, receive, send)

            return call

        self._patch = Patch("starlette.applications", "Starlette", "__call__", make)
        self._patch.apply()

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        self._patch.restore()
        for app in list(self._apps):
            uninstrument_app(app)
