"""Whether a text in double quotes is a name: in standard SQL it is one, in MySQL a literal.

Promises: yes only where no dialect could have a literal. Where it is not clear,
such as in a condition, it counts as a literal.
"""

from __future__ import annotations

import re
from typing import Final

PART: Final = r'(?:"\d+"|[#@]{0,2}[^\W\d][\w$#@]*)'
"""A part of a name in code in which quoted names are ``"7"``."""
NAME: Final = rf"{PART}(?:\s*\.{{1,2}}\s*{PART})*"
"""The name of a table, with those of what it is in."""

NEAR: Final = 1_000
"""Characters of code before the text that are looked at: a list of columns begins there."""


def can_only_be_a_name(code: str, quoted: str, text: str, end: int) -> bool:
    """Judge ``quoted``, which ends at ``end`` of ``text``; ``code`` is what stands `NEAR` before it."""
    if len(quoted) < 2 or quoted[-1] != '"':  # noqa: PLR2004 - the quotes; a text that is cut has but one
        return False
    if _DOT.match(text, end) is not None:
        return True
    if _NAMED.search(code) is not None:
        return True
    if _EQUALS.match(text, end) is not None and _ASSIGNED.search(code) is not None:
        return True
    return _GOES_ON.match(text, end) is not None and _FROM.search(code) is not None


_FLAGS: Final = re.IGNORECASE | re.VERBOSE
_IN_A_LIST: Final = r"(?:[^()]|\([^()]*\))*"

_DOT: Final = re.compile(r"\s*\.")
_EQUALS: Final = re.compile(r"\s*=(?!=)")
_NAMED: Final = re.compile(
    rf"""(?:
      (?: (?:[^\W\d]\w*|")\s*\.\s*
        | \b(?: INTO | UPDATE | TABLE | JOIN | EXISTS | ONLY | COLUMN | CONSTRAINT | REFERENCES
              | INDEX | VIEW | DELETE\s+FROM | TRUNCATE | COPY | CONCURRENTLY | RENAME\s+TO )\s+
        # the first or a later one of columns
        | \b(?: INTO\s+{NAME} | (?:PRIMARY|FOREIGN)\s+KEY | CONFLICT | REFERENCES\s+{NAME} )\s*
          \(\s*(?:{PART}\s*,\s*)*
        # a column that is defined, but not one that is selected
        | \bCREATE\s+(?:\w+\s+){{0,3}}TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?{NAME}\s*
          \((?!\s*(?:SELECT|WITH|VALUES|TABLE|FROM|\())(?:{_IN_A_LIST},)?\s*
        | \bCREATE\s+(?:UNIQUE\s+)?INDEX\b[^()]*\bON\s+(?:ONLY\s+)?
        | \bCREATE\s+(?:UNIQUE\s+)?INDEX\b[^()]*\((?:{_IN_A_LIST},)?\s*
      )
    )\Z""",
    _FLAGS,
)
_ASSIGNED: Final = re.compile(
    r"\bSET\s+(?:(?:(?!\b(?:WHERE|ORDER|FROM|SELECT|RETURNING|LIMIT|VALUES|SET)\b)"
    r"(?:[^()]|\([^()]*\)))*,\s*)?\Z",
    re.IGNORECASE,
)
_FROM: Final = re.compile(r"(?<!DISTINCT)\sFROM\s+\Z", re.IGNORECASE)
_GOES_ON: Final = re.compile(
    r"\s+(?:WHERE|(?:INNER|LEFT|RIGHT|FULL|CROSS)\s|JOIN|ORDER\s|GROUP\s|LIMIT|U\d)", re.IGNORECASE
)
