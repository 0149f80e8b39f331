"""Applications that know nothing of us, audited where they are called."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import __version__ as fastapi_version
from fastapi.testclient import TestClient
from flask import Flask
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from otel_audit import get_audit_logger, instrument_app
from otel_audit.instrumentation.asgi import UvicornInstrumentor
from otel_audit.instrumentation.flask import FlaskInstrumentor
from otel_audit.instrumentation.instrumentor import AuditInstrumentor
from otel_audit.instrumentation.starlette import StarletteInstrumentor
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, START, http, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_audit.testing import AuditTrail
    from otel_audit.web.asgi import Receive, Scope, Send


@pytest.fixture
def instrumented() -> Iterator[StarletteInstrumentor]:
    instrumentor = StarletteInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    instrumentor.uninstrument()


async def home(_request: object) -> PlainTextResponse:
    get_audit_logger().audit_event("work", "do")
    return PlainTextResponse("home")


def application() -> Starlette:
    return Starlette(routes=[Route("/", home)])


def events(trail: AuditTrail) -> list[str]:
    return [record["event"] for record in trail.records()]


@pytest.mark.usefixtures("instrumented")
def test_a_starlette_application_is_audited_when_it_is_called(trail: AuditTrail) -> None:
    with TestClient(application()) as client:
        assert client.get("/").headers["x-request-id"]
    assert events(trail) == ["work", "http.request"]


@pytest.mark.usefixtures("instrumented")
def test_applications_in_an_application_and_instrumented_ones_are_audited_once(
    trail: AuditTrail,
) -> None:
    inner = application()
    outer = instrument_app(Starlette(routes=[Mount("/inner", inner)]))
    with TestClient(outer) as client:
        client.get("/inner/")
    assert events(trail) == ["work", "http.request"]
    assert not hasattr(inner, "_otel_audit")


def test_uninstrumenting_restores_everything(trail: AuditTrail) -> None:
    original = Starlette.__call__
    instrumentor = StarletteInstrumentor()
    instrumentor.instrument()
    instrumentor.instrument()
    app = application()
    with TestClient(app) as client:
        client.get("/")
        instrumentor.uninstrument()
        instrumentor.uninstrument()
        client.get("/")
    assert Starlette.__call__ is original
    assert "_otel_audit" not in vars(app)
    assert events(trail) == ["work", "http.request", "work"]
    instrumentor.instrument()
    with TestClient(app) as client:
        client.get("/")
    instrumentor.uninstrument()
    assert events(trail)[3:] == ["work", "http.request"]


@pytest.mark.parametrize("first", ["audit", "opentelemetry"])
def test_it_composes_with_opentelemetry_whichever_was_first(
    trail: AuditTrail, tracers: TracerProvider, spans: InMemorySpanExporter, first: str
) -> None:
    """One server span, and both records inside it."""
    import fastapi

    audit, telemetry = StarletteInstrumentor(), FastAPIInstrumentor()
    order: list[Any] = [audit.instrument, lambda: telemetry.instrument(tracer_provider=tracers)]
    try:
        for instrument in order if first == "audit" else reversed(order):
            instrument()
        app = fastapi.FastAPI()
        app.get("/")(home_of_fastapi)
        with TestClient(app) as client:
            client.get("/")
    finally:
        telemetry.uninstrument()
        audit.uninstrument()
    (server,) = [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]
    assert server.context is not None
    assert [(r["event"], r["trace_id"]) for r in trail.records()] == [
        ("work", f"{server.context.trace_id:032x}"),
        ("http.request", f"{server.context.trace_id:032x}"),
    ]


async def home_of_fastapi() -> str:
    get_audit_logger().audit_event("work", "do")
    return "home"


async def plain(_scope: Scope, _receive: Receive, send: Send) -> None:
    get_audit_logger().audit_event("work", "do")
    await send(START)
    await send(BODY)


def served(app: Any, **options: Any) -> Any:
    """Return what uvicorn would call."""
    config = uvicorn.Config(app, log_config=None, **options)
    config.load()
    return config.loaded_app


@pytest.fixture
def by_uvicorn() -> Iterator[None]:
    instrumentor = UvicornInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


async def test_any_asgi_application_is_audited_by_uvicorn(trail: AuditTrail) -> None:
    original = uvicorn.Config.load
    instrumentor = UvicornInstrumentor()
    instrumentor.instrument()
    try:
        wire = await request(served(plain, proxy_headers=False))
    finally:
        instrumentor.uninstrument()
    assert wire.header(b"x-request-id")
    assert events(trail) == ["work", "http.request"]
    assert uvicorn.Config.load is original


class Wrapper:
    """Answers some paths itself, and leaves the others to an application."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = plain if scope.get("path") == "/own" else self.app
        await app(scope, receive, send)


class Selfish:
    """Wraps itself, by its own account."""

    @property
    def app(self) -> Selfish:
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await plain(scope, receive, send)


@pytest.mark.usefixtures("by_uvicorn", "instrumented")
async def test_what_stands_around_an_application_is_audited_on_its_own_paths(
    trail: AuditTrail,
) -> None:
    app = served(Wrapper(application()))
    for path in ("/own", "/"):
        assert len((await request(app, http(path))).header(b"x-request-id")) == 1
    assert events(trail) == ["work", "http.request"] * 2
    own, inner = trail.records(event="http.request")
    assert (own["path"], inner["path"]) == ("/own", "/")
    assert inner["route"] == "/"


@pytest.mark.usefixtures("by_uvicorn", "instrumented")
async def test_an_application_that_wraps_itself_is_audited(trail: AuditTrail) -> None:
    await request(served(Selfish()))
    assert events(trail) == ["work", "http.request"]


@pytest.mark.usefixtures("by_uvicorn")
@pytest.mark.parametrize(
    "app",
    [
        application(),
        OpenTelemetryMiddleware(application()),
        AuditMiddleware(plain),
        Wrapper(AuditMiddleware(plain)),
        Wrapper(instrument_app(application())),
    ],
    ids=["starlette", "traced", "audited", "audited inside", "instrumented inside"],
)
def test_what_is_audited_otherwise_is_left_alone(app: Any) -> None:
    assert served(app, proxy_headers=False) is app
    assert not isinstance(served(app), AuditMiddleware)


@pytest.mark.filterwarnings("ignore:.*WSGI:DeprecationWarning")
@pytest.mark.usefixtures("by_uvicorn")
async def test_a_wsgi_application_of_a_framework_is_left_to_the_framework(
    trail: AuditTrail,
) -> None:
    flask = Flask("inner")
    flask.get("/items/<int:item>")(lambda item: f"{item}")
    instrumentor = FlaskInstrumentor()
    instrumentor.instrument()
    try:
        app = served(flask, interface="wsgi")
        wire = await request(app, http("/items/7"))
    finally:
        instrumentor.uninstrument()
    assert trail.record()["route"] == "/items/<int:item>"
    assert wire.header(b"x-request-id") == [trail.record()["request_id"].encode()]


@pytest.mark.usefixtures("by_uvicorn", "instrumented")
async def test_around_a_traced_application_records_are_in_its_server_span(
    trail: AuditTrail, tracers: TracerProvider, spans: InMemorySpanExporter
) -> None:
    inner = application()
    inner.add_middleware(OpenTelemetryMiddleware, tracer_provider=tracers)
    await request(served(Wrapper(inner)))
    (server,) = [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]
    assert server.context is not None
    trace_id = f"{server.context.trace_id:032x}"
    assert [record["trace_id"] for record in trail.records()] == [trace_id] * 2


class OfTheFuture(AuditInstrumentor):
    name = "future"
    requires = "fastapi >= 9999"

    def _instrument(self, **options: Any) -> None:
        raise AssertionError(options)

    def _uninstrument(self, **options: Any) -> None:
        raise AssertionError(options)


class Absent(OfTheFuture):
    requires = "there-is-no-such-library >= 1"


def test_what_cannot_be_instrumented_is_skipped_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also when our own hook and OpenTelemetry's launcher both come to it."""
    with caplog.at_level(logging.DEBUG, "otel_audit.instrumentation"):
        for kind in (OfTheFuture, Absent):
            kind().instrument()
            kind().instrument(skip_dep_check=True, raise_exception_on_conflict=True)
            assert not kind().is_instrumented_by_opentelemetry
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"future is not audited by itself: fastapi >= 9999 is needed and fastapi {fastapi_version} is installed"),
        ("DEBUG", "future is not audited by itself: there-is-no-such-library >= 1 is needed and nothing is installed"),
    ]  # fmt: skip
