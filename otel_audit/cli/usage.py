"""What is wrong with a command line, in words for people.

Typer finds it out; what it says of it is meant for programmers in places, and
knows nothing of what our arguments are.
"""

from __future__ import annotations

import re
import shlex
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

_EXTRA: Final = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)
_WORDS: Final = {
    "int_parsing": "{input!r} is not a whole number",
    "int_from_float": "{input!r} is not a whole number",
    "float_parsing": "{input!r} is not a number",
    "greater_than_equal": "{input} is less than {ge}",
    "value_error": "{error}",
}
"""By Pydantic's types of errors, which newer versions of Typer have from it."""


def usage_message(error: Any) -> str:  # noqa: ANN401 - of Typer's own, private Click
    """Say what is wrong, on one line, without how to get help."""
    said, plain = error.format_message(), str(getattr(error, "message", ""))
    if getattr(error, "possibilities", None):
        said = f"{plain} (Possible options: {', '.join(_nearest_first(error))})"
    elif better := _reworded(error):
        said = said.replace(plain, better)
    return " ".join(said.split()).rstrip(".,") + _meant(error, plain)


def _nearest_first(error: Any) -> list[str]:  # noqa: ANN401 - see above
    def distance(option: str) -> tuple[float, str]:
        return -SequenceMatcher(None, error.option_name, option).ratio(), option

    return sorted(error.possibilities, key=distance)


def _reworded(error: Any) -> str | None:  # noqa: ANN401 - see above
    """Return what Pydantic found in other words; None if there is nothing to say better."""
    found = getattr(error.__cause__, "errors", None)
    first = found()[0] if callable(found) else {}
    words = _WORDS.get(first.get("type", ""))
    return words and words.format(input=first.get("input"), **first.get("ctx", {}))


def _meant(error: Any, plain: str) -> str:  # noqa: ANN401 - see above
    """Say which option is for a file or directory that stands there without one."""
    match = _EXTRA.fullmatch(plain)
    context = getattr(error, "ctx", None)
    if match is None or context is None:
        return ""
    path = Path(match[1])
    options = {name for parameter in context.command.params for name in parameter.opts}
    option = "--dir" if path.is_dir() else "--file" if path.is_file() else None
    return f"; did you mean {option} {shlex.quote(match[1])}?" if option in options else ""
