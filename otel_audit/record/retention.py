"""How a retention is written, if anybody is to know how long it is.

A word of one's own is a class of copies like any other; it only has no length.
"""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_FORM: Final = re.compile(r"([0-9]{1,6})([hdwy])")


def seconds_of(retention: str) -> int | None:
    """Return how long a retention such as ``90d`` is; None if it does not say."""
    match = _FORM.fullmatch(retention)
    return None if match is None else int(match[1]) * _UNITS[match[2]]
