"""The one query model: what can be asked, and what an answer is.

Python, HTTP and the command line make a `Query` - the latter two by `parse`,
from the same parameters - and every backend (the trail on this host in
`search.py`, Loki in `loki_search.py`) answers it with the same types. Promises: a
`Query` says everything that an answer depends on; a cursor that `Cursors` signed
continues that very query and no other, for whoever may see the same fields;
what cannot be used is a `QueryError` that says why.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson

from otel_audit.errors import QueryError
from otel_audit.readers.words import IDENTIFIERS, TIMESTAMP, searchable, texts_of, words_in
from otel_audit.record.event import KEYS, LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MOST: Final = 1_000
"""Records of one page."""

OWN_QUERIES: Final = "audit.query"
"""The event type of the records that queries leave."""

PERSONAL: Final = frozenset(
    {"actor_id", "client_ip", "session_id", "user_agent", "email", "phone", "query_filter"}
)
"""Fields that take the scope `read:pii`, unless the application names others.

``query_filter`` is what somebody searched for, which may be any of the others.
"""

_NANO: Final = 1_000_000_000
_BUCKETS: Final = 20_000
_LONGEST: Final = 4_096
_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "action": ("action", "event"),
    "actor": ("actor_id",),
    "client": ("client_id",),
    # The record's own "resource" is the hash of an OpenTelemetry Resource, which nobody asks for;
    # it is field.resource.
    "resource": ("resource_name",),
}
_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "outcome": ("success", "failure", "unknown"),
    "level": LEVELS,
}
"""Fields of which all values are known: another one is a mistake, not a search without a match."""

_FIELDS: Final = (frozenset(KEYS) - {"schema", "timestamp"}) | {
    "server_name", "status_code", "method", "path", "route",
}  # fmt: skip
_OTHER: Final = ("start", "end", "q", "limit", "cursor", "order")
PARAMETERS: Final = (*_OTHER, *_ALIASES, *sorted(_FIELDS))
_FIELD_PREFIX: Final = "field."
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"(?:\d{1,9}[smhdw])+")
_PART: Final = re.compile(r"(\d+)([smhdw])")
_STAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)?)?"
)
_IDENTIFIER: Final = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{16}"
)
_WILD: Final = re.compile(r"([*?])")
_MEANING: Final = {"*": ".*", "?": "."}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


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

    In a value ``*`` stands for any text and ``?`` for any character.
    """

    fields: tuple[str, ...]
    values: tuple[str, ...]
    wanted: bool = True
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the patterns."""
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
    in ``*`` stands for what begins so. ``hidden`` fields take no part: whoever
    asks may not see them. ``said`` are the times as they were said, when they
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
        if not 1 <= self.limit <= MOST:
            message = f"limit is {self.limit}; it can be 1 to {MOST}: ask for more by pages"
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
        if name in self.hidden:
            message = (
                f"{name} is hidden from you, so it cannot be filtered or counted by: that takes "
                "the scope read:pii"
            )
            raise QueryError(message, parameter=name)

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
        return {name: value for name, value in fields.items() if name not in self.hidden}


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


class CursorSigner:
    """Writes and reads cursors: text without meaning for whoever passes it on."""

    def __init__(self, key: bytes) -> None:
        """Take a secret that all workers share."""
        self._key = hashlib.sha256(b"otel-audit cursor\0" + key).digest()

    def sign(self, query: Query, position: int) -> str:
        """Return the cursor of a position in the answer to a query."""
        payload = _CURSOR.pack(position, _packed(query.start), _packed(query.end), query.identity)
        return base64.urlsafe_b64encode(payload + self._mac(payload)).decode().rstrip("=")

    def open(self, query: Query, cursor: str) -> tuple[Query, int]:
        """Return the query, with the times it was first asked with, and the position.

        Raises `QueryError` for a cursor that is not of this query.
        """
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        payload, mac = raw[: _CURSOR.size], raw[_CURSOR.size :]
        if not hmac.compare_digest(self._mac(payload), mac) or len(payload) != _CURSOR.size:
            message = "this is no cursor of this trail, or it was changed; begin without a cursor"
            raise QueryError(message, parameter="cursor")
        position, start, end, identity = _CURSOR.unpack(payload)
        if not hmac.compare_digest(identity, query.identity):
            message = (
                "this cursor belongs to another query; pass exactly the parameters of the first "
                "page with it, or begin without a cursor"
            )
            raise QueryError(message, parameter="cursor")
        return replace(query, start=_unpacked(start), end=_unpacked(end)), position

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, "sha256").digest()[:16]


_CURSOR: Final = struct.Struct(">qqq16s")
_UNSET: Final = -(1 << 63)


def _packed(moment: int | None) -> int:
    return _UNSET if moment is None else moment


def _unpacked(moment: int) -> int | None:
    return None if moment == _UNSET else moment


def parse(
    parameters: Iterable[tuple[str, str]],
    *,
    hidden: frozenset[str] = frozenset(),
    now: int | None = None,
) -> tuple[Query, str | None]:
    """Make a query of parameters as they are in a URL; return it with its cursor, if it has one.

    A field's parameter may come several times: any of the values will do; its
    name followed by ``!`` asks for records without it. Fields of the caller's
    own are ``field.NAME``. Raises `QueryError`.
    """
    said = _Said(time.time_ns() if now is None else now)
    for name, value in parameters:
        if len(value) > _LONGEST:
            message = (
                f"{name[:64]} has {len(value)} characters; at most {_LONGEST} can be asked for"
            )
            raise QueryError(message, parameter=name[:64])
        said.take(name, value)
    return said.query(hidden), said.once.get("cursor")


class _Said:
    """The parameters, sorted by what they are."""

    def __init__(self, now: int) -> None:
        self.once: dict[str, str] = {}
        self._now = now
        self._fields: dict[tuple[tuple[str, ...], bool], list[str]] = {}

    def take(self, name: str, value: str) -> None:
        if name in _OTHER:
            if name in self.once:
                message = f"{name} is said twice; say it once"
                raise QueryError(message, parameter=name)
            self.once[name] = value
            return
        plain = name.removesuffix("!")
        fields = _ALIASES.get(plain) or ((plain,) if plain in _FIELDS else _own(plain))
        _check_known(plain, value)
        self._fields.setdefault((fields, plain == name), []).append(value)

    def query(self, hidden: frozenset[str]) -> Query:
        once = self.once
        words, conditions = _split(once.get("q", ""))
        conditions += [
            Condition(fields, tuple(values), wanted)
            for (fields, wanted), values in sorted(self._fields.items())
        ]
        start, end = once.get("start", ""), once.get("end", "")
        return Query(
            tuple(conditions),
            start=moment("start", start, self._now) if start else None,
            end=moment("end", end, self._now) if end else None,
            words=words,
            oldest_first=_oldest_first(once.get("order", "newest")),
            limit=_whole("limit", once.get("limit", "50")),
            hidden=hidden,
            said=(start, end),
        )


def _check_known(name: str, value: str) -> None:
    known = _KNOWN.get(name)
    if known is None or value in known or _WILD.search(value):
        return
    hint = f"; for what the record says itself, ask for status={value}" if name == "outcome" else ""
    message = f"{name} is {value[:64]!r}, but it can only be {', '.join(known)}{hint}"
    raise QueryError(message, parameter=name)


def _own(name: str) -> tuple[str, ...]:
    own = name.removeprefix(_FIELD_PREFIX)
    if own != name and own:
        return (own,)
    shown = name[:64]
    near = get_close_matches(shown, PARAMETERS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    message = (
        f"{shown!r} is no parameter of a query; {hint}A field of your own is asked for as "
        f"{_FIELD_PREFIX}{shown or 'NAME'}, and all parameters are in docs/query.md"
    )
    raise QueryError(message, parameter=shown)


def _split(text: str) -> tuple[tuple[str, ...], list[Condition]]:
    """Tell words from identifiers, which are looked up as a whole."""
    words: list[str] = []
    conditions = []
    for part in text.lower().split():
        if _IDENTIFIER.fullmatch(part):
            conditions.append(Condition(IDENTIFIERS, (part,)))
            continue
        found = words_in(part)
        if found and part.endswith("*"):
            found[-1] += "*"
        words += found
    if text.strip() and not words and not conditions:
        message = "q holds no word: it looks for letters and digits"
        raise QueryError(message, parameter="q")
    return tuple(dict.fromkeys(words)), conditions


def _oldest_first(order: str) -> bool:
    if order not in ("newest", "oldest"):
        message = f"order is {order[:32]!r}; it can be newest or oldest (first)"
        raise QueryError(message, parameter="order")
    return order == "oldest"


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        message = f"{name} is {text[:32]!r}; it has to be a whole number, 1 to {MOST}"
        raise QueryError(message, parameter=name)
    return int(text)


def moment(name: str, text: str, now: int) -> int:
    """Return a point in time: RFC 3339, a date (UTC), ``now``, or relative such as ``-15m``.

    Raises `QueryError`.
    """
    if text == "now":
        return now
    if text[:1] in ("-", "+") and _SPAN.fullmatch(text[1:]):
        distance = duration(name, text[1:])
        return _bounded(name, text, now - distance if text[0] == "-" else now + distance)
    match = _STAMP.fullmatch(text.replace(" ", "+") if _blank_zone(text) else text)
    if match is not None:
        try:
            return _bounded(name, text, _nanoseconds(match))
        except (ValueError, OverflowError):
            pass
    message = (
        f"{name} is {text[:64]!r}; it has to be a time such as 2026-01-31T08:00:00Z, a day such as "
        "2026-01-31 (UTC), or relative: -15m, -24h, -7d"
    )
    raise QueryError(message, parameter=name)


def duration(name: str, text: str) -> int:
    """Return a length of time such as ``15m`` or ``1h30m`` in nanoseconds. Raises `QueryError`."""
    if not _SPAN.fullmatch(text):
        message = f"{name} is {text[:32]!r}; it has to be a length of time such as 15m, 1h or 1d"
        raise QueryError(message, parameter=name)
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text)) * _NANO


def check_buckets(query: Query, per: int | None) -> None:
    """Refuse to count by more time buckets than anybody can look at. Raises `QueryError`."""
    if per is None:
        return
    if per < _NANO:
        message = "per has to be a second or longer"
        raise QueryError(message, parameter="per")
    if query.start is None:
        return
    end = time.time_ns() if query.end is None else query.end
    if (end - query.start) // per > _BUCKETS:
        message = f"per makes more than {_BUCKETS} time buckets of this range; take longer ones"
        raise QueryError(message, parameter="per")


def stamp(nanoseconds: int) -> str:
    """Return a time as RFC 3339 in UTC, with nine digits of a second's fraction."""
    seconds, fraction = divmod(nanoseconds, _NANO)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


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


def _blank_zone(text: str) -> bool:
    """Whether the plus of a zone became a blank, as it does in a URL that nobody encoded."""
    return re.fullmatch(r".*[0-9] \d\d:\d\d", text) is not None and "T" in text.upper()


def _nanoseconds(match: re.Match[str]) -> int:
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z", "z") else zone
    clock = clock or "00:00"
    since = datetime.fromisoformat(f"{day}T{clock}{zone}") - _EPOCH
    return (since.days * 86_400 + since.seconds) * _NANO + int((fraction or "").ljust(9, "0"))


def _bounded(name: str, text: str, nanoseconds: int) -> int:
    if not -(1 << 62) < nanoseconds < (1 << 62):
        message = f"{name} is {text[:32]!r}, a time that no record can have"
        raise QueryError(message, parameter=name)
    return nanoseconds


def wild(value: str) -> str | None:
    """Return a value's regular expression, with dots for any character; None without wildcards."""
    if not _WILD.search(value):
        return None
    return "".join(_MEANING.get(part) or re.escape(part) for part in _WILD.split(value))
