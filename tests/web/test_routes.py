"""The route's template in the record: whole, with its parameters by name, or `unmatched`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Route, Router

from otel_audit.web.fastapi import instrument_app
from otel_audit.web.routes import UNMATCHED, route_template

if TYPE_CHECKING:
    from starlette.requests import Request

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from tests.web.conftest import Records


async def hello(_request: Request) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse("hello")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as an ASGI application without routes."""
    await PlainTextResponse("hello")(scope, receive, send)


def _starlette() -> Starlette:
    inner = Mount("/inner/{kind}", routes=[Route("/b/{b}", hello), Route("/c/{c}", hello)])
    return Starlette(routes=[Route("/a/{a:int}", hello), inner, Mount("/files", app=bare)])


def _fastapi() -> FastAPI:
    app = FastAPI()
    nested = APIRouter(prefix="/lines")
    nested.mount("/files", bare)
    router = APIRouter(prefix="/orders")

    @app.get("/")
    def root() -> None: ...

    @app.get("/users/{user}")
    def user(user: str) -> None: ...

    @router.get("/{order}")
    def order(order: str) -> None: ...

    @nested.get("/{line:path}")
    def line(order: str, line: str) -> None: ...

    @router.websocket("/{order}/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    router.include_router(nested, prefix="/{order}")
    app.include_router(router, prefix="/v1")
    app.mount("/plain", _starlette())
    app.mount("/tenants/{tenant}", _sub())
    return app


def _sub() -> FastAPI:
    sub = FastAPI()

    router = APIRouter(prefix="/parts")

    @sub.get("/items/{item}")
    def item(item: str) -> None: ...

    @router.get("/{part}")
    def part(part: str) -> None: ...

    sub.include_router(router)
    return sub


FASTAPI_PATHS = [
    ("/", "/"),
    ("/users/alice", "/users/{user}"),
    ("/v1/orders/7", "/v1/orders/{order}"),
    ("/v1/orders/7/lines/a/b", "/v1/orders/{order}/lines/{line}"),
    ("/v1/orders/7/files/logo.png", "/v1/orders/{order}/files/{path}"),
    ("/plain/a/3", "/plain/a/{a}"),
    ("/plain/inner/x/b/4", "/plain/inner/{kind}/b/{b}"),
    ("/tenants/acme/items/3", "/tenants/{tenant}/items/{item}"),
    ("/tenants/acme/items/tenants", "/tenants/{tenant}/items/{item}"),
    ("/tenants/acme/parts/3", "/tenants/{tenant}/parts/{part}"),
    ("/tenants/acme/nothing", "/tenants/{tenant}/{path}"),
    ("/nothing/here", UNMATCHED),
]


class Copying:
    """A middleware that gives what is behind it a scope of its own, as some do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(dict(scope), receive, send)


@pytest.fixture(params=[False, True], ids=["one scope", "copied scope"])
def fastapi(request: pytest.FixtureRequest, provider: AuditProvider) -> FastAPI:
    """Make the application; behind `Copying` its router leaves nothing, and the routes are asked."""
    app = _fastapi()
    if request.param:
        app.add_middleware(Copying)
    instrument_app(app, provider=provider)
    return app


@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
@pytest.mark.parametrize(("path", "template"), FASTAPI_PATHS)
def test_fastapi(
    fastapi: FastAPI, records: Records, path: str, template: str, root_path: str
) -> None:
    """Included routers, mounts and sub-applications; a proxy's prefix is no part of it."""
    with TestClient(fastapi, root_path=root_path) as client:
        status = client.get(root_path + path).status_code
    if status == 404 and template != UNMATCHED and "nothing" not in path:
        pytest.skip("this FastAPI leaves out what is mounted in an included router")
    assert records()[-1]["route"] == template


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_starlette_behind_a_middleware_that_copies_the_scope(
    provider: AuditProvider, records: Records, method: str
) -> None:
    app = _starlette()
    app.add_middleware(Copying)
    instrument_app(app, provider=provider)
    with TestClient(app) as client:
        for path, _ in STARLETTE_PATHS:
            client.request(method, path)
    assert [record["route"] for record in records()] == [route for _, route in STARLETTE_PATHS]


def test_a_route_of_somebody_s_own_that_raises() -> None:
    class Raising(Route):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            raise LookupError(scope["path"])

    scope = {"app": Starlette(routes=[Raising("/x", hello)]), "path": "/x", "type": "http"}
    assert route_template(scope) == UNMATCHED


@pytest.mark.parametrize(
    ("path", "template"),
    [("/users/alice", "/users/{user}"), ("/v1/orders/7", "/v1/orders/{order}")],
)
def test_a_wrong_method_still_has_its_route(
    fastapi: FastAPI, records: Records, path: str, template: str
) -> None:
    """405 says that the route is known."""
    with TestClient(fastapi) as client:
        assert client.post(path).status_code == 405
    assert records()[-1]["route"] == template


def test_websocket_routes(fastapi: FastAPI, records: Records) -> None:
    """They have templates as well."""
    with TestClient(fastapi) as client, client.websocket_connect("/v1/orders/7/live"):
        pass
    assert {record["route"] for record in records()} == {"/v1/orders/{order}/live"}


STARLETTE_PATHS = [
    ("/a/3", "/a/{a}"),
    ("/inner/x/b/4", "/inner/{kind}/b/{b}"),
    ("/inner/x/c/4", "/inner/{kind}/c/{c}"),
    ("/files/logo.png", "/files/{path}"),
    ("/nothing", UNMATCHED),
]


@pytest.mark.parametrize(("path", "template"), STARLETTE_PATHS)
def test_starlette(provider: AuditProvider, records: Records, path: str, template: str) -> None:
    """One endpoint on several routes, and a mount of something without routes."""
    app = _starlette()
    instrument_app(app, provider=provider)
    with TestClient(app) as client:
        client.get(path)
    assert records()[-1]["route"] == template


class Unhashable:
    """An application that cannot be a key."""

    __hash__ = None  # type: ignore[assignment]
    routes: list[Any]

    def __init__(self) -> None:
        self.routes = []


@pytest.mark.parametrize(
    ("path", "root_path", "template"),
    [
        ("/a/3", "", "/a/{a}"),
        ("/inner/x/b/4", "/inner/x", "/inner/x/b/{b}"),
        ("/inner/x/c/4", "/inner/x", "/inner/x/c/{c}"),
    ],
)
def test_starlette_before_1_0_leaves_only_the_endpoint(
    path: str, root_path: str, template: str
) -> None:
    """Then the route is looked up by it; by its path too where several share it."""
    app = _starlette()
    scope = {"endpoint": hello, "app": app, "path": path, "root_path": root_path}
    assert route_template(scope) == template
    assert route_template(scope) == template


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"endpoint": hello},
        {"endpoint": hello, "app": object()},
        {"endpoint": hello, "app": Unhashable()},
        {"endpoint": hello, "app": Starlette()},
        {"app": Starlette(routes=[Route("/only", hello)]), "router": Router()},
        {"endpoint": hello, "app": Starlette(routes=[Route("/only", hello)]), "route": object()},
        {"route": Mount("", app=Router())},
        {"fastapi": "not what it is in FastAPI", "route": object()},
        {"root_path": "/other", "path_params": {}},
    ],
)
def test_scopes_without_a_route(scope: dict[str, Any]) -> None:
    """Whatever a framework leaves there, it is a template or `unmatched`."""
    assert route_template({"path": "/x", **scope}, "/given") == UNMATCHED
