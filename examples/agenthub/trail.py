"""What the page shows of the audit trail: read from the trail itself, not from a copy.

`otel_audit.trail.reader` never writes and never waits for a writer, so this
may run beside everything else. Who may see what is page.py's.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_audit import AuditProvider
from otel_audit.trail.verify import verify

WINDOW: Final = 2_000


@dataclass(frozen=True)
class Entry:
    """One record at its place in the tree."""

    sequence: int
    leaf_hash: bytes
    record: dict[str, Any]


@dataclass(frozen=True)
class State:
    """The trail as of now; ``covered`` records stand under the last signed checkpoint."""

    directory: Path
    origin: str
    size: int
    root: bytes
    covered: int
    checkpoint: str


@dataclass(frozen=True)
class Verdict:
    """Whether the trail is what was written; ``findings`` say in words what is wrong."""

    ok: bool
    size: int
    covered: int
    findings: list[str]
    seconds: float


class Trail:
    """The trail that this process writes to, for reading."""

    def __init__(self, provider: AuditProvider) -> None:
        self._provider = provider

    def state(self) -> State:
        """Return size, root hash and last checkpoint."""
        with self._provider.reader() as reader:
            tree = reader.tree()
            last = reader.last_checkpoint()
            return State(
                directory=self._provider.directory,
                origin=reader.origin,
                size=tree.size,
                root=tree.root,
                covered=0 if last is None else last.size,
                checkpoint="" if last is None else last.note,
            )

    def recent(self, count: int, *, actor: str | None = None, requests: bool) -> list[Entry]:
        """Return the newest records first: one actor's or all, with http.request or without."""
        with self._provider.reader() as reader:
            start = max(0, reader.tree().size - WINDOW)
            entries = [
                Entry(leaf.sequence, leaf.hash, json.loads(leaf.record))
                for leaf in reader.leaves(start)
            ]
        wanted = [
            entry
            for entry in reversed(entries)
            if (actor is None or entry.record.get("actor_id") == actor)
            and (requests or entry.record["event"] != "http.request")
        ]
        return wanted[:count]

    def verify(self) -> Verdict:
        """Check the whole trail, as ``otel-audit verify`` does."""
        began = time.perf_counter()
        with self._provider.reader() as reader:
            report = verify(reader, verifiers=self._provider.keys.verifiers())
        return Verdict(
            ok=report.ok,
            size=report.size,
            covered=report.covered,
            findings=[finding.message for finding in report.findings],
            seconds=time.perf_counter() - began,
        )
