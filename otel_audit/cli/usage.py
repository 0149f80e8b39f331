"""What is wrong with a command line, in words for people.

Typer finds it out; what it says of it is meant for programmers in places, and
knows nothing of what our arguments are.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

_EXTRA: Final = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def usage_message(error: Any) -> str:  # noqa: ANN401 - of Typer's own, private Click
    """Say what is wrong, on one line, without how to get help."""
    said, plain = error.format_message(), str(getattr(error, "message", ""))
    return " ".join(said.split()).rstrip(".,") + _meant(error, plain)


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
