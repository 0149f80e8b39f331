"""Checkpoints that are not in the database: one kept elsewhere, and the last that was signed here.

Promises: nobody is accused on the word of a checkpoint that the keys which were
given have not signed; what cannot be used of the file ``signed`` is a warning,
since a copy of the database has none, and without it nothing is known. Roots
are compared by ``judge``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_audit.errors import ProofError
from otel_audit.trail.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from otel_audit.trail.findings import Finding
from otel_audit.trail.layout import MEMORY
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from otel_audit.trail.findings import Findings
    from otel_audit.trail.note import Verifier
    from otel_audit.trail.reader import TrailReader

_ELSEWHERE = "the checkpoint kept elsewhere"


class Outside(NamedTuple):
    """A checkpoint of this trail, whether its signatures were checked, and how findings call it."""

    checkpoint: Checkpoint
    signed: bool
    name: str


class Memory(NamedTuple):
    """What the file ``signed`` says, or why that does not count."""

    outside: Outside | None = None
    warning: str | None = None


def kept_elsewhere(
    reader: TrailReader,
    note: str | bytes,
    trusted: Sequence[Verifier],
    findings: Findings,
    *,
    self_asserted: bool,
) -> Outside | None:
    """Check the form, the signatures and the origin of a checkpoint kept elsewhere.

    Raises `ProofError` if it is none.
    """
    kept = read_checkpoint(note)
    signed = False
    try:
        open_checkpoint(note, trusted)
        signed = True
    except ProofError as error:
        msg = f"{_ELSEWHERE} is not rightly signed: {error}"
        findings.add(Finding("checkpoint-invalid", msg, checkpoint_size=kept.size))
    if kept.origin != reader.origin:
        msg = (
            f"{_ELSEWHERE} is of {kept.origin}, this trail is "
            f"{reader.origin}: it is another trail, or was replaced by another"
        )
        findings.add(Finding("rewritten", msg, checkpoint_size=kept.size))
        return None
    if not signed and trusted and not self_asserted:
        return None  # nobody is accused on a stranger's word
    return Outside(kept, signed, _ELSEWHERE)


def signed_last(reader: TrailReader, trusted: Sequence[Verifier]) -> Memory:
    """Read what was signed last here, unless the trail has that checkpoint itself.

    To be called before the tree is read: what was signed by then is in it, while
    a checkpoint that is signed later may be of more records.
    """
    path = reader.directory / MEMORY
    try:
        note = reader.last_signed()
        if note is None or _is_stored(reader, note):
            return Memory()
        checkpoint = open_checkpoint(note, trusted).checkpoint
    except OSError as error:
        return Memory(warning=_unknown(path, error.strerror))
    except ProofError as error:
        return Memory(warning=_unknown(path, str(error)))
    if checkpoint.origin != reader.origin:
        why = f"it is of {checkpoint.origin}, this trail is {reader.origin}"
        return Memory(warning=_unknown(path, why))
    return Memory(
        Outside(checkpoint, signed=True, name=f"the checkpoint signed last here ({path})")
    )


def _unknown(path: Path, why: str | None) -> str:
    return (
        f"{path}, which has the checkpoint signed last here, does not count ({why}): it cannot "
        "tell whether the trail is an older copy; see `otel-audit doctor`"
    )


def _is_stored(reader: TrailReader, note: bytes) -> bool:
    try:
        stored = reader.last_checkpoint()
        return stored is not None and stored.note.encode() == note
    except (*UNREADABLE, AttributeError):  # a damaged row may hold anything
        return False


def within(outside: Sequence[Outside], size: int, findings: Findings) -> Iterator[Outside]:
    """Yield those that cover no more than ``size`` records; report each of the others."""
    for kept, signed, name in outside:
        if kept.size <= size:
            yield Outside(kept, signed, name)
            continue
        # Whoever rewrote the whole trail has put in keys of his own, so that what those
        # have not signed may still be true.
        doubt = "" if signed else ", if it is genuine,"
        msg = (
            f"{name}{doubt} covers {kept.size} records, the trail has only {size}: it was cut "
            "off, or replaced by an older copy"
        )
        findings.add(Finding("rolled-back", msg, size, kept.size - 1, checkpoint_size=kept.size))
