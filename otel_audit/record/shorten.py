"""Makes values that are too long shorter, and says by how much.

Promises: longest first, so that short values stay whole; deterministic; what
remains is plain JSON, with a mark where something is missing
(``…[cut 12345 characters]``, ``…[cut 12 elements]``). What is cut twice carries
one mark, with the sum. What the limits are, and naming in the record what was
cut, is left to others.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, TypeAlias

import orjson

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
"""What `orjson.dumps` takes without help, and every JSON reader gives back."""

Beginning: TypeAlias = Callable[[str, int], str]
"""Gives the first characters of a text, so many, or what may be shown of them."""

BEYOND: Final = 4_096
"""Characters behind a cut that tell what stands before it, such as the rest of a secret."""

MARK_KEY: Final = "…"
"""The key under which an object says how many of its entries are missing."""

# Down to this many bytes a value is still readable; below, only where nothing else helps.
_READABLE: Final = 128
_CUT_CHARACTERS: Final = re.compile(r"…\[cut (\d{1,18}) characters\]\Z")
_CUT_ELEMENTS: Final = re.compile(r"…\[cut (\d{1,18}) elements\]\Z")
_LONGEST_MARK: Final = 48


def shorten(fields: dict[str, JsonValue], excess: int) -> list[str]:
    """Cut the values of ``fields``, in place, until ``excess`` bytes are gone.

    Bytes are those of the encoded JSON. The values must be plain JSON. Names
    stay, and so do numbers and values of some 40 bytes, which a mark would not
    make shorter: a mapping of very many small fields may stay too long.
    Returns the names of what was cut, the first one cut first.
    """
    names: list[str] = []
    for floor in (_READABLE, 0):
        excess = _cut_longest(fields, excess, floor, names)
    return list(dict.fromkeys(names))


def first_characters(text: str, kept: int) -> str:
    """Be a `Beginning` that hides nothing."""
    return text[:kept]


def cut_characters(text: str, kept: int, beginning: Beginning = first_characters) -> str:
    """Keep the first ``kept`` characters, and say how many are missing."""
    match = _CUT_CHARACTERS.search(text, max(0, len(text) - _LONGEST_MARK))
    whole, missing = (text, 0) if match is None else (text[: match.start()], int(match[1]))
    return f"{beginning(whole, kept)}…[cut {missing + max(0, len(whole) - kept)} characters]"


def elements_mark(count: int) -> str:
    """Say how many elements of a container are missing."""
    return f"…[cut {count} elements]"


def _size_of(value: JsonValue) -> int:
    return len(orjson.dumps(value))


def _cut_longest(entries: dict[str, JsonValue], excess: int, floor: int, names: list[str]) -> int:
    """Cut values longer than ``floor``; extend ``names``; return the excess that is left."""
    sizes = [(_size_of(value), name) for name, value in entries.items()]
    # Sorting is stable: of equally long ones the first is cut first.
    for size, name in sorted(sizes, key=lambda entry: -entry[0]):
        if excess <= 0 or size <= floor:
            break
        shorter = _shorter(entries[name], max(size - excess, floor))
        removed = size - _size_of(shorter)
        if removed > 0:
            entries[name] = shorter
            names.append(name)
            excess -= removed
    return excess


def _shorter(value: JsonValue, room: int) -> JsonValue:
    """Return what of ``value`` fits into ``room`` bytes, or comes nearest to it."""
    if isinstance(value, str):
        return _shorter_text(value, room)
    if isinstance(value, dict):
        return _shorter_entries(value, room, named=True)
    if isinstance(value, list):
        entries = {str(index): element for index, element in enumerate(value)}
        return list(_shorter_entries(entries, room, named=False).values())
    return value


def _shorter_text(text: str, room: int) -> str:
    """Find the longest beginning that fits by halving: escapes make sizes uneven."""
    kept = bisect_right(
        range(len(text)), room, key=lambda kept: _size_of(cut_characters(text, kept))
    )
    return cut_characters(text, max(0, kept - 1))


def _shorter_entries(
    entries: dict[str, JsonValue], room: int, *, named: bool
) -> dict[str, JsonValue]:
    """Cut the longest values of an object or, with ``named=False``, of an array."""
    entries = dict(entries)
    size = _size_of(entries if named else list(entries.values()))
    excess = _cut_longest(entries, size - room, _READABLE, [])
    if excess <= 0:
        return entries
    return _first_entries(entries, room, named=named)


def _first_entries(
    entries: dict[str, JsonValue], room: int, *, named: bool
) -> dict[str, JsonValue]:
    """Keep the first entries that fit, and say how many are missing."""
    missing = _pop_mark(entries)
    kept: dict[str, JsonValue] = {}
    room -= _LONGEST_MARK
    for name, value in entries.items():
        room -= _size_of({name: value}) if named else _size_of(value) + 1
        if room < 0:
            break
        kept[name] = value
    kept[MARK_KEY] = elements_mark(missing + len(entries) - len(kept))
    return kept


def _pop_mark(entries: dict[str, JsonValue]) -> int:
    """Take the mark of an earlier cut away, and return what it says."""
    last = next(reversed(entries), None)
    if last is None:
        return 0
    value = entries[last]
    match = _CUT_ELEMENTS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return 0
    del entries[last]
    return int(match[1])
