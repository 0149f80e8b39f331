"""Holds checkpoints against the tree that the records really make.

Promises: records are only counted as covered by a checkpoint whose signatures
were checked and whose root is theirs. Where a root differs, the finding names
the records between the last checkpoint that holds and the first that does not;
but if a later one holds again, it is that checkpoint that contradicts the log.
Checking signatures is left to ``scan``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.trail.findings import Finding, record_id_in
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_audit.trail.findings import Findings
    from otel_audit.trail.outside import Outside
    from otel_audit.trail.reader import TrailReader
    from otel_audit.trail.scan import OpenedCheckpoint

_CLOCK_SLACK = 2
"""Seconds by which checkpoints may go back in time before it is worth a word."""


class Judge:
    """Takes checkpoints in the order of their sizes, and the roots to compare.

    ``signed``: whether their signatures were checked; if not, they cover nothing.
    """

    def __init__(self, reader: TrailReader, findings: Findings, *, signed: bool) -> None:
        self.valid = 0
        self.covered = 0
        self.last_time: int | None = None
        self.time_jumps = 0
        self._reader = reader
        self._findings = findings
        self._signed = signed
        self._good = 0
        self._bad: list[int] = []

    def checkpoints(
        self, opened: Iterable[OpenedCheckpoint], roots: Mapping[int, bytes | None]
    ) -> None:
        """Compare checkpoints with the roots at their sizes.

        A root that is ``None`` could not be computed; why has been found already.
        """
        for checkpoint in opened:
            root = roots.get(checkpoint.size)
            if root is None:
                continue
            if root != checkpoint.root:
                self._bad.append(checkpoint.size)
                continue
            self._contradicted()
            self._good = max(self._good, checkpoint.size)
            if self._signed:
                self.valid += 1
                self.covered = max(self.covered, checkpoint.size)
                self._check_time(checkpoint.timestamp)

    def outside(self, outside: Outside, root: bytes | None) -> None:
        """Compare a checkpoint that is not in the database."""
        kept, signed, name = outside
        if root == kept.root:
            if signed:
                self.covered = max(self.covered, kept.size)
            return
        what = (
            "cannot be compared, because records are missing"
            if root is None
            else f"has the root {kept.root.hex()}, the trail's records now make {root.hex()}"
        )
        msg = (
            f"{name}, {'' if signed else 'if it is genuine, '}of the first "
            f"{kept.size} records, {what}: records "
            "among them were changed, removed or inserted after it was signed, and the trail's "
            "own checkpoints do not count where they say otherwise"
        )
        self._findings.add(
            Finding("rewritten", msg, 0, max(0, kept.size - 1), checkpoint_size=kept.size)
        )

    def finish(self) -> None:
        """Report the checkpoints that no later one contradicts."""
        if not self._bad:
            return
        first, last, size = self._good, self._bad[0] - 1, self._bad[0]
        since = f"the checkpoint at {first} records" if first else "the beginning"
        msg = (
            f"{self._span(first, last)} changed, removed or inserted, together with every hash "
            f"of them: the tree is right up to {since}, and contradicts the signed root at "
            f"{size} records"
        )
        if len(self._bad) > 1:
            msg += f"; {len(self._bad) - 1} later checkpoints cannot be right for that reason"
        record_id = self._record_id(first)
        self._findings.add(Finding("records-changed", msg, first, last, record_id, size))

    def _contradicted(self) -> None:
        for size in self._bad:
            msg = (
                f"the signed checkpoint at {size} records has another root than the records, "
                "which later checkpoints confirm: the log has signed two different trees"
            )
            self._findings.add(Finding("checkpoint-contradicted", msg, checkpoint_size=size))
        self._bad.clear()

    def _check_time(self, timestamp: int | None) -> None:
        if timestamp is None:
            return
        if self.last_time is not None and timestamp < self.last_time - _CLOCK_SLACK:
            self.time_jumps += 1
        self.last_time = max(timestamp, self.last_time or 0)

    def _span(self, first: int, last: int) -> str:
        if first >= last:
            return f"record {first} ({self._record_id(first)}) was"
        ends = f"{self._record_id(first)} to {self._record_id(last)}"
        return f"at least one of the records {first} to {last} ({ends}) was"

    def _record_id(self, sequence: int) -> str | None:
        try:
            leaf = self._reader.leaf(sequence)
        except UNREADABLE:
            return None
        return None if leaf is None else record_id_in(leaf.record)
