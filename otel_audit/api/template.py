"""How a rule of the policy file says what a record holds: ``"{db.name|db.namespace}"``.

A placeholder names a fact, or several of which the first that is there counts;
``:filter`` behind it changes the text. Promises: nothing is called or looked
up but what the facts hold; a template of one placeholder keeps its value's
type; where nothing is known, the result is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

Look: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Looks facts up, and returns what is found."""

_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TABLE: Final = re.compile(
    r"\b(?:into|update|from|table|index\s+\S+\s+on)\s+(?:if\s+(?:not\s+)?exists\s+)?([\w.\"`\[\]]+)",
    re.IGNORECASE,
)
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
_LONGEST: Final = 1_000


def _table(statement: str) -> str | None:
    found = _TABLE.search(statement)
    return found[1].strip('"`[]') if found else None


def _sql(statement: str) -> str:
    return _LITERAL.sub("?", statement)[:_LONGEST]


# Statements with parameters are few, and come again and again; long ones would fill the memory.
def _remembered(change: Callable[[str], str | None]) -> Callable[[str], str | None]:
    cached = lru_cache(maxsize=512)(change)
    return lambda text: cached(text) if len(text) <= _LONGEST else change(text)


def _host(address: str) -> str:
    return (urlsplit(address).hostname or address) if "://" in address else address


def _url(address: str) -> str | None:
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


FILTERS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "word": lambda text: next(iter(text.split(None, 1)), None),
    "table": _remembered(_table),
    "host": _host,
    "url": _url,
    "sql": _remembered(_sql),
}
"""``word`` is the first word, ``table`` the first table that a statement names, ``sql`` the statement without its literals, ``host`` the host of an address, ``url`` the address
without user name and query."""


class Template:
    """A text with placeholders, parsed once. Raises `ValueError`, which says what is wrong.

    ``render`` fills facts in: None when there are placeholders and none of them
    is known.
    """

    __slots__ = ("render", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        parts: list[str | Look] = []
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            _add_text(parts, text[end : match.start()])
            end = match.end()
            if match[0] in {"{{", "}}"}:
                _add_text(parts, match[0][0])
            elif match[1] is None:
                message = (
                    f"the brace at character {match.start() + 1} of {text!r} is alone; write "
                    "{{ or }} for a brace"
                )
                raise ValueError(message)
            else:
                parts.append(_placeholder(match[1], text))
        _add_text(parts, text[end:])
        self.render = _renderer(parts)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def _add_text(parts: list[str | Look], text: str) -> None:
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)


def _renderer(parts: list[str | Look]) -> Look:
    """Return what fills in; functions made beforehand, since a record needs ten of them."""
    if len(parts) == 1:
        (part,) = parts
        return (lambda _facts: part) if isinstance(part, str) else part
    return lambda facts: _joined(parts, facts)


def _joined(parts: list[str | Look], facts: Mapping[str, Any]) -> str | None:
    texts, known = [], False
    for part in parts:
        value = part if isinstance(part, str) else part(facts)
        known = known or not (value is None or isinstance(part, str))
        texts.append("" if value is None else str(value))
    return "".join(texts) if known else None


def _look(names: tuple[str, ...], change: Callable[[str], str | None] | None) -> Look:
    if len(names) == 1 and change is None:
        (only,) = names
        return lambda facts: facts.get(only)

    def look(facts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the fact's own type
        for name in names:
            value = facts.get(name)
            if value is not None:
                return value if change is None else change(str(value))
        return None

    return look


def _placeholder(inside: str, text: str) -> Look:
    names, colon, change = inside.partition(":")
    if colon and change not in FILTERS:
        message = f"{text!r} has no filter {change!r}; there are {', '.join(FILTERS)}"
        raise ValueError(message)
    parts = tuple(name.strip() for name in names.split("|"))
    if not all(parts):
        message = f"{text!r} has a placeholder without a name"
        raise ValueError(message)
    return _look(parts, FILTERS.get(change))
