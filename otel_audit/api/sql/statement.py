"""What an SQL statement does, to which table, and its text without literals: of any dialect.

Promises: no part of a literal of a statement is in ``Statement.text``, whatever
the dialect: where they differ, what is a literal in any of them is taken out.
Time is linear in the text's length. The rest is left to `deeds`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.api.sql.deeds import Deed, deeds, table_read
from otel_audit.api.sql.quoting import LITERAL, Hidden, readings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LONGEST: Final = 1_000
"""Characters of a statement that are kept."""


class Statement(NamedTuple):
    """What is known of a text of one or several statements.

    ``write`` is the verb of the first that changes data, ``change`` that of the
    first that changes structure, accounts or rights; each with the table, if
    one is named. ``table`` is one of these, else what is read from first.
    """

    text: str
    write: str | None
    write_table: str | None
    change: str | None
    change_table: str | None
    table: str | None


def statement(text: str) -> Statement:
    """Look at a text. With parameters there are few, which come again and again: they are remembered."""
    return _often(text) if len(text) <= LONGEST else _rarely(text)


def _looked_at(text: str) -> Statement:
    read = [*readings(text)]
    found = [deeds(reading) for reading in read]
    write, write_table = _best(some.write for some in found)
    change, change_table = _best(some.change for some in found)
    return Statement(
        text=_without(text, read[0].hidden, (one.hidden for one in read[1:])),
        write=write,
        write_table=write_table,
        change=change,
        change_table=change_table,
        table=write_table or change_table or table_read(read[0]),
    )


_often: Final = lru_cache(maxsize=512)(_looked_at)
# Each of a rule's templates asks for the same one; more of them would fill the memory.
_rarely: Final = lru_cache(maxsize=4)(_looked_at)


def _best(read: Iterable[Deed | None]) -> Deed | tuple[None, None]:
    """Return what a dialect reads that sees a table, else the first that sees anything."""
    there = [deed for deed in read if deed is not None]
    named = (deed for deed in there if deed.table is not None)
    return next(named, there[0] if there else (None, None))


def _without(text: str, hidden: list[Hidden], others: Iterable[list[Hidden]]) -> str:
    """Take out comments, and what is a literal to any dialect."""
    literals = (one for some in others for one in some if one.literal)
    parts: list[str] = []
    size = done = 0
    for start, end, literal in _merged([*hidden, *literals]):
        shown = _NUMBER.sub(_keep_names, text[done:start]) + (LITERAL if literal else " ")
        parts.append(shown)
        size += len(shown)
        done = end
        if size > LONGEST:
            break
    else:
        parts.append(_NUMBER.sub(_keep_names, text[done : done + LONGEST]))
    return "".join(parts).strip()[:LONGEST]


def _merged(hidden: list[Hidden]) -> Iterator[Hidden]:
    """Make one of what overlaps."""
    last: Hidden | None = None
    for one in sorted(hidden):
        if last is not None and one.start < last.end:
            last = Hidden(last.start, max(last.end, one.end), last.literal or one.literal)
        else:
            if last is not None:
                yield last
            last = one
    if last is not None:
        yield last


# Digits in names and in what stands for a parameter ($1, :1, @p1) are no literals.
_NUMBER: Final = re.compile(
    r"(\"[^\"]*\"|`[^`]*`|\$\d+(?![\w.])|:\d+(?![\w.])|[^\W\d][\w$#@]*)"
    r"|\.?\d(?:(?<=[eE])[+-](?=\d)|[\w.])*"
)


def _keep_names(match: re.Match[str]) -> str:
    return match[1] or LITERAL
