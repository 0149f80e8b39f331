"""What of an SQL text is code, and what is quoted or commented out: as each dialect reads it.

Promises: a literal of a dialect is in ``Reading.hidden`` of one of `readings`,
closed or not, since attributes are cut at a limit. What all dialects read alike
is read once. Time is linear in the text's length.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.api.sql.names import NEAR, can_only_be_a_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LITERAL: Final = "?"
"""What stands for a literal."""

_JUDGED: Final = 200
"""Texts in double quotes of which it is asked whether they are names; more are literals."""


class Hidden(NamedTuple):
    """A part of a text that is a literal or a comment."""

    start: int
    end: int
    literal: bool


class Reading(NamedTuple):
    """A text as one dialect reads it.

    ``code`` has a mark instead of each literal, a space instead of each
    comment and ``"7"`` instead of the eighth of the quoted ``names``.
    """

    hidden: list[Hidden]
    code: str
    names: list[str]


def readings(text: str) -> Iterator[Reading]:
    """Read a text as all dialects do, PostgreSQL first; once if they read the same."""
    yield _read(text, _POSTGRESQL)
    if _AMBIGUOUS.search(text) is not None:
        for dialect in _OTHERS:
            yield _read(text, dialect)


def _read(text: str, dialect: re.Pattern[str]) -> Reading:
    hidden: list[Hidden] = []
    names: list[str] = []
    code: list[str] = []
    done = judged = 0
    special = _SPECIAL.search(text)
    while special is not None:
        start = special.start()
        match = dialect.match(text, start)
        if match is None:
            special = _SPECIAL.search(text, start + 1)
            continue
        kind, end = match.lastgroup, match.end()
        code.append(text[done:start])
        if kind == "nested":
            end = _end_of_comment(text, end)
        if kind == "double" and judged < _JUDGED:
            judged += 1
            if can_only_be_a_name("".join(code[-NEAR:])[-NEAR:], match[0], text, end):
                kind = "name"
        elif kind == "name" and match[0][1:][-1:] not in {"`", "]"}:
            kind = "literal"  # nothing closes it: whatever follows is not known to be a name
        if kind == "name":
            code.append(f'"{len(names)}"')
            names.append(_unquoted(match[0]))
        else:
            literal = kind in {"literal", "double"}
            code.append(LITERAL if literal else " ")
            hidden.append(Hidden(start, end, literal))
        done = end
        special = _SPECIAL.search(text, end)
    code.append(text[done:])
    return Reading(hidden, "".join(code), names)


def _unquoted(quoted: str) -> str:
    closing = quoted[-1]
    return quoted[1:-1].replace(closing * 2, closing)


def _end_of_comment(text: str, done: int) -> int:
    depth = 1
    for mark in _COMMENT.finditer(text, done):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)


# Loops are unrolled, and what is not closed ends with the text: nothing is ever tried twice.

_PLAIN: Final = r"'[^']*(?:''[^']*)*(?:'|\Z)"
_ESCAPED: Final = r"'[^'\\]*(?:(?:\\.?|'')[^'\\]*)*(?:'|\Z)"
_TRIPLE: Final = r"'''[^'\\]*(?:(?:\\.?|'(?!''))[^'\\]*)*(?:'''|\Z)"
_DOLLARS: Final = r"(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)"
_AFTER_E: Final = r"(?<=[eE])(?<![\w$].)"
_AFTER_Q: Final = r"(?<=[qQ])(?:(?<![\w$].)|(?<=[nN].)(?<![\w$]..))"
_Q_QUOTED: Final = (
    _AFTER_Q + r"'(?:\[.*?(?:\]'|\Z)|\{.*?(?:\}'|\Z)|\(.*?(?:\)'|\Z)|<.*?(?:>'|\Z)"
    r"|(?P<mark>[^\s\[{(<]).*?(?:(?P=mark)'|\Z))"
)
_BACKTICKS: Final = r"`[^`]*(?:``[^`]*)*(?:`|\Z)"
_BRACKETS: Final = r"\[[^\]]*(?:\]\][^\]]*)*(?:\]|\Z)"
_TO_ITS_END: Final = r"[^\n\r]*"
_BLOCK: Final = r"/\*.*?(?:\*/|\Z)"


def _double(quoted: str) -> str:
    return quoted.replace("'", '"')


def _dialect(
    *, literals: Iterable[str], double: str, names: Iterable[str], comments: Iterable[str]
) -> re.Pattern[str]:
    """Make one expression; comments in blocks are nested where ``comments`` has none of them."""
    kinds = {"literal": literals, "double": (double,), "name": names, "comment": comments}
    groups = [f"(?P<{kind}>{'|'.join(some)})" for kind, some in kinds.items()]
    return re.compile("|".join([*groups, r"(?P<nested>/\*)"]), re.DOTALL)


_POSTGRESQL: Final = _dialect(
    literals=(_AFTER_E + _ESCAPED, _PLAIN, _DOLLARS),
    double=_double(_PLAIN),
    names=(_BACKTICKS,),
    comments=(rf"--{_TO_ITS_END}",),
)
_MYSQL: Final = _dialect(
    literals=(_ESCAPED,),
    double=_double(_ESCAPED),
    names=(_BACKTICKS,),
    # A comment that begins with an exclamation mark is code.
    comments=(
        rf"#{_TO_ITS_END}",
        rf"--(?=\s|\Z){_TO_ITS_END}",
        r"/\*M?!\d*",
        r"\*/",
        _BLOCK,
    ),
)
_SQL_SERVER: Final = _dialect(
    literals=(_PLAIN,),
    double=_double(_PLAIN),
    names=(_BRACKETS,),
    comments=(rf"--{_TO_ITS_END}",),
)
_ORACLE_AND_SQLITE: Final = _dialect(
    literals=(_Q_QUOTED, _PLAIN),
    double=_double(_PLAIN),
    names=(_BACKTICKS, _BRACKETS),
    comments=(rf"--{_TO_ITS_END}", _BLOCK),
)
_BIGQUERY_AND_SPARK: Final = _dialect(
    literals=(_TRIPLE, _double(_TRIPLE), _ESCAPED, _DOLLARS),
    double=_double(_ESCAPED),
    names=(_BACKTICKS,),
    comments=(rf"(?:#|--|//){_TO_ITS_END}", _BLOCK),
)
_SPECIAL: Final = re.compile(r"['\"`$\[#/*-]")
"""With what a literal, a quoted name or a comment begins, in any dialect."""
_OTHERS: Final = (_MYSQL, _SQL_SERVER, _ORACLE_AND_SQLITE, _BIGQUERY_AND_SPARK)
_AMBIGUOUS: Final = re.compile(r"[\\#\[]|--|/\*|//|'''|\"\"\"|[qQ]'|\$\w*\$")
"""Without one of these, all dialects read the same."""
_COMMENT: Final = re.compile(r"/\*|\*/")
