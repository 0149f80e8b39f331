"""What of a record can be asked for: its fields as terms, its time, its words.

The index, the scan without one, and the streams read records through here
alone, so that all of them find the same. Promises: nothing raises, whatever the
bytes of a record are; they may have been tampered with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.record.semconv import unix_nano

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping

IDENTIFIERS: Final = ("record_id", "request_id", "trace_id", "span_id")
"""What a word that looks like an identifier is looked up in."""

TIMESTAMP: Final = "timestamp"
"""The one field that cannot be filtered by: there is a range of times for that."""

_UNSEARCHED: Final = frozenset(
    {*IDENTIFIERS, "schema", TIMESTAMP, "session_id", "resource", "trace_flags"}
)
"""Fields whose words are no words."""

_WORD: Final = re.compile(r"[^\W_]+")
# How `encode` begins. The last days of a month may not exist, in a record that was tampered with.
_STAMPED: Final = re.compile(
    rb'\{"schema":"otel-audit/1","timestamp":'
    rb'"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{9}Z)"'
)
_FARTHEST: Final = 1 << 62
_BRACKETS: Final[Mapping[type, tuple[Any, ...]]] = {bytes: (b"[", b"{"), str: ("[", "{")}
_NESTED: Final = 100
"""Brackets without which nothing is nested too deep for anybody; ours have 16 levels."""


def fields_of(record: Any) -> dict[str, Any]:  # noqa: ANN401 - a changed row may hold anything
    """Return a record's fields, none when it is not the JSON object that it should be."""
    try:
        fields = orjson.loads(record)
        if sum(map(record.count, _BRACKETS[type(record)])) > _NESTED:
            # What can be read is nested less than 1,024 times, what can be written 255 times.
            orjson.dumps(fields)
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return fields if isinstance(fields, dict) else {}


def moment_of(fields: Mapping[str, Any], committed_unix_nano: int) -> int:
    """Return a record's time in nanoseconds since 1970: its own, else that of its commit."""
    stamp = fields.get(TIMESTAMP)
    if type(stamp) is not str:
        return committed_unix_nano
    try:
        moment = unix_nano(stamp)
    except (ValueError, OverflowError):
        return committed_unix_nano
    return moment if -_FARTHEST < moment < _FARTHEST else committed_unix_nano


def stamp_of(record: bytes) -> bytes | None:
    """Return a record's own time as it is written, where times in order are texts in order.

    None when that takes a closer look. A quarter of a microsecond, where
    parsing the record takes five.
    """
    match = _STAMPED.match(record)
    return None if match is None else match[1]


def texts_of(fields: Mapping[str, Any], field: str) -> list[str]:
    """Return the values of a field as they can be filtered by; of a list, each item."""
    value = fields.get(field)
    if type(value) is str:
        return [value]
    if type(value) is list:
        return [as_text(item) for item in value if not isinstance(item, (dict, list))]
    return [] if value is None or type(value) is dict else [as_text(value)]


def as_text(value: object) -> str:
    """Return a value as it is typed in a filter: texts as they are, the rest as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def words_in(text: str) -> list[str]:
    """Return the words of a text: letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def indexable(text: str) -> str:
    """Return a text with the same words for whoever takes all beyond ASCII for letters."""
    return text if text.isascii() else " ".join(words_in(text))


def searchable(fields: Mapping[str, Any], hidden: Collection[str] = ()) -> str:
    """Return the text that full-text search looks in, without the ``hidden`` fields (see `is_hidden`)."""
    return "\n".join(
        [
            value if type(value) is str else orjson.dumps(value).decode()
            for field, value in (without(fields, hidden) if hidden else fields).items()
            if type(value) in _SEARCHED and field not in _UNSEARCHED
        ]
    )


def is_hidden(name: str, hidden: Container[str]) -> bool:
    """Whether a field is one of those that are ``hidden``, which are named in small letters.

    It is in any case (``Email``), and as a record keeps what a caller gave by
    a reserved name (``field_client_ip``).
    """
    name = name.casefold()
    return name in hidden or name.removeprefix("field_") in hidden


def without(fields: Mapping[str, Any], hidden: Container[str]) -> dict[str, Any]:
    """Return a record's fields without the ``hidden`` ones, also those within others."""
    return {
        name: _shown(value, hidden) for name, value in fields.items() if not is_hidden(name, hidden)
    }


def _shown(value: Any, hidden: Container[str]) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return without(value, hidden)
    if isinstance(value, list):
        return [_shown(item, hidden) for item in value]
    return value


_SEARCHED: Final = (str, list, dict)
