"""The agent's duties, one class each: when something is due, and what was done.

Promises of a ``step``: it does a bounded piece of work, and returns whether
more is waiting; what goes wrong is raised, and the next step tries again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from otel_audit.trail.advice import readable
from otel_audit.trail.filesystem import room

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_audit.readers.mirror import Mirror
    from otel_audit.trail.reader import TrailReader

_CHECKPOINT_SECONDS: Final = 1.0
_CHECKPOINT_LEAVES: Final = 10_000
_WAL_SECONDS: Final = 2.0
_SPACE_SECONDS: Final = 5.0


class Space:
    """Looks every few seconds how much room the trail has left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next = 0.0
        self.free: int | None = None
        """Bytes that a user without privileges may still use; None before the first look."""

    def step(self) -> bool:
        """Look if it is time to; there is never more to do."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SPACE_SECONDS
            self.free = room(self._directory).free
        return False


class Checkpoints:
    """When a checkpoint is due."""

    def __init__(self, sign: Callable[[], object], heartbeat: float) -> None:
        self._sign = sign
        self._heartbeat = heartbeat
        self._last: tuple[int, int] | None = None
        self._size = 0
        self._signed_at = 0.0
        self._known = False
        self._at_once = False

    @property
    def last(self) -> tuple[int, int] | None:
        """Size and time (Unix nanoseconds) of the last checkpoint, as far as is known."""
        return self._last

    @property
    def covered(self) -> int:
        """How many records a checkpoint covers, as far as is known."""
        return self._size

    def forget(self) -> None:
        """Another process may have signed meanwhile."""
        self._known = False

    def hurry(self) -> None:
        """Sign at the next step if any record is not covered."""
        self._at_once = True

    def step(self, reader: TrailReader, size: int) -> bool:
        """Sign if that is due; there is never more to do."""
        if not self._known:
            self._see(reader)
        if self._due(size):
            self._see(reader)
            if self._due(size):
                self._sign()
                self._size, self._signed_at = size, time.monotonic()
                self._see(reader)
        self._at_once = False
        return False

    def _due(self, size: int) -> bool:
        grown = size - self._size
        age = time.monotonic() - self._signed_at
        if grown == 0:
            return size > 0 and age >= self._heartbeat
        return self._at_once or age >= _CHECKPOINT_SECONDS or grown >= _CHECKPOINT_LEAVES

    def _see(self, reader: TrailReader) -> None:
        """Take note of a checkpoint that was signed since, by whichever process."""
        stored = reader.last_checkpoint()
        last = None if stored is None else (stored.size, stored.unix_nano)
        if last is not None and last != self._last:
            with readable(reader.path):
                # A clock that was set back must not make a checkpoint look younger than it can be.
                age = max(0, time.time_ns() - last[1]) / 1e9
            self._size, self._signed_at = last[0], time.monotonic() - age
        self._last, self._known = last, True


class WriteAheadLog:
    """When the write-ahead log is worth a look: some seconds after the trail grew."""

    def __init__(self, empty: Callable[[], object]) -> None:
        self._empty = empty
        self._size: int | None = None
        self._looked_at = 0.0

    def hurry(self) -> None:
        """Look at the next step."""
        self._looked_at = 0.0

    def step(self, size: int) -> bool:
        """Look if it is time to; there is never more to do."""
        now = time.monotonic()
        if size != self._size and now - self._looked_at >= _WAL_SECONDS:
            self._looked_at = now
            self._empty()
            self._size = size
        return False


class Mirroring:
    """The mirror, opened for as long as this process serves the trail."""

    def __init__(self, path: Path | None, make: Callable[[TrailReader, Path], Mirror]) -> None:
        self._path = path
        self._make = make
        self._mirror: Mirror | None = None

    def step(self, reader: TrailReader, size: int) -> bool:
        """Write some lines; return whether more are waiting."""
        if self._path is None:
            return False
        if self._mirror is None:
            self._mirror = self._make(reader, self._path)
        return self._mirror.step() > 0 and self._mirror.position < size

    def close(self) -> None:
        """Close the mirror; the next step opens it again."""
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None
