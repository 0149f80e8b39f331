"""Which facts the templates of a route rule can name, as far as the routes tell.

Promises: what a request to one of the routes could have is not refused; so a
pattern allows everything, and where a framework can give a view arguments that
its route does not name (Flask's defaults, Django's extra options), only what
looks like a slip is.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FACTS: Final = ("method", "path", "route", "status", "status_code", "duration_ms")
"""What is known of every request; beside it parameters of the path, and of the query by QUERY."""
QUERY: Final = "query."

_CLOSE: Final = 0.6
_SHORT: Final = 0.5
"""How near a known name has to be; two letters that are swapped are no nearer than this."""

_WILD: Final = re.compile(r"[*?\[]")
_IN_BRACES: Final = re.compile(r"\{([^\W\d][\w-]*)")
_IN_ANGLES: Final = re.compile(r"<([^<>]*)>")
_NAME: Final = re.compile(r"[^\W\d][\w-]*")


def unknown_fact(names: Iterable[str], routes: Sequence[str]) -> str | None:
    """Say which of ``names`` no request to these routes has; None if there is none."""
    if any(map(_WILD.search, routes)):
        return None
    parameters = [name for route in routes for name in _parameters(route)]
    known = list(dict.fromkeys((*parameters, *FACTS)))
    certain = all(map(_IN_BRACES.search, routes))
    for name in names:
        if name in known or name.startswith(QUERY):
            continue
        near = difflib.get_close_matches(name, known, 1, _SHORT if certain else _CLOSE)
        if near or certain:
            whose = "the route has" if len(routes) == 1 else "the routes have"
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            return f"{whose} no parameter {name!r}; {hint}"
    return None


def _parameters(route: str) -> list[str]:
    """Return the names in ``{id:int}`` and ``<int:id>``; frameworks differ on which side they are."""
    return [
        *_IN_BRACES.findall(route),
        *(name for inside in _IN_ANGLES.findall(route) for name in _NAME.findall(inside)),
    ]
