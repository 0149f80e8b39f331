"""Open files that a forked child never keeps.

A child inherits the open file description and with it flock's ownership: the
lock of a dead parent would stay held by a child that knows nothing of it.
Promises: at the moment of a fork, the child's copy of each `Descriptor` is
closed, whatever the other threads of the parent were doing; the parent's own
copy and its lock are not touched. What the file is for is left to others.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Descriptor:
    """One open file, closed in every forked child."""

    def __init__(self, path: Path, flags: int, mode: int = 0o600) -> None:
        """Open ``path`` as os.open(2) does, never inherited by another program.

        Raises `OSError`.
        """
        self._number: int | None = None
        # A fork between opening and remembering would leave the child a file that nobody closes.
        with _guard:
            self._number = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, mode)
            _open.add(self)

    def __del__(self) -> None:
        """Close what was forgotten."""
        self.close()

    @property
    def number(self) -> int:
        """The file descriptor. Raises `ValueError` when closed (in a forked child: always)."""
        if self._number is None:
            message = "the file was closed (a forked child has to open its own)"
            raise ValueError(message)
        return self._number

    def try_lock(self) -> bool:
        """Lock the file against other processes (flock) unless it is locked; never wait."""
        try:
            fcntl.flock(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock_and_close(self) -> None:
        """Let go of the lock at once, even if a child that was just forked still has its copy."""
        if self._number is not None:
            fcntl.flock(self._number, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Close the file; harmless when it is closed already."""
        with _guard:
            number, self._number = self._number, None
            _open.discard(self)
            if number is not None:
                os.close(number)


_open: weakref.WeakSet[Descriptor] = weakref.WeakSet()
# Reentrant: the garbage collector may run __del__ inside the guarded lines.
_guard = threading.RLock()


def _after_fork_in_child() -> None:
    for descriptor in list(_open):
        descriptor.close()
    _guard.release()


os.register_at_fork(
    before=_guard.acquire,
    after_in_parent=_guard.release,
    after_in_child=_after_fork_in_child,
)
