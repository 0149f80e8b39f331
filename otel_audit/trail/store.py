"""The only place that writes into a trail's tables once they are made.

`TrailStore.append` promises: when it returns, the whole group is synced to the
disk, in order, without gaps, the tree is that of RFC 6962 over all records,
and ``committed_unix_nano`` never decreases, whatever the clock does. When it
raises, nothing is promised either way. It costs the same whatever the trail's
length.

Groups, queues and waiting are the committer's business; keys and signatures
the signer's; making and opening the file that of `file`, its log that of `wal`.
"""

from __future__ import annotations

import operator
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import apsw

from otel_audit.errors import TrailError, TrailMismatchError
from otel_audit.trail import filesystem, merkle
from otel_audit.trail.advice import damaged, explained
from otel_audit.trail.database import Handle, fetch
from otel_audit.trail.file import TrailFile
from otel_audit.trail.interruption import refuse
from otel_audit.trail.layout import DATABASE, LOCK
from otel_audit.trail.lock import FairFileLock
from otel_audit.trail.reader import refuse_newer, split_hashes, stated_tree
from otel_audit.trail.wal import LogEmptier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# One statement for the whole group; carray takes a tuple, and joining hash and
# record in one value spares a second virtual table.
_INSERT: Final = (
    "INSERT INTO leaf SELECT ?1 + rowid - 1, ?2, substr(value, 1, 32), substr(value, 33) "
    "FROM carray(?3)"
)

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
        self._clock = clock
        self._known_resources: set[str] = set()
        self._version: int | None = None
        self._tree: _Tree | None = None
        """What is known to be stored: as of `_version`, hence set with it, before the lock goes."""
        self._grown: _Tree | None = None
        """What the transaction under way makes of it."""
        filesystem.prepare(directory)
        self._file = TrailFile(self.path, new_origin=new_origin, clock=clock, vfs=vfs)
        self._lock = FairFileLock(directory / LOCK)
        self._handle = Handle(self._connect_to_write)
        self.wal = LogEmptier(self.path, self._handle, self._connect, self._file.inspect, timeout)
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
        ``take`` is called at most once, and not if the lock cannot be had; it
        must not wait for anybody, as all writers wait for it. What it raises
        ends the attempt.
        """

        def work(connection: apsw.Connection) -> Commit:
            records = take()
            hashes = merkle.leaf_hashes(records)
            blobs = tuple(map(operator.add, hashes, records))
            # Forgotten until the commit has succeeded.
            known, self._tree = self._tree, None
            size, edge, last = known or self._stored_tree(connection)
            now = max(self._clock(), last)
            connection.execute(_INSERT, (size, now, apsw.carray(blobs)))
            if connection.changes() != len(records):
                raise self._swallowed()
            for resource_hash, json in resources.items():
                if resource_hash not in self._known_resources:
                    connection.execute(
                        "INSERT OR IGNORE INTO resource VALUES (?, ?)", (resource_hash, json)
                    )
            edge = merkle.extend(edge, size, hashes)
            grown = size + len(records)
            self._grown = _Tree(grown, edge, now)
            _complete_tiles(connection, size, grown, self.path)
            connection.execute(
                "UPDATE tree SET size = ?, edge = ?, committed_unix_nano = ?",
                (grown, b"".join(edge), now),
            )
            return Commit(size, now, hashes)

        commit = self._write(work)
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

    def close(self) -> None:
        """Empty the log if that can be done now, close the database, let go of the lock."""
        self.wal.close()
        self._handle.close()
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
            raise explained(error, self.path) from error
        except OSError as error:
            if error.errno is None:
                raise  # by a signal handler: the system gives a number
            raise explained(error, self._lock.path) from error

    def _transact(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """Do ``work`` in a transaction, with the mutex held. No generator: see database.py."""
        # Before there is a connection: a fork in a signal handler would close it.
        self._handle.writer = threading.get_ident(), TrailStore._transact.__code__
        try:
            connection = self._handle.connection()
            try:
                self._lock.acquire(self.timeout)
                self._file.look(connection)
                connection.execute("BEGIN IMMEDIATE")
                self._recognise(connection)
                self._grown = self._tree
                done = work(connection)
                connection.execute("COMMIT")
                self._version = connection.data_version()
                self._tree = self._grown
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
        self._file.recognise(connection)
        if connection.data_version() != self._version:
            self._tree = None
            refuse_newer(connection.execute("PRAGMA user_version").get, self.path)

    def _stored_tree(self, connection: apsw.Connection) -> _Tree:
        size, joined, committed = stated_tree(connection, self.path)
        if len(joined) != size.bit_count() * merkle.HASH_SIZE:
            raise damaged(self.path, f"the right edge of its tree is not one of {size} records")
        return _Tree(size, split_hashes(joined), committed)

    def _swallowed(self) -> TrailMismatchError:
        message = (
            f"{self.path} does not keep what is put into it: its schema was changed. Find out by "
            "whom, keep a copy as evidence, and run `otel-audit verify`"
        )
        return TrailMismatchError(message)

    def _connect_to_write(self) -> apsw.Connection:
        connection = self._connect(self._lock)
        self._file.remember()
        return connection

    def _connect(self, lock: FairFileLock) -> apsw.Connection:
        self._version = None
        with lock.held(self.timeout):
            return self._file.open(leave_log=self.wal.stuck)


def _origin(connection: apsw.Connection) -> str:
    return str(connection.execute("SELECT value FROM meta WHERE key = 'origin'").get)


def _complete_tiles(connection: apsw.Connection, size: int, grown: int, path: Path) -> None:
    """Store each tile that was completed, and its root one level up."""
    width = merkle.TILE_WIDTH
    for index in range(size // width, grown // width):
        rows = fetch(
            connection,
            "SELECT CAST(hash AS BLOB) FROM leaf WHERE seq >= ? AND seq < ? ORDER BY seq",
            (index * width, (index + 1) * width),
        )
        hashes = b"".join(row[0] for row in rows)
        connection.execute("INSERT INTO tile VALUES (0, ?, ?)", (index, hashes))
        _climb(connection, index, _root_of(hashes, path), path)


def _climb(connection: apsw.Connection, index: int, root: bytes, path: Path) -> None:
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
            "SELECT CAST(hashes AS BLOB) FROM tile WHERE level = ? AND idx = ?", (level, parent)
        ).get
        index, root = parent, _root_of(hashes, path)


def _root_of(tile: bytes, path: Path) -> bytes:
    """Return the root of a complete tile. Raises `TrailError` where it is none."""
    if len(tile) != merkle.TILE_WIDTH * merkle.HASH_SIZE:
        raise damaged(path, "hashes of its last records are missing or none")
    return merkle.tile_root(tile)
