"""Records that a destination refused, and those that are to be sent to it once more.

Promises: what is set aside is on the disk before the cursor passes it, stays
until it was delivered, and is never forgotten in silence. It is kept in
`cursors.db`; whoever loses that file sends everything again, and sets aside
anew what is refused.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from otel_audit.trail.database import fetch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_audit.readers.cursors import Cursors

Kind = Literal["record", "checkpoint"]


class Aside(NamedTuple):
    """One record (by sequence number) or checkpoint (by number) that did not get there.

    ``wanted`` says that it is to be sent again.
    """

    kind: Kind
    number: int
    reason: str
    unix_nano: int
    wanted: bool


class Quarantine:
    """What one destination has not got. Usable from several threads and processes."""

    def __init__(self, cursors: Cursors, destination: str) -> None:
        """Remember where it is kept; nothing is opened yet."""
        self._cursors = cursors
        self.destination = destination

    def add(self, items: Iterable[tuple[Kind, int]], reason: str, *, wanted: bool = False) -> None:
        """Set aside, durably; ``wanted`` asks the shipper to send it again. Raises `TrailError`."""
        now = time.time_ns()
        rows = [(self.destination, *item, reason, now, wanted) for item in items]
        with self._cursors.connection() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?, ?)", rows)

    def remove(self, items: Iterable[tuple[Kind, int]]) -> None:
        """Forget what was delivered. Raises `TrailError`."""
        rows = [(self.destination, *item) for item in items]
        with self._cursors.connection() as connection, connection:
            connection.executemany(
                "DELETE FROM aside WHERE destination = ? AND kind = ? AND number = ?", rows
            )

    def want(self, numbers: Sequence[int] | None = None) -> int:
        """Ask the shipper to send all, or these records, again; return how many are there.

        Raises `TrailError`.
        """
        statement = "UPDATE aside SET wanted = 1 WHERE destination = ? AND wanted = 0"
        with self._cursors.connection() as connection, connection:
            if numbers is None:
                connection.execute(statement, (self.destination,))
                return connection.changes()
            changed = 0
            for number in numbers:
                connection.execute(
                    f"{statement} AND kind = 'record' AND number = ?", (self.destination, number)
                )
                changed += connection.changes()
        return changed

    def count(self, *, wanted: bool = False) -> int:
        """Return how many are set aside, or wait to be sent again. Raises `TrailError`."""
        query = "SELECT count(*) FROM aside WHERE destination = ? AND wanted = ?"
        with self._cursors.connection() as connection:
            return int(connection.execute(query, (self.destination, wanted)).get)

    def items(self, *, wanted: bool, limit: int) -> list[Aside]:
        """Return the first ``limit``, records before checkpoints. Raises `TrailError`."""
        query = (
            "SELECT kind, number, reason, unix_nano, wanted FROM aside "
            "WHERE destination = ? AND wanted = ? ORDER BY kind DESC, number LIMIT ?"
        )
        with self._cursors.connection() as connection:
            rows = fetch(connection, query, (self.destination, wanted, limit))
        return [
            Aside(kind, number, reason, when, bool(asked))
            for kind, number, reason, when, asked in rows
        ]
