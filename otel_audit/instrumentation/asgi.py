"""Any other ASGI application, where uvicorn serves it.

An application of Starlette has a better place for the middleware, inside the
server span, and is left to `starlette`. Other servers have no place where an
application passes by: there, wrap it in `AuditMiddleware` yourself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.web.middleware import AuditMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable


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
    while app is not None:
        if isinstance(app, AuditMiddleware) or hasattr(app, "build_middleware_stack"):
            return True
        app = getattr(app, "app", None)
    return False
