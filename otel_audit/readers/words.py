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
    from collections.abc import Iterable, Iterator, Mapping

IDENTIFIERS: Final = ("record_id", "request_id", "trace_id", "span_id")
"""What a word that looks like an identifier is looked up in."""

_UNSEARCHED: Final = frozenset(
    {*IDENTIFIERS, "schema", "timestamp", "session_id", "resource", "trace_flags"}
)
"""Fields whose words are no words."""

_NO_TERMS: Final = frozenset({"schema", "timestamp"})
_WORD: Final = re.compile(r"[^\W_]+")
_INT64: Final = range(-(1 << 62), 1 << 62)


def fields_of(record: object) -> dict[str, Any]:
    """Return a record's fields, none when it is not the JSON object that it should be."""
    try:
        fields = orjson.loads(record)  # type: ignore[arg-type]  # a changed row may hold anything
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def moment_of(fields: Mapping[str, Any], committed_unix_nano: int) -> int:
    """Return a record's time in nanoseconds since 1970: its own, else that of its commit."""
    try:
        moment = unix_nano(fields["timestamp"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return committed_unix_nano
    return moment if moment in _INT64 else committed_unix_nano


def terms_of(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield field and value, as text, of all that can be filtered by; of a list, each item."""
    for field, value in fields.items():
        if type(value) is str:
            if field not in _NO_TERMS:
                yield field, value
        elif type(value) is list:
            for item in value:
                if not isinstance(item, (dict, list)):
                    yield field, as_text(item)
        elif value is not None and type(value) is not dict:
            yield field, as_text(value)


def texts_of(fields: Mapping[str, Any], field: str) -> list[str]:
    """Return the values of one field as they can be filtered by."""
    if field not in fields:
        return []
    return [text for _, text in terms_of({field: fields[field]})]


def as_text(value: object) -> str:
    """Return a value as it is typed in a filter: texts as they are, the rest as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def words_in(text: str) -> list[str]:
    """Return the words of a text: letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def searchable(fields: Mapping[str, Any], hidden: Iterable[str] = ()) -> str:
    """Return the text that full-text search looks in, without the ``hidden`` fields."""
    skipped = _UNSEARCHED.union(hidden) if hidden else _UNSEARCHED
    return "\n".join(
        value if type(value) is str else orjson.dumps(value).decode()
        for field, value in fields.items()
        if field not in skipped and isinstance(value, (str, list, dict))
    )
