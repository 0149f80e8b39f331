"""The only place that writes a trail's database.

`TrailStore.append` promises: when it returns, the whole group is synced to the
disk, in order, without gaps, the tree is that of RFC 6962 over all records,
and ``committed_unix_nano`` never decreases, whatever the clock does. When it
raises, nothing is promised either way. It costs the same whatever the trail's
length.

Groups, queues and waiting are the committer's business; keys and signatures
the signer's.
"""

from __future__ import annotations

import ctypes
import logging
import operator
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import apsw

from otel_audit.errors import TrailError, TrailLockedError, TrailMismatchError
from otel_audit.trail import filesystem, merkle
from otel_audit.trail.database import Handle, fetch
from otel_audit.trail.interruption import refuse
from otel_audit.trail.lock import FairFileLock
from otel_audit.trail.reader import (
    APPLICATION_ID,
    DATABASE,
    SCHEMA_VERSION,
    check_version,
    refuse_newer,
    split_hashes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE leaf (
  seq INTEGER PRIMARY KEY, committed_unix_nano INTEGER NOT NULL,
  hash BLOB NOT NULL, record BLOB NOT NULL);
CREATE TABLE tile (
  level INTEGER NOT NULL, idx INTEGER NOT NULL, hashes BLOB NOT NULL,
  PRIMARY KEY (level, idx)) WITHOUT ROWID;
CREATE TABLE tree (
  id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL, edge BLOB NOT NULL,
  committed_unix_nano INTEGER NOT NULL);
CREATE TABLE checkpoint (
  id INTEGER PRIMARY KEY, size INTEGER NOT NULL, unix_nano INTEGER NOT NULL, note TEXT NOT NULL);
CREATE TABLE resource (hash TEXT PRIMARY KEY, json BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO tree VALUES (0, 0, x'', 0);
"""

# One statement for the whole group; carray takes a tuple, and joining hash and
# record in one value spares a second virtual table.
_INSERT: Final = (
    "INSERT INTO leaf SELECT ?1 + rowid - 1, ?2, substr(value, 1, 32), substr(value, 33) "
    "FROM carray(?3)"
)

_BUSY_MILLISECONDS: Final = 5_000
_WAL_PREALLOCATED: Final = 8 << 20
"""Bytes of log written in advance: a sync that need not grow the file costs half."""

_LOOK_SECONDS: Final = 0.1
"""How long the files beside the database are believed to be the same: after a look at a file's
times Linux writes them anew with the next write, which costs a fifth of a commit."""

_WAL_CHECKPOINT_PAGES: Final = 50_000
"""Without an agent SQLite itself empties the log at about 200 MB."""

_logger = logging.getLogger("otel_audit.trail")

_T = TypeVar("_T")


class Commit(NamedTuple):
    """Where a group went: sequence number of its first record, when, and each record's leaf hash."""

    first: int
    committed_unix_nano: int
    leaf_hashes: list[bytes]


class _Tree(NamedTuple):
    """The tree as it was last committed: its right edge is all that appending needs."""

    size: int
    edge: list[bytes]
    committed_unix_nano: int


class TrailStore:
    """The writer's side of one trail, shared by threads, forks and processes."""

    def __init__(
        self,
        directory: Path,
        *,
        new_origin: Callable[[], str],
        timeout: float = 10.0,
        vfs: str | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the trail in ``directory``, or create one named by ``new_origin()``.

        ``timeout`` is how long to wait for another process, in seconds;
        ``vfs`` names an SQLite VFS (fault injection); ``clock`` gives
        nanoseconds since 1970. Raises `TrailError` and its kinds.
        """
        self.directory = directory
        self.path = directory / DATABASE
        self.timeout = timeout
        self._new_origin = new_origin
        self._vfs = vfs
        self._clock = clock
        self._known_resources: set[str] = set()
        self._version: int | None = None
        self._tree: _Tree | None = None
        self._side_names = (f"{self.path}-wal", f"{self.path}-shm")
        self._beside: tuple[int, ...] = ()
        self._look_again = 0.0
        self.wal_stuck = False
        """Whether an I/O error has ended the emptying of the log until this process is restarted."""
        self._wal_waits = False
        self._wal = self.path.with_name(f"{DATABASE}-wal")
        self._frames = 0
        filesystem.prepare(directory)
        self._lock = FairFileLock(directory / "lock")
        self._handle = Handle(self._connect_to_write)
        # Another connection and descriptor: commits go on while the log is copied.
        self._emptier_lock = FairFileLock(directory / "lock")
        self._emptier = Handle(lambda: self._connect(self._emptier_lock))
        self.origin = self._write(_origin)

    def append(self, records: Sequence[bytes], resources: Mapping[str, bytes]) -> Commit:
        """Hash the records and commit them as one group, durably.

        ``resources`` are the OTel Resources (hash to JSON) that the records
        name. Raises `TrailError`; the records are then not confirmed.
        """
        return self.append_next(lambda: records, resources)

    def append_next(
        self, take: Callable[[], Sequence[bytes]], resources: Mapping[str, bytes]
    ) -> Commit:
        """Do what `append` does with the records that ``take`` returns once the trail is ours.

        While another process writes, more come, and go into the same group.
        ``take`` is called at most once, and not if the lock cannot be had.
        """
        tree: _Tree

        def work(connection: apsw.Connection) -> Commit:
            nonlocal tree
            records = take()
            hashes = merkle.leaf_hashes(records)
            blobs = tuple(map(operator.add, hashes, records))
            # Forgotten until the commit has succeeded.
            known, self._tree = self._tree, None
            size, edge, last = known or _stored_tree(connection)
            now = max(self._clock(), last)
            connection.execute(_INSERT, (size, now, apsw.carray(blobs)))
            for resource_hash, json in resources.items():
                if resource_hash not in self._known_resources:
                    connection.execute(
                        "INSERT OR IGNORE INTO resource VALUES (?, ?)", (resource_hash, json)
                    )
            edge = merkle.extend(edge, size, hashes)
            grown = size + len(records)
            tree = _Tree(grown, edge, now)
            _complete_tiles(connection, size, grown)
            connection.execute(
                "UPDATE tree SET size = ?, edge = ?, committed_unix_nano = ?",
                (grown, b"".join(edge), now),
            )
            return Commit(size, now, hashes)

        commit = self._write(work)
        self._tree = tree
        self._known_resources.update(resources)
        return commit

    def add_checkpoint(self, size: int, unix_nano: int, note: str) -> None:
        """Keep a signed checkpoint. Raises `TrailError`."""
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO checkpoint (size, unix_nano, note) VALUES (?, ?, ?)",
                (size, unix_nano, note),
            )
        )

    def describe(self, facts: Mapping[str, str]) -> None:
        """Write facts about the trail, such as its public keys, into ``meta``."""
        self._write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items())
            )
        )

    def probe(self) -> None:
        """Commit a harmless row, to learn whether the trail takes records again."""
        self.describe({"probed_unix_nano": str(self._clock())})

    def empty_wal(self, *, above: int = 0, reset: bool = False) -> None:
        """Copy the write-ahead log into the database, so that it is reused.

        Does nothing while at most ``above`` bytes in the log are not copied
        yet. Most of the work happens beside the writers, only the rest under
        their lock. With ``reset``, or when nothing was written since the last
        call, nothing stays in the log at all: SQLite prefers what is there to
        what is in the database, so that a change made to the file behind our
        back would go unseen until the log is reused.

        A full disk only delays it. After an I/O error it never runs again in
        this process (`wal_stuck`): the kernel may have dropped what a later
        sync would then claim to have written, while the log still holds
        everything.
        """
        if self.wal_stuck:
            return
        try:
            with self._emptier.use() as connection:
                total, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
                idle, self._frames = total == self._frames, total
                waiting = (total - copied) * connection.pragma("page_size")
                if not (waiting > above or ((idle or reset) and total)):
                    return
                total, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                if copied < total or idle or reset:
                    self._copy_rest(connection, reset=idle or reset)
        except (apsw.BusyError, TrailLockedError):
            return
        except apsw.Error as error:
            self._not_emptied(error)
        else:
            if self._wal_waits:
                self._wal_waits = False
                _logger.warning("%s: the write-ahead log is copied again", self.path)

    def _not_emptied(self, error: apsw.Error) -> None:
        if not isinstance(error, apsw.FullError):
            self.wal_stuck = True
            for handle in (self._emptier, self._handle):
                # What cannot be opened now is told when it is.
                with suppress(apsw.Error, TrailError, OSError), handle.use() as connection:
                    _leave_the_log(connection)
            _logger.critical(
                "%s: the write-ahead log could not be copied into the database (%s); records "
                "stay safe in the log, which grows from now on: repair the disk, then restart",
                self.path,
                error,
            )
        elif not self._wal_waits:
            # A write was refused, but no sync has failed: what was written may be written again.
            self._wal_waits = True
            _logger.error(
                "%s: the disk is full, so that the write-ahead log is not copied into the "
                "database; records are as safe in the log, and it is tried again",
                self.path,
            )

    def _copy_rest(self, connection: apsw.Connection, *, reset: bool) -> None:
        """Copy what came while the log was copied, with all writers waiting."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if reset else apsw.SQLITE_CHECKPOINT_PASSIVE
        with self._emptier_lock.held(self.timeout):
            # Rather try again later than let the writers wait for somebody who reads.
            connection.set_busy_timeout(0)
            try:
                connection.wal_checkpoint(mode=mode)
                if reset:
                    _preallocate(self._wal)
                    self._frames = 0
            finally:
                connection.set_busy_timeout(_BUSY_MILLISECONDS)

    def close(self) -> None:
        """Empty the log if that can be done now, close the database, let go of the lock."""
        with suppress(TrailError, OSError):  # what is in the log is as safe as before
            self.empty_wal(reset=True)
        self._emptier.close()
        self._handle.close()
        self._emptier_lock.close()
        self._lock.close()

    def _write(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """Do ``work`` in one write transaction under the lock of all processes.

        The commit is the last thing before the lock is let go, and what SQLite
        reports becomes an error that says what to do.
        """
        refuse(interrupted=self.interrupted)
        try:
            self._handle.let_forks_pass()
            with self._handle.mutex:
                return self._transact(work)
        except TrailError:
            raise  # among them one that is a TimeoutError, hence an OSError
        except apsw.Error as error:
            raise self._explained(error) from error
        except OSError as error:
            message = f"the trail's lock {self._lock.path} cannot be used: {error.strerror}"
            raise TrailError(message) from error

    def _transact(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """Do ``work`` in a transaction, with the mutex held. No generator: see database.py."""
        # Before there is a connection: a fork in a signal handler would close it.
        self._handle.writer = threading.get_ident(), TrailStore._transact.__code__
        try:
            connection = self._handle.connection()
            try:
                self._lock.acquire(self.timeout)
                connection.execute("BEGIN IMMEDIATE")
                self._recognise(connection)
                done = work(connection)
                connection.execute("COMMIT")
                self._version = connection.data_version()
                return done
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._lock.release()
        finally:
            self._handle.writer = None

    @property
    def interrupted(self) -> bool:
        """Whether this thread writes already: a signal handler or finalizer asks, which cannot."""
        return self._handle.interrupted

    def _recognise(self, connection: apsw.Connection) -> None:
        """Refuse what has changed since it was opened: the file's place, or the schema.

        What this process knows of the trail holds as long as nobody else has
        written since: SQLite counts each connection's changes and what it
        notices of others' (SQLITE_FCNTL_DATA_VERSION).
        """
        moved = ctypes.c_int()
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        if moved.value or self._side_files_changed():
            message = (
                f"{self.path}, or the log or index beside it, was removed or replaced while this "
                "process had it open: find out by whom, put it back, and restart this process"
            )
            raise TrailMismatchError(message)
        if connection.data_version() != self._version:
            self._tree = None
            refuse_newer(connection.execute("PRAGMA user_version").get, self.path)

    def _side_files_changed(self) -> bool:
        """Whether the log or its index is another file, as of the last tenth of a second."""
        now = time.monotonic()
        if now < self._look_again:
            return False
        if self._side_files() != self._beside:
            return True
        self._look_again = now + _LOOK_SECONDS
        return False

    def _side_files(self) -> tuple[int, ...]:
        """Return which files the log and its index are: without them nothing would be kept."""
        try:
            return tuple(os.stat(name).st_ino for name in self._side_names)  # noqa: PTH116 - a third of the time
        except FileNotFoundError:
            return ()

    def _explained(self, error: apsw.Error) -> TrailError:
        for kind, advice in _ADVICE:
            if isinstance(error, kind):
                return TrailError(f"{self.path}: {error}: {advice}")
        return TrailError(f"{self.path}: {type(error).__name__}: {error}")

    def _connect_to_write(self) -> apsw.Connection:
        connection = self._connect(self._lock)
        self._beside = self._side_files()
        return connection

    def _connect(self, lock: FairFileLock) -> apsw.Connection:
        self._version = None
        with lock.held(self.timeout):
            self._make_file()
            connection = apsw.Connection(str(self.path), vfs=self._vfs)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _make_file(self) -> None:
        """Make an empty file of mode 0600, whose mode SQLite's side files inherit.

        Never opens one that exists: to close it would let go of the POSIX
        locks of this process's other connections.
        """
        if self.path.exists():
            return
        self._refuse_orphans("no")
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _refuse_orphans(self, what: str) -> None:
        """Do not replace a database that went missing, or has lost everything, by a new one."""
        for name in ("signing.key", "signed"):
            if (self.directory / name).exists():
                message = (
                    f"{self.directory} has {name} but {what} {DATABASE}: the trail was removed or "
                    f"not restored. Restore {DATABASE}, or move {name} away to begin a new "
                    "trail under a new origin"
                )
                raise TrailMismatchError(message)

    def _prepare(self, connection: apsw.Connection) -> None:
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        fresh = connection.pragma("application_id") == 0
        if fresh:
            self._refuse_foreign(connection)
            # Its log may have been lost, with all that there was.
            self._refuse_orphans("an empty")
            connection.pragma("page_size", 4096)
            connection.pragma("auto_vacuum", 2)
        else:
            check_version(connection, self.path)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("secure_delete", "on")
        connection.pragma("trusted_schema", "off")
        connection.pragma("wal_autocheckpoint", _WAL_CHECKPOINT_PAGES)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        _keep_wal(connection)
        if self.wal_stuck:
            _leave_the_log(connection)
        if fresh:
            self._create(connection)
        _preallocate(self._wal)

    def _refuse_foreign(self, connection: apsw.Connection) -> None:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            message = f"{self.path} is a database, but not an audit trail; nothing was changed"
            raise TrailMismatchError(message)

    def _create(self, connection: apsw.Connection) -> None:
        """Make the schema in one transaction: a crash leaves all of it or nothing."""
        with connection:
            connection.execute(_SCHEMA)
            connection.execute(
                "INSERT INTO meta VALUES ('origin', ?), ('created_unix_nano', ?)",
                (self._new_origin(), str(self._clock())),
            )
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", SCHEMA_VERSION)
        filesystem.sync(self.directory)


def _stored_tree(connection: apsw.Connection) -> _Tree:
    size, joined, committed = connection.execute(
        "SELECT size, edge, committed_unix_nano FROM tree"
    ).get
    return _Tree(size, split_hashes(joined), committed)


_ADVICE: Final[tuple[tuple[type[apsw.Error], str], ...]] = (
    (apsw.FullError, "free space on the disk; the trail goes on by itself afterwards"),
    (apsw.ReadOnlyError, "make the file and its directory writable for this user"),
    (apsw.CantOpenError, "make the file and its directory readable and writable for this user"),
    (apsw.BusyError, "another program holds the database; close it"),
    (apsw.CorruptError, "the file is damaged; keep it, run `otel-audit verify`, restore a copy"),
    (apsw.NotADBError, "this is not a trail; keep it, and restore the right file"),
    (apsw.IOError, "the disk reports an error; look at the kernel's log (dmesg)"),
)


def _origin(connection: apsw.Connection) -> str:
    return str(connection.execute("SELECT value FROM meta WHERE key = 'origin'").get)


def _complete_tiles(connection: apsw.Connection, size: int, grown: int) -> None:
    """Store each tile that was completed, and its root one level up."""
    width = merkle.TILE_WIDTH
    for index in range(size // width, grown // width):
        rows = fetch(
            connection,
            "SELECT hash FROM leaf WHERE seq >= ? AND seq < ? ORDER BY seq",
            (index * width, (index + 1) * width),
        )
        hashes = b"".join(row[0] for row in rows)
        connection.execute("INSERT INTO tile VALUES (0, ?, ?)", (index, hashes))
        _climb(connection, index, merkle.tile_root(hashes))


def _climb(connection: apsw.Connection, index: int, root: bytes) -> None:
    """Append the root of the tile ``index`` to the tiles above it."""
    width, level = merkle.TILE_WIDTH, 0
    while True:
        level += 1
        parent, place = divmod(index, width)
        connection.execute(
            "INSERT INTO tile VALUES (?1, ?2, ?3) ON CONFLICT (level, idx) "
            "DO UPDATE SET hashes = CAST(hashes || ?3 AS BLOB)",
            (level, parent, root),
        )
        if place != width - 1:
            return
        hashes = connection.execute(
            "SELECT hashes FROM tile WHERE level = ? AND idx = ?", (level, parent)
        ).get
        index, root = parent, merkle.tile_root(hashes)


def _keep_wal(connection: apsw.Connection) -> None:
    """Keep the log's file when the last connection closes.

    The next one is spared its growth, and a reader that may not write finds
    what it needs.
    """
    yes = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(yes))


def _leave_the_log(connection: apsw.Connection) -> None:
    """Keep SQLite from emptying the log by itself, also when the last connection closes."""
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def _preallocate(wal: Path) -> None:
    """Give the log its length in advance, so that a sync need not change the inode.

    Zeros after the last frame end SQLite's recovery, whose frames carry salted
    checksums (https://sqlite.org/walformat.html). SQLite places its locks on
    the database and on the shared memory, never on the log, so that closing
    the file here lets go of none.
    """
    try:
        missing = _WAL_PREALLOCATED - wal.stat().st_size
        if missing > 0:
            with wal.open("ab") as file:
                file.write(bytes(missing))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        # Only speed is lost; if the disk is full, the append itself will say so.
        _logger.info("%s was not preallocated: %s", wal, error.strerror)
