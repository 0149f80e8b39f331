"""From a stored record to what an OpenTelemetry log record says about it.

This module is the table of docs/record.md as code. It promises that the body
is exactly the stored bytes, so that a copy anywhere can be checked against
the tree, that the same leaf always gives the same result, and that no
attribute says what the bytes do not. Attributes are conveniences on top: long
ones are cut and superfluous ones left out (and counted), never the body.

It reads no clock, no settings and no OpenTelemetry state; sending belongs to
the shipper. Names come from the OpenTelemetry semantic conventions where one
exists, else from the draft audit signal (docs/otep-0267.md); names that exist
in neither and describe our own storage start with ``otel_audit.``.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AttributeValue: TypeAlias = str | bool | int | float | list[str]

FIELD_PREFIX: Final = "audit.field."
FIELD_LIMIT: Final = 64
"""Caller's fields that become attributes; Loki takes 128 entries in all."""

TEXT_LIMIT: Final = 1_024
"""Characters of a text attribute; the rest is in the body."""

LARGE_RECORD: Final = 32_768
"""Bytes from which a record's fields are in its body only.

Loki refuses an entry whose attributes exceed 64 KiB; below half of that no
mapping of names can get there.
"""

# Log data model, "Displaying Severity": the lowest number of each range.
SEVERITY_NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
)

ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "schema": "audit.schema.version",
        "event": "event.name",  # Loki drops EventName
        "record_id": "audit.record.id",
        "event_type": "audit.event.type",
        "action": "audit.action",
        "status": "audit.status",
        "outcome": "audit.outcome",
        "actor_id": "audit.actor.id",
        "actor_type": "audit.actor.type",
        "actor_verified": "audit.actor.verified",
        "resource_type": "audit.target.type",
        "resource_name": "audit.target.id",
        "request_id": "audit.source.request_id",
        "client_id": "audit.source.client_id",
        "client_ip": "client.address",
        "session_id": "session.id",
        "user_agent": "user_agent.original",
        "error": "error.message",
        "error_type": "error.type",
        "retention": "audit.retention",
        "coerced": "otel_audit.coerced",
        "missing_fields": "otel_audit.missing_fields",
    }
)
"""Record key -> attribute. The keys of `_PLACES` go elsewhere, all others to audit.field.*"""

_NAMES: Final = dict(ATTRIBUTES)
"""The same, looked up in half the time: once for each key of each record."""

_PLACES: Final = frozenset(
    {"timestamp", "level", "trace_id", "span_id", "trace_flags", "service_name", "resource"}
)
MAPPED_KEYS: Final = frozenset(ATTRIBUTES) | _PLACES
"""Every record key that has a place of its own in a log record."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NANO_DIGITS: Final = 9
_INT64: Final = range(-(2**63), 2**63)
_OTHER: Final = "_OTHER"  # error.type, where the class of an error is not known


class OtelLogRecord(NamedTuple):
    """What an OTLP log record and its Resource need to hold.

    Times are nanoseconds since the Unix epoch. ``trace_id`` and ``span_id``
    are bytes as in OTLP, empty outside a span. ``dropped_attributes_count``
    counts fields that are in the body only.
    """

    timestamp: int
    observed_timestamp: int
    severity_number: int
    severity_text: str
    event_name: str
    body: str
    attributes: Mapping[str, AttributeValue]
    dropped_attributes_count: int
    trace_id: bytes
    span_id: bytes
    trace_flags: int
    resource: Mapping[str, Any]


def to_log_record(
    record: bytes,
    *,
    sequence_number: int,
    stream_id: str,
    leaf_hash: bytes,
    committed_unix_nano: int,
    resource: Mapping[str, Any] | Callable[[str], Mapping[str, Any] | None] | None,
) -> OtelLogRecord:
    """Map one leaf of the trail.

    ``stream_id`` is the trail's origin, ``resource`` the attributes of the
    Resource that the trail stored for the record, or None when it has none, or
    a function that finds them by the record's ``resource``.
    The commit time becomes the observed time, unless the clock went back
    between the two: an observation cannot precede its event. Raises
    ValueError when ``record`` is not the bytes of a record.
    """
    said = _parsed(record)
    if callable(resource):
        resource = resource(str(said.get("resource", "")))
    timestamp = unix_nano(said["timestamp"])
    attributes: dict[str, AttributeValue] = {}
    fields = _add_own(attributes, said)
    _complete(attributes, said)
    attributes["audit.sequence.number"] = sequence_number
    attributes["audit.sequence.stream_id"] = stream_id
    attributes["otel_audit.leaf_hash"] = leaf_hash.hex()
    dropped = _add_fields(attributes, fields, FIELD_LIMIT if len(record) < LARGE_RECORD else 0)
    level = said.get("level", "info")
    return OtelLogRecord(
        timestamp=timestamp,
        observed_timestamp=max(timestamp, committed_unix_nano),
        severity_number=SEVERITY_NUMBERS.get(level, 0),
        severity_text=level,
        event_name=said["event"],
        body=record.decode(),
        attributes=attributes,
        dropped_attributes_count=dropped,
        trace_id=bytes.fromhex(said.get("trace_id") or ""),
        span_id=bytes.fromhex(said.get("span_id") or ""),
        trace_flags=int(said.get("trace_flags") or "0", 16),
        resource=_resource(said, resource),
    )


def unix_nano(timestamp: str) -> int:
    """Nanoseconds since the Unix epoch of a record's ``timestamp``.

    Takes RFC 3339 in UTC with up to nine digits of a second's fraction, as
    the record has it. Raises ValueError for anything else.
    """
    if timestamp[19:20] == "." and timestamp[29:] == "Z":  # as the record has it
        return _whole_second(timestamp[:19]) + int(timestamp[20:29])
    seconds, _, fraction = timestamp[:-1].partition(".")
    if not timestamp.endswith("Z") or len(fraction) > _NANO_DIGITS:
        message = f"not a record's timestamp: {timestamp!r}"
        raise ValueError(message)
    return _whole_second(seconds) + int(fraction.ljust(_NANO_DIGITS, "0"))


@lru_cache(maxsize=256)
def _whole_second(text: str) -> int:
    """Nanoseconds until a second; whoever reads a trail meets the same one again and again."""
    since = datetime.fromisoformat(text + "+00:00") - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000


def _parsed(record: bytes) -> dict[str, Any]:
    said = orjson.loads(record)
    if isinstance(said, dict) and "event" in said and "timestamp" in said:
        return said
    message = "not a record: expected a JSON object with event and timestamp"
    raise ValueError(message)


def _add_own(attributes: dict[str, AttributeValue], said: dict[str, Any]) -> dict[str, Any]:
    """Place the keys that have an attribute of their own; return the caller's fields."""
    fields: dict[str, Any] = {}
    for key, value in said.items():
        if value is None:
            continue
        name = _NAMES.get(key)
        if name is not None:
            brief = type(value) is str and len(value) <= TEXT_LIMIT
            attributes[name] = value if brief else _cut(value)
        elif key not in _PLACES:
            fields[key] = value
    return fields


def _complete(attributes: dict[str, AttributeValue], said: dict[str, Any]) -> None:
    """Add what the draft and the conventions derive from a key beside its own attribute."""
    action = said.get("action")
    if action is not None:
        # Upper-case verbs tell actions from event names.
        attributes["audit.action"] = _cut(action.upper())
    client = said.get("client_ip")
    if client is not None and client != "unknown":
        attributes["audit.source.id"] = _cut(client)
        attributes["audit.source.type"] = _address_kind(client)
    if said.get("error") is not None:
        attributes.setdefault("error.type", _OTHER)


@lru_cache(maxsize=4_096)
def _address_kind(address: str) -> str:
    try:
        return f"ipv{ip_address(address).version}"
    except ValueError:
        return "hostname"


def _add_fields(attributes: dict[str, AttributeValue], fields: dict[str, Any], limit: int) -> int:
    """Add the caller's fields, the first ``limit``; return how many are left out."""
    for name, value in islice(fields.items(), limit):
        attributes[FIELD_PREFIX + name] = _attribute(value)
    return max(0, len(fields) - limit)


def _attribute(value: Any) -> AttributeValue:  # noqa: ANN401 - whatever JSON holds
    """Give a JSON value a form that every OTLP receiver takes: nested ones as JSON text."""
    if isinstance(value, (list, dict)):
        return _cut(orjson.dumps(value).decode())
    return _cut(value)


def _cut(value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        return value[:TEXT_LIMIT]
    if isinstance(value, int) and value not in _INT64:
        return str(value)
    return value


def _resource(said: dict[str, Any], resource: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Complete the stored Resource by the one thing that the record itself knows."""
    if resource is None:
        resource = {}
    if "service_name" not in said or "service.name" in resource:
        return resource
    return {**resource, "service.name": said["service_name"]}
