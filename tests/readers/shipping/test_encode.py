"""Our OTLP encoder writes what the SDK's encoder writes, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceFlags

from otel_audit import __version__
from otel_audit.readers.shipping.otlp.encode import SCOPE, Encoder
from otel_audit.record.semconv import OtelLogRecord, to_log_record
from tests.readers.place import record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(
    TEXT, st.booleans(), INT64, st.floats(allow_nan=False), st.lists(TEXT, max_size=3)
)
NANO = st.integers(0, 2**63)
RECORDS = st.builds(
    OtelLogRecord,
    timestamp=NANO,
    observed_timestamp=NANO,
    severity_number=st.sampled_from([0, 5, 9, 13, 17, 21]),
    severity_text=TEXT,
    event_name=TEXT,
    body=TEXT | TEXT.map(lambda text: text * 100),
    attributes=st.dictionaries(
        TEXT | st.sampled_from(["audit.action", "event.name"]), VALUES, max_size=8
    ),
    dropped_attributes_count=st.integers(0, 2**32 - 1),
    trace_id=st.just(b"") | st.binary(min_size=16, max_size=16).filter(any),
    span_id=st.just(b"") | st.binary(min_size=8, max_size=8).filter(any),
    trace_flags=st.integers(0, 255),
    resource=st.dictionaries(st.text("abc.", min_size=1, max_size=9), TEXT | INT64, max_size=3),
)


def by_the_sdk(records: Sequence[OtelLogRecord]) -> bytes:
    batch = [
        ReadableLogRecord(
            log_record=_log_record(each),
            resource=_resource(each.resource),
            instrumentation_scope=InstrumentationScope(SCOPE, __version__),
        )
        for each in records
    ]
    for readable, each in zip(batch, records, strict=True):
        # A property that the SDK works out from its limits, which ours are not.
        object.__setattr__(readable, "__class__", _Readable)
        object.__setattr__(readable, "left_out", each.dropped_attributes_count)
    written: bytes = encode_logs(batch).SerializeToString()
    return written


class _Readable(ReadableLogRecord):
    left_out = 0

    @property
    def dropped_attributes(self) -> int:
        return self.left_out


def _log_record(record: OtelLogRecord) -> LogRecord:
    made = LogRecord(
        timestamp=record.timestamp,
        observed_timestamp=record.observed_timestamp,
        severity_text=record.severity_text,
        severity_number=SeverityNumber(record.severity_number),
        body=record.body,
        attributes=dict(record.attributes),
        event_name=record.event_name,
    )
    made.trace_id = int.from_bytes(record.trace_id, "big")
    made.span_id = int.from_bytes(record.span_id, "big")
    made.trace_flags = TraceFlags(record.trace_flags)
    return made


def _resource(attributes: Mapping[str, Any]) -> Resource:
    return Resource(dict(attributes))


def ours(records: Sequence[OtelLogRecord], encoder: Encoder) -> bytes:
    return encoder.request(
        (encoder.resource(each.resource), encoder.record(each)) for each in records
    )


ENCODER = Encoder()


@settings(max_examples=60)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_any_log_record_is_written_as_the_sdk_writes_it(records: list[OtelLogRecord]) -> None:
    # The SDK leaves out what protobuf leaves out; an unset time is None to it, not 0.
    assert ours(records, ENCODER) == by_the_sdk(records)


def mapped(number: int, **fields: Any) -> OtelLogRecord:
    return to_log_record(
        record(number, **fields),
        sequence_number=number,
        stream_id="shop.example/trail",
        leaf_hash=bytes(32),
        committed_unix_nano=1,
        resource={"service.name": "shop", "list": ["a", 1, True], "nested": {"a": {"b": 1.5}}},
    )


def test_records_of_a_trail_are_written_as_the_sdk_writes_them() -> None:
    records = [
        mapped(
            number,
            action="read",
            actor_verified=number % 2 == 0,
            ratio=0.5,
            coerced=["a", "b"],
            nested={"a": [1, None]},
            many=2**63,
            negative=-number,
            trace_id="ab" * 16,
            span_id="cd" * 8,
            trace_flags="01",
        )
        for number in range(50)
    ]
    assert ours(records, Encoder()) == by_the_sdk(records)


def test_true_is_not_taken_for_one() -> None:
    encoder = Encoder()
    for value in (True, 1, 1.0, "1"):
        written = encoder.record(mapped(0, n=value))
        assert written == Encoder().record(mapped(0, n=value))


def test_made_up_names_and_words_do_not_fill_the_memory() -> None:
    encoder = Encoder()
    for number in range(5_000):
        encoder.record(mapped(number, event=f"event {number}", **{f"field{number}": number}))
        encoder.resource({"service.name": f"s{number}"})
    assert len(encoder._keys) <= 4_096
    assert len(encoder._words) <= 4_096
    assert len(encoder._resources) <= 4_096
