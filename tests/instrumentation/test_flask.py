"""Flask applications that know nothing of us."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from typing import TYPE_CHECKING

import flask
import pytest
from opentelemetry.instrumentation.flask import FlaskInstrumentor as Tracing
from opentelemetry.trace import SpanKind, get_current_span

from otel_audit import AuditUnavailableError, AuditWSGIMiddleware, get_audit_logger
from otel_audit.instrumentation.flask import FlaskInstrumentor
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_audit.testing import AuditTrail


@pytest.fixture
def instrumented() -> Iterator[None]:
    instrumentor = FlaskInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


def application() -> flask.Flask:
    app = flask.Flask("shop")

    @app.route("/items/<int:item>", methods=["GET", "DELETE"])
    def read(item: int) -> str:
        get_audit_logger().audit_event("read", "read", item=item)
        return str(item)

    @app.route("/breaks")
    def breaks() -> str:
        raise KeyError

    return app


@pytest.mark.usefixtures("instrumented")
def test_requests_are_recorded_with_their_rule(trail: AuditTrail) -> None:
    client = application().test_client()
    answer = client.get("/items/7")
    assert (answer.text, "x-request-id" in answer.headers) == ("7", True)
    assert client.get("/nothing").status_code == 404
    assert client.get("/breaks").status_code == 500
    records = trail.records()
    assert [(r["event"], r.get("route"), r.get("status_code")) for r in records] == [
        ("read", None, None),
        ("http.request", "/items/<int:item>", 200),
        ("http.request", "unmatched", 404),
        ("http.request", "/breaks", 500),
    ]
    assert records[0]["request_id"] == records[1]["request_id"]
    assert records[3]["outcome"] == "failure"


def test_applications_of_before_and_after_opentelemetry_s_instrumentation(
    trail: AuditTrail, tracers: TracerProvider
) -> None:
    """OpenTelemetry puts a subclass in the place of Flask; ours belongs to both."""
    audit, tracing = FlaskInstrumentor(), Tracing()
    before = application()
    tracing.instrument(tracer_provider=tracers)
    audit.instrument()
    try:
        before.test_client().get("/items/1")
        tracing.uninstrument()
        application().test_client().get("/items/2")
        before.test_client().get("/items/3")
    finally:
        audit.uninstrument()
    application().test_client().get("/items/4")
    audited = trail.records(event="http.request")
    assert [record["path"] for record in audited] == ["/items/1", "/items/2", "/items/3"]


@pytest.mark.usefixtures("instrumented")
def test_what_is_emitted_while_a_body_is_made_has_the_span_that_is_over(
    trail: AuditTrail, tracers: TracerProvider
) -> None:
    """OpenTelemetry's instrumentation ends it before Flask's iterable is asked for its first chunk."""
    tracing = Tracing()
    tracing.instrument(tracer_provider=tracers)
    try:
        app = flask.Flask("shop")

        @app.route("/stream")
        def stream() -> flask.Response:
            def body() -> Iterator[str]:
                try:
                    get_audit_logger().audit_event("chunk", "do")
                    yield "one"
                    with tracers.get_tracer("t").start_as_current_span("inside"):
                        get_audit_logger().audit_event("chunk", "do")
                    yield "two"
                finally:
                    get_audit_logger().audit_event("closed", "do")

            return flask.Response(body())

        assert app.test_client().get("/stream").text == "onetwo"
    finally:
        tracing.uninstrument()
    (request,) = trail.records(event="http.request")
    first, second, closed = (one for one in trail.records() if one["event"] != "http.request")
    for record in (first, second, closed):
        assert record["trace_id"] == request["trace_id"]
        assert record["request_id"] == request["request_id"]
    assert first["span_id"] == closed["span_id"] == request["span_id"] != second["span_id"]
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("first", ["audit", "opentelemetry"])
def test_it_composes_with_opentelemetry(
    trail: AuditTrail, tracers: TracerProvider, spans: InMemorySpanExporter, first: str
) -> None:
    """One server span, and both records inside it."""
    audit, tracing = FlaskInstrumentor(), Tracing()
    order = [audit.instrument, lambda: tracing.instrument(tracer_provider=tracers)]
    try:
        for instrument in order if first == "audit" else reversed(order):
            instrument()
        app = flask.Flask("shop")
        app.route("/")(lambda: str(get_audit_logger().audit_event("work", "do").record_id))
        app.test_client().get("/")
    finally:
        tracing.uninstrument()
        audit.uninstrument()
    (server,) = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert server.context is not None
    records = trail.records()
    assert [record["trace_id"] for record in records] == [f"{server.context.trace_id:032x}"] * 2
    # What OpenTelemetry extracts from the headers begins with an empty Context.
    assert records[0]["request_id"] == records[1]["request_id"]
    assert [record["actor_id"] for record in records] == ["anonymous"] * 2


@pytest.mark.usefixtures("instrumented")
def test_beside_opentelemetry_the_answer_fails_with_its_records(tracers: TracerProvider) -> None:
    """Also when the application swallows the error."""
    tracing = Tracing()
    tracing.instrument(tracer_provider=tracers)
    try:
        with audit_trail(timeout=0.2) as held:
            app = flask.Flask("shop")

            @app.route("/")
            def swallow() -> str:
                with suppress(AuditUnavailableError):
                    get_audit_logger().audit_event("work", "do")
                return "all is well"

            with (held.directory / "lock").open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                assert app.test_client().get("/").status_code == 503
    finally:
        tracing.uninstrument()


@pytest.mark.usefixtures("instrumented")
def test_an_application_in_a_middleware_is_audited_once(trail: AuditTrail) -> None:
    app = application()
    app.wsgi_app = AuditWSGIMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    assert app.test_client().get("/items/1").status_code == 200
    assert len(trail.records(event="http.request")) == 1


def test_uninstrumenting_restores_everything(trail: AuditTrail) -> None:
    original = flask.Flask.__call__
    instrumentor = FlaskInstrumentor()
    instrumentor.instrument()
    instrumentor.uninstrument()
    assert flask.Flask.__call__ is original
    assert "x-request-id" not in application().test_client().get("/items/1").headers
    assert len(trail.records()) == 1
