"""OTLP's protobuf for log records, written directly.

`Encoder` promises byte for byte what the SDK's encoder and protobuf write for
the same records (tests/readers/shipping/test_encode.py holds it to that), in a quarter
of the time: the keys of attributes, the words that repeat, and the Resources
are encoded once. Field numbers are those of opentelemetry-proto,
logs/v1/logs.proto and common/v1/common.proto.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from otel_audit._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from otel_audit.record.semconv import AttributeValue, OtelLogRecord

SCOPE: Final = "otel_audit"
"""Name of the InstrumentationScope."""

_CACHED: Final = 4_096
"""Keys, and words, that are kept; a name that callers make up must not fill the memory."""

_REPEATING: Final = frozenset(
    {
        "audit.schema.version",
        "event.name",
        "audit.event.type",
        "audit.action",
        "audit.status",
        "audit.outcome",
        "audit.actor.id",
        "audit.actor.type",
        "audit.target.type",
        "audit.source.type",
        "audit.source.client_id",
        "client.address",
        "audit.source.id",
        "user_agent.original",
        "audit.retention",
        "audit.sequence.stream_id",
    }
)
"""Attributes whose values are worth keeping, because few of them make up most records."""

_fixed64 = struct.Struct("<BQ").pack
_fixed32 = struct.Struct("<BI").pack
_double = struct.Struct("<Bd").pack


def _varint(number: int) -> bytes:
    if number < 0:
        number += 1 << 64
    digits = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SHORT: Final = tuple(map(_varint, range(4_096)))


_BRIEF: Final = 126
"""Bytes of text below which both of its lengths take one byte."""

_HEADS: Final = tuple(bytes((0x12, size + 2, 0x0A, size)) for size in range(_BRIEF))
"""What stands before a brief text that is the value of an attribute."""


def _length(number: int) -> bytes:
    return _SHORT[number] if number < 4_096 else _varint(number)  # noqa: PLR2004 - as long as _SHORT


def _framed(tag: bytes, content: bytes) -> bytes:
    return tag + _length(len(content)) + content


def _moment(tag: int, unix_nano: int) -> bytes:
    """Write a field that is left out when it has its default, like the two below."""
    return _fixed64(tag, unix_nano) if unix_nano else b""


def _number(tag: bytes, value: int) -> bytes:
    return tag + _length(value) if value else b""


def _text(tag: bytes, value: str) -> bytes:
    return _framed(tag, value.encode()) if value else b""


class Encoder:
    """Writes log records, and requests made of them. For one thread."""

    def __init__(self) -> None:
        """Begin with nothing cached."""
        self._keys: dict[str, bytes] = {}
        self._words: dict[tuple[str, str], bytes] = {}
        self._resources: dict[int, tuple[Mapping[str, Any], bytes]] = {}
        self._scope = _framed(
            b"\x0a",
            _framed(b"\x0a", SCOPE.encode()) + _framed(b"\x12", __version__.encode()),
        )

    def record(self, record: OtelLogRecord) -> bytes:
        """Write one LogRecord, as a field of ScopeLogs."""
        parts = (
            _moment(0x09, record.timestamp),
            _number(b"\x10", record.severity_number),
            _text(b"\x1a", record.severity_text),
            _framed(b"\x2a", _framed(b"\x0a", record.body.encode())),
            self._attributes(record.attributes),
            _number(b"\x38", record.dropped_attributes_count),
            _fixed32(0x45, record.trace_flags) if record.trace_flags else b"",
            _framed(b"\x4a", record.trace_id) if record.trace_id else b"",
            _framed(b"\x52", record.span_id) if record.span_id else b"",
            _moment(0x59, record.observed_timestamp),
            _text(b"\x62", record.event_name),
        )
        return _framed(b"\x12", b"".join(parts))

    def resource(self, attributes: Mapping[str, Any]) -> bytes:
        """Write a Resource, as a field of ResourceLogs; the mapping must not change afterwards."""
        known = self._resources.get(id(attributes))
        if known is None:
            entries = b"".join(_framed(b"\x0a", _pair(*pair)) for pair in attributes.items())
            # Kept with its attributes: no other mapping can have their id then.
            known = attributes, _framed(b"\x0a", entries)
            _remember(self._resources, id(attributes), known)
        return known[1]

    def request(self, records: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Write an ExportLogsServiceRequest of encoded (Resource, LogRecord) pairs.

        Records of one Resource stand together, in the order in which the
        Resources come first.
        """
        groups: dict[bytes, list[bytes]] = {}
        for resource, record in records:
            groups.setdefault(resource, []).append(record)
        return b"".join(
            _framed(b"\x0a", resource + _framed(b"\x12", self._scope + b"".join(group)))
            for resource, group in groups.items()
        )

    def _attributes(self, attributes: Mapping[str, AttributeValue]) -> bytes:
        parts: list[bytes] = []
        # A record has thirty of them: what is called here is called thirty times.
        keys, words, add = self._keys.get, self._words.get, parts.append
        for name, value in attributes.items():
            if type(value) is not str:
                content = self._key(name) + _framed(b"\x12", _any(value))
                add(_framed(b"\x32", content))
            elif name in _REPEATING:
                add(words((name, value)) or self._repeating(name, value))
            else:
                encoded, key = value.encode(), keys(name) or self._key(name)
                size = len(encoded)
                if size < _BRIEF and len(key) < _BRIEF:
                    add(b"\x32" + _SHORT[len(key) + 4 + size] + key + _HEADS[size] + encoded)
                else:
                    add(_framed(b"\x32", key + _framed(b"\x12", _framed(b"\x0a", encoded))))
        return b"".join(parts)

    def _repeating(self, name: str, value: str) -> bytes:
        content = self._key(name) + _framed(b"\x12", _framed(b"\x0a", value.encode()))
        written = _framed(b"\x32", content)
        _remember(self._words, (name, value), written)
        return written

    def _key(self, name: str) -> bytes:
        known = self._keys.get(name)
        if known is None:
            known = _text(b"\x0a", name)
            _remember(self._keys, name, known)
        return known


def _remember(cache: dict[Any, Any], key: object, value: object) -> None:
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = value


def _list(value: Iterable[Any]) -> bytes:
    return _framed(b"\x2a", b"".join(_framed(b"\x0a", _any(item)) for item in value))


def _mapping(value: Mapping[Any, Any]) -> bytes:
    return _framed(b"\x32", b"".join(_framed(b"\x0a", _pair(*pair)) for pair in value.items()))


def _pair(key: object, value: object) -> bytes:
    return _text(b"\x0a", str(key)) + _framed(b"\x12", _any(value))


_WRITERS: Final[Mapping[type, Callable[[Any], bytes]]] = {
    bool: lambda value: b"\x10\x01" if value else b"\x10\x00",
    str: lambda value: _framed(b"\x0a", value.encode()),
    int: lambda value: b"\x18" + _varint(value),
    float: lambda value: _double(0x21, value),
    list: _list,
    dict: _mapping,
    type(None): lambda _: b"",
}


def _any(value: object) -> bytes:
    """Write an AnyValue: of what JSON gives, there are no other types."""
    return _WRITERS[type(value)](value)
