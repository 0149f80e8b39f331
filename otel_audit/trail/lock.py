"""Lock files between processes: flock with a time-out, safe under fork.

Promises: at most one holder on the host; a holder that dies lets go; a forked
child neither holds nor releases its parent's lock; who waits for a
`FairFileLock` is not passed by its holder again and again. A child inherits
the open file description and with it the lock, so the child's descriptor is
closed at the moment of the fork: otherwise the lock of a dead parent would
stay held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import weakref
from contextlib import contextmanager

# By name: gevent may replace it later than the mutexes that are held meanwhile, which know nothing
# of greenlets; then this one must not let other greenlets in.
from time import sleep
from typing import TYPE_CHECKING, Final

from otel_audit.errors import TrailLockedError
from otel_audit.trail.occupants import holders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FIRST_PAUSE: Final = 20e-6
_LONGEST_PAUSE: Final = 2e-3
_LONGER: Final = 1.25
"""A pause over the one before: who polls like this notices late by a tenth of what it waited."""

_TURN_SECONDS: Final = 0.25
"""How long a turn is waited for: whoever has it may have been stopped."""

_ROUND_SECONDS: Final = 1e-3
"""How long who had its turn may take the lock again without another one."""


class FileLock:
    """One lock file. Not for two threads at a time: put a mutex in front."""

    def __init__(self, path: Path) -> None:
        """Remember the path; the file is made on first use (mode 0600)."""
        self.path = path
        self._descriptor: int | None = None
        _locks.add(self)

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it; never wait."""
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise
        return True

    def acquire(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds, else raise `TrailLockedError` naming the holder.

        Polls: flock has no time-out, and a blocking call could not be called
        off when the holder is stopped. Pauses grow from 20 µs to 2 ms, a
        commit being about 0.2 ms.
        """
        if not (self.try_acquire() or self._polled(timeout)):
            message = (
                f"{self.path} has been held for {timeout:g} s by {self.holder()}; nothing "
                "can be committed until that process goes on or ends"
            )
            raise TrailLockedError(message)

    def release(self) -> None:
        """Let go; harmless when the lock is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock for the block."""
        self.acquire(timeout)
        try:
            yield
        finally:
            self.release()

    def close(self) -> None:
        """Let go and close the file."""
        # Let go first: a child that is forked before the end of this keeps its copy open.
        self.release()
        self._forget()

    def _forget(self) -> None:
        """Close the file, of which another process may have a copy that goes on holding the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _polled(self, timeout: float) -> bool:
        """Try until it is taken; False when ``timeout`` seconds are over."""
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                return False
            sleep(pause)
            pause = min(pause * _LONGER, _LONGEST_PAUSE)
        return True

    def holder(self) -> str:
        """Name the process that holds the lock, as far as /proc/locks tells."""
        return next((f"process {pid}" for pid in holders(self.path)), "another process")


class FairFileLock(FileLock):
    """A lock that its holder does not take again and again while another process waits for it.

    With flock alone, a process that commits one group after the other lets go
    for microseconds only, and one that polls hardly ever meets them. So whoever
    wants the lock first takes a turnstile, a second file, and lets go of that
    once it has the lock: who waits has the turnstile, and the last holder has
    to queue behind it. Only within a millisecond of its turn a holder may take
    the lock again without another one: who is quick and alone would queue
    behind nobody all the time. A process that was stopped in the turnstile
    costs the others a quarter of a second, once, and then the order.
    """

    def __init__(self, path: Path) -> None:
        """Remember the path; the turnstile is the same name with ``.turn``."""
        super().__init__(path)
        self._turnstile = FileLock(path.with_name(f"{path.name}.turn"))
        self._stuck = False
        self._round_ends = 0.0

    def acquire(self, timeout: float) -> None:
        """Wait in order, at most about ``timeout`` seconds; see `FileLock.acquire`."""
        if time.monotonic() < self._round_ends and self.try_acquire():
            return
        turnstile = self._turnstile
        try:
            if turnstile.try_acquire():
                self._stuck = False
            elif not self._stuck:
                self._stuck = not turnstile._polled(min(timeout, _TURN_SECONDS))  # noqa: SLF001 - same module
            super().acquire(timeout)
        finally:
            turnstile.release()
        self._round_ends = time.monotonic() + _ROUND_SECONDS

    def close(self) -> None:
        """Let go of both files and close them."""
        self._turnstile.close()
        super().close()


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock._forget()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
