"""One request through both interfaces: recorded once, with one identity, by the outer side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import pytest
from asgiref.wsgi import WsgiToAsgi
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from otel_audit import AuditWSGIMiddleware, get_audit_logger
from otel_audit.instrumentation.flask import FlaskInstrumentor
from otel_audit.instrumentation.starlette import StarletteInstrumentor
from otel_audit.testing import audit_trail
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import Wire, http

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from otel_audit.testing import AuditTrail


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    instrumentors = FlaskInstrumentor(), StarletteInstrumentor()
    for each in instrumentors:
        each.instrument()
    yield
    for each in instrumentors:
        each.uninstrument()


def flask() -> Flask:
    app = Flask("inner")

    @app.get("/items/<int:item>")
    def read(item: int) -> str:
        get_audit_logger().audit_event("work", "do", item=item)
        return "done"

    return app


def starlette() -> Starlette:
    async def read(request: Any) -> PlainTextResponse:
        get_audit_logger().audit_event("work", "do", item=request.path_params["item"])
        return PlainTextResponse("done")

    return Starlette(routes=[Route("/items/{item:int}", read)])


def of(trail: AuditTrail, request_id: str) -> list[tuple[str, str | None]]:
    """Return events and routes, all of this request."""
    records = trail.records()
    assert {record["request_id"] for record in records} == {request_id}
    return [(record["event"], record.get("route")) for record in records]


@pytest.mark.parametrize(
    ("prefix", "route"), [("", "/items/<int:item>"), ("/old", "/old/items/<int:item>")]
)
def test_wsgi_in_asgi(trail: AuditTrail, prefix: str, route: str) -> None:
    bridge: Any = WsgiToAsgi(flask())  # type: ignore[no-untyped-call]
    app: Any = Starlette(routes=[Mount(prefix, bridge)]) if prefix else AuditMiddleware(bridge)
    answer = TestClient(app).get(f"{prefix}/items/7")
    assert answer.text == "done"
    (request_id,) = answer.headers.get_list("x-request-id")
    assert of(trail, request_id) == [("work", None), ("http.request", route)]


def test_what_a_server_puts_before_all_paths_is_not_taken_for_another_request(
    trail: AuditTrail,
) -> None:
    bridge: Any = WsgiToAsgi(flask())  # type: ignore[no-untyped-call]
    answer = TestClient(AuditMiddleware(bridge), root_path="/proxy").get("/items/7")
    assert [event for event, _ in of(trail, answer.headers["x-request-id"])] == [
        "work", "http.request",
    ]  # fmt: skip


class Bridge:
    """An ASGI application for servers that speak WSGI."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        scope = http(path, root_path=environ["SCRIPT_NAME"])
        wire = Wire({"type": "http.request"})
        asyncio.run(self._app(scope, wire.receive, wire.send))
        headers = [(name.decode(), value.decode()) for name, value in wire.sent[0]["headers"]]
        start_response(f"{wire.status} whatever", headers)
        return [wire.body]


@pytest.mark.parametrize("prefix", ["", "/new"])
def test_asgi_in_wsgi(trail: AuditTrail, prefix: str) -> None:
    environ = {"PATH_INFO": "/items/7", "SCRIPT_NAME": prefix}
    setup_testing_defaults(environ)
    answer: list[Any] = []

    def start(*started: Any) -> Any:
        answer.extend(started)

    body = b"".join(AuditWSGIMiddleware(Bridge(starlette()))(environ, start))
    assert (answer[0][:3], body) == ("200", b"done")
    (request_id,) = [value for name, value in answer[1] if name.lower() == "x-request-id"]
    route = f"{prefix}/items/{{item}}"
    assert of(trail, request_id) == [("work", None), ("http.request", route)]


def test_rules_for_routes_see_the_inner_route_and_its_parameters(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "routes:\n"
        "  - match: GET /items/<int:item>\n"
        "    event: item_read\n"
        "    resource_name: '{item}'\n"
    )
    bridge: Any = WsgiToAsgi(flask())  # type: ignore[no-untyped-call]
    with audit_trail(policy_file=file) as trail:
        TestClient(AuditMiddleware(bridge)).get("/items/7")
        assert trail.record(event="item_read")["resource_name"] == "7"


def test_who_it_is_may_be_known_inside_only(trail: AuditTrail) -> None:
    inner = AuditWSGIMiddleware(flask().wsgi_app, identify=lambda _environ: "ann")
    bridge: Any = WsgiToAsgi(inner)  # type: ignore[no-untyped-call]
    TestClient(AuditMiddleware(bridge)).get("/items/7")
    assert [record["actor_id"] for record in trail.records()] == ["ann", "ann"]


def test_what_an_application_asks_itself_is_another_request(trail: AuditTrail) -> None:
    inner = flask()

    def batch(_request: Any) -> PlainTextResponse:
        return PlainTextResponse(inner.test_client().get("/items/7").get_data())

    TestClient(Starlette(routes=[Route("/batch", batch)])).get("/batch")
    records = trail.records()
    assert [(record["event"], record.get("route")) for record in records] == [
        ("work", None), ("http.request", "/items/<int:item>"), ("http.request", "/batch"),
    ]  # fmt: skip
    assert records[0]["request_id"] == records[1]["request_id"] != records[2]["request_id"]
