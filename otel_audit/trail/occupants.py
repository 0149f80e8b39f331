"""Which processes hold locks on a trail's files, as far as /proc/locks tells.

Promises: nothing is opened or locked to find out, so that asking disturbs
nobody. A process in another container may not be listed; whoever has to be
sure takes the lock itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_LOCKS: Final = "/proc/locks"
_WAITS: Final = "->"
_PID: Final = 4
_PLACE: Final = 5


def holders(path: Path, locks: str | None = None) -> tuple[int, ...]:
    """Return the ids of the processes that hold a lock on ``path``, in order.

    ``locks`` is the text of /proc/locks (proc(5)).
    """
    try:
        status = path.stat()
        if locks is None:
            locks = Path(_LOCKS).read_text("ascii")
    except OSError:
        return ()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    exact: set[int] = set()
    likely: set[int] = set()
    for line in locks.splitlines():
        fields = line.split()
        if _WAITS in fields or len(fields) <= _PLACE:
            continue
        pid, place = fields[_PID], fields[_PLACE]
        if pid.isdecimal() and place.endswith(f":{status.st_ino}"):
            likely.add(int(pid))
            if place.startswith(device):
                exact.add(int(pid))
    # Some file systems (btrfs, overlay) show another device to stat() than to the kernel's list.
    return tuple(sorted(exact or likely))


def name_of(pid: int) -> str:
    """Name a process for people: ``process 12 (uvicorn)``."""
    try:
        command = Path(f"/proc/{pid}/comm").read_text("utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command})"


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by a signal (SIGSTOP, Ctrl-Z, a debugger)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[:1] in (["T"], ["t"])
