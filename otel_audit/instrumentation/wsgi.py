"""How a framework's WSGI entry is replaced by one with `AuditWSGIMiddleware` around it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from otel_audit.instrumentation.entries import entries
from otel_audit.web.wsgi import SCOPE_KEY, AuditWSGIMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Environ = dict[str, Any]
    Entry = Callable[..., Iterable[bytes]]

_APP: Final = "otel_audit.app"


def audited(
    describe: Callable[[Environ], None] | None = None, **options: Any
) -> Callable[[Entry], Entry]:
    """Return what makes an audited ``__call__(app, environ, start_response)`` of the original.

    ``describe`` is called when the response starts, to put what the framework
    knows into the environ. A request inside an audited one is left alone.
    """

    def make(original: Entry) -> Entry:
        def enter(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            def start(status: str, headers: Any, *exc_info: Any) -> Any:
                if describe is not None:
                    describe(environ)
                return start_response(status, headers, *exc_info)

            return original(environ[_APP], environ, start)

        middleware = AuditWSGIMiddleware(enter, **options)

        @functools.wraps(original)
        def call(app: Any, environ: Environ, start_response: Any) -> Iterable[bytes]:
            if SCOPE_KEY in environ:
                return original(app, environ, start_response)
            return middleware({**environ, _APP: app}, start_response)

        entries.add(call)
        return call

    return make


class Route:
    """A route as `otel_audit.web.routes` looks at it: something with a ``path``."""

    __slots__ = ("path",)

    def __init__(self, template: str) -> None:
        self.path = template
