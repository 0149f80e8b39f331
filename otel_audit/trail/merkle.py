"""The Merkle tree of RFC 6962, section 2.1, as pure functions over hashes.

Promises: every root and every proof is the one that RFC 6962 defines, whatever
the size; cost grows with the number of hashes given, or with the logarithm of
the tree's size, never with the size. No input or output happens here: what is
stored comes in through a ``HashAt``, and ``TileHashes`` makes one from C2SP
tlog-tiles. What a leaf means, and who signs a root, is left to others.

Words: a *perfect subtree* has ``2**level`` leaves and starts at a multiple of
that number; ``(level, index)`` names the one that starts at leaf
``index << level``. The *right edge* of a tree is the list of roots of the
perfect subtrees that its size's binary digits stand for, largest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

from otel_audit.errors import ProofError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HASH_SIZE = 32
"""Bytes of a hash (SHA-256)."""
TILE_HEIGHT = 8
"""Levels of the tree in one tile."""
TILE_WIDTH = 1 << TILE_HEIGHT
"""Hashes in a complete tile (C2SP tlog-tiles)."""
EMPTY_ROOT = sha256(b"").digest()
"""The root of the tree without leaves (RFC 6962, section 2.1)."""

HashAt = Callable[[int, int], bytes]
"""``(level, index)`` to the root of that perfect subtree.

It raises ``ProofError`` when the hash is not there.
"""
TileAt = Callable[[int, int], bytes]
"""``(tile level, tile index)`` to the tile's hashes, fewer than 256 if partial."""

_LEAF = b"\x00"
_NODE = b"\x01"
_PAIR_SIZE = 2 * HASH_SIZE
# Copying a started hash is a tenth faster than starting one; for the loops only.
_new_leaf = sha256(_LEAF).copy
_new_node = sha256(_NODE).copy


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || data)."""
    return sha256(_LEAF + data).digest()


def leaf_hashes(records: Iterable[bytes]) -> list[bytes]:
    """Return the hash of each leaf; faster than as many calls of ``leaf_hash``."""
    hashes = []
    for record in records:
        state = _new_leaf()
        state.update(record)
        hashes.append(state.digest())
    return hashes


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(_NODE + left + right).digest()


def extend(edge: Sequence[bytes], size: int, leaf_hashes: Sequence[bytes]) -> list[bytes]:
    """Return the right edge of the tree after ``leaf_hashes`` were appended.

    ``edge`` is the right edge at ``size`` leaves and is not changed. Costs one
    hash a leaf. Raises ``ValueError`` if ``edge`` cannot be of that size.
    """
    # Level by level rather than leaf by leaf: one tight loop for each level is
    # twice as fast as a merge after each leaf.
    if len(edge) != size.bit_count():
        msg = f"a tree of {size} leaves has {size.bit_count()} roots on its right edge, not {len(edge)}"
        raise ValueError(msg)
    left = list(edge)
    right: list[bytes] = []
    row: Sequence[bytes] = leaf_hashes
    while row:
        if size & 1:
            row = [left.pop(), *row]
        if len(row) & 1:
            right.append(row[-1])
        row = _parents(row)
        size >>= 1
    left.extend(reversed(right))
    return left


def edge_root(edge: Sequence[bytes]) -> bytes:
    """Return the root of the tree with this right edge."""
    if not edge:
        return EMPTY_ROOT
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = sha256(_NODE + left + root).digest()
    return root


def tile_root(hashes: bytes) -> bytes:
    """Return the root over the hashes of a tile, or of an aligned part of one.

    ``hashes`` is 32 bytes a hash, and their number a power of two. Raises
    ``ValueError`` otherwise.
    """
    count, rest = divmod(len(hashes), HASH_SIZE)
    if rest or count.bit_count() != 1:
        msg = f"a perfect subtree needs a power of two of 32-byte hashes, not {len(hashes)} bytes"
        raise ValueError(msg)
    row = bytes(hashes)
    while len(row) > HASH_SIZE:
        row = _row_above(row)
    return row


def edge_at(size: int, hash_at: HashAt) -> list[bytes]:
    """Return the right edge of the tree of the first ``size`` leaves."""
    return _range_edge(0, size, hash_at)


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """Return the proof that leaf ``index`` is in the tree of ``size`` leaves.

    RFC 6962, section 2.1.1: from the leaf's sibling up to the root's child.
    Raises ``ProofError`` if there is no such leaf.
    """
    if not 0 <= index < size:
        msg = f"leaf {index} is not in a tree of {size} leaves"
        raise ProofError(msg)
    proof = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            proof.append(_range_root(middle, stop, hash_at))
            stop = middle
        else:
            proof.append(_range_root(start, middle, hash_at))
            start = middle
    proof.reverse()
    return proof


def consistency_proof(old: int, new: int, hash_at: HashAt) -> list[bytes]:
    """Return the proof that the tree of ``old`` leaves is a prefix of ``new``.

    RFC 6962, section 2.1.2. It is empty if the sizes are equal or ``old`` is 0.
    Raises ``ProofError`` if ``old`` is the larger one.
    """
    if not 0 <= old <= new:
        msg = f"a tree of {new} leaves cannot continue one of {old}"
        raise ProofError(msg)
    if old in (0, new):
        return []
    proof = []
    start, stop = 0, new
    while stop != old:
        middle = start + _split(stop - start)
        if old <= middle:
            proof.append(_range_root(middle, stop, hash_at))
            stop = middle
        else:
            proof.append(_range_root(start, middle, hash_at))
            start = middle
    if start:  # else the subtree is the whole old tree, whose root is known
        proof.append(_range_root(start, stop, hash_at))
    proof.reverse()
    return proof


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that ``proof`` leads from leaf hash ``leaf`` to ``root``.

    RFC 9162, section 2.1.3.2. Raises ``ProofError`` if it does not.
    """
    if not 0 <= index < size:
        msg = f"leaf {index} is not in a tree of {size} leaves"
        raise ProofError(msg)
    _check_hashes(leaf, root, *proof)
    position, last = index, size - 1
    computed = leaf
    for sibling in proof:
        if last == 0:
            msg = f"the inclusion proof is too long for a tree of {size} leaves"
            raise ProofError(msg)
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            position, last = _up_to_right_child(position, last)
        else:
            computed = node_hash(computed, sibling)
        position >>= 1
        last >>= 1
    if last:
        msg = f"the inclusion proof is too short for a tree of {size} leaves"
        raise ProofError(msg)
    if computed != root:
        msg = f"the inclusion proof of leaf {index} does not lead to the root of the tree of {size} leaves"
        raise ProofError(msg)


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that ``proof`` shows the old tree to be a prefix of the new one.

    RFC 9162, section 2.1.4.2. Raises ``ProofError`` if it does not.
    """
    if not 0 <= old <= new:
        msg = f"a tree of {new} leaves cannot continue one of {old}"
        raise ProofError(msg)
    if old != new:  # equal roots are equal, whatever they are
        _check_hashes(old_root, new_root, *proof)
    if old in (0, new):
        _verify_trivial_consistency(old, new, old_root, new_root, proof)
        return
    computed_old, computed_new = _roots_of_consistency(old, new, old_root, proof)
    for computed, root, size in (
        (computed_old, old_root, old),
        (computed_new, new_root, new),
    ):
        if computed != root:
            msg = f"the consistency proof from {old} to {new} leaves does not lead to the root at {size}"
            raise ProofError(msg)


class TileHashes:
    """A ``HashAt`` over the tiles of C2SP tlog-tiles; usable from several threads.

    ``tile`` gives a tile's hashes, complete or not, and is asked at most once
    for a tile while that is among those of its kind that were used last. The
    tiles must not shrink meanwhile; one that has grown is asked for again. What
    was computed of a tile is kept with it, because a proof of one record needs
    nearly all of that and a proof of its neighbour the same again.
    """

    __slots__ = ("_keep", "_leaves", "_tile", "_upper")

    def __init__(self, tile: TileAt, *, keep: int = 64) -> None:
        """Read through ``tile``, keeping ``keep`` tiles of leaves and four times as many above.

        Sixteen KiB each at most. One tile above stands for 65,536 leaves, so that
        those of a tree of sixteen million stay, whatever is asked for.
        """
        self._tile = tile
        self._keep = keep
        self._leaves: _Kept = OrderedDict()
        self._upper: _Kept = OrderedDict()

    def __call__(self, level: int, index: int) -> bytes:
        """Return the root of the perfect subtree ``(level, index)``.

        Raises ``ProofError`` if the tiles do not hold it.
        """
        tile_level, height = divmod(level, TILE_HEIGHT)
        tile_index, offset = divmod(index << height, TILE_WIDTH)
        start = (offset >> height) * HASH_SIZE
        stop = start + HASH_SIZE
        name = (tile_level, tile_index)
        kept = self._upper if tile_level else self._leaves
        rows = kept.get(name)
        if rows is None or len(rows) <= height or len(rows[height]) < stop:
            rows = self._made(name, height, stop, rows)
            kept[name] = rows
        self._used(kept, name)
        return rows[height][start:stop]

    def _made(
        self, name: tuple[int, int], height: int, stop: int, known: tuple[bytes, ...] | None
    ) -> tuple[bytes, ...]:
        """Return a tile's rows up to ``height``, the last one at least ``stop`` bytes long."""
        rows = known
        if rows is None or len(rows[0]) >> height < stop:
            rows = (self._tile(*name),)
            if len(rows[0]) >> height < stop:
                msg = (
                    f"tile {name[0]}/{name[1]} holds {len(rows[0]) // HASH_SIZE} hashes, too few "
                    f"for subtree {stop // HASH_SIZE - 1} of height {height} in it"
                )
                raise ProofError(msg)
        while len(rows) <= height:
            rows = (*rows, _row_above(rows[-1]))
        return rows

    def _used(self, kept: _Kept, name: tuple[int, int]) -> None:
        """Drop what was used longest ago."""
        # No lock, which a child could inherit from a thread that it does not have: rows are
        # never changed, only exchanged, and whoever comes second has computed the same.
        try:
            kept.move_to_end(name)
        except KeyError:  # another thread has dropped it
            return
        if len(kept) > (self._keep if kept is self._leaves else 4 * self._keep):
            kept.popitem(last=False)


_Kept = OrderedDict[tuple[int, int], tuple[bytes, ...]]
"""By level and index, the hashes of a tile and the rows above them, as far as they were needed."""


def _row_above(row: bytes) -> bytes:
    """Hash the pairs of a row of 32-byte hashes; a last one without partner is left out."""
    above = []
    # A pair of hashes is 64 bytes in a row already: no need to split it.
    for start in range(0, len(row) - HASH_SIZE, _PAIR_SIZE):
        state = _new_node()
        state.update(row[start : start + _PAIR_SIZE])
        above.append(state.digest())
    return b"".join(above)


def _parents(row: Sequence[bytes]) -> list[bytes]:
    """Hash the pairs of ``row``; a last one without partner is left out."""
    pairs = iter(row)
    parents = []
    for left, right in zip(pairs, pairs):  # noqa: B905 - an odd one is dropped on purpose
        state = _new_node()
        state.update(left + right)
        parents.append(state.digest())
    return parents


def _split(width: int) -> int:
    """Return the largest power of two smaller than ``width`` (RFC 6962: k)."""
    return 1 << ((width - 1).bit_length() - 1)


def _range_edge(start: int, stop: int, hash_at: HashAt) -> list[bytes]:
    """Return the roots of the perfect subtrees in a range, largest first.

    ``start`` must be a multiple of the largest one's width.
    """
    edge = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        edge.append(hash_at(level, start >> level))
        start += 1 << level
    return edge


def _range_root(start: int, stop: int, hash_at: HashAt) -> bytes:
    return edge_root(_range_edge(start, stop, hash_at))


def _up_to_right_child(position: int, last: int) -> tuple[int, int]:
    """Climb while the node is the only child on its level: it has no sibling."""
    while position and not position & 1:
        position >>= 1
        last >>= 1
    return position, last


def _roots_of_consistency(
    old: int, new: int, old_root: bytes, proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Return the old and the new root that a consistency proof leads to."""
    hashes = list(proof)
    if old.bit_count() == 1:
        hashes.insert(0, old_root)  # left out of the proof, being known
    if not hashes:
        msg = f"the consistency proof from {old} to {new} leaves is empty"
        raise ProofError(msg)
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    computed_old = computed_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            msg = f"the consistency proof from {old} to {new} leaves is too long"
            raise ProofError(msg)
        if position & 1 or position == last:
            computed_old = node_hash(sibling, computed_old)
            computed_new = node_hash(sibling, computed_new)
            position, last = _up_to_right_child(position, last)
        else:
            computed_new = node_hash(computed_new, sibling)
        position >>= 1
        last >>= 1
    if last:
        msg = f"the consistency proof from {old} to {new} leaves is too short"
        raise ProofError(msg)
    return computed_old, computed_new


def _verify_trivial_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check the cases that need no proof: the same size, or nothing before."""
    if proof:
        msg = f"a consistency proof from {old} to {new} leaves must be empty"
        raise ProofError(msg)
    roots = {(old, old_root), (new, new_root), (0, EMPTY_ROOT)}
    if len(roots) > len({old, new, 0}):
        msg = f"the roots of the trees of {old} and {new} leaves contradict each other"
        raise ProofError(msg)


def _check_hashes(*values: bytes) -> None:
    for value in values:
        if len(value) != HASH_SIZE:
            msg = f"a proof consists of {HASH_SIZE}-byte hashes, not one of {len(value)} bytes"
            raise ProofError(msg)
