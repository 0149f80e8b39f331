"""How a rule of the policy file says what a record holds: ``"{db.name|db.namespace}"``.

A placeholder names a fact, or several of which the first that is there counts;
``:filter`` behind it changes the text. Promises: nothing is called or looked
up but what the facts hold; a template of one placeholder keeps its value's
type; where nothing is known, the result is None.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


def _host(address: str) -> str:
    return (urlsplit(address).hostname or address) if "://" in address else address


def _url(address: str) -> str | None:
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


FILTERS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "word": lambda text: next(iter(text.split()), None),
    "table": _table,
    "host": _host,
    "url": _url,
    "sql": lambda text: _LITERAL.sub("?", text)[:_LONGEST],
}
"""``word`` is the first word, ``table`` the first table that a statement names, ``sql`` the statement without its literals, ``host`` the host of an address, ``url`` the address
without user name and query."""


class Template:
    """A text with placeholders, parsed once. Raises `ValueError`, which says what is wrong."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[str | tuple[tuple[str, ...], Callable[[str], str | None] | None]] = []
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            self._literal(text[end : match.start()])
            end = match.end()
            if match[0] in {"{{", "}}"}:
                self._literal(match[0][0])
            elif match[1] is None:
                message = f"the brace at character {match.start() + 1} of {text!r} is alone; write {{{{ or }}}} for a brace"
                raise ValueError(message)
            else:
                self._parts.append(_placeholder(match[1], text))
        self._literal(text[end:])

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def render(self, facts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the fact's own type
        """Fill the facts in; None when there are placeholders and none of them is known."""
        if len(self._parts) == 1:
            return self._value(self._parts[0], facts)
        values = [self._value(part, facts) for part in self._parts]
        known = any(
            value is not None
            for value, part in zip(values, self._parts, strict=True)
            if not isinstance(part, str)
        )
        return "".join("" if value is None else str(value) for value in values) if known else None

    def _literal(self, text: str) -> None:
        if text and self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        elif text:
            self._parts.append(text)

    @staticmethod
    def _value(
        part: str | tuple[tuple[str, ...], Callable[[str], str | None] | None],
        facts: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401 - the fact's own type
        if isinstance(part, str):
            return part
        names, change = part
        for name in names:
            value = facts.get(name)
            if value is not None:
                return value if change is None else change(str(value))
        return None


def _placeholder(
    inside: str, text: str
) -> tuple[tuple[str, ...], Callable[[str], str | None] | None]:
    names, colon, change = inside.partition(":")
    if colon and change not in FILTERS:
        message = f"{text!r} has no filter {change!r}; there are {', '.join(FILTERS)}"
        raise ValueError(message)
    parts = tuple(name.strip() for name in names.split("|"))
    if not all(parts):
        message = f"{text!r} has a placeholder without a name"
        raise ValueError(message)
    return parts, FILTERS.get(change)
