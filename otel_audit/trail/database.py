"""SQLite handles that survive threads and forks; nothing about the trail itself.

Promises: one thread at a time uses a handle; a handle opens on first use and
again after a fork; closing it and forking wait for a bounded time only. SQLite keeps its table of POSIX locks in process memory,
so a child that inherits an open database believes that it holds locks which
only its parent holds, even through a connection of its own
(https://sqlite.org/howtocorrupt.html section 2.6). Therefore every handle is
closed *before* a fork, in the parent, and both sides open theirs again.

Rule for callers: never use one handle inside another one's `use()`. Who must
stay sound when a signal handler raises in between writes ``with handle.mutex:``
and `connection()`, since a generator such as `use()` would keep what it holds
for as long as anybody keeps the exception.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import apsw

from otel_audit.errors import TrailError
from otel_audit.trail.interruption import on_the_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import CodeType

_MINIMUM: Final = 3_051_003
"""SQLite 3.51.3: the first release without the WAL-reset defect."""

BUSY_MILLISECONDS: Final = 5_000
"""How long SQLite waits for somebody else's lock."""

_PATIENCE: Final = 5.0
"""Seconds that a fork or a close waits for a transaction under way in another thread."""

_logger = logging.getLogger("otel_audit.trail")

if apsw.SQLITE_VERSION_NUMBER < _MINIMUM:  # pragma: no cover - needs an old apsw
    _message = (
        f"SQLite {apsw.sqlite_lib_version()} can corrupt a write-ahead log; "
        "otel-audit needs 3.51.3 or later: pip install --upgrade apsw"
    )
    raise ImportError(_message)


def fetch(
    connection: apsw.Connection, query: str, bindings: tuple[int | str | bytes, ...] = ()
) -> list[Any]:
    """Return all rows of a query whose column types the schema settles."""
    return connection.execute(query, bindings).fetchall()


def make_file(path: Path) -> None:
    """Make an empty database of mode 0600, whose side files inherit that, unless there is one.

    Never opens one that exists: to close it would let go of the POSIX locks
    of this process's other connections (https://sqlite.org/howtocorrupt.html
    section 2.2). Raises `OSError`.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


class Handle:
    """One lazily opened connection, guarded by one mutex."""

    def __init__(self, connect: Callable[[], apsw.Connection]) -> None:
        """Take the function that opens and prepares a connection."""
        self._connect = connect
        self._connection: apsw.Connection | None = None
        # Reentrant: who handles a KeyboardInterrupt may close what it interrupted.
        self.mutex = threading.RLock()
        self.writer: tuple[int, CodeType] | None = None
        """The thread that is in a transaction, and the code that it is in all the time."""
        with _registry:
            _handles.add(self)

    def __del__(self) -> None:
        """Close what nobody closed, but not while another thread forks."""
        connection = self.__dict__.pop("_connection", None)
        if connection is None:
            return
        if _registry.acquire(blocking=False):
            connection.close()
            _registry.release()
        else:
            _dropped.append(connection)

    @staticmethod
    def let_forks_pass() -> None:
        """Wait while another thread is about to fork.

        For whoever uses the handle again and again: a mutex goes to whoever is
        quickest, and the thread that forks would wait in vain.
        """
        if _fork_waits:
            with _registry:
                pass

    @contextmanager
    def use(self) -> Iterator[apsw.Connection]:
        """Lend the connection to the calling thread, opening it when needed."""
        with self.mutex:
            yield self.connection()

    def connection(self) -> apsw.Connection:
        """Return the connection, opened when needed, to a thread that holds the mutex."""
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    @property
    def interrupted(self) -> bool:
        """Whether this thread is in a transaction or a fork: a signal handler or finalizer asks.

        Who writes meanwhile may be waiting for what this thread has.
        """
        return threading.get_ident() in _forkers or self._writes()

    def _writes(self) -> bool:
        if self.writer is None:
            return False
        thread, code = self.writer
        return thread == threading.get_ident() and on_the_stack(code)

    def close(self) -> None:
        """Close the connection; the next `use()` would open another one.

        It is left open when another thread hangs in it, on a disk that does
        not answer, and when a signal handler has interrupted a transaction.
        """
        if self.interrupted or not self.mutex.acquire(timeout=_PATIENCE):
            _logger.error("a transaction does not end; its database is left open")
            return
        try:
            self._shut()
        finally:
            self.mutex.release()

    def _open(self) -> apsw.Connection:
        if _poisoned:
            message = (
                "this process was forked while its parent had the database open and could not "
                f"close it within {_PATIENCE:g} s, so SQLite's lock table is not trustworthy "
                "here; start the process by spawn instead of fork, or fork before the first use"
            )
            raise TrailError(message)
        return self._connect()

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _before_fork(self) -> bool:
        if self._writes() or not self.mutex.acquire(timeout=_PATIENCE):
            _logger.error("a fork happens inside a transaction; the child cannot use the trail")
            return False
        self._shut()
        return True

    def _in_child(self) -> None:
        self.mutex = threading.RLock()
        self.writer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            _poison(connection)


def _poison(connection: apsw.Connection) -> None:
    """Keep the parent's open connection from being closed in the child, and SQLite from use.

    All connections to one file share what SQLite believes about its locks, so
    one that was inherited spoils every other, also those to come.
    """
    import ctypes  # noqa: PLC0415 - needed only after a fork that went wrong

    global _poisoned  # noqa: PLW0603 - it holds for the whole process
    _poisoned = True
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
_registry = threading.RLock()
"""Held by whoever adds a handle, and during a fork: two threads may fork at a time."""
_forkers: set[int] = set()
"""The threads that fork, or wait for their turn."""
_forking: list[tuple[Handle, bool]] = []
_dropped: list[apsw.Connection] = []
"""Open connections of handles that were given up in the middle of a fork."""
_poisoned = False
_fork_waits = False


def _before_fork() -> None:
    global _fork_waits  # noqa: PLW0603 - said to all handles at once
    _forkers.add(threading.get_ident())
    _registry.acquire()
    _fork_waits = True
    _forking.extend((handle, handle._before_fork()) for handle in list(_handles))  # noqa: SLF001 - same module
    while _dropped:
        _dropped.pop().close()


def _after_fork_in_parent() -> None:
    global _fork_waits  # noqa: PLW0603 - said to all handles at once
    _fork_waits = False
    for handle, closed in _forking:
        if closed:
            handle.mutex.release()
    _forking.clear()
    while _dropped:
        _dropped.pop().close()
    _registry.release()
    _forkers.discard(threading.get_ident())


def _after_fork_in_child() -> None:
    global _registry, _fork_waits  # noqa: PLW0603 - a lock that was held in the parent is of no use here
    _registry = threading.RLock()
    _fork_waits = False
    _forkers.clear()
    # All: a server that forks by itself (uWSGI) may not have told us before.
    for handle in list(_handles):
        handle._in_child()  # noqa: SLF001 - same module
    _forking.clear()
    while _dropped:
        _poison(_dropped.pop())


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
