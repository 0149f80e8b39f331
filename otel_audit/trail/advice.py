"""What to do about what SQLite, the system or a damaged trail reports.

Promises: each is a `TrailError` that names the file, says what is wrong, and what to do.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import OtelAuditError, TrailError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ADVICE: Final[tuple[tuple[type[apsw.Error], str], ...]] = (
    (apsw.FullError, "free space on the disk; the trail goes on by itself afterwards"),
    (apsw.ReadOnlyError, "make the file and its directory writable for this user"),
    (apsw.CantOpenError, "make the file and its directory readable and writable for this user"),
    (apsw.BusyError, "another program holds the database; close it"),
    (apsw.ConstraintError, "somebody put rows where new ones belong; run `otel-audit verify`"),
    (apsw.CorruptError, "the file is damaged; keep it, run `otel-audit verify`, restore a copy"),
    (apsw.NotADBError, "this is not a trail; keep it, and restore the right file"),
    (apsw.IOError, "the disk reports an error; look at the kernel's log (dmesg)"),
)

_SYSTEM_ADVICE: Final = {
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.EROFS: "mount its file system for writing",
    errno.EMFILE: "close files, or let this process have more of them open (`ulimit -n`)",
    errno.ENFILE: "close files, or let this machine have more of them open (`sysctl fs.file-max`)",
    errno.ENOSPC: "free space on the disk; the trail goes on by itself afterwards",
    errno.EIO: "the disk reports an error; look at the kernel's log (dmesg)",
}


def explained(error: apsw.Error | OSError, path: Path) -> TrailError:
    """Return the error that says what to do about what SQLite, or the system, reports of ``path``."""
    if isinstance(error, OSError):
        name, said = error.filename or path, error.strerror or str(error)
        advice = _SYSTEM_ADVICE.get(error.errno or 0)
        return TrailError(f"{name}: {said}: {advice}" if advice else f"{name}: {said}")
    for kind, advice in _ADVICE:
        if isinstance(error, kind):
            return TrailError(f"{path}: {error}: {advice}")
    return TrailError(f"{path}: {type(error).__name__}: {error}")


def damaged(path: Path, what: str) -> TrailError:
    """Return the error for a trail at ``path`` that nothing of ours can have left like this."""
    return TrailError(
        f"{path} is damaged, or was tampered with: {what}. Keep a copy as evidence and run "
        "`otel-audit verify`; to go on recording, begin a new origin with `otel-audit new-origin`"
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Make a `TrailError`, which says what to do, of all that reading a damaged trail raises."""
    try:
        yield
    except OtelAuditError:
        raise
    except apsw.Error as error:
        raise explained(error, path) from error
    except (OverflowError, TypeError, ValueError) as error:
        raise damaged(path, f"a value is of another type than its column ({error})") from error
