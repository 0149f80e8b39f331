"""The Merkle tree against published vectors and against RFC 6962, taken literally."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofError
from otel_audit.trail import merkle

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rfc6962-proofs.json").read_text())
LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(130)]

# github.com/transparency-dev/merkle, testonly/constants.go and rfc6962/rfc6962_test.go;
# first in the Certificate Transparency project.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word by word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256().digest()
    k = split(len(leaves))
    return merkle.node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1, word by word."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], *, known: bool) -> list[bytes]:
    """RFC 6962, section 2.1.2, word by word."""
    if m == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], known=known), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], known=False), mth(leaves[:k])]


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def hash_at(level: int, index: int) -> bytes:
    assert (index + 1) << level <= len(LEAVES)
    return mth(LEAVES[index << level : (index + 1) << level])


def decoded(case: dict[str, Any], *names: str) -> list[bytes]:
    return [base64.b64decode(case[name] or "") for name in names]


def test_hashes_are_those_of_the_published_vectors() -> None:
    assert merkle.EMPTY_ROOT.hex() == ROOTS[0]
    assert merkle.leaf_hash(b"").hex() == ROOTS[1]
    assert (
        merkle.leaf_hash(b"L123456").hex()
        == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    )
    assert (
        merkle.node_hash(b"N123", b"N456").hex()
        == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"
    )
    assert merkle.leaf_hashes(INPUTS) == [merkle.leaf_hash(data) for data in INPUTS]


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_roots_are_those_of_the_published_vectors(size: int) -> None:
    edge = merkle.extend([], 0, merkle.leaf_hashes(INPUTS[:size]))
    assert merkle.edge_root(edge).hex() == ROOTS[size]


@pytest.mark.parametrize("case", VECTORS["inclusion"], ids=lambda case: case["name"])
def test_inclusion_vectors(case: dict[str, Any]) -> None:
    leaf, root = decoded(case, "leafHash", "root")
    proof = [base64.b64decode(value) for value in case["proof"]]

    def check() -> None:
        merkle.verify_inclusion(case["leafIdx"], case["treeSize"], leaf, proof, root)

    if case["wantErr"]:
        with pytest.raises(ProofError):
            check()
    else:
        check()


@pytest.mark.parametrize("case", VECTORS["consistency"], ids=lambda case: case["name"])
def test_consistency_vectors(case: dict[str, Any]) -> None:
    old, new = decoded(case, "root1", "root2")
    proof = [base64.b64decode(value) for value in case["proof"]]

    def check() -> None:
        merkle.verify_consistency(case["size1"], case["size2"], old, new, proof)

    if case["wantErr"]:
        with pytest.raises(ProofError):
            check()
    else:
        check()


def test_accumulated_vectors_of_all_subtrees_up_to_130_leaves() -> None:
    """Appendix "Subtree Test Vectors" of draft-ietf-plants-merkle-tree-certs."""
    hashes, proofs = hashlib.sha256(), hashlib.sha256()
    for end in range(131):
        for start in range(end + 1):
            length = end - start
            width = 1 << max(0, length - 1).bit_length()
            if start and length and start % width:
                continue
            part = LEAVES[start:end]
            root = merkle.edge_root(merkle.extend([], 0, part))
            hashes.update(f"[{start}, {end}) {root.hex()}\n".encode())
            for index in range(length):
                proof = merkle.inclusion_proof(index, length, partial(hash_at_from, start))
                merkle.verify_inclusion(index, length, part[index], proof, root)
                line = " ".join([f"{start + index} [{start}, {end})", *(p.hex() for p in proof)])
                proofs.update(f"{line}\n".encode())
    assert hashes.hexdigest() == "b82806ad4265bb151c1119c0f4db437bb4d1a1f887b3a7fba1cd4ebf552e3e81"
    assert proofs.hexdigest() == "ac2a8f989e44d99e399db448050ff5f19757df53cfb716aa81015d3955d8163f"


CACHE: dict[tuple[int, int, int], bytes] = {}


def hash_at_from(start: int, level: int, index: int) -> bytes:
    key = (start, level, index)
    if key not in CACHE:
        first = start + (index << level)
        CACHE[key] = mth(LEAVES[first : first + (1 << level)])
    return CACHE[key]


@pytest.mark.parametrize("size", range(71))
def test_every_proof_is_the_one_of_the_rfc(size: int) -> None:
    leaves = LEAVES[:size]
    root = mth(leaves)
    assert merkle.edge_root(merkle.edge_at(size, hash_at)) == root
    for m in range(size):
        proof = merkle.inclusion_proof(m, size, hash_at)
        assert proof == path(m, leaves)
        merkle.verify_inclusion(m, size, leaves[m], proof, root)
    for m in range(size + 1):
        proof = merkle.consistency_proof(m, size, hash_at)
        assert proof == (subproof(m, leaves, known=True) if m else [])
        merkle.verify_consistency(m, size, mth(leaves[:m]), root, proof)


@pytest.mark.parametrize("size", range(71))
def test_growing_in_any_two_steps_gives_the_same_edge(size: int) -> None:
    whole = merkle.extend([], 0, LEAVES[:size])
    assert len(whole) == size.bit_count()
    for first in range(size + 1):
        edge = merkle.extend([], 0, LEAVES[:first])
        kept = list(edge)
        assert merkle.extend(edge, first, LEAVES[first:size]) == whole
        assert edge == kept, "extend() must not change what it was given"


@given(st.lists(st.binary(max_size=8), max_size=300), st.lists(st.integers(1, 40), max_size=30))
def test_growing_in_any_steps_gives_the_root_of_the_rfc(
    records: list[bytes], steps: list[int]
) -> None:
    leaves = merkle.leaf_hashes(records)
    edge: list[bytes] = []
    size = 0
    for step in [*steps, len(leaves)]:
        edge = merkle.extend(edge, size, leaves[size : size + step])
        size = min(len(leaves), size + step)
    assert merkle.edge_root(edge) == mth(leaves)


@given(st.data())
def test_a_changed_inclusion_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    root = mth(LEAVES[:size])
    parts = [LEAVES[index], *merkle.inclusion_proof(index, size, hash_at)]
    at = data.draw(st.integers(0, len(parts) - 1))
    place, bit = data.draw(st.integers(0, 31)), 1 << data.draw(st.integers(0, 7))
    changed = bytearray(parts[at])
    changed[place] ^= bit
    parts[at] = bytes(changed)
    with pytest.raises(ProofError):
        merkle.verify_inclusion(index, size, parts[0], parts[1:], root)


@given(st.data())
def test_a_changed_consistency_proof_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 70))
    old = data.draw(st.integers(1, new - 1))
    roots = [mth(LEAVES[:old]), mth(LEAVES[:new])]
    proof = merkle.consistency_proof(old, new, hash_at)
    parts = [*roots, *proof]
    at = data.draw(st.integers(0, len(parts) - 1))
    changed = bytearray(parts[at])
    changed[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
    parts[at] = bytes(changed)
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, new, parts[0], parts[1], parts[2:])


@given(st.integers(0, 30), st.integers(0, 30), st.lists(st.binary(max_size=33), max_size=6))
def test_garbage_raises_only_proof_errors(index: int, size: int, proof: list[bytes]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_inclusion(index, size, LEAVES[0], proof, LEAVES[1])
    with pytest.raises(ProofError):
        merkle.verify_consistency(index, size, LEAVES[0], LEAVES[1], proof)


def test_leaves_that_are_not_there_cannot_be_proved() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ProofError, match="is not in a tree"):
            merkle.inclusion_proof(index, size, hash_at)
    with pytest.raises(ProofError, match="cannot continue"):
        merkle.consistency_proof(6, 5, hash_at)


def test_an_edge_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="right edge"):
        merkle.extend([LEAVES[0]], 3, LEAVES[:1])


@pytest.mark.parametrize("count", [1, 2, 64, 256])
def test_a_tile_root_is_the_root_of_its_hashes(count: int) -> None:
    hashes = [merkle.leaf_hash(str(number).encode()) for number in range(count)]
    assert merkle.tile_root(b"".join(hashes)) == mth(hashes)


@pytest.mark.parametrize("length", [0, 31, 33, 96])
def test_a_tile_root_needs_a_perfect_subtree(length: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        merkle.tile_root(bytes(length))


class Tiles:
    """The tiles of a tree of ``size`` leaves (C2SP tlog-tiles), made the slow way."""

    def __init__(self, size: int) -> None:
        self.reads: list[tuple[int, int]] = []
        self.rows = [[merkle.leaf_hash(str(number).encode()) for number in range(size)]]
        while len(self.rows[-1]) >= 256:
            below = self.rows[-1]
            self.rows.append([mth(below[at : at + 256]) for at in range(0, len(below) - 255, 256)])

    def tile(self, level: int, index: int) -> bytes:
        self.reads.append((level, index))
        row = self.rows[level] if level < len(self.rows) else []
        return b"".join(row[index * 256 : (index + 1) * 256])


@pytest.mark.parametrize("size", [1, 255, 256, 257, 70_000])
def test_proofs_over_tiles_hold(size: int) -> None:
    tiles = Tiles(size)
    at = merkle.TileHashes(tiles.tile)
    root = merkle.edge_root(merkle.extend([], 0, tiles.rows[0]))
    assert merkle.edge_root(merkle.edge_at(size, at)) == root
    for index in {0, size // 3, size - 1}:
        proof = merkle.inclusion_proof(index, size, at)
        merkle.verify_inclusion(index, size, tiles.rows[0][index], proof, root)
    for old in {1, size // 2, size - 1} - {0}:
        old_root = merkle.edge_root(merkle.extend([], 0, tiles.rows[0][:old]))
        proof = merkle.consistency_proof(old, size, at)
        merkle.verify_consistency(old, size, old_root, root, proof)


def test_tiles_are_read_once_while_they_are_kept() -> None:
    tiles = Tiles(1_000)
    at = merkle.TileHashes(tiles.tile, keep=2)
    for index in range(256):
        at(0, index)
    assert tiles.reads == [(0, 0)]
    at(0, 256)
    at(0, 0)
    at(0, 512)  # drops tile 1, which was used longest ago
    at(0, 0)
    at(0, 256)
    assert tiles.reads == [(0, 0), (0, 1), (0, 2), (0, 1)]


def test_tiles_above_the_leaves_stay_whatever_leaves_are_asked_for() -> None:
    tiles = Tiles(70_000)
    at = merkle.TileHashes(tiles.tile, keep=2)
    for tile in range(70_000 >> 8):
        at(8, tile)
        at(3, tile << 5)
    assert [read for read in tiles.reads if read[0] == 1] == [(1, 0), (1, 1)]


def test_a_subtree_beyond_the_end_of_a_tile_is_refused_at_every_height() -> None:
    tiles = Tiles(200)
    at = merkle.TileHashes(tiles.tile)
    for level in range(9):
        inside = 200 >> level
        for index in range(inside):
            leaves = tiles.rows[0][index << level : (index + 1) << level]
            assert at(level, index) == mth(leaves)
        with pytest.raises(ProofError, match=r"too few|holds 0 hashes"):
            at(level, inside)


@pytest.mark.usefixtures("unmeasured")
def test_threads_may_share_tiles() -> None:
    tiles = Tiles(2_000)
    at = merkle.TileHashes(tiles.tile, keep=1)
    expected = {
        (level, index): mth(tiles.rows[0][index << level : (index + 1) << level])
        for level in range(8)
        for index in range(2_000 >> level)
    }
    names = list(expected)

    def ask(seed: int) -> bool:
        chance = random.Random(seed)
        return all(at(*name) == expected[name] for name in chance.choices(names, k=4_000))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(8)))
    finally:
        sys.setswitchinterval(before)


def test_a_tile_that_has_grown_is_read_again() -> None:
    tiles = Tiles(10)
    at = merkle.TileHashes(tiles.tile)
    at(0, 9)
    with pytest.raises(ProofError, match="tile 0/0 holds 10 hashes"):
        at(0, 10)
    tiles.rows[0].append(merkle.leaf_hash(b"new"))
    assert at(0, 10) == merkle.leaf_hash(b"new")
