"""Looking past the write-ahead log, at what the database's own file holds.

SQLite reads a page from the log as long as it is there. After SIGKILL the log
may hold pages that were copied into the database long ago, so a change made to
the file itself goes unseen for as long. `changed_behind_log` promises to find
such a change to a record among those that the log can hide, and never to
report what only a copy under way explains. It reads, and writes nothing.
"""

from __future__ import annotations

import time
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.trail import merkle
from otel_audit.trail.database import fetch
from otel_audit.trail.frames import bytes_in
from otel_audit.trail.scan import UNREADABLE
from otel_audit.trail.schema import disarm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.trail.reader import Row, TrailReader

_ON_ONE_PAGE: Final = 3_500
"""Records up to this length lie on one page, which is old or new but never half of each."""

_BATCH: Final = 512
"""Records that are compared at once; where the file cannot be read, the others still are."""

_COPY_SECONDS: Final = 0.2

# As blobs: a text need not be one.
_ALONE: Final = (
    "SELECT seq, CAST(hash AS BLOB), CAST(record AS BLOB), typeof(hash) || typeof(record) "
    "FROM leaf WHERE seq >= ? AND seq < ? AND length(CAST(record AS BLOB)) <= ?"
)


def changed_behind_log(reader: TrailReader) -> list[int]:
    """Return the sequence numbers of records that the file alone has otherwise.

    What the reader gives, through the log, is taken for right if it fits its
    hash; whether it does, is not the question here. Empty when the log is, or
    when the file cannot be read without it.
    """
    hidden = bytes_in(reader.path.with_name(f"{reader.path.name}-wal"))
    if not hidden:
        return []
    suspects = dict(_differing(reader, hidden))
    if suspects:
        # A page that is being copied at this moment may be seen half done.
        time.sleep(_COPY_SECONDS)
        again = dict(_differing(reader, hidden))
        suspects = {key: value for key, value in suspects.items() if again.get(key) == value}
    return sorted(suspects)


def _differing(reader: TrailReader, hidden: int) -> Iterator[tuple[int, bytes]]:
    """Go from the newest record backwards over as much as the log could hide."""
    try:
        stop = reader.tree().size
        connection = apsw.Connection(
            f"{reader.path.absolute().as_uri()}?mode=ro&immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    except UNREADABLE:
        return
    with closing(connection):
        disarm(connection)
        while stop > 0 and hidden > 0:
            start = max(0, stop - _BATCH)
            through = _through(reader, start, stop)
            # Not less than what the file needs for them, if none could be read.
            hidden -= sum(len(record) for _, record in through.values()) or _BATCH
            yield from _compared(connection, start, stop, through)
            stop = start


def _through(reader: TrailReader, start: int, stop: int) -> dict[int, tuple[bytes, bytes]]:
    """Return hash and record of those that the log, or the file through it, gives."""
    try:
        rows = [row for batch in reader.rows(start, stop) for row in batch]
    except UNREADABLE:
        rows = [row for sequence in range(start, stop) for row in _row(reader, sequence)]
    return {row[0]: row[2:] for row in rows if type(row[2]) is type(row[3]) is bytes}


def _row(reader: TrailReader, sequence: int) -> list[Row]:
    try:
        return list(chain.from_iterable(reader.rows(sequence, sequence + 1)))
    except UNREADABLE:
        return []


def _compared(
    connection: apsw.Connection, start: int, stop: int, through: dict[int, tuple[bytes, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yield what the file alone has otherwise."""
    try:
        alone = fetch(connection, _ALONE, (start, stop, _ON_ONE_PAGE))
    except UNREADABLE:
        # Without the log its pages need not fit together: nothing follows from that.
        return
    for sequence, leaf_hash, record, types in alone:
        right = through.get(sequence)
        if right is None or (types == "blobblob" and right == (leaf_hash, record)):
            continue
        if merkle.leaf_hash(right[1]) == right[0]:
            yield sequence, record or b""
