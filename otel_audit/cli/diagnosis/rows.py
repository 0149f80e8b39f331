"""Whether the rows of the trail are there and fit: those at both ends, and some between.

Promises: it takes as long for ten million records as for a thousand, because it
reads the same number of them. What it does not read is left to `verify`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.cli.output import count
from otel_audit.trail import merkle
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.trail.reader import TrailReader, Tree

_ENDS: Final = 64
"""Records that are read at each end."""

_BETWEEN: Final = 128
_TILES: Final = 16


class Rows(NamedTuple):
    """How many records were read, and what is wrong; nothing where ``trouble`` is empty."""

    read: int
    trouble: str


def look(reader: TrailReader, tree: Tree) -> Rows:
    """Read some of the trail's rows, and tiles, and hold them against each other."""
    asked = sorted(_chosen(tree.size))
    try:
        trouble = (
            _ended(reader, tree.size)
            or _records(reader, asked)
            or _tiles(reader, tree.size // merkle.TILE_WIDTH)
            or _edge(reader, tree)
        )
    except UNREADABLE as error:
        trouble = f"not all can be read: {error}"
    return Rows(len(asked), trouble)


def _chosen(size: int) -> set[int]:
    ends = {*range(min(size, _ENDS)), *range(max(0, size - _ENDS), size)}
    return ends.union(_spread(size, _BETWEEN))


def _spread(size: int, number: int) -> Iterator[int]:
    """Yield up to ``number`` places from the first to the last."""
    if size <= number:
        yield from range(size)
    else:
        yield from ((size - 1) * each // (number - 1) for each in range(number))


def _ended(reader: TrailReader, size: int) -> str:
    """Tell whether the rows end before the tree does."""
    if size == 0 or reader.any_from(size - 1):
        return ""
    first = bisect_left(range(size), True, key=lambda start: not reader.any_from(start))  # noqa: FBT003 - what is looked for
    if first == size - 1:
        return f"the last one, record {first}, is missing"
    return f"records {first} to {size - 1}, the last ones, are missing"


def _records(reader: TrailReader, asked: list[int]) -> str:
    found = reader.pick(asked)
    missing = sorted(set(asked).difference(leaf.sequence for leaf in found))
    if missing:
        looked = f"the {count(len(asked), 'record')} that were looked for"
        if len(missing) == 1:
            return f"record {missing[0]} of {looked} is missing"
        return f"{len(missing):,} of {looked} are missing, the first of them record {missing[0]}"
    for leaf in found:
        if merkle.leaf_hash(leaf.record) != leaf.hash:
            return f"record {leaf.sequence} does not fit its hash"
    return ""


def _tiles(reader: TrailReader, complete: int) -> str:
    for index in _spread(complete, _TILES):
        if merkle.tile_root(reader.tile(0, index)) != reader.hash_at(merkle.TILE_HEIGHT, index):
            return f"tile 0/{index} does not fit the tree above it"
    return ""


def _edge(reader: TrailReader, tree: Tree) -> str:
    if merkle.edge_at(tree.size, reader.hash_at) != list(tree.edge):
        return "its hashes do not lead to the tree that it states"
    return ""
