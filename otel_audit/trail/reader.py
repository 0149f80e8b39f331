"""Reading a trail; the only interface that verification and readers use.

Promises: nothing of the trail is ever written (SQLite may make its own ``-shm``
and ``-wal`` beside it where it can); each call is one short read transaction,
so that no reader keeps the write-ahead log from being reused; a live trail, a
copy, and a directory that cannot be written all work.
What the bytes mean, and whether they are right, is left to others.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import apsw
import orjson

from otel_audit.errors import ProofError, TrailError, TrailVersionError
from otel_audit.trail import merkle
from otel_audit.trail.advice import damaged
from otel_audit.trail.database import BUSY_MILLISECONDS, Handle, fetch
from otel_audit.trail.layout import DATABASE, MEMORY
from otel_audit.trail.nearby import nearby
from otel_audit.trail.schema import Oddity, disarm, oddities

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x6F744155
"""PRAGMA application_id of a trail: "otAU"."""

_META: Final = "SELECT key, value FROM meta LIMIT 1000"
"""With an end: nothing is known of the database yet."""

_BATCH: Final = 2_048
_FEW: Final = 256
_SCAN: Final = 20_000


class Tree(NamedTuple):
    """The tree as the trail states it; ``committed_unix_nano`` is its last leaf's."""

    size: int
    edge: tuple[bytes, ...]
    committed_unix_nano: int

    @property
    def root(self) -> bytes:
        """The root hash (RFC 6962, section 2.1)."""
        return merkle.edge_root(self.edge)


Row: TypeAlias = tuple[int, int, bytes, bytes]
"""A `Leaf` without names: making the names is a twentieth of verifying a record."""


class Leaf(NamedTuple):
    """One record at its place; ``hash`` is what the trail states, not a computed one."""

    sequence: int
    committed_unix_nano: int
    hash: bytes
    record: bytes


class StoredCheckpoint(NamedTuple):
    """A checkpoint's row: the signed note is the evidence, the rest is for search."""

    size: int
    unix_nano: int
    note: str


class TrailReader:
    """One trail, for reading; usable from several threads and after a fork."""

    def __init__(self, directory: str | Path) -> None:
        """Open the trail in ``directory``.

        Raises `TrailError` when there is none and `TrailVersionError` when it
        is newer than this software.
        """
        self.directory = Path(directory)
        self.path = self.directory / DATABASE
        self._handle = Handle(self._connect)
        try:
            with self._handle.use() as connection:
                self.meta: dict[str, str] = dict(fetch(connection, _META))
        except (apsw.Error, UnicodeDecodeError, OSError) as error:
            message = f"{self.path} cannot be read: {error}; restore it from a copy"
            raise TrailError(message) from error
        self.hash_at = merkle.TileHashes(self.tile)

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the reader."""
        self.close()

    @property
    def origin(self) -> str:
        """The trail's name in its checkpoints."""
        return self.meta["origin"]

    @property
    def claimed_keys(self) -> tuple[str, ...]:
        """The public keys that the trail says are its own (C2SP vkeys).

        Whoever can change the trail can change these: they are no substitute
        for a key obtained elsewhere.
        """
        keys = (self.meta.get("log_key"), self.meta.get("cosigner_key"))
        return tuple(key for key in keys if key)

    def close(self) -> None:
        """Close the database; a later call would open it again."""
        self._handle.close()

    def oddities(self) -> list[Oddity]:
        """Return how the database's schema differs from a trail's; nothing if it does not."""
        with self._handle.use() as connection:
            return oddities(connection)

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Let what this thread reads within be of one moment.

        MUST be short: the write-ahead log cannot be reused meanwhile.
        """
        with self._handle.use() as connection, connection:
            yield

    def tree(self) -> Tree:
        """Return the tree's size and right edge as of now.

        Raises `TrailError` when what is stated cannot be that of any tree.
        """
        with self._handle.use() as connection:
            size, edge, committed = stated_tree(connection, self.path)
        return Tree(size, tuple(split_hashes(edge)), committed)

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[Leaf]:
        """Yield the leaves from ``start`` up to before ``stop`` (default: all there are).

        Few are in memory at a time: one may have 64 KiB.
        """
        for rows in self.rows(start, stop, _FEW):
            yield from map(Leaf._make, rows)

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[Leaf]]:
        """Yield lists of leaves in order; one read transaction each."""
        for rows in self.rows(start, stop):
            yield list(map(Leaf._make, rows))

    def rows(
        self, start: int = 0, stop: int | None = None, at_a_time: int = _BATCH
    ) -> Iterator[list[Row]]:
        """Yield what `batches` does as plain tuples: for who looks at millions."""
        limit = (1 << 62) if stop is None else stop
        while start < limit:
            with self._handle.use() as connection:
                rows = fetch(
                    connection,
                    "SELECT seq, committed_unix_nano, hash, record FROM leaf "
                    "WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
                    (start, limit, at_a_time),
                )
            if not rows:
                return
            self._check_order(rows, start - 1)
            yield rows
            start = rows[-1][0] + 1

    def any_from(self, start: int) -> bool:
        """Return whether there is a leaf at ``start`` or after it."""
        with self._handle.use() as connection:
            query = "SELECT 1 FROM leaf WHERE seq >= ? LIMIT 1"
            return connection.execute(query, (start,)).fetchone() is not None

    def containing(self, parts: Sequence[bytes], start: int, stop: int) -> list[Leaf]:
        """Return the leaves of a range whose bytes have all of these ``parts``, by one transaction.

        SQLite looks, so that what is of no interest never becomes an object; so
        the range should be short.
        """
        holding = " AND instr(record, ?) > 0" * len(parts)
        query = (
            "SELECT seq, committed_unix_nano, hash, record FROM leaf "  # noqa: S608 - only question marks are put in
            f"WHERE seq >= ? AND seq < ?{holding} ORDER BY seq"
        )
        with self._handle.use() as connection:
            rows = fetch(connection, query, (start, stop, *parts))
        return list(map(Leaf._make, rows))

    def pick(self, sequences: Sequence[int]) -> list[Leaf]:
        """Return those of these leaves that are there, in ascending order, by one transaction."""
        if not sequences:
            return []
        with self._handle.use() as connection:
            rows = fetch(
                connection,
                "SELECT seq, committed_unix_nano, hash, record FROM leaf "
                "WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq",
                (orjson.dumps(list(sequences)).decode(),),
            )
        return list(map(Leaf._make, rows))

    def leaf(self, sequence: int) -> Leaf | None:
        """Return one leaf, or None when there is no such row."""
        for leaf in self.leaves(sequence, sequence + 1):
            return leaf
        return None

    def find(self, record_id: str) -> Leaf | None:
        """Return the newest record with this id, by scanning backwards.

        The trail has no secondary index (appending would pay for it), so this
        costs about a second for a million records. Raises ``TrailError``.
        """
        needle = f'"record_id":"{record_id}"'.encode(errors="surrogatepass")
        stop = self.tree().size
        while stop > 0:
            start = max(0, stop - _SCAN)
            with self._handle.use() as connection:
                row = connection.execute(
                    "SELECT seq, committed_unix_nano, hash, record FROM leaf "
                    "WHERE seq >= ? AND seq < ? AND instr(record, ?) > 0 "
                    "ORDER BY seq DESC LIMIT 1",
                    (start, stop, needle),
                ).fetchone()
            if row is None:
                stop = start
                continue
            leaf = Leaf._make(row)
            if not start <= leaf.sequence < stop:
                raise self._disordered()
            if _names(leaf.record, record_id):
                return leaf
            stop = leaf.sequence
        return None

    def tile(self, level: int, index: int) -> bytes:
        """Return the hashes of a tile (C2SP tlog-tiles), fewer than 256 when partial.

        Raises `ProofError` when there is no such tile.
        """
        with self._handle.use() as connection:
            rows = fetch(
                connection,
                "SELECT hashes FROM tile WHERE level = ? AND idx = ?",
                (level, index),
            )
            if not rows and level == 0:
                first = index * merkle.TILE_WIDTH
                rows = fetch(
                    connection,
                    "SELECT hash FROM leaf WHERE seq >= ? AND seq < ? ORDER BY seq",
                    (first, first + merkle.TILE_WIDTH),
                )
        if not rows:
            message = f"{self.path} has no tile {level}/{index}; the trail is incomplete"
            raise ProofError(message)
        return b"".join(row[0] for row in rows)

    def tiles(self, level: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield index and hashes of the stored tiles of a level, in order."""
        after = -1
        while True:
            with self._handle.use() as connection:
                rows = fetch(
                    connection,
                    "SELECT idx, hashes FROM tile WHERE level = ? AND idx > ? "
                    "ORDER BY idx LIMIT 64",
                    (level, after),
                )
            if not rows:
                return
            self._check_order(rows, after)
            yield from rows
            after = rows[-1][0]

    def checkpoints(self, min_size: int = 0) -> Iterator[StoredCheckpoint]:
        """Yield the checkpoints of at least ``min_size`` leaves, oldest first."""
        after = 0
        while True:
            with self._handle.use() as connection:
                rows = fetch(
                    connection,
                    "SELECT rowid, size, unix_nano, note FROM checkpoint "
                    "WHERE rowid > ? AND size >= ? ORDER BY rowid LIMIT ?",
                    (after, min_size, _BATCH),
                )
            if not rows:
                return
            self._check_order(rows, after)
            for row in rows:
                yield StoredCheckpoint._make(row[1:])
            after = rows[-1][0]

    def checkpoints_after(self, number: int, limit: int) -> list[tuple[int, StoredCheckpoint]]:
        """Return the first ``limit`` checkpoints stored after the one of this number, numbered.

        Numbers begin with 1 and grow, but may leave gaps.
        """
        with self._handle.use() as connection:
            rows = fetch(
                connection,
                "SELECT rowid, size, unix_nano, note FROM checkpoint "
                "WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (number, limit),
            )
        return [(row[0], StoredCheckpoint._make(row[1:])) for row in rows]

    def last_checkpoint(self) -> StoredCheckpoint | None:
        """Return the newest checkpoint, if there is one."""
        with self._handle.use() as connection:
            row = connection.execute(
                "SELECT size, unix_nano, note FROM checkpoint ORDER BY rowid DESC LIMIT 1"
            ).fetchone()
        return None if row is None else StoredCheckpoint._make(row)

    def last_signed(self) -> bytes | None:
        """Return the note in the file ``signed``; None where there is none, as beside a copy.

        Raises `OSError`.
        """
        try:
            return (self.directory / MEMORY).read_bytes()
        except FileNotFoundError:
            return None

    def resource(self, resource_hash: str) -> bytes | None:
        """Return the OTel Resource (JSON) with this hash, if the trail has it."""
        query = "SELECT json FROM resource WHERE hash = ? AND typeof(json) = 'blob'"
        with self._handle.use() as connection:
            row = connection.execute(query, (resource_hash,)).fetchone()
        return None if row is None else bytes(row[0])

    def resources(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield hash and JSON of every OTel Resource that the trail has; None for what is no blob."""
        query = "SELECT hash, iif(typeof(json) = 'blob', json, NULL) FROM resource ORDER BY hash"
        with self._handle.use() as connection:
            rows = fetch(connection, query)
        yield from rows

    def count(self) -> tuple[int, int]:
        """Return how many leaves there are, whatever their numbers, and how many the tree has."""
        with self._handle.use() as connection:
            counts: tuple[int, int] = connection.execute(
                # By the table: an index that somebody made may have fewer rows.
                "SELECT (SELECT count(*) FROM leaf NOT INDEXED), size FROM tree"
            ).get
        return counts

    def _check_order(self, rows: Sequence[tuple[Any, ...]], after: int) -> None:
        """Refuse rows whose numbers do not grow, of which there would be no end.

        SQLite takes a table to be in order and does not look.
        """
        if rows[-1][0] < after + len(rows):
            raise self._disordered()

    def _disordered(self) -> TrailError:
        return damaged(self.path, "its rows are not in order")

    def _connect(self) -> apsw.Connection:
        if not self.path.is_file():
            there = ", ".join(map(str, nearby(self.directory)))
            hint = f"; there is one in {there}" if there else ""
            message = (
                f"there is no trail in {self.directory} ({DATABASE} is missing); name its "
                f"directory with --dir or OTEL_AUDIT_DIR{hint}"
            )
            raise TrailError(message)
        try:
            connection = open_read_only(self.path)
            try:
                check_version(connection, self.path)
            except BaseException:
                connection.close()
                raise
        except apsw.Error as error:
            message = f"{self.path} cannot be read: {error}; is it a trail, and readable for you?"
            raise TrailError(message) from error
        return connection


def _names(record: bytes, record_id: str) -> bool:
    """Tell a record's own id from one that it mentions in a field."""
    try:
        parsed = orjson.loads(record)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("record_id") == record_id


def stated_tree(connection: apsw.Connection, path: Path) -> tuple[int, bytes, int]:
    """Return size, joined right edge and last commit time as the trail at ``path`` states them.

    Raises `TrailError` for values of other types: a column of SQLite takes any.
    """
    try:
        (row,) = fetch(connection, "SELECT size, edge, committed_unix_nano FROM tree")
        return _of_their_types(*row)
    except (TypeError, ValueError) as error:  # also of the decoding
        raise damaged(path, "the row of its tree does not state a size and a right edge") from error


def _of_their_types(size: object, edge: object, committed: object) -> tuple[int, bytes, int]:
    if isinstance(size, int) and isinstance(committed, int) and isinstance(edge, bytes):
        if size >= 0:
            return size, edge, committed
        msg = f"a tree has no {size} records"
        raise ValueError(msg)
    msg = "a value is of another type than its column"
    raise TypeError(msg)


def split_hashes(joined: bytes) -> list[bytes]:
    """Cut a blob of 32-byte hashes into them."""
    size = merkle.HASH_SIZE
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def check_version(connection: apsw.Connection, path: Path) -> None:
    """Refuse what is not a trail or is newer than this software.

    Raises `TrailError` and `TrailVersionError`.
    """
    application = connection.pragma("application_id")
    if application != APPLICATION_ID:
        message = f"{path} is a database, but not an audit trail (application_id {application})"
        raise TrailError(message)
    refuse_newer(connection.pragma("user_version"), path)


def refuse_newer(version: int, path: Path) -> None:
    """Raise `TrailVersionError` for a schema that this software does not know yet."""
    if version > SCHEMA_VERSION:
        message = (
            f"{path} has schema version {version}, this otel-audit knows up to "
            f"{SCHEMA_VERSION}: upgrade otel-audit (pip install --upgrade otel-audit); "
            "nothing was changed"
        )
        raise TrailVersionError(message)


def open_read_only(path: Path) -> apsw.Connection:
    """Open a database for reading, also one whose directory cannot be written."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _opened(uri)
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        pass
    # Where the directory cannot be written there is no shared memory for the
    # log's index; nobody can be writing then, so an index in our own memory,
    # without locks, is right (https://sqlite.org/wal.html#read_only_databases).
    # Not nolock=1: with that SQLite refuses to look at a log at all.
    if path.with_name(f"{path.name}-wal").exists():
        return _opened(f"{uri}&vfs=unix-none", locking_mode="exclusive")
    return _opened(f"{uri}&immutable=1")


def _opened(uri: str, locking_mode: str = "normal") -> apsw.Connection:
    """Open and read something: only then SQLite looks for the log."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(uri, flags=flags)
    try:
        disarm(connection)
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.pragma("locking_mode", locking_mode)
        connection.pragma("user_version")
    except BaseException:
        connection.close()
        raise
    return connection
