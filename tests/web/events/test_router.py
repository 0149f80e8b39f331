"""The router for FastAPI: the same answers, and everything in OpenAPI with examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from otel_audit import AuditLogger, AuditProvider, instrument_app
from otel_audit.api.context import current_actor
from otel_audit.readers.query.parameters import parse
from otel_audit.trail.layout import TOKENS
from otel_audit.web.access import Access
from otel_audit.web.events import AuditEvents, audit_router
from otel_audit.web.tokens import TokenFile
from tests.web.driving import http, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Records = Callable[[], list[dict[str, Any]]]


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


async def test_the_routes_answer_in_an_audited_application(
    provider: AuditProvider, records: Records
) -> None:
    await AuditLogger(provider=provider).audit_event(
        "server.start", "start", server_name="obsidian"
    )
    await AuditLogger(provider=provider).audit_event("other", "other")
    app = FastAPI()
    app.include_router(audit_router(provider=provider))
    instrument_app(app, provider=provider)
    token, _ = TokenFile(provider.directory / TOKENS).create("ann", ["read", "proof"])
    scope = http("/audit/events", headers=bearer(token), query_string=b"server_name=obsidian")
    wire = await request(app, scope)
    [found] = orjson.loads(wire.body)["records"]
    assert found["record"]["server_name"] == "obsidian"
    one = await request(app, http(f"/audit/events/{found['sequence']}", headers=bearer(token)))
    assert orjson.loads(one.body)["record"] == found["record"]
    provider.checkpoint()
    proof = await request(
        app, http(f"/audit/events/{found['sequence']}/proof", headers=bearer(token))
    )
    assert proof.body.startswith(b"c2sp.org/tlog-proof@v1")
    assert (await request(app, http("/audit/stats", headers=bearer(token)))).status == 200
    assert (await request(app, http("/audit/checkpoint", headers=bearer(token)))).status == 200
    assert (await request(app, http("/audit/events"))).status == 401
    queries = [record for record in records() if record["event_type"] == "audit.query"]
    requests = [record for record in records() if record["event_type"] == "http.request"]
    assert queries[0]["request_id"] == requests[0]["request_id"]
    assert requests[1]["resource_name"] == "/audit/events/{record_id}"


async def test_who_asks_is_the_actor_of_the_request_too(
    provider: AuditProvider, records: Records
) -> None:
    """Also where the answer is no: what a known caller tried must not be nobody's."""
    app = FastAPI()
    app.include_router(audit_router(provider=provider, per_minute=6))
    instrument_app(app, provider=provider, identify=lambda _: "gateway")
    token, _ = TokenFile(provider.directory / TOKENS).create("ann", ["proof"])
    answers = [
        await request(app, http(path, headers=headers))
        for path, headers in (
            ("/audit/checkpoint", bearer(token)),
            ("/audit/events", bearer(token)),
            ("/audit/events", []),
        )
    ]
    assert [answer.status for answer in answers] == [404, 429, 401]
    assert [(record["actor_id"], record["actor_verified"]) for record in records()] == [
        ("ann", True), ("ann", True), ("gateway", True),
    ]  # fmt: skip


async def test_outside_a_request_who_asks_leaves_no_actor_behind(provider: AuditProvider) -> None:
    token, _ = TokenFile(provider.directory / TOKENS).create("ann", ["read"])
    wire = await request(
        AuditEvents(provider=provider), http("/audit/stats", headers=bearer(token))
    )
    assert wire.status == 200
    assert current_actor() is None


@pytest.mark.parametrize(
    "path", ["/events", "/events/0", "/events/0/proof", "/stats", "/stream", "/checkpoint"]
)
async def test_other_methods_are_answered_as_without_fastapi(
    provider: AuditProvider, path: str
) -> None:
    app = FastAPI()
    app.include_router(audit_router(provider=provider, per_minute=0))

    @app.get("/audit/own")
    def own() -> str:
        return "own"

    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        wire = await request(app, http(f"/audit{path}", method=method))
        assert wire.status == 405
        assert wire.header(b"content-type") == [b"application/problem+json"]
        assert wire.header(b"allow") == [b"GET, HEAD"]
        assert orjson.loads(wire.body)["type"].endswith("#method-not-allowed")
    token, _ = TokenFile(provider.directory / TOKENS).create("ann", ["read"])
    head = await request(app, http("/audit/events", method="HEAD", headers=bearer(token)))
    assert (head.status, head.body) == (200, b"")
    nothing = await request(app, http("/audit/events/nothing", headers=bearer(token)))
    assert orjson.loads(nothing.body)["type"].endswith("#not-found")
    assert (await request(app, http("/audit/own"))).status == 200
    assert (await request(app, http("/audit/nothing"))).status == 404


async def test_a_hook_sees_the_request_as_starlette_shows_it(provider: AuditProvider) -> None:
    def authorize(connection: HTTPConnection) -> Access | None:
        assert isinstance(connection, HTTPConnection)
        return Access.of("ann", ["read"]) if connection.headers.get("x-user") else None

    app = FastAPI()
    app.include_router(audit_router(provider=provider, authorize=authorize))
    assert (await request(app, http("/audit/events"))).status == 401
    assert (await request(app, http("/audit/events", headers=[(b"x-user", b"ann")]))).status == 200


def test_openapi_has_every_parameter_with_an_example_and_every_answer() -> None:
    app = FastAPI()
    app.include_router(audit_router(prefix="/trail"))
    document = app.openapi()
    assert set(document["paths"]) == {
        "/trail/events",
        "/trail/events/{record_id}",
        "/trail/events/{record_id}/proof",
        "/trail/checkpoint",
        "/trail/stats",
        "/trail/stream",
    }
    for path, item in document["paths"].items():
        operation = item["get"]
        assert operation["summary"]
        assert operation["security"] == [{"audit token": []}]
        answers = {"200", "400", "401", "403", "406", "414", "429", "503"}
        missing = {"404"} if "record_id" in path or "checkpoint" in path else set[str]()
        assert set(operation["responses"]) == answers | missing
        content = operation["responses"]["200"]["content"]
        assert any("example" in form for form in content.values()), path
        for parameter in operation.get("parameters", []):
            assert parameter["description"]
            own = ("cursor", "by", "per", "queries")
            if parameter["in"] == "query" and parameter["name"] not in own:
                parse([(parameter["name"], parameter["example"])])


def test_openapi_has_every_filter_that_the_document_lists() -> None:
    app = FastAPI()
    app.include_router(audit_router())
    paths = app.openapi()["paths"]
    page = (Path(__file__).parents[3] / "docs" / "query.md").read_text(encoding="utf-8")
    table = page.partition("## Filters")[2].partition("##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    # Their short names are shown.
    listed -= {"actor_id", "client_id"}
    only = {"/audit/events": {"limit", "order"}, "/audit/stats": set[str](), "/audit/stream": set()}
    for path, own in only.items():
        shown = {parameter["name"] for parameter in paths[path]["get"]["parameters"]}
        absent = {"limit", "order"} - own | ({"end", "start"} if path == "/audit/stream" else set())
        assert listed - absent <= shown
        assert not absent & shown
        assert "outcome!" in shown
        hidden = {
            parameter["name"]
            for parameter in paths[path]["get"]["parameters"]
            if "read:pii" in parameter["description"]
        }
        assert hidden == {"actor", "client_ip", "session_id"}
    assert "queries" in {one["name"] for one in paths["/audit/stream"]["get"]["parameters"]}
