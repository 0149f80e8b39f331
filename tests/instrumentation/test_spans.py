"""Span rules, with OpenTelemetry's real SDK: what matches is in the trail, sampled or not."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import SpanKind, Status, StatusCode, set_tracer_provider
from opentelemetry.util._once import Once

from otel_audit import (
    acting_as,
    audit_span,
    get_audit_provider,
    instrument_app,
    is_configured,
)
from otel_audit.api.derived import SpanRule
from otel_audit.api.policy_file import parse_policy
from otel_audit.errors import AuditSettingsError
from otel_audit.instrumentation.given import GivenAttributes
from otel_audit.instrumentation.spans import RuleSampler, SpanInstrumentor
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_audit.testing import AuditTrail

RULES = """
spans:
  - match:
      kind: client
      scope: "db.*"
      attributes: {statement|query: ["insert *", "delete *"]}
    event: data_change
    action: "{statement|query:word}"
    resource_type: table
    resource_name: "{statement|query:table}"
    fields: {statement: "{statement:sql}", span: "{name}", took: "{duration_ms}"}
"""


@pytest.fixture
def instrumented(trail: AuditTrail) -> Iterator[SpanInstrumentor]:
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans, audit=trail.logger)
    yield instrumentor
    instrumentor.uninstrument()


def tracers(sampler: Any, spans: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


def span(
    provider: TracerProvider,
    statement: str = "INSERT INTO users VALUES ('Ann')",
    scope: str = "db.driver",
    kind: SpanKind = SpanKind.CLIENT,
) -> Any:
    tracer = provider.get_tracer(scope)
    return tracer.start_as_current_span("query", kind=kind, attributes={"statement": statement})


class Forgetful(Sampler):
    """Returns no attributes, as the composite sampler of the SDK; those of some spans it returns."""

    def should_sample(self, *arguments: Any, **keywords: Any) -> SamplingResult:
        attributes: Any = arguments[4] if len(arguments) > 4 else keywords.get("attributes")
        kept = attributes if (attributes or {}).get("kept") else None
        return SamplingResult(Decision.RECORD_AND_SAMPLE, kept)

    def get_description(self) -> str:
        return "Forgetful"


@pytest.mark.usefixtures("instrumented")
def test_attributes_that_a_sampler_keeps_to_itself_still_match(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    """What is exported stays as that sampler wants it."""
    provider = tracers(Forgetful(), spans)
    with span(provider, "INSERT INTO users VALUES (1)"), span(provider, "DELETE FROM orders"):
        pass
    with span(provider, "SELECT * FROM users"):
        pass
    names = [record["resource_name"] for record in trail.records(event="data_change")]
    assert names == ["orders", "users"]
    assert [dict(one.attributes or {}) for one in spans.get_finished_spans()] == [{}, {}, {}]


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.usefixtures("instrumented")
def test_what_is_no_attribute_reaches_neither_rules_nor_the_library(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    """The sampler has it as the library gave it, before the SDK makes an attribute of it."""
    tracer = tracers(Forgetful(), spans).get_tracer("db.driver")
    odd: Any = Unreadable()
    for attributes in ({"statement": odd}, {"statement": "DELETE FROM orders", "odd": odd}):
        tracer.start_span("query", kind=SpanKind.CLIENT, attributes=attributes).end()
    assert trail.record()["resource_name"] == "orders"


class Failing(SpanRule):
    def matches(self, *_: Any) -> bool:
        raise RuntimeError


def test_a_rule_of_one_s_own_that_raises_costs_the_library_nothing(
    trail: AuditTrail, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    (rule,) = parse_policy(RULES, "rules").policy.spans
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=(Failing(rule.saying),))
    try:
        with span(tracers(ALWAYS_ON, spans)):
            pass
    finally:
        instrumentor.uninstrument()
    assert "the span 'query' could not be recorded" in caplog.text
    assert trail.records() == []
    assert len(spans.get_finished_spans()) == 1


def test_attributes_are_kept_for_the_span_that_they_were_given_to() -> None:
    """Whatever a processor before ours starts in between, and however many spans never end."""
    given = GivenAttributes()
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("db.driver")
    one, other = tracer.start_span("one"), tracer.start_span("other")
    given.hand(one.get_span_context().trace_id, "one", {"statement": "x"})
    given.take(other)  # type: ignore[arg-type]
    given.take(one)  # type: ignore[arg-type]
    assert given.of(one) == given.of(other) == {}  # type: ignore[arg-type]
    many = [tracer.start_span(f"{number}") for number in range(10_001)]
    for number, late in enumerate(many):
        given.hand(late.get_span_context().trace_id, f"{number}", {"number": number})
        given.take(late)  # type: ignore[arg-type]
    assert given.of(many[0]) == {}  # type: ignore[arg-type]
    assert given.of(many[-1]) == {"number": 10_000}  # type: ignore[arg-type]
    assert given.of(many[-1]) == {}  # type: ignore[arg-type]


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(("sampler", "exported"), [(ALWAYS_ON, 1), (ALWAYS_OFF, 0)])
def test_a_span_that_matches_is_recorded_sampled_or_not(
    trail: AuditTrail, spans: InMemorySpanExporter, sampler: Any, exported: int
) -> None:
    with span(tracers(sampler, spans)) as one:
        pass
    record = trail.record(event="data_change")
    said = {name: record[name] for name in ("action", "resource_name", "statement", "span",
                                            "outcome", "trace_id", "span_id")}  # fmt: skip
    context = one.get_span_context()
    assert said == {
        "action": "INSERT", "resource_name": "users",
        "statement": "INSERT INTO users VALUES (?)", "span": "query", "outcome": "success",
        "trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}",
    }  # fmt: skip
    assert record["took"] >= 0
    assert len(spans.get_finished_spans()) == exported


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    "different",
    [
        {"statement": "SELECT 1"},
        {"scope": "http"},
        {"kind": SpanKind.SERVER},
    ],
)
def test_other_spans_are_not_recorded_nor_kept(
    trail: AuditTrail, spans: InMemorySpanExporter, different: dict[str, Any]
) -> None:
    with span(tracers(ALWAYS_OFF, spans), **different) as one:
        assert one.is_recording() is ("kind" not in different)
    assert trail.records() == []


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    ("description", "error"),
    [
        ("hunter2", "error"),
        ("ann.smith", "error"),
        ("hunter2: wrong", "error"),
        ("Ann: wrong", "error"),
        (None, "error"),
        ("ValueError: Ann is there already", "ValueError"),
        ("redis.exceptions.ConnectionError: no route", "redis.exceptions.ConnectionError"),
    ],
)
def test_a_status_is_no_place_to_find_more_than_a_type_in(
    trail: AuditTrail, spans: InMemorySpanExporter, description: str | None, error: str
) -> None:
    """Celery's instrumentation describes it by the exception's text, the SDK by its type as well."""
    with span(tracers(ALWAYS_ON, spans)) as one:
        one.set_status(Status(StatusCode.ERROR, description))
    assert trail.record(event="data_change")["error"] == error


@pytest.mark.usefixtures("instrumented")
def test_the_exception_s_event_says_the_type(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    """What Celery's instrumentation does with a task that raises."""
    provider = tracers(ALWAYS_ON, spans)
    with span(provider) as one:
        one.record_exception(ValueError("hunter2"))
        one.add_event("later")
        one.set_status(Status(StatusCode.ERROR, "hunter2"))
    with span(provider, "DELETE FROM users") as one:
        one.record_exception(ValueError("hunter2"))
        one.set_attribute("error.type", "timeout")
        one.set_status(Status(StatusCode.ERROR, "hunter2"))
    assert [record["error"] for record in trail.records()] == ["ValueError", "timeout"]
    assert "hunter2" not in str(trail.records())


@pytest.mark.usefixtures("instrumented")
def test_failures_are_recorded_by_their_type(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    provider = tracers(ALWAYS_ON, spans)
    with pytest.raises(ValueError, match="Ann"), span(provider):
        raise ValueError("Ann is there already")  # noqa: EM101, TRY003 - what a library does
    with span(provider, statement="DELETE FROM users") as one:
        one.set_status(Status(StatusCode.ERROR, "Ann cannot go"))
    first, second = trail.records()
    assert (first["outcome"], first["error"]) == ("failure", "ValueError")
    assert (second["outcome"], second["error"]) == ("failure", "error")


def test_providers_and_tracers_of_before_are_reached_and_given_back(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    before = TracerProvider.__init__
    provider = tracers(ALWAYS_OFF, spans)
    tracer = provider.get_tracer("db.driver")
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans)
    later = tracers(ALWAYS_OFF, spans)
    instrumentor.equip(provider)
    instrumentor.equip(provider)
    instrumentor.equip(trace.NoOpTracerProvider())
    with span(provider), span(later):
        pass
    assert isinstance(tracer.sampler, RuleSampler)  # type: ignore[attr-defined]
    assert provider.sampler.get_description() == ALWAYS_OFF.get_description()
    instrumentor.uninstrument()
    for restored in (provider, tracer, later):
        assert getattr(restored, "sampler") is ALWAYS_OFF  # noqa: B009 - mypy remembers otherwise
    assert TracerProvider.__init__ is before
    with span(provider) as one:
        assert not one.is_recording()
    assert len(trail.records()) == 2
    assert len(provider._active_span_processor._span_processors) == 1


def test_without_rules_nothing_is_changed(spans: InMemorySpanExporter) -> None:
    before = TracerProvider.__init__
    with audit_trail():
        instrumentor = SpanInstrumentor()
        instrumentor.instrument()
        assert TracerProvider.__init__ is before
        assert tracers(ALWAYS_OFF, spans).sampler is ALWAYS_OFF
        instrumentor.uninstrument()


def test_the_actor_is_known_where_spans_are_processed_in_other_threads(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans)
    processors = ConcurrentMultiSpanProcessor(2)
    methods = set(vars(processors))
    provider = TracerProvider(sampler=Forgetful(), active_span_processor=processors)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with acting_as("ann"), span(provider):
        pass
    assert trail.record(event="data_change")["actor_id"] == "ann"
    instrumentor.uninstrument()
    assert set(vars(processors)) == methods
    with span(provider):
        pass
    assert len(trail.records()) == 1
    assert len(spans.get_finished_spans()) == 2
    provider.shutdown()


class Around(Sampler):
    """A sampler of an application's own, around another one, which it calls as ours does."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

    def should_sample(self, *arguments: Any, **keywords: Any) -> SamplingResult:
        return self.inner.should_sample(*arguments, **keywords)

    def get_description(self) -> str:
        return "Around"


def test_samplers_of_others_stay_where_they_are(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans)
    inside = tracers(theirs := Around(ALWAYS_OFF), spans)
    outside = tracers(ALWAYS_OFF, spans)
    outside.sampler = Around(outside.sampler)
    with span(inside), span(outside):
        pass
    assert len(trail.records()) == 2
    instrumentor.uninstrument()
    assert inside.sampler is theirs
    assert isinstance(outside.sampler, Around)
    with span(outside) as one:
        assert not one.is_recording()
    assert len(trail.records()) == 2


def test_the_rules_are_those_of_the_provider_that_is_configured_now(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    """Providers and tracers that are there already are reached as soon as there are rules."""
    (tmp_path / "p.yaml").write_text(RULES)
    before = TracerProvider.__init__
    with audit_trail():
        instrumentor = SpanInstrumentor()
        instrumentor.instrument()
        try:
            with audit_trail(policy_file=tmp_path / "p.yaml") as trail:
                provider = tracers(ALWAYS_OFF, spans)
                with span(provider):
                    pass
                assert trail.record(event="data_change")["resource_name"] == "users"
            with span(provider) as one:
                assert not one.is_recording()
        finally:
            instrumentor.uninstrument()
        assert TracerProvider.__init__ is before


def test_a_provider_with_rules_needs_no_instrumentor_and_leaves_nothing_behind(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    """The documented set-up is one line, which names no instrumentor."""
    (tmp_path / "p.yaml").write_text(RULES)
    before = TracerProvider.__init__
    with audit_trail(policy_file=tmp_path / "p.yaml") as trail:
        provider = tracers(ALWAYS_OFF, spans)
        with span(provider):
            pass
        assert trail.record(event="data_change")["resource_name"] == "users"
    assert TracerProvider.__init__ is before
    assert provider.sampler is ALWAYS_OFF


@pytest.mark.parametrize("said", [{}, {"OTEL_AUDIT_DISABLED_INSTRUMENTATIONS": "spans"}])
def test_an_application_that_is_audited_by_one_line_has_rules_before_its_first_request(
    spans: InMemorySpanExporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, str],
) -> None:
    """What makes the tables of its database runs when its modules are imported."""
    (tmp_path / "p.yaml").write_text(RULES)
    settings = {
        "OTEL_AUDIT_POLICY_FILE": str(tmp_path / "p.yaml"),
        "LOG_DIR": str(tmp_path),
        **said,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    instrument_app(FastAPI())
    assert not is_configured()
    with span(tracers(ALWAYS_OFF, spans)):
        pass
    assert is_configured() is not bool(said)
    with get_audit_provider().reader() as reader:
        assert len(list(reader.leaves())) == (0 if said else 1)


def test_a_policy_that_cannot_be_used_is_told_by_who_opens_the_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(tmp_path / "absent.yaml"))
    app = instrument_app(FastAPI())
    with pytest.raises(AuditSettingsError, match="cannot be read"):
        get_audit_provider()
    assert app is not None


def test_who_asks_for_the_instrumentor_gets_what_is_asked_for(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text("spans: [{match: {name: other}, event: other}]")
    instrumentor = SpanInstrumentor()
    with audit_trail(policy_file=tmp_path / "p.yaml") as trail:
        instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans)
        try:
            with span(tracers(ALWAYS_ON, spans)):
                pass
            assert trail.record()["event"] == "data_change"
        finally:
            instrumentor.uninstrument()
    with audit_trail(policy_file=tmp_path / "p.yaml"):
        instrumentor.instrument()
    with audit_trail(policy_file=tmp_path / "p.yaml") as trail:
        with tracers(ALWAYS_ON, spans).get_tracer("x").start_as_current_span("other"):
            pass
        assert trail.record()["event"] == "other"
    try:
        assert instrumentor.is_instrumented_by_opentelemetry
    finally:
        instrumentor.uninstrument()


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a global tracer provider be set, for the length of a test."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@pytest.mark.usefixtures("unset")
def test_a_provider_that_was_made_before_and_is_set_after_is_reached(
    trail: AuditTrail, spans: InMemorySpanExporter
) -> None:
    before = trace._set_tracer_provider
    provider, other = tracers(ALWAYS_OFF, spans), tracers(ALWAYS_OFF, spans)
    tracer = provider.get_tracer("db.driver")
    instrumentor = SpanInstrumentor()
    instrumentor.instrument(rules=parse_policy(RULES, "rules").policy.spans)
    try:
        set_tracer_provider(provider)
        set_tracer_provider(other)
        tracer.start_span("q", kind=SpanKind.CLIENT, attributes={"query": "DELETE FROM t"}).end()
        assert trail.record(event="data_change")["resource_name"] == "t"
        assert other.sampler is ALWAYS_OFF
    finally:
        instrumentor.uninstrument()
    assert trace._set_tracer_provider is before
    assert provider.sampler is ALWAYS_OFF


def test_our_own_spans_have_their_record_already(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text("spans: [{match: {name: '*'}, event: span}]")
    with audit_trail(policy_file=tmp_path / "p.yaml") as trail:
        instrumentor = SpanInstrumentor()
        instrumentor.instrument()
        provider = tracers(ALWAYS_ON, spans)
        try:
            with provider.get_tracer("otel_audit").start_as_current_span("x"):
                pass
            with audit_span("work", "do"), provider.get_tracer("y").start_as_current_span("y"):
                pass
        finally:
            instrumentor.uninstrument()
        assert [record["event"] for record in trail.records()] == ["span", "work"]


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_the_answer_waits_for_it_and_fails_with_it(
    trail: AuditTrail, spans: InMemorySpanExporter, where: str
) -> None:
    """Also where the library's caller runs in a thread, and never hears of it."""
    provider = tracers(ALWAYS_ON, spans)
    app = FastAPI()

    async def on_the_loop() -> None:
        with span(provider):
            pass

    def in_a_thread() -> None:
        with span(provider):
            pass

    app.get("/")(in_a_thread if where == "thread" else on_the_loop)
    instrument_app(app, http_activity="off")
    processor = SpanInstrumentor()._processor
    with TestClient(app) as client:
        processor._audit = trail.logger
        assert client.get("/").status_code == 200
    assert len(trail.records()) == 1
    with (
        audit_trail(timeout=0.2) as held,
        TestClient(app) as client,
        (held.directory / "lock").open("r+b") as file,
    ):
        processor._audit = held.logger
        fcntl.flock(file, fcntl.LOCK_EX)
        assert client.get("/").status_code == 503


@pytest.mark.usefixtures("instrumented")
def test_outside_a_request_a_failure_is_logged_and_goes_nowhere_else(
    trail: AuditTrail, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    provider = tracers(ALWAYS_ON, spans)
    trail.provider.close()
    with span(provider):
        pass
    assert "the record of the span 'query' is not confirmed" in caplog.text
