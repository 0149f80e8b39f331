"""Whether a regular expression can take exponential time, tried out before it meets a caller's text.

Promises: it takes milliseconds, and never refuses what is fast; a pattern
whose time grows with a power of the length is not found, nor one that needs a
text other than a repeated character.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTHS: Final = range(4, 26, 2)
_SLOW: Final = 0.002
"""Seconds from which on it matters how fast the time grows."""
_GROWTH: Final = 2.2
"""With two more characters: 1.3 for the third power of the length, 4 where each one doubles the time."""
_USUAL: Final = "a0 -_.,/"
_NO_MATCH: Final = "\x01"


def length_that_takes_too_long(pattern: str) -> int | None:
    """Return the number of characters that are too many for a pattern, None if it is fast."""
    search = re.compile(pattern).search
    characters = dict.fromkeys(_USUAL + "".join(filter(str.isprintable, pattern)))
    for character in characters:
        before = 0.0
        for length in _LENGTHS:
            text = character * length + _NO_MATCH
            took = _took(search, text)
            if took > _SLOW and took > _GROWTH * before:
                # Once more, since something else may have had the processor.
                took = min(took, _took(search, text), _took(search, text))
                if took > _SLOW and took > _GROWTH * before:
                    return length
            before = took
    return None


def _took(search: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    search(text)
    return time.thread_time() - began
