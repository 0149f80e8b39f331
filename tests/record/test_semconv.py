"""The mapping to OpenTelemetry: every key in its place, the body untouched, bounded."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord
from opentelemetry._logs.severity import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    event_attributes,
    session_attributes,
)
from opentelemetry.semconv.attributes import (
    client_attributes,
    service_attributes,
    user_agent_attributes,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from otel_audit.record.encode import encode, merge_fields, timestamp_of
from otel_audit.record.event import RESERVED, AuditEvent, Draft
from otel_audit.record.semconv import (
    ATTRIBUTES,
    FIELD_LIMIT,
    LARGE_RECORD,
    MAPPED_KEYS,
    SEVERITY_NUMBERS,
    TEXT_LIMIT,
    OtelLogRecord,
    to_log_record,
    unix_nano,
)

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETE: dict[str, Any] = {
    "schema": "otel-audit/1",
    "timestamp": "2026-03-04T05:06:07.080910111Z",
    "level": "error",
    "event": "patient.chart.read",
    "record_id": "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11",
    "event_type": "phi_access",
    "action": "read",
    "status": "denied",
    "outcome": "failure",
    "actor_id": "u-17",
    "actor_type": "user",
    "actor_verified": True,
    "resource_type": "chart",
    "resource_name": "c-99",
    "request_id": "req-1",
    "client_id": "portal",
    "client_ip": "192.0.2.7",
    "session_id": "9f8e7d",
    "user_agent": "curl/8.5",
    "error": "not on the care team",
    "error_type": "PermissionError",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "trace_flags": "01",
    "service_name": "charts",
    "resource": "c0ffee",
    "retention": "3y",
    "coerced": ["amount"],
    "missing_fields": ["purpose"],
    "subject_id": "p-4",
    "amount": 12,
}
RESOURCE = {"service.name": "charts", "host.name": "node-1"}
LEAF_HASH = bytes(range(32))

# The other direction of the table, for the round trip.
FIELDS_OF_THE_LOG_RECORD: dict[str, Callable[[OtelLogRecord], str]] = {
    "timestamp": lambda sent: _rfc3339(sent.timestamp),
    "level": lambda sent: sent.severity_text,
    "event": lambda sent: sent.event_name,
    "trace_id": lambda sent: sent.trace_id.hex(),
    "span_id": lambda sent: sent.span_id.hex(),
    "trace_flags": lambda sent: f"{sent.trace_flags:02x}",
    "service_name": lambda sent: sent.resource["service.name"],
}


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def mapped(
    record: dict[str, Any] | bytes,
    *,
    committed_unix_nano: int = 0,
    resource: dict[str, Any] | None = None,
) -> OtelLogRecord:
    return to_log_record(
        record if isinstance(record, bytes) else orjson.dumps(record),
        sequence_number=41,
        stream_id="charts.example/trail",
        leaf_hash=LEAF_HASH,
        committed_unix_nano=committed_unix_nano,
        resource=resource,
    )


def small(**more: Any) -> dict[str, Any]:
    return {"timestamp": "2026-01-01T00:00:00.000000000Z", "event": "e", **more}


def test_the_body_is_exactly_the_stored_bytes() -> None:
    stored = b'{ "event":"\xc3\xa9\\u00e9", "timestamp":"2026-01-01T00:00:00Z"  , "x":1.50}'
    assert mapped(stored).body.encode() == stored


@given(
    st.dictionaries(
        st.text().filter(lambda key: key not in MAPPED_KEYS),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=5,
    )
)
def test_whatever_the_fields_are_the_body_is_the_stored_bytes(fields: dict[str, Any]) -> None:
    stored = orjson.dumps(small() | fields)
    sent = mapped(stored)
    assert sent.body.encode() == stored
    present = sum(value is not None for value in fields.values())
    assert sum(name.startswith("audit.field.") for name in sent.attributes) == present
    assert all(isinstance(value, (str, bool, int, float)) for value in sent.attributes.values())


@pytest.mark.parametrize("key", COMPLETE)
def test_every_key_can_be_read_back_from_its_place(key: str) -> None:
    sent = mapped(COMPLETE, resource=RESOURCE)
    if key == "resource":  # its hash names the Resource that goes along
        assert sent.resource == RESOURCE
    elif key in FIELDS_OF_THE_LOG_RECORD:
        assert FIELDS_OF_THE_LOG_RECORD[key](sent) == COMPLETE[key]
    elif key == "action":  # upper case is the draft's form; the body has the caller's
        assert sent.attributes["audit.action"] == "READ"
    else:
        name = ATTRIBUTES.get(key, f"audit.field.{key}")
        assert sent.attributes[name] == COMPLETE[key]


def test_the_complete_record_covers_every_mapped_key() -> None:
    assert set(COMPLETE) - {"subject_id", "amount"} == MAPPED_KEYS


def test_every_key_of_the_record_has_its_place() -> None:
    assert RESERVED | {"error_type"} == MAPPED_KEYS


def test_a_record_as_it_is_written_maps() -> None:
    at = 1_767_323_045_123_456_789
    event = AuditEvent("chart.read", "read", event_type="phi_access", status="denied")
    draft = Draft(event, COMPLETE["record_id"], timestamp_of(at))
    draft.actor_id, draft.actor_type, draft.actor_verified = "u-17", "user", True
    draft.trace_id, draft.span_id, draft.trace_flags = "0a" * 16, "0b" * 8, "01"
    draft.service_name, draft.resource = "charts", "c0ffee"
    draft.error, draft.error_type = "no", "PermissionError"
    draft.missing_fields, draft.coerced = ["purpose"], ["amount"]
    merge_fields(draft, {"amount": 12, "level": "fatal"})
    stored = encode(draft)
    sent = mapped(stored)
    assert sent.body.encode() == stored
    assert (sent.timestamp, sent.severity_text, sent.event_name) == (at, "error", "chart.read")
    assert (sent.trace_id.hex(), sent.span_id.hex(), sent.trace_flags) == ("0a" * 16, "0b" * 8, 1)
    assert sent.resource == {"service.name": "charts"}
    assert sent.attributes["audit.outcome"] == "failure"
    assert sent.attributes["error.type"] == "PermissionError"
    assert sent.attributes["otel_audit.missing_fields"] == ["purpose"]
    assert sent.attributes["otel_audit.coerced"] == ["amount"]
    assert sent.attributes["audit.field.field_level"] == "fatal"


def test_no_two_keys_share_an_attribute() -> None:
    assert len(set(ATTRIBUTES.values())) == len(ATTRIBUTES)


def test_names_are_those_of_the_table() -> None:
    assert mapped(COMPLETE, resource=RESOURCE).attributes == {
        "audit.schema.version": "otel-audit/1",
        "event.name": "patient.chart.read",
        "audit.record.id": "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11",
        "audit.event.type": "phi_access",
        "audit.action": "READ",
        "audit.status": "denied",
        "audit.outcome": "failure",
        "audit.actor.id": "u-17",
        "audit.actor.type": "user",
        "audit.actor.verified": True,
        "audit.target.type": "chart",
        "audit.target.id": "c-99",
        "audit.source.request_id": "req-1",
        "audit.source.client_id": "portal",
        "audit.source.id": "192.0.2.7",
        "audit.source.type": "ipv4",
        "client.address": "192.0.2.7",
        "session.id": "9f8e7d",
        "user_agent.original": "curl/8.5",
        "error.message": "not on the care team",
        "error.type": "PermissionError",
        "audit.retention": "3y",
        "otel_audit.coerced": ["amount"],
        "otel_audit.missing_fields": ["purpose"],
        "audit.field.subject_id": "p-4",
        "audit.field.amount": 12,
        "audit.sequence.number": 41,
        "audit.sequence.stream_id": "charts.example/trail",
        "otel_audit.leaf_hash": LEAF_HASH.hex(),
    }


@pytest.mark.parametrize(
    ("key", "convention"),
    [
        ("event", event_attributes.EVENT_NAME),
        ("client_ip", client_attributes.CLIENT_ADDRESS),
        ("session_id", session_attributes.SESSION_ID),
        ("user_agent", user_agent_attributes.USER_AGENT_ORIGINAL),
        ("error", error_attributes.ERROR_MESSAGE),
        ("error_type", error_attributes.ERROR_TYPE),
    ],
)
def test_names_with_a_convention_are_the_convention(key: str, convention: str) -> None:
    assert ATTRIBUTES[key] == convention


def test_all_other_names_are_in_a_namespace_of_the_draft_or_of_ours() -> None:
    conventions = {"event", "client_ip", "session_id", "user_agent", "error", "error_type"}
    rest = [name for key, name in ATTRIBUTES.items() if key not in conventions]
    assert all(name.startswith(("audit.", "otel_audit.")) for name in rest)


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        ("debug", SeverityNumber.DEBUG),
        ("info", SeverityNumber.INFO),
        ("warning", SeverityNumber.WARN),
        ("error", SeverityNumber.ERROR),
        ("critical", SeverityNumber.FATAL),
    ],
)
def test_levels_have_opentelemetrys_severity(level: str, severity: SeverityNumber) -> None:
    sent = mapped(small(level=level))
    assert (sent.severity_number, sent.severity_text) == (severity.value, level)
    assert SEVERITY_NUMBERS[level] == severity.value


def test_a_level_of_a_later_version_is_unspecified_rather_than_wrong() -> None:
    assert mapped(small(level="notice")).severity_number == SeverityNumber.UNSPECIFIED.value


def test_a_record_of_the_least_keys_maps() -> None:
    sent = mapped(small())
    assert (sent.trace_id, sent.span_id, sent.trace_flags) == (b"", b"", 0)
    assert sent.resource == {}
    assert set(sent.attributes) == {
        "event.name",
        "audit.sequence.number",
        "audit.sequence.stream_id",
        "otel_audit.leaf_hash",
    }


@given(st.integers(0, 4 * 10**18))
def test_timestamps_keep_their_nanoseconds(nanoseconds: int) -> None:
    assert unix_nano(_rfc3339(nanoseconds)) == nanoseconds


def test_a_timestamp_may_have_a_shorter_fraction() -> None:
    assert unix_nano("1970-01-02T00:00:00Z") == 86_400 * 10**9
    assert unix_nano("1970-01-01T00:00:00.5Z") == 500_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "yesterdayZ",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00.1234567890Z",
        "2026-01-01T00:00:00+02:00",
        "2026-01-01T00:00:00.5+02:00Z",
        "2026-13-01T00:00:00Z",
    ],
)
def test_another_timestamp_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unix_nano(text)


def test_the_observed_time_is_the_commit() -> None:
    at = unix_nano(COMPLETE["timestamp"])
    assert mapped(COMPLETE, committed_unix_nano=at + 5).observed_timestamp == at + 5


def test_an_observation_never_precedes_its_event() -> None:
    at = unix_nano(COMPLETE["timestamp"])
    hour = timedelta(hours=1) // timedelta(microseconds=1) * 1_000
    assert mapped(COMPLETE, committed_unix_nano=at - hour).observed_timestamp == at


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("192.0.2.7", "ipv4"),
        ("2001:db8::7", "ipv6"),
        ("fe80::1%eth0", "ipv6"),
        ("testclient", "hostname"),
        ("gate.example", "hostname"),
    ],
)
def test_a_source_has_the_drafts_type(address: str, kind: str) -> None:
    attributes = mapped(small(client_ip=address)).attributes
    assert attributes["audit.source.id"] == attributes["client.address"] == address
    assert attributes["audit.source.type"] == kind


def test_a_source_that_nobody_knows_is_not_claimed() -> None:
    attributes = mapped(small(client_ip="unknown")).attributes
    assert attributes["client.address"] == "unknown"
    assert "audit.source.id" not in attributes
    assert "audit.source.type" not in attributes


def test_an_error_without_a_type_has_the_conventions_fallback() -> None:
    attributes = mapped(small(error="disk full")).attributes
    assert attributes["error.type"] == error_attributes.ErrorTypeValues.OTHER.value


def test_there_is_no_error_type_without_an_error() -> None:
    assert "error.type" not in mapped(small(error=None, status="success")).attributes


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        ("text", "text"),
        (True, True),
        (7, 7),
        (1.5, 1.5),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),  # OTLP integers are signed
        ([1, "a"], '[1,"a"]'),
        ({"a": {"b": []}}, '{"a":{"b":[]}}'),
        ("", ""),
        (0, 0),
    ],
)
def test_a_field_has_a_form_that_otlp_takes(value: Any, attribute: Any) -> None:
    sent = mapped(small(it=value)).attributes["audit.field.it"]
    assert sent == attribute
    assert type(sent) is type(attribute)


def test_null_says_nothing() -> None:
    sent = mapped(small(it=None, user_agent=None, trace_id=None, span_id=None, trace_flags=None))
    assert (sent.trace_id, sent.span_id, sent.trace_flags) == (b"", b"", 0)
    assert "audit.field.it" not in sent.attributes
    assert "user_agent.original" not in sent.attributes
    assert sent.dropped_attributes_count == 0


def test_the_first_64_fields_become_attributes_and_the_others_are_counted() -> None:
    sent = mapped(small(**{f"f{n}": n for n in range(FIELD_LIMIT + 3)}))
    names = [name for name in sent.attributes if name.startswith("audit.field.")]
    assert names == [f"audit.field.f{n}" for n in range(64)]
    assert sent.dropped_attributes_count == 3
    assert orjson.loads(sent.body)["f66"] == 66


def test_no_record_has_more_attributes_than_loki_takes() -> None:
    sent = mapped(COMPLETE | {f"f{n}": n for n in range(500)})
    assert len(sent.attributes) <= 128


@pytest.mark.parametrize("key", ["error", "action", "resource_name", "client_ip", "note"])
def test_a_long_text_is_cut_in_its_attribute_and_whole_in_the_body(key: str) -> None:
    sent = mapped(small(**{key: "x" * (TEXT_LIMIT + 1)}))
    texts = [value for value in sent.attributes.values() if isinstance(value, str)]
    assert max(map(len, texts)) == TEXT_LIMIT
    assert "x" * (TEXT_LIMIT + 1) in sent.body


def test_the_fields_of_a_large_record_are_in_its_body_only() -> None:
    sent = mapped(small(one="x" * LARGE_RECORD, two=2))
    assert not any(name.startswith("audit.field.") for name in sent.attributes)
    assert sent.dropped_attributes_count == 2


@pytest.mark.parametrize("character", ["x", "\u20ac", "\U0001f512"])
@pytest.mark.parametrize("size", [LARGE_RECORD - 1, 65_535])
def test_attributes_stay_under_lokis_default_limit(character: str, size: int) -> None:
    keys = [key for key in ATTRIBUTES if key not in {"coerced", "missing_fields"}]
    names = [*keys, *(f"f{n}" for n in range(60))]
    share = (size - len(orjson.dumps(small(**dict.fromkeys(names, ""))))) // len(names)
    record = small(**dict.fromkeys(names, character * (share // len(character.encode()))))
    assert len(orjson.dumps(record)) <= size
    sent = mapped(record)
    weight = sum(len(name) + len(str(value).encode()) for name, value in sent.attributes.items())
    assert weight < 64 * 1024


def test_the_stored_resource_wins_and_the_records_own_name_fills_in() -> None:
    other = {"service.name": "charts-eu"}
    assert mapped(COMPLETE, resource=other).resource == other
    assert mapped(COMPLETE, resource=None).resource == {service_attributes.SERVICE_NAME: "charts"}


def test_the_resource_that_was_passed_is_not_changed() -> None:
    resource: dict[str, Any] = {"host.name": "node-1"}
    mapped(COMPLETE, resource=resource)
    assert resource == {"host.name": "node-1"}


@pytest.mark.parametrize("stored", [b"", b"null", b"[]", b"{}", b'{"event":"e"}', b"\xff", b"{"])
def test_bytes_that_are_no_record_are_an_error(stored: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        mapped(stored)


def test_the_sdk_takes_it_whole(caplog: pytest.LogCaptureFixture) -> None:
    sent = mapped(COMPLETE | {"nested": {"a": [1, None]}}, resource=RESOURCE)
    span = SpanContext(
        int.from_bytes(sent.trace_id, "big"),
        int.from_bytes(sent.span_id, "big"),
        is_remote=False,
        trace_flags=TraceFlags(sent.trace_flags),
    )
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK's own omission
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("test").emit(
        LogRecord(
            timestamp=sent.timestamp,
            observed_timestamp=sent.observed_timestamp,
            context=set_span_in_context(NonRecordingSpan(span)),
            severity_text=sent.severity_text,
            severity_number=SeverityNumber(sent.severity_number),
            body=sent.body,
            attributes=sent.attributes,
            event_name=sent.event_name,
        )
    )
    taken = exporter.get_finished_logs()[0]
    assert taken.dropped_attributes == 0
    attributes = taken.log_record.attributes
    assert attributes is not None
    assert {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in attributes.items()
    } == sent.attributes
    assert taken.log_record.body == sent.body
    assert taken.log_record.trace_id == span.trace_id
    assert taken.log_record.span_id == span.span_id
    assert caplog.records == []
