"""How a rule of the policy file says what a record holds: ``"{db.name|db.namespace}"``.

A placeholder names a fact, or several of which the first that is there counts;
``:filter`` behind it changes the text. Promises: nothing is called or looked
up but what the facts hold; a template of one placeholder keeps its value's
type; where nothing is known, the result is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from otel_audit.api.redis_commands import redis_write
from otel_audit.api.sql.statement import statement

Look: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Looks facts up, and returns what is found."""


class Placeholder(NamedTuple):
    """Which facts are looked up, and what is made of the text that is found."""

    names: tuple[str, ...]
    change: Callable[[str], str | None] | None

    def among(self, names: Collection[str]) -> Placeholder:
        """Return the placeholder for facts with no names but these."""
        return self._replace(names=tuple(name for name in self.names if name in names))


def placeholder(inside: str) -> Placeholder:
    """Read ``name|other:filter``. Raises `ValueError`, which says what is wrong."""
    names, colon, change = inside.partition(":")
    if colon and change not in FILTERS:
        message = f"{inside!r} has no filter {change!r}; there are {', '.join(FILTERS)}"
        raise ValueError(message)
    parts = tuple(name.strip() for name in names.split("|"))
    if not all(parts):
        message = f"{inside!r} has a placeholder without a name"
        raise ValueError(message)
    return Placeholder(parts, FILTERS.get(change))


_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def _host(address: str) -> str:
    return (urlsplit(address).hostname or address) if "://" in address else address


def _url(address: str) -> str | None:
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


FILTERS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "word": lambda text: next(iter(text.split(None, 1)), None),
    "host": _host,
    "url": _url,
    "sql": lambda text: statement(text).text,
    "table": lambda text: statement(text).table,
    "write": lambda text: statement(text).write,
    "write_table": lambda text: statement(text).write_table,
    "change": lambda text: statement(text).change,
    "change_table": lambda text: statement(text).change_table,
    "redis_write": redis_write,
}
"""``word`` is the first word, ``host`` the host of an address, ``url`` the address without user name
and query; the others are said of SQL statements by `Statement`, of Redis' commands by `redis_write`."""


class Template:
    """A text with placeholders, parsed once. Raises `ValueError`, which says what is wrong.

    ``render`` fills facts in: None when there are placeholders and none of them
    is known.
    """

    __slots__ = ("_parts", "render", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        parts: list[str | Placeholder] = []
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
                parts.append(placeholder(match[1]))
        _add_text(parts, text[end:])
        self._parts = parts
        self.render = _renderer(parts)

    def narrowed(self, names: Collection[str]) -> Template | None:
        """Return the template for facts with no names but these; None if it says nothing then."""
        parts = [part if isinstance(part, str) else part.among(names) for part in self._parts]
        known = [part.names for part in parts if isinstance(part, Placeholder)]
        if known and not any(known):
            return None
        narrow = copy(self)
        narrow._parts, narrow.render = parts, _renderer(parts)  # noqa: SLF001 - of this class
        return narrow

    @property
    def names(self) -> frozenset[str]:
        """The facts that it may look up."""
        placeholders = (part for part in self._parts if isinstance(part, Placeholder))
        return frozenset(name for part in placeholders for name in part.names)

    def is_just(self, name: str) -> bool:
        """Whether it is this fact and nothing else."""
        return self._parts == [Placeholder((name,), None)]

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def _add_text(parts: list[str | Placeholder], text: str) -> None:
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)


def _renderer(parts: Sequence[str | Placeholder]) -> Look:
    """Return what fills in; functions made beforehand, since a record needs ten of them."""
    ready = [part if isinstance(part, str) else _look(part.names, part.change) for part in parts]
    if len(ready) == 1:
        (only,) = ready
        return (lambda _facts: only) if isinstance(only, str) else only
    return lambda facts: _joined(ready, facts)


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
