"""What verification finds, and how a damaged record is still named.

Promises: every finding is counted, and at most ``LISTED`` are kept in full, so
that a ruined trail of any length can be reported; a record whose bytes are
damaged is named by the record id that can still be read from them. Deciding
what is a finding is left to ``scan`` and ``verify``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTED = 1_000
"""Findings that are kept in full; beyond them only the number is."""

Kind = Literal[
    "record-changed",  # a record's bytes are not those in the tree
    "record-moved",  # a record stands where the tree has another one
    "record-missing",  # the tree has a record whose row is gone
    "record-unlisted",  # a row stands where the tree has no record
    "record-malformed",  # a record is in the tree, but is not a line of JSON with an id
    "records-changed",  # somewhere between two checkpoints: all traces were rewritten
    "leaf-hash-changed",  # a record is right, the hash beside it is not
    "tile-changed",  # a stored tile contradicts the records
    "tile-missing",  # a tile that should be stored is not
    "tree-changed",  # the stored tree (size, right edge) contradicts the records
    "resource-changed",  # an OTel Resource is not the one that its hash names
    "resource-missing",  # records name an OTel Resource whose row is gone
    "schema-changed",  # the database has other tables, indexes, triggers or views than a trail
    "truncated",  # a checkpoint covers more records than there are
    "checkpoint-missing",  # records have waited for a checkpoint for longer than a crash explains
    "checkpoint-invalid",  # malformed, wrongly signed, or of another trail
    "checkpoint-contradicted",  # rightly signed, but not the tree that later ones confirm
    "rolled-back",  # the checkpoint kept elsewhere is of a larger tree
    "rewritten",  # the checkpoint kept elsewhere is of another tree
    "wrong-key",  # the key that was given, or is claimed, is not this trail's
    "unreadable",  # the database cannot be read there
]

_RECORD_ID = re.compile(rb'"record_id"\s*:\s*"(.{36})', re.DOTALL)
_UUID = re.compile(
    rb"(?<![0-9a-fA-F-])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9a-fA-F-])"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, in words and in facts.

    ``sequence`` to ``last_sequence`` are the records it is about (the same
    number if it is one), ``record_id`` is that of the first as far as it can be
    read, ``checkpoint_size`` the size of the checkpoint it is about.
    """

    kind: Kind
    message: str
    sequence: int | None = None
    last_sequence: int | None = None
    record_id: str | None = None
    checkpoint_size: int | None = None


@dataclass(slots=True)
class Findings:
    """Findings in the order in which they were made; all counted, not all kept."""

    listed: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding, count: int = 1) -> None:
        """Count ``finding`` as ``count`` of its kind, and keep it if there is room."""
        self.counts[finding.kind] += count
        if len(self.listed) < LISTED:
            self.listed.append(finding)

    def merge(self, others: Findings) -> None:
        """Take over the findings of another part of the trail."""
        self.counts.update(others.counts)
        self.extend_list(others.listed)

    def extend_list(self, findings: Iterable[Finding]) -> None:
        """Keep findings that are counted already, as long as there is room."""
        room = LISTED - len(self.listed)
        self.listed.extend(list(findings)[: max(0, room)])


def record_id_in(record: object) -> str | None:
    """Return the record id that stands in ``record``, damaged as that may be.

    Where the name of the key is damaged too, the first UUID is taken: the
    record id is the first one in a record. ``None`` if there is none.
    """
    if not isinstance(record, bytes):
        return None
    found = _RECORD_ID.search(record)
    if found is not None:
        return found[1].decode(errors="replace")
    found = _UUID.search(record)
    return None if found is None else found[0].decode()
