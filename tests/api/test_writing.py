"""Whichever way an event goes, its record is the same; and ordinary events take the short one."""

from __future__ import annotations

import enum
import itertools
import math
import re
import uuid
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_audit.api import writing
from otel_audit.api.context import Actor, RequestScope, acting_as, set_actor
from otel_audit.api.policy import Policy, Rule
from otel_audit.api.stages import Stages
from otel_audit.api.writing import RecordWriter
from otel_audit.errors import AuditEventError
from otel_audit.record.coerce import MAX_NAME
from otel_audit.record.encode import encode
from otel_audit.record.event import RESERVED, AuditEvent
from otel_audit.record.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

NOW = 1_767_225_600_000_000_042
AWS = "AKIA" + "QYLPMN5HFIQR7XYA"


class Word(str, enum.Enum):
    HIGH = "high"
    SECRET = AWS


class Hostile:
    def __hash__(self) -> int:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class Coded(str, enum.Enum):
    """Texts whose members mean something else."""

    SECRET = ("code", AWS)

    def __new__(cls, code: str, meaning: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = meaning
        return member


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Bench:
    """Both ways with the same policy, clock and ids."""

    def __init__(self, *rules: Rule, service_name: str = "svc", keys: tuple[str, ...] = ()) -> None:
        common: dict[str, Any] = {
            "policy": Policy(rules=rules),
            "service_name": service_name,
            "resource": "0123456789abcdef",
            "clock": lambda: NOW,
            "new_id": lambda: "00000000-0000-4000-8000-000000000000",
        }
        self.writer = RecordWriter(Stages(**common, redactor=Redactor(keys)))
        self.stages = Stages(**common, redactor=Redactor(keys))

    def long(self, event: AuditEvent, logger: str | None = None) -> tuple[Any, ...]:
        draft = self.stages.prepare(event, logger)
        record = encode(draft) if draft.wanted else None
        return draft.record_id, record, draft.on_failure, draft.scope

    def same(self, event: AuditEvent, logger: str | None = None) -> bytes | None:
        """Write it twice, as names are learned from the first; return the record."""
        try:
            expected = self.long(event, logger)
        except AuditEventError as error:
            with pytest.raises(AuditEventError, match=re.escape(str(error))):
                self.writer.write(event, logger)
            return None
        assert self.writer.write(event, logger) == expected
        assert self.writer.write(event, logger) == expected
        record: bytes | None = expected[1]
        return record


@pytest.fixture
def bench() -> Bench:
    return Bench()


@contextmanager
def place(
    request: RequestScope | None, actor: str | None, span: SpanContext | None
) -> Iterator[None]:
    """Be in a request, act for somebody, be in a span."""
    with ExitStack() as stack:
        if request is not None:
            stack.callback(request.detach, request.attach())
        if actor is not None:
            stack.enter_context(acting_as(actor, "system", verified=len(actor) % 2 == 0))
        if span is not None:
            stack.enter_context(trace.use_span(NonRecordingSpan(span)))
        yield


def short_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever does not go the short way fail."""

    def prepare(*_: object) -> None:
        pytest.fail("it went through the stages")

    monkeypatch.setattr(Stages, "prepare", prepare)


ORDINARY = [
    AuditEvent("login", "start"),
    AuditEvent("login", "start", fields={"user_id": "u-1", "attempt": 3, "ms": 1.5, "ok": True}),
    AuditEvent("user_update", "update", "data_access", "failed", "critical", "user", "u-4711", fields={"purpose": "support"}),
    AuditEvent("order", "création", None, "réussi", None, "commande", "n° 7", fields={"café": "ü"}),
    AuditEvent("login", "fail", status="failed", error="no such user", resource_name="x"),
    AuditEvent("login", "fail", status="denied", error=""),
    AuditEvent("e", "nothing", fields={"note": None, "ratio": 0.5, "said": "null"}),
    AuditEvent("e", "a", retention="7y", fields={"note": 'a "quoted" \\ line\nand more\x00'}),
    AuditEvent("e", "a", fields={"big": 2**64 - 1, "small": -(2**63), "zero": -0.0, "tiny": 5e-324}),
    AuditEvent(
        "authentication", "login", resource_type="account", resource_name="u-1",
        fields={"user_id": "u-1", "method": "totp", "client_ip_of": "x"},
    ),
    AuditEvent(
        "credential_access", "read", resource_type="credential", resource_name="db",
        fields={"logger": "theirs"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("event", ORDINARY, ids=lambda event: event.action)
@pytest.mark.parametrize("logger", [None, "orders"])
def test_an_ordinary_event_takes_the_short_way(
    event: AuditEvent, logger: str | None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = RequestScope("r-1", client_ip="192.0.2.7", user_agent='a "browser"')
    with place(scope, "u-1", SpanContext(5, 6, is_remote=False, trace_flags=TraceFlags(1))):
        expected = bench.same(event, logger)
        short_only(monkeypatch)
        record_id, record, on_failure, found = bench.writer.write(event, logger)
    assert record == expected
    assert found is scope
    assert (record_id, on_failure) == ("00000000-0000-4000-8000-000000000000", "fail")


ODD: dict[str, dict[str, Any]] = {
    "a secret in an error": {"error": f"use {AWS}"},
    "a surrogate in an error": {"error": "a\ud800"},
    "a long error": {"error": "x" * 70_000},
    "an error that is an enum": {"error": Word.SECRET},
    "an error that is a number": {"error": 5},
    "an error that is false": {"error": False},
    "a resource that is zero": {"resource_name": 0},
    "an exception": {"error": ValueError("boom")},
    "an odd level": {"level": "purple"},
    "an odd level beside a severity": {"level": "purple", "fields": {"severity": "mine"}},
    "a severity": {"level": "high"},
    "a secret's name": {"fields": {"password": "hunter2hunter2"}},
    "a secret": {"fields": {"note": f"use {AWS}"}},
    "a secret resource": {"resource_name": AWS},
    "a secret in an enum": {"fields": {"note": Word.SECRET}},
    "a secret in an odd text": {"fields": {"note": Shouting(AWS.lower())}},
    "a card": {"fields": {"note": "4111 1111 1111 1111"}},
    "a secret below": {"fields": {"note": {"token": "abcdefgh12345678"}}},
    "a secret in a list": {"fields": {"note": [f"use {AWS}"]}},
    "a name of ours": {"fields": {"status": "no"}},
    "NaN": {"fields": {"ratio": math.nan}},
    "infinity": {"fields": {"ratio": -math.inf}},
    "NaN and nothing": {"fields": {"ratio": math.nan, "note": None}},
    "bytes": {"fields": {"note": b"x"}},
    "a date": {"fields": {"note": datetime(2026, 1, 1, tzinfo=timezone.utc)}},
    "a uuid": {"fields": {"note": uuid.UUID(int=7)}},
    "a tuple": {"fields": {"note": (1, 2)}},
    "a large integer": {"fields": {"note": 2**64}},
    "a surrogate": {"fields": {"note": "a\ud800"}},
    "a name with a surrogate": {"fields": {"a\ud800": 1}},
    "a long name": {"fields": {"n" * (MAX_NAME + 1): 1}},
    "a name that looks as if it had been cut": {
        "fields": {"n" * MAX_NAME + "…[cut 1 characters]": 1},
    },
    "a long name of a secret": {"fields": {"n" * MAX_NAME + ".password": "hunter2hunter2"}},
    "a name that is a secret, and odd": {"fields": {AWS: math.nan, "note": {AWS.encode(): 1}}},
    "a name that is no text": {"fields": {5: 1}},
    "a long text": {"fields": {"note": "x" * 100_000}},
    "many fields": {"fields": {f"name_{number}": number for number in range(12_000)}},
    "fields that are none": {"fields": ["x"]},
    "a hostile status": {"status": Hostile()},
    "a hostile field": {"fields": {"note": Hostile()}},
    "a status that is a number": {"status": 5},
    "an enum": {"status": Word.HIGH},
    "a resource that is a number": {"resource_type": 5, "resource_name": 7},
    "no status": {"status": None},
    "an empty type": {"event_type": ""},
    "an empty resource": {"resource_type": "", "resource_name": ""},
    "a long word": {"action": "a" * 70_000},
    "a class without its fields": {"event_type": "authentication"},
    "a class with an empty field": {
        "event_type": "authentication", "fields": {"user_id": "", "method": "totp"},
    },
    "a word with a surrogate": {"status": "a\ud800"},
    "a resource with a surrogate": {"resource_type": "a\ud800"},
    "a secret resource in an enum": {"resource_name": Word.SECRET},
    "a resource that is an odd text": {"resource_name": Shouting(AWS.lower())},
    "a resource that is a uuid": {"resource_name": uuid.UUID(int=7)},
    "a long resource": {"resource_name": "x" * 65_000},
    "too many odd texts for all of a long one": {
        "fields": {"note": "x" * 3_000, **{f"name_{number}": "é" for number in range(600)}},
    },
    "a name of ours that was one of theirs": {"fields": {"outcome": "no", "trace_id": 5}},
    "a resource that is another text than its enum's value": {"resource_name": Coded.SECRET},
    "an error that is another text than its enum's value": {"error": Coded.SECRET},
    "an empty odd text where a class wants a resource": {
        "event_type": "data_access", "resource_type": Shouting(""), "resource_name": "n",
        "fields": {"purpose": "p"},
    },
    "an empty odd text where a class wants its name": {
        "event_type": "data_access", "resource_type": "t", "resource_name": Shouting(""),
        "fields": {"purpose": "p"},
    },
    "no event": {"event": ""},
    "an action that is a number": {"action": 5},
}  # fmt: skip


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
def test_whatever_is_odd_gets_the_same_record(said: dict[str, Any], bench: Bench) -> None:
    event = AuditEvent(**{"event": "login", "action": "start", **said})
    # What is ordinary was met before, under the same names.
    below = {"outcome": "x", "trace_id": "y", "n" * MAX_NAME: "z", "n" * (MAX_NAME + 1): "z"}
    bench.same(AuditEvent("login", "start", fields={"note": "x", "ratio": 0.5, "below": below}))
    for scope in (None, RequestScope("r-1"), RequestScope("r-2", client_ip="192.0.2.7")):
        with place(scope, None, None):
            record = bench.same(event)
        assert record is None or AWS.encode() not in record


def test_a_record_that_becomes_too_long_by_its_request_is_cut_as_any_other(bench: Bench) -> None:
    with place(RequestScope("r-1", user_agent="x" * 70_000), None, None):
        record = bench.same(AuditEvent("login", "start"))
    assert record is not None
    assert b'"coerced":["user_agent"]' in record


def test_words_that_python_takes_for_the_same_are_not_the_same(bench: Bench) -> None:
    for word in (1, True, 1.0, "1", "high", Word.HIGH, "high", (1,), (True,), (1.0,)):
        for name in ("event_type", "status", "level", "resource_type", "resource_name"):
            said: dict[str, Any] = {name: word}
            bench.same(AuditEvent("login", "start", **said))


RULES = {
    "a level": Rule(event="login", level="critical"),
    "a retention": Rule(event="login", retention="7y"),
    "what a failure means": Rule(event="login", on_failure="continue"),
    "not wanted": Rule(event="login", record=False),
    "a field to take out": Rule(event="login", redact=("note", "client_ip")),
    "an actor": Rule(event="login", actor="u-*", level="critical"),
    "a resource": Rule(event="login", resource_name="x", record=False),
    "a route": Rule(event="login", route="/x", retention="3y"),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_policy_counts_on_both_ways(rule: Rule) -> None:
    bench = Bench(rule)
    for name, resource in itertools.product(("login", "logout"), ("x", "y")):
        event = AuditEvent(
            name, "start", resource_name=resource, fields={"note": "n", "route": "/x"}
        )
        for actor in (None, "u-1", "v-1"):
            with place(RequestScope("r-1", client_ip="192.0.2.7"), actor, None):
                bench.same(event)


def test_a_redactors_own_keys_count_on_both_ways() -> None:
    bench = Bench(keys=("patient_name",))
    record = bench.same(AuditEvent("login", "start", fields={"patientName": "Ada Smith"}))
    assert record is not None
    assert b"Ada" not in record


@pytest.mark.parametrize("service_name", ["svc", "a\ud800b", 'a "service"', "s" * 70_000])
def test_any_name_of_the_service_will_do(service_name: str) -> None:
    Bench(service_name=service_name).same(
        AuditEvent("login", "start", fields={"x": 1}), "log\ud800"
    )


def test_a_request_says_who_asks_as_soon_as_that_is_known(bench: Bench) -> None:
    event = AuditEvent("login", "start")
    with place(RequestScope("r-1"), None, None):
        bench.same(event)
        set_actor("u-1")
        record = bench.same(event)
    assert record is not None
    assert b'"actor_id":"u-1","actor_type":"user","actor_verified":true' in record


def test_a_request_of_which_nothing_is_known_says_nothing(bench: Bench) -> None:
    absent: Any = None
    scope = RequestScope(absent, client_id=absent, client_ip=absent)
    scope.actor = Actor("svc", "service", verified=absent)
    with place(scope, None, None):
        record = bench.same(AuditEvent("start", "start"))
    assert record is not None
    assert b"client" not in record
    assert b"actor_verified" not in record


def test_what_is_no_span_is_in_no_trace(bench: Bench) -> None:
    """OpenTelemetry's own functions say so, whatever it can be asked."""
    here = SpanContext(1, 7, is_remote=False)

    class Disguised:
        def get_span_context(self) -> SpanContext:
            return here

    disguised: Any = Disguised()
    for span in (disguised, NonRecordingSpan(here), disguised):
        with trace.use_span(span):
            record = bench.same(AuditEvent("start", "start"))
        assert record is not None
        assert (b"trace_id" in record) == (span is not disguised)


def test_an_event_of_another_context_is_recorded_as_there(bench: Bench) -> None:
    event = AuditEvent("login", "start", fields={"x": 1})
    with place(RequestScope("r-1"), "u-1", SpanContext(1, 7, is_remote=False)):
        expected = [
            bench.same(event),
            bench.long(AuditEvent("login", "start", error=ValueError("e")))[1],
        ]
        there = get_current()
    assert bench.same(event) != expected[0]
    bench.writer.write(event)
    said = AuditEvent("login", "start", error=ValueError("e"))
    assert [bench.writer.write(one, None, there)[1] for one in (event, said)] == expected


def test_each_record_is_of_its_own_span(bench: Bench) -> None:
    for number in (1, 2, 0, 1):
        with place(None, None, SpanContext(number, 7, is_remote=False)):
            record = bench.same(AuditEvent("login", "start"))
        assert record is not None
        assert (f"{number:032x}".encode() in record) is bool(number)


def test_words_and_names_from_outside_do_not_fill_the_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_REMEMBERED", 50)
    for number in range(300):
        bench.same(AuditEvent("login", f"a{number}", fields={f"name_{number}": number}))
        bench.same(AuditEvent("login", "a" * 4_000 + str(number)))
    assert 0 < len(bench.writer._wordings) <= 50
    assert max(len(str(word)) for words in bench.writer._wordings for word in words if word) < 4_000
    assert len(bench.writer._names) <= 50


texts = st.text(st.characters(exclude_categories=()), max_size=20)
plain = st.integers() | st.floats() | st.booleans() | texts
values = st.recursive(
    plain
    | st.none()
    | st.binary(max_size=5)
    | st.sampled_from([*Word, AWS, f"x {AWS}", "4111111111111111"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
words: st.SearchStrategy[Any] = (
    st.sampled_from(["login", "data_access", "failed", "high", "info", ""]) | plain
)
names = (
    st.sampled_from(["note", "logger", "user_id", "purpose", "api_key", *sorted(RESERVED)]) | texts
)
shared = Bench()


@given(
    said=st.fixed_dictionaries(
        {"event": words, "action": words},
        optional={
            name: words | st.none()
            for name in ("event_type", "status", "level", "resource_type", "resource_name", "retention", "error")
        },
    ),
    fields=st.dictionaries(names, values, max_size=5),
    logger=st.none() | texts,
    request=st.none() | st.builds(RequestScope, texts | st.none(), client_id=texts | st.none(), client_ip=texts | st.none(), user_agent=texts | st.none()),
    actor=st.none() | st.text(min_size=1, max_size=3),
    span=st.none() | st.builds(SpanContext, st.integers(0, 3), st.integers(0, 3), st.just(False)),  # noqa: FBT003 - is_remote
)  # fmt: skip
@example({"event": "e", "action": "a"}, {"x": "y"}, None, RequestScope("r"), "ab", None)
def test_both_ways_lead_to_the_same_record(
    said: dict[str, Any],
    fields: dict[str, Any],
    logger: str | None,
    request: RequestScope | None,
    actor: str | None,
    span: SpanContext | None,
) -> None:
    with place(request, actor, span):
        shared.same(AuditEvent(**said, fields=fields), logger)
