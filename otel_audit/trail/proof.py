"""Proofs that one record is in the trail, in a file of their own (C2SP tlog-proof).

Promises: a proof that ``check`` accepts shows, offline and with public keys
alone, that these very bytes were the leaf of that index in a tree that the log
signed. ``prove`` never writes a proof that does not hold. The file carries the
record's bytes in its ``extra`` line, so that it needs nothing beside it; they
are believed only because the leaf hash is computed from them. Which keys are
to be trusted is left to the caller.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_audit.errors import ProofError
from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import (
    SignedCheckpoint,
    decode_number,
    open_checkpoint,
    read_checkpoint,
)
from otel_audit.trail.note import decode_base64

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.trail.note import Verifier

HEADER = "c2sp.org/tlog-proof@v1"
"""The first line of a proof."""
SUFFIX = ".tlog-proof"
"""What the names of proof files end in."""

_EXTRA = "extra "
_INDEX = "index "
_MAX_HASHES = 63


@dataclass(frozen=True, slots=True)
class TlogProof:
    """The parts of a proof; ``extra`` is the record's bytes, in our proofs."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def text(self) -> str:
        """Return the proof as the text of a file."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(_EXTRA + base64.b64encode(self.extra).decode())
        lines.append(f"{_INDEX}{self.index}")
        lines += [base64.b64encode(value).decode() for value in self.hashes]
        return "\n".join((*lines, "", self.checkpoint))

    @classmethod
    def parse(cls, text: str | bytes) -> TlogProof:
        """Read a proof, checking its form only. Raises ``ProofError``."""
        head, _, note = _decode(text).partition("\n\n")
        lines = head.split("\n")
        if lines[0] != HEADER:
            msg = f"not a proof: the first line must be {HEADER}"
            raise ProofError(msg)
        del lines[0]
        extra = None
        if lines and lines[0].startswith(_EXTRA):
            extra = decode_base64(lines.pop(0).removeprefix(_EXTRA), "the proof's extra line")
        if not lines or not lines[0].startswith(_INDEX):
            msg = "the proof lacks its line `index N`"
            raise ProofError(msg)
        index = decode_number(lines.pop(0).removeprefix(_INDEX), "proof's index")
        if len(lines) > _MAX_HASHES:
            msg = f"the proof has {len(lines)} hashes, more than any tree is high"
            raise ProofError(msg)
        return cls(index, tuple(_hash(line) for line in lines), note, extra)


@dataclass(frozen=True, slots=True)
class CheckedProof:
    """What a proof has shown: this record is leaf ``index`` of this checkpoint."""

    index: int
    record: bytes
    checkpoint: SignedCheckpoint


def prove(index: int, record: bytes, checkpoint: str, hash_at: merkle.HashAt) -> TlogProof:
    """Make the proof that ``record`` is leaf ``index`` of a signed checkpoint.

    Raises ``ProofError`` if the checkpoint does not cover that leaf yet, or if
    the tree and the record do not lead to its root: the trail is damaged then.
    """
    head = read_checkpoint(checkpoint)
    if index >= head.size:
        msg = (
            f"record {index} is not covered by the checkpoint of {head.size} records; "
            "sign a new one first (otel-audit checkpoint)"
        )
        raise ProofError(msg)
    hashes = merkle.inclusion_proof(index, head.size, hash_at)
    try:
        merkle.verify_inclusion(index, head.size, merkle.leaf_hash(record), hashes, head.root)
    except ProofError as error:
        msg = (
            f"record {index} cannot be proved: {error}; the trail is damaged, run otel-audit verify"
        )
        raise ProofError(msg) from error
    return TlogProof(index, tuple(hashes), checkpoint, record or None)


def check(proof: str | bytes, record: bytes | None, verifiers: Iterable[Verifier]) -> CheckedProof:
    """Check that ``record`` is in the trail, by its proof and the keys trusted.

    Without a ``record``, the one inside the proof is checked. Raises
    ``ProofError`` that names what failed: the form, a signature, the record,
    or the way from its hash to the root.
    """
    parsed = TlogProof.parse(proof)
    signed = open_checkpoint(parsed.checkpoint, verifiers)
    if record is None:
        record = parsed.extra
    if record is None:
        msg = "the proof does not carry its record; give the record's bytes as well"
        raise ProofError(msg)
    if parsed.extra not in (None, record):
        msg = "the proof carries another record than the one given"
        raise ProofError(msg)
    head = signed.checkpoint
    leaf = merkle.leaf_hash(record)
    merkle.verify_inclusion(parsed.index, head.size, leaf, parsed.hashes, head.root)
    return CheckedProof(parsed.index, record, signed)


def _decode(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError:
        msg = "not a proof: it is not valid UTF-8"
        raise ProofError(msg) from None


def _hash(line: str) -> bytes:
    value = decode_base64(line, "a hash of the proof")
    if len(value) != merkle.HASH_SIZE:
        msg = f"a hash of the proof has {len(value)} bytes instead of {merkle.HASH_SIZE}"
        raise ProofError(msg)
    return value
