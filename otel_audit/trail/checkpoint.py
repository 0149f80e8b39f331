"""Checkpoints: signed statements of a tree's size and root (C2SP tlog-checkpoint).

Promises: ``sign`` writes a note that carries two signatures, the log's (Ed25519)
and the trail's own time-stamped cosignature/v1, since a plain one has no time;
``open_checkpoint`` returns only what the log of that very origin has signed.
Whether the size and the root are those of a trail is left to ``verify``, and
that no tree is signed twice at one size to the store.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from otel_audit.errors import ProofError, TrailKeyError
from otel_audit.trail.merkle import HASH_SIZE
from otel_audit.trail.note import (
    COSIGNATURE,
    ED25519,
    Note,
    decode_base64,
    open_note,
    parse_note,
    sign_note,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.trail.keys import TrailKeys
    from otel_audit.trail.note import Verifier

COSIGNER_SUFFIX = "/cosigner"
"""What the name of a trail's own cosigner adds to the origin."""

OVERDUE_NANO: Final = 10_000_000_000
"""How long a record may wait for its checkpoint, due each second of activity, before something is wrong."""

_MAX_SIZE_DIGITS = 19
_LINES = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree of one origin: its size, its root and, from other logs, more lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the note text: origin, size, root, each on a line."""
        root = base64.b64encode(self.root).decode()
        return "\n".join((self.origin, str(self.size), root, *self.extensions, ""))

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note text. Raises ``ProofError`` if it is no checkpoint."""
        lines = text.split("\n")
        if len(lines) <= _LINES or lines.pop() or not all(lines):
            msg = "not a checkpoint: it must have the lines origin, size and root hash"
            raise ProofError(msg)
        origin, size, root, *extensions = lines
        return cls(origin, decode_number(size, "tree size"), _root(root), tuple(extensions))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint whose signatures were checked.

    ``timestamp`` is when the trail's own cosigner signed it (Unix seconds), or
    ``None`` if no key of that cosigner was given.
    """

    checkpoint: Checkpoint
    timestamp: int | None
    note: str


def sign(checkpoint: Checkpoint, keys: TrailKeys, unix_seconds: int) -> str:
    """Return ``checkpoint`` as a note, signed by the log and by the cosigner.

    Raises ``TrailKeyError`` if the keys are another origin's.
    """
    if checkpoint.origin != keys.origin:
        msg = f"the keys of {keys.origin} must not sign a checkpoint of {checkpoint.origin}"
        raise TrailKeyError(msg)
    return sign_note(checkpoint.text(), (keys.log, keys.cosigner), unix_seconds)


def open_checkpoint(note: str | bytes, verifiers: Iterable[Verifier]) -> SignedCheckpoint:
    """Check a checkpoint's signatures against the keys that are trusted.

    There MUST be an Ed25519 signature of a given key that bears the origin's
    name and, if a key of the origin's own cosigner is given, a cosignature of
    it. Any signature of a given key MUST be right. Raises ``ProofError``.
    """
    trusted = tuple(verifiers)
    opened = open_note(note, trusted)
    checkpoint = Checkpoint.parse(opened.text)
    origin = checkpoint.origin
    if not _signed_by(opened, origin, ED25519):
        msg = f"the checkpoint of {origin} is not signed by a known key of that name"
        raise ProofError(msg)
    timestamp = None
    if any(v.name == origin + COSIGNER_SUFFIX and v.algorithm == COSIGNATURE for v in trusted):
        times = _signed_by(opened, origin + COSIGNER_SUFFIX, COSIGNATURE)
        if not times:
            msg = f"the checkpoint of {origin} lacks the cosignature of {origin}{COSIGNER_SUFFIX}"
            raise ProofError(msg)
        timestamp = times[0]
    return SignedCheckpoint(checkpoint, timestamp, _as_text(note))


def read_checkpoint(note: str | bytes) -> Checkpoint:
    """Return what a checkpoint says, *without* checking any signature.

    For choosing keys and for messages only. Raises ``ProofError`` if malformed.
    """
    return Checkpoint.parse(parse_note(note).text)


def decode_number(digits: str, what: str) -> int:
    """Read a decimal number in its one exact spelling, below 2**63.

    Raises ``ProofError`` that calls the value ``what``.
    """
    # isdecimal() alone would take the digits of other scripts.
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > _MAX_SIZE_DIGITS:
        msg = f"the {what} {digits[:40]!r} is not a decimal number"
        raise ProofError(msg)
    number = int(digits)
    if str(number) != digits or number >= 1 << 63:
        msg = f"the {what} {digits!r} has leading zeroes or is too large"
        raise ProofError(msg)
    return number


def _root(line: str) -> bytes:
    root = decode_base64(line, "the root hash of the checkpoint")
    if len(root) != HASH_SIZE:
        msg = f"the root hash of the checkpoint has {len(root)} bytes instead of {HASH_SIZE}"
        raise ProofError(msg)
    return root


def _signed_by(note: Note, name: str, algorithm: int) -> list[int | None]:
    """Return the times of the right signatures of keys of this name and type."""
    return [
        verified.timestamp
        for verified in note.verified
        if verified.verifier.name == name and verified.verifier.algorithm == algorithm
    ]


def _as_text(note: str | bytes) -> str:
    return note if isinstance(note, str) else note.decode()
