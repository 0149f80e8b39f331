"""Who may read a trail: what is closed to this user, and whose command would work.

Promises: nothing is opened to find out.
"""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING, Final

from otel_audit.trail.layout import DATABASE, whole

if TYPE_CHECKING:
    from pathlib import Path

_FILES: Final = whole(DATABASE)[:2]
"""Without either of them nothing of a trail can be read."""


def account(uid: int) -> str:
    """Return the name of a user, or its number when it has no name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def closed(directory: Path) -> Path | None:
    """Return what keeps this user from reading the trail: it, a file of it, or a directory above."""
    for path in (directory, *(directory / name for name in _FILES)):
        for part in (*reversed(path.absolute().parents), path):
            if not os.access(part, os.F_OK):
                break
            needed = (os.R_OK if part == path else 0) | (os.X_OK if part.is_dir() else 0)
            if not os.access(part, needed):
                return part
    return None


def described(path: Path) -> str:
    """Return a path with the mode and the owner that it has."""
    status = path.stat()
    return f"{path} (mode {stat.S_IMODE(status.st_mode):04o}, of {account(status.st_uid)})"


def as_user(uid: int, command: str, directory: Path) -> str:
    """Return a whole command line, for the shell; sudo takes no variables along, so it has --dir."""
    name = account(uid)
    who = f"'#{name}'" if name.isdecimal() else shlex.quote(name)
    return f"sudo -u {who} otel-audit {command} --dir {shlex.quote(str(directory.absolute()))}"
