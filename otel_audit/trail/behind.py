"""Looking past the write-ahead log, at what the database's own file holds.

SQLite reads a page from the log as long as it is there. After SIGKILL the log
may hold pages that were copied into the database long ago, so a change made to
the file itself goes unseen for as long. `changed_behind_log` promises to find
such a change to a record among those that the log can hide, and never to
report what only a copy under way explains. It reads, and writes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.trail import merkle
from otel_audit.trail.frames import bytes_in
from otel_audit.trail.schema import disarm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ON_ONE_PAGE: Final = 3_500
"""Records up to this length lie on one page, which is old or new but never half of each."""

_COPY_SECONDS: Final = 0.2


def changed_behind_log(path: Path) -> list[tuple[int, bytes]]:
    """Return sequence number and bytes of records that differ from their hash in the file alone.

    ``path`` is the database. Empty when the log is, or when the file cannot be
    read without it.
    """
    hidden = bytes_in(path.with_name(f"{path.name}-wal"))
    if not hidden:
        return []
    suspects = dict(_differing(path, hidden))
    if suspects:
        # A page that is being copied at this moment may be seen half done.
        time.sleep(_COPY_SECONDS)
        again = dict(_differing(path, hidden))
        suspects = {key: value for key, value in suspects.items() if again.get(key) == value}
    return sorted(suspects.items())


def _differing(path: Path, hidden: int) -> Iterator[tuple[int, bytes]]:
    """Go from the newest record backwards over as much as the log could hide."""
    try:
        connection = apsw.Connection(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
    except apsw.Error:
        return
    try:
        disarm(connection)
        rows = connection.execute(
            "SELECT seq, hash, record FROM leaf WHERE length(record) <= ? ORDER BY seq DESC",
            (_ON_ONE_PAGE,),
        )
        for sequence, leaf_hash, record in rows:
            if merkle.leaf_hash(record) != leaf_hash:
                yield sequence, record
            hidden -= len(record)
            if hidden < 0:
                return
    except (apsw.Error, TypeError):
        # Without the log its pages need not fit together: nothing follows from that.
        return
    finally:
        connection.close()
