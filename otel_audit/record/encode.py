"""From a draft to the canonical bytes: flat JSON, one line, fixed order.

Promises: `encode` returns valid UTF-8 JSON of at most 65,535 bytes (the limit
of a C2SP tlog-tiles entry), without a newline, whatever the caller's fields
hold; what had to be altered is named in ``coerced``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.record import coerce
from otel_audit.record.event import (
    KEYS,
    LEVELS,
    RESERVED,
    SCHEMA,
    UNSAID,
    level_of,
    outcome_of,
)
from otel_audit.record.shorten import shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.record.event import Draft

LIMIT: Final = 65_535
"""Bytes of the longest record."""

_MARGIN: Final = 256
"""Room for naming what was cut."""

_UNCUT: Final = frozenset(
    {"schema", "timestamp", "level", "record_id", "outcome", "trace_id", "span_id", "trace_flags",
     "coerced", "resource"}
)  # fmt: skip

_HOW_IT_WENT: Final = ("status", "outcome")
"""Reserved names of which a contradiction must not pass in silence."""

_SECOND: Final = 1_000_000_000
_POOL: Final = 256
_RANDOM: Final = int.from_bytes(bytes.fromhex("ffffffffffff0fff3fffffffffffffff") * _POOL, "big")
_VERSION: Final = int.from_bytes(bytes.fromhex("00000000000040008000000000000000") * _POOL, "big")
"""What is random in a UUIDv4 (RFC 9562, section 5.4), and what is not, as often as are drawn."""
_FORM: Final = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx\n"
_DIGITS: Final = tuple(place for place, sign in enumerate(_FORM) if sign == ord("x"))


def encode(draft: Draft) -> bytes:
    """Return the record's canonical bytes."""
    record = _assembled(draft)
    try:
        encoded = orjson.dumps(record)
    except TypeError:
        # Something in the record's own keys that JSON cannot hold, such as a
        # lone surrogate in a resource's name.
        plain, altered = coerce.plain(record)
        record = {**plain, "coerced": sorted({*draft.coerced, *altered})}
        encoded = orjson.dumps(record)
    if len(encoded) > LIMIT:
        encoded = _cut(record, len(encoded))
    return encoded


def members(facts: Mapping[str, object]) -> str:
    """Write facts as members of a JSON object, each after a comma. Raises `TypeError`."""
    return f",{orjson.dumps(facts).decode()[1:-1]}" if facts else ""


def merge_fields(draft: Draft, fields: dict[str, Any]) -> dict[str, str]:
    """Take the caller's fields into the draft, away from the reserved names.

    A reserved name that says what the record says anyway is dropped, so that
    ``**get_audit_context()`` may be passed along; otherwise it is kept as
    ``field_<name>``. How it went is taken from it where nobody said otherwise;
    else ``coerced`` names what contradicts the record, which would look like a
    success. Returns the new names of those that were kept.
    """
    renamed = {}
    # The class of an exception has its place only where there is one.
    reserved = RESERVED if draft.error_type is None else RESERVED | {"error_type"}
    if not reserved.isdisjoint(fields):
        _believe(draft, fields)
        own = {"schema": SCHEMA, "outcome": outcome_of(draft.status)}
        for name in [name for name in fields if name in reserved]:
            value = fields.pop(name)
            if value != (own.get(name) or getattr(draft, name, None)):
                renamed[name] = free_name(f"field_{name}", fields)
                fields[renamed[name]] = value
                if name in _HOW_IT_WENT and value is not None:
                    draft.coerced.append(name)
    draft.fields = fields
    return renamed


def _believe(draft: Draft, fields: dict[str, Any]) -> None:
    """Take how it went, and how grave that is, from fields where the event does not say it."""
    for name in _HOW_IT_WENT:
        if draft.status is UNSAID and type(fields.get(name)) is str and fields[name]:
            draft.status = fields.pop(name)
    if draft.level is None and draft.severity is None and fields.get("level") in LEVELS:
        draft.level = fields.pop("level")


def timestamp_of(unix_nano: int) -> str:
    """Format nanoseconds since 1970 by RFC 3339: UTC, nine digits, ``Z``."""
    global _cached  # noqa: PLW0603 - formatting the second anew costs five times the rest
    digits = str(unix_nano)
    second, text = _cached
    if digits[:-9] != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(unix_nano // _SECOND))
        if unix_nano < _SECOND:  # too few digits, or before 1970
            return f"{text}{unix_nano % _SECOND:09d}Z"
        _cached = (digits[:-9], text)
    return f"{text}{digits[-9:]}Z"


_cached: tuple[str, str] = ("none", "")
_identifiers: list[str] = []


def new_record_id() -> str:
    """Return a new UUIDv4 (RFC 9562); random bits are drawn for 256 at a time."""
    try:
        return _identifiers.pop()
    except IndexError:
        first, *others = _drawn()
        _identifiers.extend(others)
        return first


def _drawn() -> list[str]:
    random = int.from_bytes(os.urandom(16 * _POOL), "big")
    digits = (random & _RANDOM | _VERSION).to_bytes(16 * _POOL, "big").hex().encode()
    lines = bytearray(_FORM * _POOL)
    # The same digit of all at a time: half of what putting each together takes.
    for number, place in enumerate(_DIGITS):
        lines[place :: len(_FORM)] = digits[number :: len(_DIGITS)]
    return lines.decode().split()


# A child must not hand out what its parent hands out.
os.register_at_fork(after_in_child=_identifiers.clear)


def _assembled(draft: Draft) -> dict[str, Any]:  # noqa: C901, PLR0912 - one line a key, in the order of the record
    """Build the record key by key: faster than any loop over the keys."""
    status = draft.status
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "timestamp": draft.timestamp,
        "level": draft.level or level_of(status, draft.event_type),
        "event": draft.event,
        "record_id": draft.record_id,
        "event_type": draft.event_type,
        "action": draft.action,
        "status": status,
        "outcome": outcome_of(status),
    }
    if draft.actor_id is not None:
        record["actor_id"] = draft.actor_id
        record["actor_type"] = draft.actor_type
        if draft.actor_verified is not None:
            record["actor_verified"] = draft.actor_verified
    if draft.resource_type is not None:
        record["resource_type"] = draft.resource_type
    if draft.resource_name is not None:
        record["resource_name"] = draft.resource_name
    if draft.request_id is not None:
        record["request_id"] = draft.request_id
    if draft.client_id is not None:
        record["client_id"] = draft.client_id
    if draft.client_ip is not None:
        record["client_ip"] = draft.client_ip
    if draft.session_id is not None:
        record["session_id"] = draft.session_id
    if draft.user_agent is not None:
        record["user_agent"] = draft.user_agent
    if draft.error is not None:
        record["error"] = draft.error
    if draft.trace_id is not None:
        record["trace_id"] = draft.trace_id
        record["span_id"] = draft.span_id
        record["trace_flags"] = draft.trace_flags
    if draft.service_name is not None:
        record["service_name"] = draft.service_name
        record["resource"] = draft.resource
    if draft.retention is not None:
        record["retention"] = draft.retention
    if draft.error_type is not None:
        record["error_type"] = draft.error_type
    record.update(draft.fields)
    if draft.missing_fields:
        record["missing_fields"] = draft.missing_fields
    if draft.coerced:
        record["coerced"] = sorted(set(draft.coerced))
    return record


def _cut(record: dict[str, Any], size: int) -> bytes:
    """Shorten a record that is too long.

    First its own text, as far as that takes more than half of the room (an
    endless error message must not cost the caller's fields), then the
    caller's fields, then both.
    """
    altered = set(record.get("coerced", ()))
    own = frozenset(KEYS)
    own_size = len(orjson.dumps({key: record[key] for key in record if key in own}))
    for keys, most in (
        ((record.keys() & own) - _UNCUT, own_size - LIMIT // 2),
        (record.keys() - own - _UNCUT, size),
        (record.keys() - _UNCUT, size),
    ):
        cuttable = {key: record[key] for key in record if key in keys}
        altered.update(shorten(cuttable, min(most, size - LIMIT + _MARGIN)))
        record = {key: cuttable.get(key, record[key]) for key in record}
        record["coerced"] = _named(altered)
        encoded = orjson.dumps(record)
        size = len(encoded)
        if size <= LIMIT:
            return encoded
    # So many fields that their names alone are too long: the fact is recorded,
    # and the fields that fit.
    return _first_fields(record, own)


def _first_fields(record: dict[str, Any], own: frozenset[str]) -> bytes:
    kept = {key: record[key] for key in record if key in own}
    kept["coerced"] = ["*"]
    room = LIMIT - len(orjson.dumps(kept))
    for key, value in record.items():
        if key in kept:
            continue
        room -= len(orjson.dumps({key: value}))
        if room < 0:
            break
        kept[key] = value
    return orjson.dumps(kept)


def _named(altered: set[str]) -> list[str]:
    """Name what was altered, or say "*" where the names would not fit themselves."""
    names = sorted(altered)
    return names if sum(map(len, names)) < _MARGIN // 2 else ["*"]


def free_name(name: str, fields: dict[str, Any]) -> str:
    """Return the name, or one like it that no field has: what stands there stays."""
    while name in fields:
        name += "_"
    return name
