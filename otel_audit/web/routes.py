"""The template of the route that a request took, as frameworks leave it in the scope.

Promises a name of low cardinality: the template with its parameters
(``/items/{id}``), with the mount's prefix, or `UNMATCHED`. Nothing here
matches a path by itself when the framework has said what it matched; where a
middleware has given a copy of the scope to the router, the routes are asked
once more. Where the application is behind a bridge (see `bridges`), it is its
framework that has said it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from otel_audit.web.asgi import REQUEST_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableMapping

UNMATCHED: Final = "unmatched"
_REST: Final = "/{path}"  # what lies below a mount whose inside is not known

_Leaf = Any  # a Starlette Route or WebSocketRoute; this module imports no framework
_indexes: MutableMapping[Any, dict[Any, list[_Leaf]]] = WeakKeyDictionary()


def route_template(scope: Mapping[str, Any], root_path: str = "") -> str:
    """Return the template that matched, once routing is done.

    ``root_path`` is the scope's as the server gave it; what routing added to
    it since are mounts.
    """
    scope, leaf = _routed(scope)
    if leaf is None and (inside := behind_a_bridge(scope)) is not None:
        inside, leaf = _routed(inside)
        mount = _mount_template(scope, root_path, "") or _mount_template(inside, root_path, "")
    else:
        mount = _mount_template(scope, root_path, leaf or "")
    if leaf is not None:
        return mount + leaf or "/"
    return mount + _REST if mount else UNMATCHED


def _routed(scope: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Return the scope as the router left it, and the template of what it leads to."""
    leaf = _leaf_template(scope)
    if leaf is None and _routed_elsewhere(scope):
        scope = _matched(scope["app"].routes, dict(scope)) or scope
        leaf = _leaf_template(scope)
    return scope, leaf


def behind_a_bridge(scope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what is known on the other side (see `bridges`), if there is one."""
    inside: Mapping[str, Any] | None = getattr(scope.get(REQUEST_KEY), "inside", None)
    return inside


def _routed_elsewhere(scope: Mapping[str, Any]) -> bool:
    """Whether Starlette's router has seen another scope than this: it names itself in its own."""
    return "router" not in scope and "endpoint" not in scope and hasattr(scope.get("app"), "routes")


def _matched(routes: Iterable[Any], scope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the scope as the router would have left it, with the first route that matches."""
    found: tuple[Any, Mapping[str, Any]] | None = None
    try:
        for route in routes:
            match, child = route.matches(scope)
            if match.name == "FULL":
                found = route, child
                break
            if match.name == "PARTIAL" and found is None:  # another method: 405 has a route, too
                found = route, child
    except Exception:  # noqa: BLE001 - a route of somebody's own may do anything
        return None
    if found is None:
        return None
    route, child = found
    route = getattr(route, "starlette_route", None) or route
    matched = {**scope, "route": route, **child}
    inner = _inside(route)
    return matched if inner is None else _matched(inner, matched) or matched


def _inside(route: Any) -> Iterable[Any] | None:  # noqa: ANN401 - whatever is among the routes
    """Return the routes of a mount, or those of an included router.

    FastAPI from 0.137 includes a router as one route, which matches and does
    not say what; its routes are in it with their whole paths.
    """
    included = getattr(route, "effective_route_contexts", None)
    return getattr(route, "routes", None) if included is None else included()


def _leaf_template(scope: Mapping[str, Any]) -> str | None:
    return _template(_included(scope)) or _template(scope.get("route") or _by_endpoint_of(scope))


def _template(route: Any) -> str | None:  # noqa: ANN401 - whatever the framework left there
    if hasattr(route, "routes"):  # a mount: its prefix is in root_path
        return None
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return template if isinstance(template, str) else None


def _included(scope: Mapping[str, Any]) -> _Leaf | None:
    """FastAPI from 0.137 keeps a route as its router has it, and the whole of it beside."""
    fastapi = scope.get("fastapi")
    if not isinstance(fastapi, dict):
        return None
    context = fastapi.get("effective_route_context")
    return getattr(context, "starlette_route", None) or context


def _mount_template(scope: Mapping[str, Any], root_path: str, leaf: str) -> str:
    """Return what mounts have consumed, with their parameters (not the leaf's) by name again."""
    now: str = scope.get("root_path") or ""
    if len(now) <= len(root_path) or not now.startswith(root_path):
        return ""
    mount = now[len(root_path) :]
    parameters: Mapping[str, Any] = scope.get("path_params") or {}
    names = {
        str(value): placeholder
        for name, value in parameters.items()
        if (placeholder := f"{{{name}}}") not in leaf
    }
    if not names:
        return mount
    return "/".join(names.get(segment, segment) for segment in mount.split("/"))


def _by_endpoint_of(scope: Mapping[str, Any]) -> _Leaf | None:
    """Find the route by its endpoint: plain Starlette before 1.0 leaves nothing else."""
    endpoint = scope.get("endpoint")
    app: Any = scope.get("app")
    if endpoint is None or not hasattr(app, "routes"):
        return None
    try:
        known = _indexes.get(app)
        if known is None:
            known = _indexes[app] = _indexed(app.routes)
        candidates = known.get(endpoint, ())
    except TypeError:  # an application or endpoint that cannot be a key
        return None
    if len(candidates) < 2:  # noqa: PLR2004 - one is certain
        return next(iter(candidates), None)
    path: str = scope["path"]
    inner = path.removeprefix(scope.get("root_path") or "")
    return next((leaf for leaf in candidates if leaf.path_regex.match(inner)), None)


def _indexed(routes: Iterable[Any]) -> dict[Any, list[_Leaf]]:
    index: dict[Any, list[_Leaf]] = {}
    for leaf in _leaves(routes):
        index.setdefault(leaf.endpoint, []).append(leaf)
    return index


def _leaves(routes: Iterable[Any]) -> Iterator[_Leaf]:
    for route in routes:
        if hasattr(route, "routes"):
            yield from _leaves(route.routes)
        elif hasattr(route, "endpoint") and hasattr(route, "path_regex"):
            yield route
