"""A trail of records as they are in a service, written fast, to be queried."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import orjson

from otel_audit.readers.index.writer import QueryIndex
from otel_audit.readers.query.times import stamp
from otel_audit.readers.query.words import fields_of, moment_of
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from otel_audit.readers.query.model import Query

SECOND = 1_000_000_000
BEGAN = 1_770_000_000 * SECOND
"""2026-02-02T02:40:00Z; record number n happens about n seconds later."""

EVENTS = ("authentication", "credential_access", "http.request", "server_lifecycle_event")


class Ledger:
    """The trail ``directory``, with a store to write it and a reader."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = BEGAN
        self.store = TrailStore(directory, new_origin=lambda: "ledger/1", clock=lambda: self.now)
        self.reader = TrailReader(directory)
        self._random = random.Random(3)
        self._parsed: list[tuple[int, dict[str, Any], int]] = []

    def close(self) -> None:
        self.reader.close()
        self.store.close()

    def reader_of(self) -> TrailReader:
        """Return a reader of its own, as another thread would have it."""
        return TrailReader(self.directory)

    @property
    def size(self) -> int:
        return self.reader.tree().size

    def fill(self, count: int) -> None:
        """Append ``count`` records of all kinds."""
        first = self.size
        self.write(self.fields(number) for number in range(first, first + count))

    def write(self, records: Iterable[dict[str, Any] | bytes]) -> None:
        """Append these records in groups."""
        group: list[bytes] = []
        for record in records:
            group.append(record if isinstance(record, bytes) else orjson.dumps(record))
            if len(group) == 1_000:
                self._commit(group)
                group = []
        self._commit(group)

    def _commit(self, group: list[bytes]) -> None:
        if group:
            self.now = BEGAN + (self.size + len(group)) * SECOND
            self.store.append(group, {})

    def fields(self, number: int) -> dict[str, Any]:
        """Make one record; times are out of order by some seconds, as threads make them."""
        chance = self._random
        moment = BEGAN + (number + chance.randrange(-3, 4)) * SECOND
        kind = chance.choices(range(4), weights=(40, 30, 29, 1))[0]
        failed = chance.random() < 0.1
        record: dict[str, Any] = {
            "schema": "otel-audit/1",
            "timestamp": stamp(moment),
            "level": "error" if failed else "info",
            "event": EVENTS[kind],
            "record_id": f"{number:08x}-0000-4000-8000-000000000000",
            "event_type": EVENTS[kind],
            "action": ("login", "read", "GET", "start")[kind],
            "status": "failed" if failed else "success",
            "outcome": "failure" if failed else "success",
            "actor_id": f"u-{int(chance.paretovariate(1)) % 50}",
            "request_id": f"r-{number // 3}",
            "client_ip": f"10.0.0.{chance.randrange(9)}",
            "trace_id": f"{number // 3:032x}",
            "number": number,
            "tags": ["a", f"t-{number % 7}"],
        }
        if kind == 3:
            record["server_name"] = chance.choice(("obsidian", "files"))
        if failed:
            record["error"] = f"Secret Handshake number {number % 100} was refused"
        return record

    def index(self, *, full_text: bool = True, **options: Any) -> QueryIndex:
        """Index everything there is to index, and return the closed index."""
        index = QueryIndex(self.directory, full_text=full_text, **options)
        while index.step(self.reader, self.size):
            pass
        index.close()
        return index

    def parsed(self) -> list[tuple[int, dict[str, Any], int]]:
        """Return number, fields and time of all records; they are parsed once."""
        known = self._parsed
        for leaf in self.reader.leaves(len(known)):
            fields = fields_of(leaf.record)
            moment = moment_of(fields, leaf.committed_unix_nano)
            known.append((leaf.sequence, fields, moment))
        return known

    def expected(self, query: Query) -> list[int]:
        """Answer a query the slow way: hold each record against it, and nothing else."""
        found = [
            number for number, fields, moment in self.parsed() if query.matches(fields, moment)
        ]
        return found if query.oldest_first else found[::-1]
