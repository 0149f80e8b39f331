"""What proves a single record: its leaf hash, and a checkpoint that covers it.

Promises: nothing is believed that was not computed here; signatures are
checked against the keys that are given, or else against those that the trail
claims, which its reader has to be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_audit.cli.options import sequence_in
from otel_audit.cli.outcome import AbsentError
from otel_audit.cli.output import stamp
from otel_audit.errors import ProofError
from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import open_checkpoint
from otel_audit.trail.note import Verifier
from otel_audit.trail.proof import prove

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_audit.trail.checkpoint import SignedCheckpoint
    from otel_audit.trail.proof import TlogProof
    from otel_audit.trail.reader import Leaf, StoredCheckpoint, TrailReader


@dataclass(frozen=True, slots=True)
class Proven:
    """A record's proof, and the checkpoint that it leads to."""

    proof: TlogProof
    checkpoint: SignedCheckpoint


def find_leaf(reader: TrailReader, name: str) -> Leaf:
    """Return the record with this id or sequence number. Raises `AbsentError`."""
    number = sequence_in(name)
    leaf = reader.find(name) if number is None else reader.leaf(number)
    if leaf is None:
        size = reader.tree().size
        known = f"it holds the records 0 to {size - 1}" if size else "it holds no records yet"
        message = f"there is no record {name} in {reader.directory}; {known}"
        raise AbsentError(message)
    # What the types say holds for rows that nobody tampered with.
    values: tuple[object, ...] = (leaf.record, leaf.hash)
    if not all(isinstance(value, bytes) for value in values):
        message = (
            f"record {leaf.sequence} is not stored as bytes any more: it was changed; run "
            "`otel-audit verify`"
        )
        raise ProofError(message)
    return leaf


def covering(reader: TrailReader, sequence: int) -> StoredCheckpoint | None:
    """Return the first checkpoint that covers a record.

    The first one rather than the last: its time is the closest to the record's.
    """
    return next(reader.checkpoints(min_size=sequence + 1), None)


def claimed_verifiers(reader: TrailReader) -> list[Verifier]:
    """Return the keys that the trail itself claims. Raises `ProofError`."""
    return [Verifier.parse(key) for key in reader.claimed_keys]


def prove_leaf(reader: TrailReader, leaf: Leaf, note: str, verifiers: Sequence[Verifier]) -> Proven:
    """Prove a record by a checkpoint. Raises `ProofError`."""
    signed = open_checkpoint(note, verifiers)
    if signed.checkpoint.origin != reader.origin:
        message = (
            f"the checkpoint is of {signed.checkpoint.origin}, this trail is {reader.origin}: it "
            "proves nothing here"
        )
        raise ProofError(message)
    return Proven(prove(leaf.sequence, leaf.record, note, reader.hash_at), signed)


def hash_matches(leaf: Leaf) -> bool:
    """Whether the stored hash is that of the stored bytes (RFC 6962, section 2.1)."""
    return merkle.leaf_hash(leaf.record) == leaf.hash


def checkpoint_json(signed: SignedCheckpoint) -> dict[str, Any]:
    """Describe a checkpoint for programs."""
    head, when = signed.checkpoint, signed.timestamp
    return {
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "signed_at": None if when is None else stamp(when * 1_000_000_000),
    }
