"""Queries as parameters: what can be said in a URL and on the command line.

Promises: a parameter that is not known, or a value that cannot be meant, is a
`QueryError` that says so, never a search that finds nothing. What a query means
is left to `model.py`.
"""

from __future__ import annotations

import re
import time
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from otel_audit.errors import QueryError
from otel_audit.readers.query.model import ALIASES, FIELD_PREFIX, MOST, Condition, Query, wild
from otel_audit.readers.query.times import moment
from otel_audit.readers.query.words import IDENTIFIERS, words_in
from otel_audit.record.event import KEYS, LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LONGEST: Final = 4_096
_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "outcome": ("success", "failure", "unknown"),
    "level": LEVELS,
}
"""Fields of which all values are known: another one is a mistake, not a search without a match."""

_FIELDS: Final = (frozenset(KEYS) - {"schema", "timestamp"}) | {
    "server_name", "status_code", "method", "path", "route",
}  # fmt: skip
_OTHER: Final = ("start", "end", "q", "limit", "cursor", "order")
PARAMETERS: Final = (*_OTHER, *ALIASES, *sorted(_FIELDS))
_IDENTIFIER: Final = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{16}"
)


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
        fields = ALIASES.get(plain) or ((plain,) if plain in _FIELDS else _own(plain))
        _check_known(plain, value)
        self._fields.setdefault((fields, plain == name), []).append(value)

    def query(self, hidden: frozenset[str]) -> Query:
        once = self.once
        words, conditions = _split(once["q"]) if "q" in once else ((), [])
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
    if known is None or value in known or wild(value) is not None:
        return
    hint = f"; for what the record says itself, ask for status={value}" if name == "outcome" else ""
    message = f"{name} is {value[:64]!r}, but it can only be {', '.join(known)}{hint}"
    raise QueryError(message, parameter=name)


def _own(name: str) -> tuple[str, ...]:
    own = name.removeprefix(FIELD_PREFIX)
    if own != name and own:
        return (own,)
    shown = name[:64]
    near = get_close_matches(shown, PARAMETERS, 1)
    hint = f"did you mean {near[0]}? If not, " if near else ""
    message = (
        f"{shown!r} is no parameter of a query; {hint}a field of your own is asked for as "
        f"{FIELD_PREFIX}{shown or 'NAME'}, and all parameters are in docs/query.md"
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
    if not words and not conditions:
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
