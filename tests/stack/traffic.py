"""Traffic for the servers: real records of a real trail, and the metrics of its service.

The records are sent by a plain OTLP client, so that the servers are tested
without the shipper, which has tests of its own.
"""

from __future__ import annotations

import gzip
import time
import uuid
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel_audit import events
from otel_audit.api.context import acting_as
from otel_audit.record.semconv import to_log_record
from otel_audit.testing import AuditTrail, audit_trail

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

    from otel_audit.record.semconv import OtelLogRecord

SERVICE = "shop"


class Refused(RuntimeError):  # noqa: N818 - it is what happened, not what went wrong
    """The far end did not take what was sent; ``status`` is what it answered."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


@contextmanager
def trail(service: str = SERVICE) -> Iterator[AuditTrail]:
    """Make a trail of its own, with the real clock."""
    with audit_trail(
        service_name=service, clock=time.time_ns, new_id=lambda: str(uuid.uuid4())
    ) as made:
        yield made


def business(made: AuditTrail, rounds: int = 5) -> None:
    """Let people do what the dashboards show: the right things, and the wrong ones."""
    log = made.logger.audit_event
    secret = {"resource_type": "secret", "resource_name": "billing-key"}
    for number in range(rounds):
        client = f"192.0.2.{number % 3 + 1}"
        who: dict[str, Any] = {"user_id": "mallory", "method": "password", "client_ip": client}
        with acting_as("anonymous", verified=False):
            log(events.AUTHENTICATION, "login", status="failed", error="wrong password", **who)
        with acting_as("bob"):
            log(events.CREDENTIAL_ACCESS, "read", status="failed", error="not yours", **secret)
        with acting_as("ann"):
            log(events.AUTHENTICATION, "login", user_id="ann", method="passkey", client_ip=client)
            log(events.CREDENTIAL_ACCESS, "read", **secret)
            chart = {"resource_type": "chart", "resource_name": f"c-{number}"}
            log(events.PHI_ACCESS, "read", subject_id="p-1", purpose="treatment", **chart)
            log(events.DATA_EXPORT, "download", record_count=100, recipient="insurer", **chart)
            log(events.DATA_DELETION, "erase", reason="GDPR Art. 17", record_count=1, **chart)
        with acting_as("root"):
            account = {"resource_type": "account", "resource_name": "bob"}
            log(events.PRIVILEGE_CHANGE, "grant", privilege="admin", reason="4711", **account)
            log(events.ADMIN_ACTION, "configure", reason="4712", **account)


def log_records(made: AuditTrail) -> list[OtelLogRecord]:
    """Map everything that the trail holds."""
    made.records()  # waits until all is durable
    with made.provider.reader() as reader:
        return [
            to_log_record(
                leaf.record,
                sequence_number=leaf.sequence,
                stream_id=reader.origin,
                leaf_hash=leaf.hash,
                committed_unix_nano=leaf.committed_unix_nano,
                resource=None,
            )
            for leaf in reader.leaves()
        ]


def moved(records: list[OtelLogRecord], seconds: float) -> list[OtelLogRecord]:
    """Return them as of another time, with bodies of their own."""
    nano = round(seconds * 1e9)
    return [
        one._replace(
            timestamp=one.timestamp + nano,
            observed_timestamp=one.observed_timestamp + nano,
            body=f'{one.body[:-1]},"moved":{seconds}}}',
        )
        for one in records
    ]


def send(
    endpoint: str,
    records: list[OtelLogRecord],
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Post them to an OTLP/HTTP endpoint, once; raise Refused unless all were taken."""
    answer = httpx.post(
        endpoint + "/v1/logs",
        content=gzip.compress(request(records).SerializeToString()),
        headers={
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            **(headers or {}),
        },
        timeout=30,
        trust_env=False,
        verify=tls or False,
    )
    if not answer.is_success:
        raise Refused(answer.status_code, answer.text)
    rejected = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert not rejected.rejected_log_records, rejected.error_message


def request(records: list[OtelLogRecord]) -> ExportLogsServiceRequest:
    """Encode records as the OTLP specification says, one Resource after another."""
    grouped: dict[str, list[OtelLogRecord]] = defaultdict(list)
    for record in records:
        grouped[str(sorted(record.resource.items()))].append(record)
    return ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=Resource(attributes=_attributes(group[0].resource)),
                scope_logs=[ScopeLogs(log_records=[_encoded(one) for one in group])],
            )
            for group in grouped.values()
        ]
    )


def _encoded(record: OtelLogRecord) -> LogRecord:
    return LogRecord(
        time_unix_nano=record.timestamp,
        observed_time_unix_nano=record.observed_timestamp,
        severity_number=record.severity_number,  # type: ignore[arg-type]  # an enum, to the checker
        severity_text=record.severity_text,
        event_name=record.event_name,
        body=AnyValue(string_value=record.body),
        attributes=_attributes(record.attributes),
        trace_id=record.trace_id,
        span_id=record.span_id,
        flags=record.trace_flags,
    )


def _attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_value(one) for one in value]))
    return AnyValue(string_value=str(value))
