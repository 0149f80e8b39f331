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


def around(interface: str, scope: Mapping[str, Any]) -> RequestScope | None:
    """Return the request that a middleware of the other interface has got, if this is the same."""
    request = current_scope()
    if request is None or request.asked is None:
        return None
    there, method, root_path, path = request.asked
    same = there == _OTHER[interface] and method == scope.get("method")
    here = _whole(scope.get("root_path"), scope["path"])
    return request if same and _whole(root_path, path) == here else None


def _whole(root_path: str | None, path: str) -> str:
    """Return the path as the client has it: servers do not agree on whether it has the root's."""
    return path if not root_path or path.startswith(root_path) else root_path + path
