"""One request that passes through both interfaces: ASGI around WSGI, or the other way.

A bridge (a2wsgi, asgiref, Starlette's) makes an environ of a scope, and knows
nothing of what a middleware has put there; the context it does take along.
Promises: such a request is recorded once, with one identity, by the middleware
around it, which learns the route from the one inside. What an application asks
itself meanwhile (by a test client) is another request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_audit.api.context import current_scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.api.context import RequestScope

ASGI: Final = "asgi"
WSGI: Final = "wsgi"
_OTHER: Final = {ASGI: WSGI, WSGI: ASGI}


def asked(interface: str, scope: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return by what a request is known again on the other side."""
    path: str = scope["path"]
    root_path: str = scope.get("root_path") or ""
    # Servers do not agree on whether the path begins with the root's.
    if not path.startswith(root_path):
        path = root_path + path
    return interface, scope.get("method") or "", path


def around(interface: str, scope: Mapping[str, Any]) -> RequestScope | None:
    """Return the request that a middleware of the other interface has got, if this is the same."""
    request = current_scope()
    if request is None or request.asked is None:
        return None
    return request if request.asked == asked(_OTHER[interface], scope) else None
