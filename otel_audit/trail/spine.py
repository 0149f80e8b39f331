"""Puts stretches of leaves together to one tree, and holds stored tiles against it.

Promises: `Spine` gives the root at any size whose stretch was just added, at
the cost of the tree's height; `Levels` compares every stored tile above level 0
with what the tiles below it really hash to. Both keep no more than one tile a
level. Level 0 is compared by ``scan``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.trail import merkle
from otel_audit.trail.findings import Finding
from otel_audit.trail.merkle import HASH_SIZE, TILE_HEIGHT, TILE_WIDTH
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_audit.trail.findings import Findings, Kind
    from otel_audit.trail.reader import TrailReader


class Spine:
    """The right edge of the tree over complete tiles, while it grows.

    After a tile whose root cannot be computed, no root can be any more.
    """

    def __init__(self) -> None:
        self.tiles = 0
        self._edge: list[bytes] = []
        self._known = True

    def grow(self, tile_roots: Sequence[bytes | None]) -> None:
        """Append the roots of complete tiles (level 0)."""
        known = [root for root in tile_roots if root is not None]
        self._known = self._known and len(known) == len(tile_roots)
        if self._known:
            self._edge = merkle.extend(self._edge, self.tiles, known)
        self.tiles += len(tile_roots)

    def root(self, size: int, part: bytes | None) -> bytes | None:
        """Return the root at ``size``, whose complete tiles are all appended.

        ``part`` is the root over the leaves of its incomplete tile.
        """
        if not self._known:
            return None
        if size % TILE_WIDTH == 0:
            return merkle.edge_root(self._edge)
        return None if part is None else merkle.edge_root([*self._edge, part])


class Levels:
    """The stored tiles of level 1 and above, compared while the tree grows."""

    def __init__(self, reader: TrailReader, findings: Findings) -> None:
        self._reader = reader
        self._findings = findings
        self._rows: list[list[bytes]] = []
        self._indexes: list[int] = []
        self._known = True

    def add(self, tile_roots: Sequence[bytes | None]) -> None:
        """Append the roots of complete tiles of level 0."""
        for root in tile_roots:
            self._known = self._known and root is not None
            if self._known and root is not None:
                self._push(1, root)

    def finish(self, size_now: Callable[[], int]) -> None:
        """Compare the incomplete tiles at the end; ``size_now`` asks for the tree's size."""
        for level, row in enumerate(self._rows, 1):
            if row:
                stored = self._compare(level, row)
                # Asked after the tile was read: it may have grown meanwhile.
                known = size_now() >> (TILE_HEIGHT * level)
                limit = known - self._indexes[level - 1] * TILE_WIDTH
                if self._known and len(stored) > limit * HASH_SIZE:
                    what = "knows of more records than there are"
                    self._report("tile-changed", level, what)

    def _push(self, level: int, value: bytes) -> None:
        if level > len(self._rows):
            self._rows.append([])
            self._indexes.append(0)
        row = self._rows[level - 1]
        row.append(value)
        if len(row) == TILE_WIDTH:
            self._compare(level, row)
            parent = merkle.tile_root(b"".join(row))
            row.clear()
            self._indexes[level - 1] += 1
            self._push(level + 1, parent)

    def _compare(self, level: int, row: list[bytes]) -> bytes:
        """Compare the beginning of a stored tile with its hashes; return all that is stored."""
        try:
            stored = self._reader.tile(level, self._indexes[level - 1])
        except UNREADABLE as error:
            self._report("tile-missing", level, f"cannot be read: {error}")
            return b""
        expected = b"".join(row)
        if stored[: len(expected)] != expected or len(stored) > TILE_WIDTH * HASH_SIZE:
            self._report("tile-changed", level, "is not what the tiles below it hash to")
            return b""
        return stored

    def _report(self, kind: Kind, level: int, what: str) -> None:
        index = self._indexes[level - 1]
        first = index << TILE_HEIGHT * (level + 1)
        msg = f"tile {level}/{index} (records {first} and following) {what}"
        self._findings.add(Finding(kind, msg))
