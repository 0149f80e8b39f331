"""instrument_app: the right place in the stack, whenever it is called and whoever else is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from otel_audit.api.context import get_audit_context
from otel_audit.errors import AuditSettingsError, AuditUnavailableError
from otel_audit.web.fastapi import instrument_app, is_instrumented, uninstrument_app
from otel_audit.web.middleware import AuditMiddleware
from otel_audit.web.wsgi import AuditWSGIMiddleware
from tests.web.driving import BODY, START, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from tests.web.conftest import Hold, Records


class Emitting:
    """A middleware of the user's that emits on the way in."""

    def __init__(self, app: ASGIApp, audit: AuditLogger) -> None:
        self.app = app
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.audit.audit_event("middleware", "pass")
        await self.app(scope, receive, send)


def make_app(audit: AuditLogger) -> FastAPI:
    """Make an application with an endpoint that works and others that fail."""
    app = FastAPI()

    @app.get("/works")
    async def works() -> dict[str, Any]:
        audit.audit_event("work", "do")
        return dict(get_audit_context())

    @app.get("/denies")
    async def denies() -> None:
        raise HTTPException(403)

    @app.get("/breaks")
    async def breaks() -> None:
        raise ZeroDivisionError

    @app.exception_handler(Exception)
    async def answer(_request: Request, error: Exception) -> JSONResponse:
        audit.audit_event("failure", "answer")
        return JSONResponse({"error": type(error).__name__}, 500)

    return app


@pytest.fixture
def app(audit: AuditLogger) -> FastAPI:
    """Give an application that is not instrumented yet."""
    return make_app(audit)


def events(records: Records) -> list[str]:
    """Return the events on record."""
    return [record["event"] for record in records()]


def test_it_is_one_line(app: FastAPI, provider: AuditProvider, records: Records) -> None:
    """The application is changed in place and returned."""
    assert instrument_app(app, provider=provider) is app
    with TestClient(app) as client:
        response = client.get("/works", headers={"x-request-id": "req-1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "req-1"
    assert events(records) == ["work", "http.request"]


def test_the_options_are_checked_at_once(app: FastAPI) -> None:
    """Not when the first request builds the stack."""
    with pytest.raises(AuditSettingsError):
        instrument_app(app, http_activity="sometimes")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("foo", "'foo' is no option of AuditMiddleware; there are provider, identify, "),
        ("trusted_proxy", "did you mean trusted_proxies? There are provider, "),
    ],
)
def test_an_option_that_there_is_not_is_named_with_the_nearest(
    app: FastAPI, option: str, said: str
) -> None:
    options: dict[str, Any] = {option: 1}
    with pytest.raises(AuditSettingsError) as one:
        instrument_app(app, **options)
    with pytest.raises(AuditSettingsError) as other:
        AuditMiddleware(app, **options)
    assert said in str(one.value)
    assert str(other.value) == str(one.value)


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("identify", 5, "give a function that takes the request"),
        ("identify", "user", "give a function that takes the request"),
        ("provider", 5, "it is of type int, and has to be AuditProvider"),
    ],
)
@pytest.mark.parametrize("way", [instrument_app, AuditMiddleware, AuditWSGIMiddleware])
def test_an_option_that_cannot_work_is_refused_where_it_is_given(
    app: FastAPI, way: Any, option: str, value: Any, remedy: str
) -> None:
    with pytest.raises(AuditSettingsError, match=f"^{option}=.* cannot be used: {remedy}"):
        way(app, **{option: value})
    assert not is_instrumented(app)


@pytest.mark.parametrize("when", ["before", "after"])
def test_other_middleware(
    app: FastAPI, provider: AuditProvider, audit: AuditLogger, records: Records, when: str
) -> None:
    """It is inside, whichever was added first."""
    if when == "before":
        app.add_middleware(Emitting, audit=audit)
    instrument_app(app, provider=provider)
    if when == "after":
        app.add_middleware(Emitting, audit=audit)
    with TestClient(app) as client:
        client.get("/works")
    assert events(records) == ["middleware", "work", "http.request"]
    assert len({record["request_id"] for record in records()}) == 1


def test_error_handlers_are_inside(app: FastAPI, provider: AuditProvider, records: Records) -> None:
    """The handler for 500 runs in the outermost middleware, and is under the barrier all the same."""
    instrument_app(app, provider=provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/breaks")
        denied = client.get("/denies")
    assert response.status_code == 500
    assert response.json() == {"error": "ZeroDivisionError"}
    failure, breaks, denies = records()
    assert failure["request_id"] == response.headers["x-request-id"] == breaks["request_id"]
    assert (breaks["status_code"], breaks["error"]) == (500, "ZeroDivisionError")
    assert (denies["status_code"], denies["status"]) == (403, "denied")
    assert denied.headers["x-request-id"] == denies["request_id"]


def test_the_barrier_stands_around_error_handlers(
    app: FastAPI, make_provider: Callable[..., AuditProvider], hold: Hold
) -> None:
    """What the handler emits is answered for: 503 instead of its 500."""
    from otel_audit.api.logger import AuditLogger

    impatient = make_provider(timeout=0.2)
    app = make_app(AuditLogger(provider=impatient))
    instrument_app(app, provider=impatient)
    with TestClient(app, raise_server_exceptions=False) as client, hold():
        assert client.get("/breaks").status_code == 503


@pytest.mark.parametrize("path", ["/works", "/raises"])
def test_a_503_needs_no_help(
    make_provider: Callable[..., AuditProvider], hold: Hold, path: str
) -> None:
    """Also for an error that a handler lets through; the server sees no exception then."""
    from otel_audit.api.logger import AuditLogger

    impatient = make_provider(timeout=0.2)
    audit = AuditLogger(provider=impatient)
    app = make_app(audit)

    @app.get("/raises")
    async def raises() -> None:
        await audit.audit_event("work", "do")

    instrument_app(app, provider=impatient)
    with TestClient(app) as client, hold():
        response = client.get(path)
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"


def test_calling_it_again_adds_options_only(
    app: FastAPI, provider: AuditProvider, records: Records
) -> None:
    """Automatic instrumentation may come first, the application's own line later, or the reverse."""
    instrument_app(app, provider=provider)
    instrument_app(app)
    instrument_app(app, identify=lambda connection: connection.headers["x-user"])
    with TestClient(app) as client:
        client.get("/works", headers={"x-user": "alice"})
        instrument_app(app, identify=lambda connection: connection.cookies["user"])
        client.get("/works", headers={"cookie": "user=bob"})
        instrument_app(app, http_activity="off")
        client.get("/works", headers={"cookie": "user=carol"})
    assert [(record["event"], record["actor_id"]) for record in records()] == [
        ("work", "alice"),
        ("http.request", "alice"),
        ("work", "bob"),
        ("http.request", "bob"),
        ("work", "carol"),
    ]


def test_an_application_that_has_started(
    app: FastAPI, provider: AuditProvider, records: Records
) -> None:
    """It is not too late then."""
    with TestClient(app) as client:
        client.get("/works")
        assert provider.flush()
        instrument_app(app, provider=provider)
        client.get("/works")
    assert [record.get("request_id") is not None for record in records()] == [False, True, True]


def test_starlette(provider: AuditProvider, records: Records) -> None:
    """Starlette alone is enough."""

    async def answer(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", answer)])
    instrument_app(app, provider=provider, identify=lambda connection: connection.url.path)
    with TestClient(app) as client:
        client.get("/")
    assert [record["actor_id"] for record in records()] == ["/"]


async def test_any_asgi_application(provider: AuditProvider, records: Records) -> None:
    """It is wrapped, once; its identify= gets the scope."""

    async def plain(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(BODY)

    audited = instrument_app(plain, provider=provider, identify=lambda scope: scope["path"])
    assert isinstance(audited, AuditMiddleware)
    assert instrument_app(audited) is audited
    await request(audited)
    assert [record["actor_id"] for record in records()] == ["/"]
    assert uninstrument_app(audited) is plain
    assert uninstrument_app(plain) is plain


@pytest.mark.parametrize("started", [False, True])
def test_uninstrument(
    app: FastAPI,
    provider: AuditProvider,
    records: Records,
    started: bool,  # noqa: FBT001 - parametrized
) -> None:
    """The application is as it was, also when it runs."""
    before = app.build_middleware_stack
    instrument_app(app, provider=provider)
    if started:
        with TestClient(app) as client:
            client.get("/works")
    assert uninstrument_app(app) is app
    assert app.build_middleware_stack == before
    with TestClient(app) as client:
        assert "x-request-id" not in client.get("/works").headers
    uninstrument_app(app)
    assert provider.flush()
    assert events(records)[-1] == "work"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Collect spans, with a tracer provider of the test's own."""
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.clear()


@pytest.fixture
def tracers(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """Give a tracer provider that keeps its spans."""
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    yield tracers
    tracers.shutdown()


def server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    """Return the server's span of the newest request."""
    return [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER][-1]


@pytest.fixture(params=["OpenTelemetry first", "audit first"])
def traced(
    request: pytest.FixtureRequest, app: FastAPI, provider: AuditProvider, tracers: TracerProvider
) -> Iterator[FastAPI]:
    """Instrument the application twice, in either order."""
    if request.param == "audit first":
        instrument_app(app, provider=provider)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracers)
    if request.param == "OpenTelemetry first":
        instrument_app(app, provider=provider)
    yield app
    FastAPIInstrumentor.uninstrument_app(app)


@pytest.mark.parametrize("path", ["/works", "/breaks", "/nothing"])
def test_records_are_inside_the_server_span(
    traced: FastAPI, spans: InMemorySpanExporter, records: Records, path: str
) -> None:
    """Whichever came first, each record has the span's ids: of errors and their handlers too."""
    with TestClient(traced, raise_server_exceptions=False) as client:
        client.get(path)
    context = server_span(spans).get_span_context()
    assert context is not None
    written = records()
    assert written[-1]["event"] == "http.request"
    for record in written:
        assert record["trace_id"] == f"{context.trace_id:032x}"
        assert record["span_id"] == f"{context.span_id:016x}"


def test_a_503_is_inside_the_server_span(
    traced: FastAPI, spans: InMemorySpanExporter, provider: AuditProvider
) -> None:
    """Traces show what the client got."""
    with TestClient(traced) as client:
        provider.close()
        assert client.get("/works").status_code == 503
    attributes = server_span(spans).attributes
    assert attributes is not None
    assert 503 in {
        attributes.get(f"http.{name}") for name in ("status_code", "response.status_code")
    }


def test_uninstrument_inside_of_opentelemetry(
    traced: FastAPI, spans: InMemorySpanExporter, provider: AuditProvider, records: Records
) -> None:
    """Either can be taken away; the other one stays."""
    with TestClient(traced) as client:
        client.get("/works")
        uninstrument_app(traced)
        assert "x-request-id" not in client.get("/works").headers
    assert provider.flush()
    assert events(records) == ["work", "http.request", "work"]
    assert len([span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]) == 2


def test_opentelemetry_for_all_applications(
    audit: AuditLogger, provider: AuditProvider, tracers: TracerProvider, records: Records
) -> None:
    """As under ``opentelemetry-instrument``: the class is replaced before applications are made."""
    import fastapi

    instrumentor = FastAPIInstrumentor()
    instrumentor.instrument(tracer_provider=tracers)
    try:
        app = fastapi.FastAPI()

        @app.get("/works")
        async def works() -> None:
            audit.audit_event("work", "do")

        instrument_app(app, provider=provider)
        with TestClient(app) as client:
            client.get("/works")
    finally:
        instrumentor.uninstrument()
    assert ["trace_id" in record for record in records()] == [True, True]


def test_the_middleware_alone_in_the_user_s_stack(
    app: FastAPI, provider: AuditProvider, records: Records
) -> None:
    """add_middleware works as well, for what is inside of it."""
    app.add_middleware(AuditMiddleware, provider=provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/works")
        client.get("/breaks")
    assert events(records)[:3] == ["work", "http.request", "http.request"]
    assert records()[2]["error"] == "ZeroDivisionError"


def test_an_error_of_ours_is_answered_also_there(
    make_provider: Callable[..., AuditProvider], hold: Hold
) -> None:
    """Inside the outermost middleware the exception passes us before anybody answers it."""
    from otel_audit.api.logger import AuditLogger

    impatient = make_provider(timeout=0.2)
    app = make_app(AuditLogger(provider=impatient))
    app.add_middleware(AuditMiddleware, provider=impatient)
    with TestClient(app) as client, hold():
        assert client.get("/works").status_code == 503


def test_streams_are_cut(make_provider: Callable[..., AuditProvider], hold: Hold) -> None:
    """The test client raises what cuts the connection under a server."""
    from fastapi.responses import StreamingResponse

    from otel_audit.api.logger import AuditLogger

    impatient = make_provider(timeout=0.2)
    audit = AuditLogger(provider=impatient)
    app = FastAPI()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> Any:
            yield "begun"
            audit.audit_event("chunk", "send")
            yield "not confirmed"

        return StreamingResponse(chunks())

    instrument_app(app, provider=impatient, http_activity="off")
    with TestClient(app) as client, hold(), pytest.raises(AuditUnavailableError):
        client.get("/stream")
