"""The query index: `index.db` beside the trail, made from it and never needed.

`QueryIndex` writes it, `view.py` reads it, `tables.py` knows its tables. Promises: the index holds no
record; it is deleted and made anew when it belongs to another trail, format or
history, or is damaged; each step is one transaction, so that whoever reads sees
every segment whole; an index that is written costs the trail nothing but
reading, and leaves the disk's last `FULL` bytes to it.

Small segments follow the trail closely; sixty-four of them become one large
one. What is newer than the newest segment (fewer than `segments.SMALL` records,
when the index keeps up) is read from the trail by whoever asks.

What a query means is left to `readers/search`; who calls `step`, to the agent.
"""

from __future__ import annotations

import secrets
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import TrailError
from otel_audit.readers.beside import SHARE, Beside
from otel_audit.readers.index import segments, tables
from otel_audit.readers.index.gathering import Gathered
from otel_audit.readers.index.segments import LARGE, SMALL, Joined, Terms, Times
from otel_audit.readers.index.tables import DamagedError
from otel_audit.trail.database import BUSY_MILLISECONDS, Handle, make_file
from otel_audit.trail.filesystem import FULL, room
from otel_audit.trail.layout import INDEX, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_audit.readers.index.segments import Rows
    from otel_audit.readers.index.tables import Segment
    from otel_audit.readers.pace import Share
    from otel_audit.trail.reader import TrailReader

_BREATH: Final = 64
"""Records between two looks at the clock: a thread that indexes must not hold up those that emit."""

_NOT_ITS_FAULT: Final = (
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
)
"""Errors that an index made anew would have as well."""


class QueryIndex:
    """The writer of a trail's index. One process at a time, which the agent's lease ensures."""

    def __init__(
        self,
        directory: Path,
        *,
        full_text: bool = True,
        reserve: int = FULL,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember the trail's directory; nothing is opened yet.

        ``breathe`` is called every few records, so that a thread may rest.
        """
        self.directory = directory
        self.path = directory / INDEX
        self.full_text = full_text
        self._reserve = reserve
        self._breathe = breathe
        self._handle = Handle(self._connect)
        self._file: tuple[int, int] | None = None
        self._origin = ""

    def step(self, reader: TrailReader, size: int) -> bool:
        """Index the next segment if the trail has one; return whether there are more.

        Raises `TrailError`; the next call then begins again, with a new index
        if this one is of no use.
        """
        if size < SMALL and not self.path.exists():
            return False  # a small trail needs no index, and no file for one
        self._origin = reader.origin
        self._check_place()
        try:
            return self._step(reader, size)
        except apsw.FullError as error:
            message = f"{self.path}: the disk is full; the index goes on when there is space"
            raise TrailError(message) from error
        except _NOT_ITS_FAULT as error:
            message = f"{self.path} cannot be written: {error}"
            raise TrailError(message) from error
        except (apsw.Error, DamagedError) as error:
            self.discard()
            message = f"{self.path} is damaged ({error}); it was deleted and is made anew"
            raise TrailError(message) from error

    def discard(self) -> None:
        """Delete the index; it is made anew from the trail."""
        self.close()
        self._unlink()

    def close(self) -> None:
        """Close the database; a later call would open it again."""
        self._handle.close()
        self._file = None

    def _step(self, reader: TrailReader, size: int) -> bool:
        with self._handle.use() as connection:
            tables.check_seal(connection)
            position, last_hash = tables.position(connection), tables.last_hash(connection)
            terms = Terms(tables.key(connection))
        if not _belongs(reader, size, position, last_hash):
            self.discard()
            return True
        if size - position < SMALL:
            return False
        self._check_space()
        # The connection is not held meanwhile: a fork would have to wait for it.
        built = self._gathered(reader, position)
        facets = {field: tables.facet(list(values)) for field, values in built.rows.items()}
        packed = list(segments.pack_all(self._hashed(built, terms), SMALL))
        with self._handle.use() as connection, tables.transaction(connection):
            tables.store(connection, position, built.times, packed, facets)
            tables.store_last_hash(connection, built.last_hash)
            if self.full_text:
                tables.store_texts(connection, built.texts)
            tables.seal(connection)
        if (position + SMALL) % LARGE == 0:
            self._merge(position + SMALL - LARGE)
        return size - position >= 2 * SMALL

    def _gathered(self, reader: TrailReader, start: int) -> Gathered:
        built = Gathered(start, full_text=self.full_text)
        for leaves in reader.batches(start, start + SMALL):
            for first in range(0, len(leaves), _BREATH):
                built.add(leaves[first : first + _BREATH])
                self._breathe()
        return built

    def _hashed(self, built: Gathered, terms: Terms) -> dict[int, Rows]:
        postings: dict[int, Rows] = {}
        for field, by_value in built.rows.items():
            postings.update(zip(terms.of(field, by_value), by_value.values(), strict=True))
            self._breathe()
        return postings

    def _merge(self, start: int) -> None:
        """Make one large segment of the small ones; the work is done bucket by bucket."""
        stop = start + LARGE
        with self._handle.use() as connection:
            smalls = tables.segments_in(connection, start, stop)
            if [small.start for small in smalls] != list(range(start, stop, SMALL)):
                return
            times = array("q")
            for small in smalls:
                times.extend(Times(tables.times(connection, small), SMALL).of)
            facets = tables.joined_facets(connection, start)
        packed: list[tuple[int, bytes]] = []
        for number in range(segments.buckets(SMALL)):
            packed += segments.pack_all(self._joined(smalls, number), LARGE)
        with self._handle.use() as connection, tables.transaction(connection):
            tables.remove(connection, start, stop)
            tables.store(connection, start, times, packed, facets)
            tables.seal(connection)

    def _joined(self, smalls: Sequence[Segment], number: int) -> dict[int, Rows]:
        """Join one bucket of the small segments."""
        joined = Joined()
        for small in smalls:
            with self._handle.use() as connection:
                blob = tables.bucket(connection, small, number)
            if blob is not None:
                joined.add(blob, small.start - smalls[0].start)
            self._breathe()
        return joined.rows()

    def _check_place(self) -> None:
        """Notice that the file was deleted or replaced, and let go of the old one."""
        now = tables.identity(self.path)
        if now is None or now != self._file:
            self.close()

    def _check_space(self) -> None:
        if self._reserve:
            free = room(self.directory).free
            if free < self._reserve:
                message = (
                    f"{self.path} is not written: the disk has {free >> 20} MiB left, and the last "
                    f"{self._reserve >> 20} MiB are the trail's; free space, and it goes on"
                )
                raise TrailError(message)

    def _connect(self) -> apsw.Connection:
        for _ in range(2):
            with suppress(apsw.CorruptError, apsw.NotADBError):
                connection = self._opened()
                if connection is not None:
                    self._file = tables.identity(self.path)
                    return connection
            self._unlink()
        message = f"{self.path} cannot be made; look at the kernel's log (dmesg)"
        raise TrailError(message)

    def _unlink(self) -> None:
        for name in whole(INDEX):
            (self.directory / name).unlink(missing_ok=True)

    def _opened(self) -> apsw.Connection | None:
        """Open or make the index; None when there is one that is of no use."""
        make_file(self.path)
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            connection.pragma("journal_mode", "wal")
            # What a crash of the machine loses is made again from the trail.
            connection.pragma("synchronous", "normal")
            if tables.is_new(connection):
                key = secrets.token_bytes(32)
                tables.make(connection, self._origin, key, full_text=self.full_text)
            if (
                tables.serves(connection, self._origin)
                and tables.has_text(connection) == self.full_text
            ):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None


def _belongs(reader: TrailReader, size: int, position: int, last_hash: bytes | None) -> bool:
    """Whether an index until ``position`` is one of this trail, as it is."""
    if position == 0:
        return True
    if position > size:
        return False
    leaf = reader.leaf(position - 1)
    return leaf is None or leaf.hash == last_hash


def following(
    directory: Path,
    reader_factory: Callable[[], TrailReader],
    *,
    full_text: bool = True,
    share: Share | None = None,
) -> Beside:
    """Return the thread that keeps a trail's index, for the agent to start and stop.

    ``share`` is what it may take of a processor while it catches up, if not its own.
    """
    reader: TrailReader | None = None

    def work() -> bool:
        nonlocal reader
        if reader is None:
            reader = reader_factory()
        try:
            return index.step(reader, reader.tree().size)
        except BaseException:
            reader.close()
            reader = None
            raise

    def rest() -> None:
        nonlocal reader
        if reader is not None:
            reader.close()
            reader = None
        index.close()

    thread = Beside("query index", work, share=share or SHARE, rest=rest)
    index = QueryIndex(directory, full_text=full_text, breathe=thread.breathe)
    return thread
