"""Any other ASGI application, where uvicorn serves it.

An application of Starlette has a better place for the middleware, inside the
server span, and is left to `starlette`, as those of Django and Flask are to
theirs; but not what stands around it and may answer in its place. Who has put
an `AuditMiddleware` somewhere in the application is left alone. Other servers
have no place where an application passes by: there, wrap it yourself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from otel_audit.instrumentation.entries import audits_itself
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.web.fastapi import is_instrumented
from otel_audit.web.middleware import AuditMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PASSING_ON: Final = ("uvicorn", "a2wsgi", "opentelemetry")
"""Packages whose middleware answers nothing by itself."""

_DEEPEST: Final = 100


class UvicornInstrumentor(AuditInstrumentor):
    """Audits what uvicorn serves; takes the options of `AuditMiddleware`."""

    name = "uvicorn"
    requires = "uvicorn >= 0.20"

    def _instrument(self, **options: Any) -> None:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def load(config: Any) -> None:
                original(config)
                if not _audited(config.loaded_app):
                    config.loaded_app = AuditMiddleware(config.loaded_app, **options)

            return load

        self._patch = Patch("uvicorn.config", "Config", "load", make)
        self._patch.apply()

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        self._patch.restore()


def _audited(app: Any) -> bool:
    """Whether the application has, or will have, the middleware by other means."""
    nothing_around = True  # that may answer by itself, where nobody would audit it
    for node in _chain(app):
        if is_instrumented(node):
            # By its author, who has chosen the place and the options.
            return True
        if nothing_around and (hasattr(node, "build_middleware_stack") or audits_itself(node)):
            return True
        nothing_around &= type(node).__module__.partition(".")[0] in _PASSING_ON
    return False


def _chain(app: Any) -> Iterator[Any]:
    """Yield the application and what it wraps, as far as one can see."""
    for _ in range(_DEEPEST):
        if app is None:
            return
        yield app
        app = getattr(app, "app", None)
