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
    from collections.abc import Sequence

    from otel_audit.trail.findings import Findings
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

    def finish(self, size: int) -> None:
        """Compare the incomplete tiles at the end; the tree has ``size`` leaves by now."""
        for level, row in enumerate(self._rows, 1):
            if row:
                limit = (size >> (TILE_HEIGHT * level)) - self._indexes[level - 1] * TILE_WIDTH
                self._compare(level, row, limit if self._known else TILE_WIDTH)

    def _push(self, level: int, value: bytes) -> None:
        if level > len(self._rows):
            self._rows.append([])
            self._indexes.append(0)
        row = self._rows[level - 1]
        row.append(value)
        if len(row) == TILE_WIDTH:
            self._compare(level, row, TILE_WIDTH)
            parent = merkle.tile_root(b"".join(row))
            row.clear()
            self._indexes[level - 1] += 1
            self._push(level + 1, parent)

    def _compare(self, level: int, row: list[bytes], limit: int) -> None:
        """Compare a stored tile that has these hashes, and ``limit`` at most.

        There may be more than these if the trail has grown meanwhile.
        """
        index = self._indexes[level - 1]
        covered = f"records {index << TILE_HEIGHT * (level + 1)} and following"
        try:
            stored = self._reader.tile(level, index)
        except UNREADABLE as error:
            msg = f"tile {level}/{index} ({covered}) cannot be read: {error}"
            self._findings.add(Finding("tile-missing", msg))
            return
        expected = b"".join(row)
        if stored[: len(expected)] != expected:
            msg = f"tile {level}/{index} ({covered}) is not what the tiles below it hash to"
            self._findings.add(Finding("tile-changed", msg))
        elif len(stored) > limit * HASH_SIZE:
            msg = f"tile {level}/{index} ({covered}) knows of more records than there are"
            self._findings.add(Finding("tile-changed", msg))
