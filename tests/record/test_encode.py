"""Whatever an event holds, its bytes are one line of JSON, short enough, in a fixed order."""

from __future__ import annotations

import enum
import importlib.util
import json
import os
import re
import uuid
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context

from otel_audit.api.context import RequestScope
from otel_audit.api.policy import Policy
from otel_audit.api.stages import Stages
from otel_audit.errors import AuditEventError
from otel_audit.record.encode import LIMIT, encode, new_record_id, timestamp_of
from otel_audit.record.event import KEYS, RESERVED, AuditEvent, Draft
from otel_audit.record.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_767_225_600_000_000_042
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
GITHUB = "gh" + "p_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
TEXTS = ("event", "action", "event_type", "status", "resource_type", "resource_name", "retention")

stages = Stages(
    policy=Policy(),
    redactor=Redactor(),
    service_name="svc",
    resource="0123456789abcdef",
    clock=lambda: NOW,
    new_id=new_record_id,
)


class Hostile:
    """Raises at whatever it is asked."""

    def __bool__(self) -> bool:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class Word(str, enum.Enum):
    HIGH = "high"


class Kind(enum.Enum):
    HIGH = "high"
    FIVE = 5
    EMPTY = ""


class Silent(Exception):  # noqa: N818 - what it is called does not matter
    def __str__(self) -> str:
        raise RuntimeError


def encoded(**said: Any) -> bytes:
    return encode(stages.prepare(AuditEvent(**{"event": "login", "action": "start", **said})))


def checked(stored: bytes) -> dict[str, Any]:
    """Hold the bytes against what `encode` promises of all of them."""
    assert len(stored) <= LIMIT
    assert b"\n" not in stored
    record: dict[str, Any] = json.loads(stored)
    assert orjson.loads(stored) == record
    own = [key for key in record if key in KEYS]
    assert own == [key for key in KEYS if key in record]
    assert list(record)[: len(own)] == own
    assert record["schema"] == "otel-audit/1"
    assert all(value is not None for key, value in record.items() if key in RESERVED)
    return record


def recorded(**said: Any) -> dict[str, Any]:
    return checked(encoded(**said))


def test_a_record_holds_what_is_known_in_order_and_nothing_else() -> None:
    record = recorded()
    assert list(record) == [
        "schema", "timestamp", "level", "event", "record_id", "event_type", "action", "status",
        "outcome", "actor_id", "actor_type", "service_name", "resource", "retention",
    ]  # fmt: skip
    assert record["timestamp"] == "2026-01-01T00:00:00.000000042Z"
    assert (record["actor_id"], record["actor_type"]) == ("svc", "service")
    assert record["retention"] == "1y"


def test_everything_that_can_be_known_is_in_the_documented_order() -> None:
    draft = Draft(AuditEvent("e", "a"), "id", timestamp_of(NOW))
    for name in Draft.__slots__:
        if name in KEYS and getattr(draft, name) is None:
            setattr(draft, name, f"the {name}")
    draft.error_type = "ValueError"
    draft.fields = {"zebra": 1, "ant": 2}
    draft.missing_fields = ["purpose"]
    draft.coerced = ["zebra", "ant", "zebra"]
    record = checked(encode(draft))
    assert tuple(record) == (*KEYS, "error_type", "zebra", "ant", "missing_fields", "coerced")
    assert record["coerced"] == ["ant", "zebra"]
    assert all(record[name] == f"the {name}" for name in ("trace_id", "span_id", "user_agent"))


@pytest.mark.parametrize("severity", ["high", Word.HIGH])
def test_a_severity_beats_what_the_status_says(severity: Any) -> None:
    assert recorded(level=severity, status="success")["level"] == "error"
    assert recorded(level="debug", status="failed")["level"] == "debug"


@pytest.mark.parametrize("severity", ["purple", "", 5, Hostile(), b"\xff", "\ud800"], ids=type)
def test_a_severity_that_is_no_level_is_kept_as_a_field(severity: Any) -> None:
    record = recorded(level=severity, status="failed")
    assert record["level"] == "error", "the level follows from the status then"
    assert isinstance(record["severity"], str)
    assert "level" in record["coerced"]


@pytest.mark.parametrize("mine", ["mine", None, 7, ["purple"]])
def test_a_severity_that_is_no_level_stands_beside_a_field_of_that_name(mine: Any) -> None:
    record = recorded(level="purple", fields={"severity": mine, "severity_": "too"})
    assert [record[name] for name in ("severity", "severity_", "severity__")] == [
        mine, "too", "purple",
    ]  # fmt: skip
    assert record["coerced"] == ["level"]


def test_a_severity_that_is_no_level_is_kept_once() -> None:
    record = recorded(level="purple", fields={"severity": "purple"})
    assert [name for name in record if name.startswith("severity")] == ["severity"]


def test_reserved_names_are_dropped_when_they_say_the_same() -> None:
    said = {"status": "failed", "error": "boom", "event": "login", "actor_id": "svc"}
    record = recorded(status="failed", error="boom", fields={**said, "client_ip": None, "x": 1})
    assert not [name for name in record if name.startswith("field_")]
    assert record["x"] == 1


@pytest.mark.parametrize("status", ["success", "failed", "detected"])
def test_what_is_derived_may_be_said_again(status: str) -> None:
    record = recorded(status=status)
    derived = {name: record[name] for name in ("schema", "level", "status", "outcome")}
    again = recorded(status=status, fields=derived)
    assert [again[name] for name in derived] == [*derived.values()]
    assert not [name for name in again if name.startswith("field_") or name == "coerced"]


@pytest.mark.parametrize("name", ["status", "outcome"])
@pytest.mark.parametrize(
    ("word", "outcome", "level"),
    [("failure", "failure", "error"), ("denied", "failure", "error"), ("success",) * 2 + ("info",),
     ("partly", "unknown", "info")],
)  # fmt: skip
def test_a_field_says_how_it_went_where_nobody_else_does(
    name: str, word: str, outcome: str, level: str
) -> None:
    record = recorded(fields={name: word})
    assert (record["status"], record["outcome"], record["level"]) == (word, outcome, level)
    assert not [name for name in record if name.startswith("field_") or name == "coerced"]


@pytest.mark.parametrize("name", ["status", "outcome"])
@pytest.mark.parametrize(
    ("status", "word"),
    [("success", "failure"), ("failed", "success"), ("detected", "failure"), ("success", 0)],
)
def test_a_field_that_contradicts_how_it_went_is_kept_and_named(
    name: str, status: str, word: str | int
) -> None:
    record = recorded(status=status, fields={name: word})
    assert record["status"] == status
    assert record[f"field_{name}"] == word
    assert record["coerced"] == [name]


@pytest.mark.parametrize("word", [None, "", 0, ["failure"]])
def test_what_is_no_word_for_how_it_went_is_kept(word: Any) -> None:
    record = recorded(fields={"outcome": word})
    assert (record["status"], record["outcome"]) == ("success", "success")
    assert record["field_outcome"] == word
    assert record.get("coerced", []) == ([] if word is None else ["outcome"])


def test_the_second_of_two_words_for_how_it_went_is_kept_and_named() -> None:
    record = recorded(fields={"outcome": "success", "status": "denied"})
    assert (record["status"], record["outcome"]) == ("denied", "failure")
    assert (record["field_outcome"], record["coerced"]) == ("success", ["outcome"])


def test_a_field_says_how_grave_it_is_where_nobody_else_does() -> None:
    assert recorded(fields={"level": "critical"})["level"] == "critical"
    record = recorded(level="info", fields={"level": "critical"})
    assert (record["level"], record["field_level"]) == ("info", "critical")
    record = recorded(fields={"level": "loud"})
    assert (record["level"], record["field_level"]) == ("info", "loud")


def test_reserved_names_are_kept_aside_when_they_say_something_else() -> None:
    fields = {"action": "no", "field_event": 1, "event": "other", "timestamp": 5, "coerced": True}
    record = recorded(fields=fields)
    assert record["action"] == "start"
    assert record["field_action"] == "no"
    assert record["field_event"] == 1
    assert record["field_event_"] == "other"
    assert record["field_timestamp"] == 5
    assert record["field_coerced"] is True
    assert "coerced" not in record
    # In the caller's order, whatever the seed of Python's hashes.
    kept = [name for name in record if name.startswith("field_")]
    assert kept == [
        "field_event", "field_action", "field_event_", "field_timestamp", "field_coerced",
    ]  # fmt: skip


def test_what_was_altered_is_named_as_it_stands_in_the_record() -> None:
    record = recorded(fields={"action": b"\xff", "note": float("nan")})
    assert record["coerced"] == ["field_action", "note"]
    assert {"field_action", "note"} <= set(record)
    record = recorded(fields={"status": b"\xff"})
    assert (record["status"], record["coerced"]) == ("base64:/w==", ["status"])


@pytest.mark.parametrize(
    "field",
    [
        {GITHUB: float("nan")},
        {GITHUB: b"\xff"},
        {GITHUB.encode(): 1},
        {GITHUB: 1, f"{GITHUB}\ud800": 2},
        {f"{GITHUB} {number}": {1} if number % 2 else {number: 1} for number in range(4)},
    ],
)
def test_a_name_that_is_a_secret_is_not_named_among_what_was_altered(
    field: dict[Any, Any],
) -> None:
    record = recorded(fields={"first": b"\xff", **field, "last": 1})
    assert GITHUB not in json.dumps(record)
    assert len(record["coerced"]) > 1, "what else was altered is named"
    assert set(record["coerced"]) <= set(record)


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_with_a_lone_surrogate_is_kept_and_named(name: str) -> None:
    record = recorded(**{name: "a\ud800b"})
    assert record[name] == "a\\ud800b"
    assert name in record["coerced"]


@pytest.mark.parametrize("name", TEXTS[2:])
@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, 1.5, uuid.UUID(int=7), Hostile()], ids=type)
def test_any_value_in_place_of_text_becomes_text(name: str, value: Any) -> None:
    record = recorded(**{name: value})
    assert isinstance(record[name], str)
    assert record[name]
    assert (name in record.get("coerced", ())) is isinstance(value, Hostile)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("word", [Word.HIGH, Kind.HIGH])
def test_an_enum_in_place_of_text_is_its_value(name: str, word: Word | Kind) -> None:
    record = recorded(**{name: word})
    assert record[name] == "high"
    assert "coerced" not in record


@pytest.mark.parametrize("name", ["event", "action"])
@pytest.mark.parametrize("value", [Kind.FIVE, Kind.EMPTY])
def test_an_enum_whose_value_is_no_text_names_no_event(name: str, value: Kind) -> None:
    with pytest.raises(AuditEventError, match=f"an {name}, but {name} is <Kind.{value.name}: "):
        encoded(**{name: value})


@pytest.mark.parametrize("name", [*TEXTS, "error"])
def test_any_text_of_a_megabyte_is_cut_and_named_and_costs_no_short_field(name: str) -> None:
    why = "a sentence that somebody will look for " * 10
    record = recorded(**{"event_type": "t", name: "x" * 1_000_000}, fields={"why": why})
    assert name in record["coerced"]
    assert "…[cut " in record[name]
    assert len(record[name]) > 10_000
    assert record["why"] == why


def test_no_event_type_is_the_event_and_no_status_is_unknown() -> None:
    record = recorded(event_type=None, status=None)
    assert record["event_type"] == "login"
    assert (record["status"], record["outcome"], record["level"]) == ("unknown", "unknown", "info")


@pytest.mark.parametrize("fields", [None, 5, ["x"], "text", b"x", Hostile()], ids=type)
def test_fields_that_are_no_mapping_are_kept_as_well_as_can_be(fields: Any) -> None:
    record = recorded(fields=fields)
    assert record["coerced"] == ["fields"]
    assert "fields" in record


def test_the_text_of_an_exception_and_its_type() -> None:
    record = recorded(error=ValueError("bad"), status="failed")
    assert (record["error"], record["error_type"]) == ("bad", "ValueError")
    assert recorded(error=ValueError())["error"] == "ValueError"
    silent = recorded(error=Silent())
    assert (silent["error"], silent["coerced"]) == ("Silent", ["error"])
    assert recorded(error=Hostile())["coerced"] == ["error"]
    assert "error_type" not in recorded(error="text")


def test_the_class_of_an_exception_stands_beside_a_field_of_that_name() -> None:
    fields = {"error_type": "mine"}
    record = recorded(error=ValueError("bad"), fields=dict(fields))
    assert (record["error_type"], record["field_error_type"]) == ("ValueError", "mine")
    assert recorded(error="bad", fields=dict(fields))["error_type"] == "mine"


def test_secrets_are_taken_out_of_fields_error_and_resource_name() -> None:
    record = recorded(
        error=f"bad token {JWT}", resource_name=JWT, fields={"password": "hunter2", "note": JWT}
    )
    stored = json.dumps(record)
    assert JWT not in stored
    assert "hunter2" not in stored
    assert "[REDACTED:jwt]" in record["error"]
    assert record["password"] == "[REDACTED]"


def test_five_thousand_fields_are_as_many_as_fit() -> None:
    record = recorded(fields={f"field{number}": "v" * 30 for number in range(5_000)})
    assert record["coerced"] == ["*"]
    own = [name for name in record if re.fullmatch(r"field\d+", name)]
    assert own == [f"field{number}" for number in range(len(own))]
    assert len(own) > 1_000


def test_five_thousand_fields_and_a_long_event_still_fit() -> None:
    fields = {f"field{number}": number for number in range(5_000)}
    record = recorded(event="e" * 70_000, error="x" * 70_000, fields=fields)
    assert record["coerced"] == ["*"]


def test_a_name_of_100_kb_is_cut() -> None:
    record = recorded(fields={"n" * 100_000: 1, "short": "kept"})
    assert record["short"] == "kept"
    assert max(map(len, record)) < 400
    assert record["coerced"]


def test_values_of_a_megabyte_are_cut_longest_first() -> None:
    fields = {"a": "x" * 1_000_000, "b": ["y" * 1_000] * 1_000, "c": "short"}
    record = recorded(fields=fields)
    assert record["c"] == "short"
    assert record["coerced"] == ["a", "b"]


def test_names_of_what_was_cut_that_would_not_fit_themselves_are_a_star() -> None:
    fields = {f"{'long' * 30}{number}": "x" * 5_000 for number in range(40)}
    assert recorded(fields=fields)["coerced"] == ["*"]


@pytest.mark.parametrize("text", ["\x01", "\\", "é", "😀", '"'])
def test_characters_that_grow_in_json_still_fit(text: str) -> None:
    record = recorded(error=text * 60_000, fields={"a": text * 60_000, text: text * 60_000})
    assert "a" in record["coerced"]


def test_a_surrogate_in_what_the_request_says_costs_nothing() -> None:
    scope = RequestScope("r\ud800", user_agent="agent", client_id="c")
    token = scope.attach()
    try:
        record = recorded(fields={"x": 1})
    finally:
        scope.detach(token)
    assert record["request_id"] == "r\\ud800"
    assert record["coerced"] == ["request_id"]
    assert (record["user_agent"], record["x"]) == ("agent", 1)


def test_a_long_request_text_is_cut_like_our_own() -> None:
    scope = RequestScope("r", user_agent="a" * 200_000)
    token = scope.attach()
    try:
        record = recorded(fields={"x": "short text"})
    finally:
        scope.detach(token)
    assert record["coerced"] == ["user_agent"]
    assert record["x"] == "short text"


@pytest.mark.parametrize(
    ("unix_nano", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (951_782_400_999_999_999, "2000-02-29T00:00:00.999999999Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
        (NOW, "2026-01-01T00:00:00.000000042Z"),
        (999_999_999, "1970-01-01T00:00:00.999999999Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-123_456_789, "1969-12-31T23:59:59.876543211Z"),
        (-5_000_000_001, "1969-12-31T23:59:54.999999999Z"),
    ],
)
def test_timestamps_are_rfc_3339_with_nine_digits(unix_nano: int, text: str) -> None:
    assert timestamp_of(unix_nano) == text
    # The first of a process has no second to remember.
    spec = importlib.util.find_spec("otel_audit.record.encode")
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.timestamp_of(unix_nano) == text


def test_record_ids_are_uuids_of_version_4_and_never_the_same() -> None:
    identifiers = [new_record_id() for _ in range(5_000)]
    assert len(set(identifiers)) == len(identifiers)
    for identifier in identifiers:
        parsed = uuid.UUID(identifier)
        assert str(parsed) == identifier
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_hands_out_other_ids_than_its_parent() -> None:
    new_record_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_record_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        of_the_child = pipe.read()
    assert len(of_the_child) == 36
    assert of_the_child not in {new_record_id() for _ in range(600)}


anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.datetimes()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=())), inner, max_size=4)
    ),
    max_leaves=12,
)
words = st.text(st.characters(exclude_categories=()), min_size=1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    event=words,
    action=words,
    said=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys((*TEXTS[2:], "error"), anything),
    ),
    fields=st.dictionaries(words | st.sampled_from(sorted(RESERVED)), anything, max_size=6),
)
@example(event="\ud800", action="\n", said={"status": None}, fields={"\ud800": "\udfff"})
def test_every_event_becomes_one_line_of_json(
    event: str, action: str, said: dict[str, Any], fields: Mapping[str, Any]
) -> None:
    record = recorded(event=event, action=action, fields=fields, **said)
    assert record["outcome"] in {"success", "failure", "unknown"}
    # Each field is there, under its own name or another that says so.
    assert len(record) >= len(KEYS) - 15
    if "coerced" not in record and RESERVED.isdisjoint(fields):
        assert set(fields) <= set(record)


def test_nothing_is_left_attached() -> None:
    assert not [value for value in otel_context.get_current().values() if value]
