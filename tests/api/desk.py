"""What tests of the interface work with: a provider, a logger, and a look at the trail."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_audit.trail.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider


class Desk(NamedTuple):
    """One provider and a logger of it."""

    provider: AuditProvider
    audit: AuditLogger

    def records(self) -> list[dict[str, Any]]:
        """Read what is durable, as anybody else would: from the trail."""
        with self.provider.reader() as reader:
            return [json.loads(leaf.record) for leaf in reader.leaves()]

    def record(self) -> dict[str, Any]:
        """Return the only record."""
        (record,) = self.records()
        return record

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the trail's lock, as another process would: nothing can be committed."""
        lock = FileLock(self.provider.directory / "lock")
        lock.acquire(5)
        try:
            yield
        finally:
            lock.close()
