"""Proofs of single records, in the form of C2SP tlog-proof."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofError
from otel_audit.trail import merkle, proof
from otel_audit.trail.checkpoint import Checkpoint, sign
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.proof import TlogProof

ORIGIN = "otel-audit.local/shop/web-1/0a1b2c3d"
KEYS = TrailKeys.generate(ORIGIN)
NOW = 1_760_000_000
RECORDS = [f'{{"record_id":"{number}","note":"übung"}}'.encode() for number in range(300)]
LEAVES = merkle.leaf_hashes(RECORDS)


def hash_at(level: int, index: int) -> bytes:
    return merkle.tile_root(b"".join(LEAVES[index << level : (index + 1) << level]))


def checkpoint(size: int, keys: TrailKeys = KEYS) -> str:
    root = merkle.edge_root(merkle.extend([], 0, LEAVES[:size]))
    return sign(Checkpoint(ORIGIN, size, root), keys, NOW)


def made(index: int, size: int) -> TlogProof:
    return proof.prove(index, RECORDS[index], checkpoint(size), hash_at)


@pytest.mark.parametrize(("index", "size"), [(0, 1), (0, 2), (1, 3), (200, 300), (299, 300)])
def test_a_proof_is_all_that_a_checker_needs(index: int, size: int) -> None:
    text = made(index, size).text()
    for checked in (
        proof.check(text, None, KEYS.verifiers()),
        proof.check(text.encode(), RECORDS[index], [KEYS.log.verifier]),
    ):
        assert (checked.index, checked.record) == (index, RECORDS[index])
        assert checked.checkpoint.checkpoint.size == size


def test_a_proof_has_the_form_of_the_specification() -> None:
    note = checkpoint(5)
    lines = made(2, 5).text().split("\n")
    assert lines[:3] == [
        "c2sp.org/tlog-proof@v1",
        f"extra {base64.b64encode(RECORDS[2]).decode()}",
        "index 2",
    ]
    siblings = [LEAVES[3], hash_at(1, 0), LEAVES[4]]
    assert lines[3:7] == [*(base64.b64encode(one).decode() for one in siblings), ""]
    assert "\n".join(lines[7:]) == note
    alone = made(0, 1)
    assert alone.text() == (
        f"c2sp.org/tlog-proof@v1\nextra {base64.b64encode(RECORDS[0]).decode()}\nindex 0\n\n"
        f"{checkpoint(1)}"
    )


def test_every_changed_byte_of_a_proof_is_found() -> None:
    text = made(2, 5).text().encode()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 0x01
        with pytest.raises(ProofError):
            proof.check(bytes(changed), None, KEYS.verifiers())


def test_another_record_is_not_proved() -> None:
    whole = made(2, 5)
    with pytest.raises(ProofError, match="carries another record"):
        proof.check(whole.text(), RECORDS[3], KEYS.verifiers())
    bare = TlogProof(whole.index, whole.hashes, whole.checkpoint)
    proof.check(bare.text(), RECORDS[2], KEYS.verifiers())
    with pytest.raises(ProofError, match="does not lead to the root"):
        proof.check(bare.text(), RECORDS[3], KEYS.verifiers())
    with pytest.raises(ProofError, match="does not carry its record"):
        proof.check(bare.text(), None, KEYS.verifiers())


def test_another_place_is_not_proved() -> None:
    whole = made(2, 5)
    for index in (0, 1, 3, 4, 5, 6):
        moved = TlogProof(index, whole.hashes, whole.checkpoint, whole.extra)
        with pytest.raises(ProofError):
            proof.check(moved.text(), None, KEYS.verifiers())


def test_another_key_proves_nothing() -> None:
    text = made(2, 5).text()
    with pytest.raises(ProofError, match="no known key"):
        proof.check(text, None, TrailKeys.generate(ORIGIN).verifiers())
    with pytest.raises(ProofError, match="no known key"):
        proof.check(text, None, [])


def test_a_record_that_no_checkpoint_covers_cannot_be_proved_yet() -> None:
    with pytest.raises(ProofError, match="sign a new one first"):
        proof.prove(5, RECORDS[5], checkpoint(5), hash_at)


def test_a_proof_that_would_not_hold_is_not_made() -> None:
    with pytest.raises(ProofError, match="otel-audit verify"):
        proof.prove(2, RECORDS[3], checkpoint(5), hash_at)
    with pytest.raises(ProofError, match="otel-audit verify"):
        proof.prove(2, RECORDS[2], checkpoint(5), lambda level, index: hash_at(level, index + 1))


HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "head",
    [
        "",
        "c2sp.org/tlog-proof@v2\nindex 0",
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v1\nextra AAAA",
        "c2sp.org/tlog-proof@v1\nextra \nindex 0",
        "c2sp.org/tlog-proof@v1\nextra AAA\nindex 0",
        "c2sp.org/tlog-proof@v1\nindex 00",
        "c2sp.org/tlog-proof@v1\nindex -1",
        "c2sp.org/tlog-proof@v1\nindex",
        "c2sp.org/tlog-proof@v1\nindex 0\nindex 0",
        "c2sp.org/tlog-proof@v1\nindex 0\nextra AAAA",
        "c2sp.org/tlog-proof@v1\nindex 0\nAAAA",
        "c2sp.org/tlog-proof@v1\nindex 0" + f"\n{HASH}" * 64,
        " c2sp.org/tlog-proof@v1\nindex 0",
    ],
    ids=range(14),
)
def test_malformed_proofs_are_refused(head: str) -> None:
    with pytest.raises(ProofError):
        TlogProof.parse(f"{head}\n\n{checkpoint(1)}")


@given(
    st.integers(0, (1 << 63) - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(min_size=1),
)
def test_text_and_parse_are_inverse(index: int, hashes: list[bytes], extra: bytes | None) -> None:
    whole = TlogProof(index, tuple(hashes), "o\n1\nr\n\n— o sig\n", extra)
    assert TlogProof.parse(whole.text()) == whole


@given(st.one_of(st.text(), st.binary()))
def test_garbage_raises_only_proof_errors(garbage: str | bytes) -> None:
    with pytest.raises(ProofError):
        proof.check(garbage, None, KEYS.verifiers())
