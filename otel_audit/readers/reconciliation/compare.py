"""Reconciliation: whether Loki has what the trail has.

`reconcile` promises: each record of the range that should be in Loki is looked
for, and the body of each entry that claims to be of this trail is checked
against the tree (its leaf hash at its sequence number); checkpoints that Loki
remembers are held against the tree as well, so that a trail that was rolled
back contradicts them. A comparison from the first record on sees entries up to
a year before it, and one to the end up to a day ahead of now. It writes
nothing; memory is a byte a record.

Entries that claim another origin, or none, are none of its business. What Loki deletes
by retention is not missed (the record's own class says how long it is kept).
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.errors import ProofError
from otel_audit.readers.loki import EVERY_STREAM
from otel_audit.readers.shipping.outbound import CHECKPOINT_EVENT
from otel_audit.record.retention import seconds_of
from otel_audit.record.semconv import unix_nano
from otel_audit.trail import merkle

if TYPE_CHECKING:
    from otel_audit.readers.loki import Line, Loki
    from otel_audit.trail.reader import TrailReader

EXAMPLES: Final = 100
"""How many of each kind are named; all are counted."""

_SECOND: Final = 1_000_000_000
_SLACK: Final = 3_600 * _SECOND
"""Around the records' own times: where an entry that was changed may stand."""
_PAST: Final = 366 * 86_400 * _SECOND
"""Before the first record of a trail: no entry of it belongs there, but Loki takes one."""
_FUTURE: Final = 86_400 * _SECOND
"""After now: the bundled Loki takes entries from 15 hours ahead."""


@dataclass
class Findings:
    """What a comparison found; lists of examples, with how many there are in all."""

    start: int = 0
    stop: int = 0
    checked: int = 0
    found: int = 0
    expired: int = 0
    missing: list[int] = field(default_factory=list)
    altered: list[dict[str, Any]] = field(default_factory=list)
    foreign: list[dict[str, Any]] = field(default_factory=list)
    contradicted: list[dict[str, Any]] = field(default_factory=list)
    altered_count: int = 0
    foreign_count: int = 0

    @property
    def missing_count(self) -> int:
        """How many records of the range are not in Loki as they should be."""
        return len(self.missing)

    @property
    def ok(self) -> bool:
        """Whether Loki has exactly what it should have."""
        return not (self.missing or self.altered_count or self.foreign_count or self.contradicted)


def reconcile(
    reader: TrailReader,
    loki: Loki,
    start: int = 0,
    stop: int | None = None,
    *,
    due: int | None = None,
    passed: frozenset[int] = frozenset(),
) -> Findings:
    """Compare the records from sequence number ``start`` up to before ``stop`` with Loki.

    Records from ``due`` on may still be on their way, and ``passed`` are known
    not to be there, such as those that were set aside: they are not looked
    for. What Loki has of them is judged all the same. Raises `TrailError`.
    """
    size = reader.tree().size
    wanted = min(bound for bound in (stop, due, size) if bound is not None)
    findings = Findings(start, max(start, wanted))
    to_the_end = stop is None or stop >= size
    return _Comparison(reader, loki, findings, passed, to_the_end=to_the_end).run()


class _Comparison:
    def __init__(
        self,
        reader: TrailReader,
        loki: Loki,
        findings: Findings,
        passed: frozenset[int],
        *,
        to_the_end: bool,
    ) -> None:
        self._reader = reader
        self._loki = loki
        self._findings = findings
        self._passed = passed
        self._to_the_end = to_the_end
        self._seen = bytearray(findings.stop - findings.start)
        self._size = reader.tree().size

    def run(self) -> Findings:
        findings = self._findings
        first, last = self._expect()
        origin = orjson.dumps(self._reader.origin).decode()
        query = f"{EVERY_STREAM} | audit_sequence_stream_id={origin}"
        for page, _ in self._loki.pages(query, first, last):
            for line in page:
                self._judge(line)
        findings.missing = [
            findings.start + index for index, mark in enumerate(self._seen) if mark == _WANTED
        ]
        return findings

    def _expect(self) -> tuple[int, int]:
        """Mark the records that should be there; return from when to when to look."""
        findings, now = self._findings, time.time_ns()
        # What a trail that was rolled back has lost is younger than all that it has.
        first, last = now, now if self._to_the_end else 0
        for leaf in self._reader.leaves(findings.start, findings.stop):
            said = _said(leaf.record)
            try:
                when = unix_nano(said["timestamp"])
            except (LookupError, TypeError, ValueError, AttributeError):
                continue  # no record: the shipper has set it aside
            if leaf.sequence in self._passed:
                continue
            if _expired(said, when, now):
                findings.expired += 1
                continue
            findings.checked += 1
            self._seen[leaf.sequence - findings.start] = _WANTED
            first, last = min(first, when), max(last, when)
        first -= _SLACK if findings.start else _PAST
        last += _FUTURE if self._to_the_end else _SLACK
        return first, last

    def _judge(self, line: Line) -> None:
        if line.labels.get("event_name") == CHECKPOINT_EVENT and self._is_checkpoint(line):
            return
        findings = self._findings
        number = _number(line.labels.get("audit_sequence_number"))
        if number is None or not self._exists(number):
            findings.foreign_count += 1
            if len(findings.foreign) < EXAMPLES:
                findings.foreign.append(_described(line))
        elif not self._holds(number, line.text):
            findings.altered_count += 1
            if len(findings.altered) < EXAMPLES:
                findings.altered.append(_described(line))
        elif findings.start <= number < findings.stop:
            index = number - findings.start
            findings.found += self._seen[index] == _WANTED
            self._seen[index] = _FOUND

    def _exists(self, number: int) -> bool:
        if number >= self._size:  # it may have been committed meanwhile
            self._size = self._reader.tree().size
        return number < self._size

    def _holds(self, number: int, text: str) -> bool:
        """Whether the tree has this very record at this place."""
        try:
            return self._reader.hash_at(0, number) == merkle.leaf_hash(text.encode())
        except (ProofError, UnicodeEncodeError):
            return False

    def _is_checkpoint(self, line: Line) -> bool:
        """Hold a checkpoint against the tree; False when the line is none."""
        said = _said(line.text.encode(errors="replace"))
        size, root = said.get("size"), said.get("root")
        if not isinstance(size, int) or not isinstance(root, str) or size < 0:
            return False
        ours = None
        with suppress(ProofError):
            if size == 0 or self._exists(size - 1):
                ours = merkle.edge_root(merkle.edge_at(size, self._reader.hash_at)).hex()
        if ours != root and len(self._findings.contradicted) < EXAMPLES:
            self._findings.contradicted.append({"size": size, "root": root, "trail": ours})
        return True


_WANTED: Final = 1
_FOUND: Final = 2


def _said(record: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(record)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _expired(said: dict[str, Any], when: int, now: int) -> bool:
    """Whether a store that keeps records as long as they say may have deleted this one."""
    kept = seconds_of(str(said.get("retention", "")))
    return kept is not None and when + kept * _SECOND < now


def _described(line: Line) -> dict[str, Any]:
    """Describe a line that should not be there, for people and programs."""
    number = line.labels.get("audit_sequence_number")
    return {"unix_nano": line.unix_nano, "sequence": number, "line": line.text[:200]}


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"\d{1,18}", value) else None
