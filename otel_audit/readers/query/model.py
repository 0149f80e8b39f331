"""The one query model: what can be asked, and what an answer is.

Python, HTTP and the command line make a `Query` - the latter two by `parse`,
from the same parameters (`readers/query/parameters.py`) - and every backend (the trail on this host in
`readers/search/trail.py`, Loki in `readers/search/loki.py`) answers it with the same types. Promises: a
`Query` says everything that an answer depends on; what cannot be asked is a
`QueryError` that says why. How times are written is left to `times.py`, where an
answer goes on to `page_cursor.py`.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson

from otel_audit.errors import QueryError
from otel_audit.readers.query.words import (
    TIMESTAMP,
    is_hidden,
    searchable,
    texts_of,
    without,
    words_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST: Final = 1_000
"""Records of one page."""

OWN_QUERIES: Final = "audit.query"
"""The event type of the records that queries leave."""

PERSONAL: Final = frozenset({
    "actor_id", "client_ip", "email", "phone", "query_filter", "session_id", "subject_id",
    "user_agent", "user_id",
})  # fmt: skip
"""Fields that take the scope `read:pii`, unless the application names others.

``user_id`` is the account that a log-in claimed, ``subject_id`` whose data it was.
``query_filter`` is what somebody searched for, which may be any of the others.
"""

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "action": ("action", "event"),
    "actor": ("actor_id",),
    "client": ("client_id",),
    # The record's own "resource" is the hash of an OpenTelemetry Resource, which nobody asks for;
    # it is field.resource.
    "resource": ("resource_name",),
}
"""Names of filters that stand for fields: the same wherever a field is named."""

FIELD_PREFIX: Final = "field."
"""What a field of the caller's own may begin with, so that it is no name of ours."""

_LOWER: Final = frozenset({"record_id", "trace_id", "span_id"})
"""Fields that we write, in hexadecimal digits; a request's id is its sender's."""

_SECOND: Final = 1_000_000_000
_BUCKETS: Final = 20_000
_WILD: Final = re.compile(r"([*?])")
_MEANING: Final = {"*": ".*", "?": "."}


class Entry(NamedTuple):
    """One record of an answer: its place, its stored bytes, and its fields.

    ``sequence`` is -1 where only a copy elsewhere was asked that does not say.
    """

    sequence: int
    committed_unix_nano: int
    record: bytes
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Condition:
    """One of ``fields`` has one of ``values``; or none has, where it is not ``wanted``.

    In a value ``*`` stands for any text and ``?`` for any character. Ids that records have in
    lower case are found in any.
    """

    fields: tuple[str, ...]
    values: tuple[str, ...]
    wanted: bool = True
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the values and the patterns."""
        if _LOWER.issuperset(self.fields):
            object.__setattr__(self, "values", tuple(value.lower() for value in self.values))
        found = filter(None, map(wild, self.values))
        patterns = tuple(re.compile(pattern, re.DOTALL) for pattern in found)
        object.__setattr__(self, "_patterns", patterns)

    @property
    def exact(self) -> bool:
        """Whether all values are meant as they are written."""
        return not self._patterns

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Whether a record with these fields meets the condition."""
        return self._found(fields) == self.wanted

    def covers(self, text: str) -> bool:
        """Whether a value is one of ``values``."""
        return text in self.values or any(pattern.fullmatch(text) for pattern in self._patterns)

    def _found(self, fields: Mapping[str, Any]) -> bool:
        for name in self.fields:
            value = fields.get(name)
            if type(value) is str:
                if self.covers(value):
                    return True
            elif value is not None and any(map(self.covers, texts_of(fields, name))):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked. Times are nanoseconds since 1970: from ``start`` until before ``end``.

    ``words`` have to be in the record, all of them, in any case; one that ends
    in ``*`` stands for what begins so. ``hidden`` fields (named in small letters)
    take no part: whoever asks may not see them. ``said`` are the times as they were said, when they
    were relative.
    """

    conditions: tuple[Condition, ...] = ()
    start: int | None = None
    end: int | None = None
    words: tuple[str, ...] = ()
    oldest_first: bool = False
    limit: int = 50
    hidden: frozenset[str] = frozenset()
    said: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Check what holds for every query. Raises `QueryError`."""
        limit: object = self.limit
        if not (isinstance(limit, int) and 1 <= limit <= MOST):
            message = f"limit is {limit!r}; it can be a number, 1 to {MOST}: ask for more by pages"
            raise QueryError(message, parameter="limit")
        if self.start is not None and self.end is not None and self.end < self.start:
            message = "the time range ends before it starts; exchange start and end"
            raise QueryError(message, parameter="end")
        for condition in self.conditions:
            for name in condition.fields:
                self.check_field(name)

    def check_field(self, name: str) -> None:
        """Raise `QueryError` for a field that cannot be asked for, or not by whoever asks."""
        if name == TIMESTAMP:
            message = "timestamp cannot be filtered or counted by; use start, end and per"
            raise QueryError(message, parameter=name)
        if is_hidden(name, self.hidden):
            message = (
                f"{name} is hidden from you, so it cannot be filtered or counted by: that takes "
                "the scope read:pii"
            )
            raise QueryError(message, parameter=name)

    def counted(self, name: str) -> str:
        """Return the field that is counted by ``name``: an action is its own, not its event's.

        Raises `QueryError`.
        """
        field_name = fields_named(name)[0]
        self.check_field(field_name)
        return field_name

    @property
    def identity(self) -> bytes:
        """What a cursor is bound to: everything but the limit."""
        times = self.said or (str(self.start), str(self.end))
        conditions = [(c.fields, c.values, c.wanted) for c in self.conditions]
        text = repr((conditions, times, self.words, self.oldest_first, sorted(self.hidden)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]

    def in_time(self, moment: int) -> bool:
        """Whether a time is in the range."""
        return (self.start is None or moment >= self.start) and (
            self.end is None or moment < self.end
        )

    def matches(self, fields: Mapping[str, Any], moment: int) -> bool:
        """Whether a record with these fields and this time is an answer."""
        return (
            self.in_time(moment)
            and all(condition.holds(fields) for condition in self.conditions)
            and (not self.words or self._says(fields))
        )

    def _says(self, fields: Mapping[str, Any]) -> bool:
        found = set(words_in(searchable(fields, self.hidden)))
        for word in self.words:
            if word.endswith("*"):
                if not any(other.startswith(word[:-1]) for other in found):
                    return False
            elif word not in found:
                return False
        return True

    def visible(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what whoever asks may see of a record."""
        return without(fields, self.hidden) if self.hidden else dict(fields)


class Page(NamedTuple):
    """Some records of an answer, and where it goes on.

    ``next_position`` is None at the end. ``complete`` is false when there was
    no time to look any further: there may be more from ``next_position`` on.
    """

    entries: list[Entry]
    next_position: int | None
    complete: bool


class Progress(NamedTuple):
    """How far the index is: ``indexed`` of ``size`` records; the rest is read from the trail."""

    indexed: int
    size: int
    full_text: bool


Counts = dict[tuple["int | None", "str | None"], int]
"""How many records, by the start of their time bucket and their value; None where not asked."""


class Backend(Protocol):
    """Where queries are answered; all methods block, and raise `QueryError` and `TrailError`."""

    def page(
        self, query: Query, position: int | None = None, *, seconds: float | None = None
    ) -> Page:
        """Return the records from ``position`` on, looking for at most ``seconds``."""
        ...

    def stream(self, query: Query, position: int | None = None) -> Iterator[Entry]:
        """Yield all records of an answer, whatever its limit, in constant memory."""
        ...

    def count(
        self,
        query: Query,
        *,
        by: str | None = None,
        per: int | None = None,
        seconds: float | None = None,
    ) -> Counts:
        """Count by the values of a field, by time buckets of ``per`` nanoseconds, or both."""
        ...

    def progress(self) -> Progress:
        """Return how far the index is."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def edges(counts: Counts, query: Query, per: int) -> tuple[int, int] | None:
    """Return the starts of the first and the last time bucket of an answer.

    They are those of the query's start and of its end, which is now where it has
    a start only; where it says nothing, those that hold the first and the last
    record. None where there is neither.
    """
    held = [bucket for bucket, _ in counts if bucket is not None]
    end = time.time_ns() if query.end is None and query.start is not None else query.end
    firsts = held if query.start is None else [*held, query.start // per * per]
    lasts = held if end is None else [*held, (end - 1) // per * per]
    return (min(firsts), max(lasts)) if firsts and lasts else None


def filled(counts: Counts, query: Query, per: int) -> Counts:
    """Add zeros for the time buckets in which nothing happened: what draws counts needs each.

    Not where these would be more than anybody can look at.
    """
    found = edges(counts, query, per)
    if found is None or (found[1] - found[0]) // per > _BUCKETS:
        return counts
    empty = range(found[0], found[1] + 1, per)
    return dict.fromkeys(((bucket, None) for bucket in empty), 0) | counts


def check_buckets(query: Query, per: int | None) -> None:
    """Refuse to count by more time buckets than anybody can look at. Raises `QueryError`."""
    if per is None:
        return
    if per < _SECOND:
        message = "per has to be a second or longer"
        raise QueryError(message, parameter="per")
    if query.start is None:
        return
    end = time.time_ns() if query.end is None else query.end
    if (end - query.start) // per > _BUCKETS:
        message = f"per makes more than {_BUCKETS} time buckets of this range; take longer ones"
        raise QueryError(message, parameter="per")


def fields_named(name: str) -> tuple[str, ...]:
    """Return the fields of records that a name stands for, any name of a field's own as it is."""
    return ALIASES.get(name) or (name.removeprefix(FIELD_PREFIX) or name,)


def needles(query: Query) -> list[bytes]:
    """Return what each record that matches has in its bytes: a cheap look before a thorough one."""
    return [
        orjson.dumps(condition.values[0].encode(errors="replace").decode())[1:-1]
        for condition in query.conditions
        if condition.wanted and condition.exact and len(condition.values) == 1
    ]


def where(conditions: Mapping[str, str | Sequence[str]]) -> tuple[Condition, ...]:
    """Return conditions for Python callers: field names and the value, or values, they may have."""
    return tuple(
        Condition((name,), (values,) if isinstance(values, str) else tuple(values))
        for name, values in conditions.items()
    )


def wild(value: str) -> str | None:
    """Return a value's regular expression, with dots for any character; None without wildcards."""
    if not _WILD.search(value):
        return None
    return "".join(_MEANING.get(part) or re.escape(part) for part in _WILD.split(value))
