"""The agent: one process per trail that signs checkpoints and keeps its readers going.

`Agent` promises, while any process of the trail runs one: a checkpoint covers
each record within about a second of its commit, and a new one is signed each
hour when nothing happens; the write-ahead log is copied into the database; the
mirror follows. It takes a bounded share of one processor. A duty that fails is
counted, logged (at most once a minute) and tried again; it keeps neither the
other duties nor the agent from going on. Nothing is lost when the process is
killed: the next agent continues.

The agents of a trail elect one by flock on `agent.lock`; the others stand by.
When a duty is due is left to `duties`; what a checkpoint is, and how the log is
emptied, to the callables that the agent is given.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from otel_audit.errors import AuditSettingsError, TrailError
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.duties import Checkpoints, Mirroring, Space, WriteAheadLog
from otel_audit.readers.mirror import Mirror, create, cursor_name
from otel_audit.readers.watch import RETRY_SECONDS, Watch
from otel_audit.trail.layout import AGENT_LOCK, DATABASE
from otel_audit.trail.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from otel_audit.trail.reader import TrailReader

CURSOR: Final = "agent"
"""The row of `cursors.db` that says which process serves the trail, and what follows it there.

Other rows may be those of mirrors and destinations that nobody has any more.
"""

_TICK: Final = 0.2
_SHARE: Final = 0.25
"""Of one processor's time: what a mirror takes at most that has to catch up."""

_STANDBY: Final = 1.0
_GRACE_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.005
_HOPELESS: Final = 2
"""Failures of the mirror after which a flush need not wait for a third."""

_logger = logging.getLogger("otel_audit.agent")


class Attendant(Protocol):
    """What runs beside the agent, in threads of its own, while this process serves the trail."""

    @property
    def follows(self) -> Sequence[str]:
        """The rows of `cursors.db` that say how far behind the trail it is."""
        ...

    def start(self) -> None:
        """Begin, or begin again; harmless when it runs."""
        ...

    def drain(self, timeout: float) -> None:
        """Deliver now what has to leave the machine, for at most ``timeout`` seconds."""
        ...

    def stop(self, timeout: float) -> None:
        """Finish what can be finished in ``timeout`` seconds, and end; harmless when it ended."""
        ...

    def forget(self) -> None:
        """Leave the threads to the parent: called in a forked child."""
        ...


class Agent:
    """Runs the duties of one trail in a daemon thread, or in `run()`'s thread.

    Usable from several threads. In a forked child it does nothing, and leaves
    the parent's alone, until `start()` is called there.
    """

    def __init__(  # noqa: PLR0913 - all by name; the provider and the command line know each
        self,
        directory: Path,
        *,
        reader_factory: Callable[[], TrailReader],
        sign_checkpoint: Callable[[], object],
        empty_wal: Callable[[], object],
        mirror_path: Path | None = None,
        mirror_mode: int = 0o640,
        mirror_max_bytes: int = 0,
        mirror_backups: int = 90,
        heartbeat: float = 3_600.0,
        attendants: Sequence[Attendant] = (),
    ) -> None:
        """Take what the duties need; nothing is opened and nothing runs yet.

        ``sign_checkpoint`` signs and stores a checkpoint of the tree as it is;
        ``empty_wal`` copies the write-ahead log if that is worth while.
        ``heartbeat`` is the age, in seconds, at which the checkpoint of an idle
        trail is renewed. Without ``mirror_path`` there is no mirror.
        ``attendants`` run as long as this process serves the trail.
        """
        self.directory = directory
        self.mirror_path = mirror_path
        self._database = directory / DATABASE
        self._mirror_mode = mirror_mode
        self._reader_factory = reader_factory
        self._reader: TrailReader | None = None
        self._lease = FileLock(directory / AGENT_LOCK)
        self._mirror_name = None if mirror_path is None else os.path.abspath(mirror_path)  # noqa: PTH100 - as in cursor_name()
        self._compared = ""
        self._leading = False
        self._stale = False
        self._size = 0
        self._cursors = Cursors(directory)
        self._checkpoints = Checkpoints(sign_checkpoint, heartbeat)
        self._wal = WriteAheadLog(empty_wal)
        self._space = Space(directory)
        self._mirror = Mirroring(
            mirror_path,
            lambda reader, path: Mirror(
                reader,
                path,
                self._cursors,
                mode=mirror_mode,
                max_bytes=mirror_max_bytes,
                backups=mirror_backups,
            ),
        )
        self._watches = {
            name: Watch(name)
            for name in ("trail", "checkpoint", "log", "mirror", "attendants", "space")
        }
        self._mutex = threading.Lock()
        self._run: _Run | None = None
        self._started_once = False
        self._asked_to_stop = False
        self._flushing = 0
        self._attendants = attendants
        self._deadline = 0.0
        _agents.add(self)
        # Not above: who only asks which lock this takes need not load OpenTelemetry.
        from otel_audit.readers.shipping import instruments  # noqa: PLC0415 - see above

        self._age = instruments.age
        instruments.watch(self)

    @property
    def leading(self) -> bool:
        """Whether this process is the one that serves the trail."""
        return self._leading

    @property
    def errors(self) -> int:
        """How often a duty failed in this process."""
        return sum(watch.errors for watch in self._watches.values())

    @property
    def last_error(self) -> str | None:
        """What the duties that fail at present report, or None when all is well."""
        failing = [watch.report for watch in self._watches.values() if watch.report]
        return "; ".join(failing) or None

    def observe(self) -> Iterator[tuple[str, float, Mapping[str, str]]]:
        """Tell how checkpoints and the disk are, while this process serves the trail."""
        last = self._checkpoints.last
        if self._leading and last is not None:
            size, unix_nano = last
            yield "otel_audit.checkpoint.age", self._age(unix_nano), {}
            yield "otel_audit.checkpoint.pending", max(0, self._size - size), {}
        if self._leading and self._space.free is not None:
            yield "otel_audit.trail.disk.free", self._space.free, {}

    def start(self) -> None:
        """Make the mirror's file and start the thread; harmless when it runs.

        When this process is the one to serve, the attendants run on return.
        Raises `AuditSettingsError` when the mirror can never be written where
        it should be. In a forked child such an error is only logged.
        """
        with self._mutex:
            if self._run is not None:
                return
            self._make_file()
            run = _Run()
            run.thread = threading.Thread(
                target=self._serve, args=(run,), name="otel-audit-agent", daemon=True
            )
            # Not left to the thread: a short program has ended before that comes to it, and at
            # its end not every Python starts a thread.
            if self._elected():
                self._try("attendants", self._attend)
            try:
                run.thread.start()
            except RuntimeError:
                self._let_go()
                raise
            self._run = run

    def run(self) -> None:
        """Serve in the calling thread until `stop()` or `close()` is called.

        Raises RuntimeError when it runs already.
        """
        with self._mutex:
            if self._run is not None:
                message = "this agent runs already; one agent has one thread"
                raise RuntimeError(message)
            self._make_file()
            self._run = run = _Run()
        # The signal may have come before there was anything to stop.
        run.stopping = self._asked_to_stop
        self._serve(run)
        self._asked_to_stop = False

    def stop(self) -> None:
        """Let `run()` finish what is due and return. May be called by a signal handler."""
        # No lock and no event: the handler may have interrupted their holder.
        self._asked_to_stop = True
        run = self._run
        if run is not None:
            run.stopping = True

    def hurry(self) -> None:
        """Do what is due now instead of at the next tick (0.2 s)."""
        run = self._run
        if run is not None:
            run.wake.set()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until the mirror has every record that is committed now.

        False when ``timeout`` (seconds) is up first, or when it is clear that
        the mirror cannot be written. Works whichever process serves the trail.
        If it is this one, a checkpoint covers them as well, or could not be
        signed: nothing in the directory changes then before the next record.
        """
        deadline = time.monotonic() + timeout
        with self._reader_factory() as reader:
            target = reader.tree().size
        with self._mutex:
            self._flushing += 1
        try:
            mirrored = self._mirrored(target, deadline)
            if mirrored:  # the checkpoint is no condition
                self._wait(
                    lambda: not self._leading or self._checkpoints.covered >= target,
                    lambda: bool(self._watches["checkpoint"].report),
                    deadline,
                )
        except TrailError:  # of the cursors; the duty whose they are says what is wrong with them
            return False
        finally:
            with self._mutex:
                self._flushing -= 1
        return mirrored

    def _mirrored(self, target: int, deadline: float) -> bool:
        if self.mirror_path is None:
            return True
        name = cursor_name(self.mirror_path)
        watch = self._watches["mirror"]
        hopeless = watch.lasting + _HOPELESS
        return self._wait(
            lambda: self._cursors.get(name) >= target, lambda: watch.lasting >= hopeless, deadline
        )

    def _wait(self, done: Callable[[], bool], in_vain: Callable[[], bool], deadline: float) -> bool:
        """Have the agent work until it is done; False when time is up, or it would be in vain."""
        while not done():
            if time.monotonic() >= deadline or in_vain():
                return False
            self.hurry()
            time.sleep(_POLL_SECONDS)
        return True

    def hand_over(self, timeout: float) -> None:
        """Deliver what is committed, for at most ``timeout`` seconds, if this process serves.

        Else the process that serves does it, or the next one to start.
        """
        deadline = time.monotonic() + timeout
        if self._leading:
            for attendant in self._attendants:
                attendant.drain(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float = 5.0) -> None:
        """Sign, let the mirror catch up for at most ``timeout`` seconds, and let go.

        `start()` would begin again.
        """
        run = self._run
        if run is not None:
            run.patience = timeout
            run.stopping = True
            run.wake.set()
            if not run.ended.wait(timeout + _GRACE_SECONDS):
                _logger.error("the agent did not end within %g s", timeout + _GRACE_SECONDS)
                return
            if run.thread is not None:
                run.thread.join()

    def _serve(self, run: _Run) -> None:
        try:
            while not run.stopping:
                run.wake.wait(self._turn())
                run.wake.clear()
            self._finish(time.monotonic() + run.patience)
        finally:
            self._let_go()
            self._close_reader()
            self._cursors.close()
            self._run = None
            run.ended.set()

    def _turn(self) -> float:
        """Do what is due; return how many seconds to rest."""
        if not self._elected():
            self._watches["trail"].attempt(self._stand_by)
            return _STANDBY
        began = time.thread_time()
        more = self._work()
        if self._watches["trail"].report:
            return RETRY_SECONDS
        if not more:
            return _TICK
        if self._flushing:
            return 0.0
        return (time.thread_time() - began) * (1 - _SHARE) / _SHARE

    def _elected(self) -> bool:
        if not self._leading:
            self._leading = self._watches["trail"].attempt(self._lease.try_acquire)
            if self._leading:
                self._checkpoints.forget()
                self._watches["trail"].attempt(self._announce)
        return self._leading

    def _announce(self) -> bool:
        """Tell the other processes who serves the trail, and what follows it there."""
        follows = [] if self.mirror_path is None else [cursor_name(self.mirror_path)]
        follows += [name for attendant in self._attendants for name in attendant.follows]
        state = {"pid": os.getpid(), "mirror": self._mirror_name, "follows": follows}
        self._cursors.set(CURSOR, 0, state)
        return True

    def _stand_by(self) -> bool:
        """Warn, once a leader, when this process' mirror is not the one that is written."""
        holder = self._lease.holder()
        if self.mirror_path is None or holder == self._compared:
            return True
        row = self._cursors.row(CURSOR)
        if row is not None and holder == f"process {row.state.get('pid')}":
            self._compared = holder
            if row.state.get("mirror") != self._mirror_name:
                _logger.warning(
                    "%s serves the trail in %s and writes the mirror %s, so that %s stays behind: "
                    "give all processes of one trail the same AUDIT_LOG_LOCAL_FILE",
                    holder,
                    self.directory,
                    row.state.get("mirror"),
                    self.mirror_path,
                )
        return True

    def _work(self) -> bool:
        """Try each duty once; return whether the mirror has more to do."""
        if not self._watches["trail"].attempt(self._look):
            return False
        reader = self._reader
        if reader is None:  # pragma: no cover - _look() has opened it
            return False
        if self._flushing:
            self._checkpoints.hurry()
        self._try("checkpoint", lambda: self._checkpoints.step(reader, self._size))
        self._try("log", lambda: self._wal.step(self._size))
        self._try("attendants", self._attend)
        self._try("space", self._space.step)
        return self._try("mirror", lambda: self._mirror.step(reader, self._size))

    def _attend(self) -> bool:
        for attendant in self._attendants:
            attendant.start()
        return False

    def _try(self, name: str, duty: Callable[[], bool]) -> bool:
        watch = self._watches[name]
        if not watch.due:
            return False
        errors = watch.errors
        more = watch.attempt(duty)
        self._stale = self._stale or watch.errors > errors
        return more

    def _look(self) -> bool:
        # Whatever was wrong, the next attempt begins with a new view of the trail. Where there is
        # none any more, nothing must be written beside it.
        if self._stale or not self._database.exists():
            self._close_reader()
            self._stale = False
        if self._reader is None:
            self._reader = self._reader_factory()
        self._size = self._reader.tree().size
        return True

    def _finish(self, deadline: float) -> None:
        """Serve what is committed, then let go, and look again whether all was served.

        Another agent that ends now and found the lease taken relies on this
        one: what it committed was there before the lease was let go.
        """
        self._deadline = deadline
        for watch in self._watches.values():
            watch.forget()
        while self._elected():
            while self._work_at_once() and time.monotonic() < deadline:
                pass
            served = self._size
            self._let_go()
            if not self._watches["trail"].attempt(self._look):
                break
            if self._size == served or time.monotonic() >= deadline:
                break

    def _work_at_once(self) -> bool:
        self._checkpoints.hurry()
        self._wal.hurry()
        return self._work()

    def _let_go(self) -> None:
        for attendant in self._attendants:
            attendant.stop(max(0.0, self._deadline - time.monotonic()))
        self._mirror.close()
        self._leading = False
        self._lease.close()

    def _close_reader(self) -> None:
        self._mirror.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _make_file(self) -> None:
        """Make the mirror's file, so that it is there before its first line.

        Once it was usable, later trouble with it is the thread's business.
        """
        if self.mirror_path is None:
            return
        try:
            create(self.mirror_path, self._mirror_mode)
        except (AuditSettingsError, OSError) as error:
            if isinstance(error, AuditSettingsError) and not self._started_once:
                raise
            _logger.exception("the mirror's file cannot be made now; the agent tries again")
        self._started_once = True

    def _after_fork_in_child(self) -> None:
        self._mutex = threading.Lock()
        self._run = None
        self._leading = False
        self._flushing = 0
        self._mirror.close()
        for attendant in self._attendants:
            attendant.forget()


class _Run:
    """One life of the agent: from start to close."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.ended = threading.Event()
        self.stopping = False
        self.patience = 5.0
        self.thread: threading.Thread | None = None


_agents: weakref.WeakSet[Agent] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for agent in list(_agents):
        agent._after_fork_in_child()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
