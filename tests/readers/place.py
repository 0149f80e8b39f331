"""A trail of real records, a far end, and shippers between them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from otel_audit.destinations import Destination
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.otlp.sender import sender
from otel_audit.readers.shipping.shipper import Shipper
from otel_audit.readers.shipping.standing import cursor_name
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail
from tests.readers.farend import HttpFarEnd

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path


MOMENT = f"{datetime.now(timezone.utc) - timedelta(minutes=1):%Y-%m-%dT%H:%M:%S}"
"""When all of it happened; recently, so that reconciliation need not look through a year."""


def record(number: int, **fields: Any) -> bytes:
    said = {
        "schema": "otel-audit/1",
        "timestamp": f"{MOMENT}.{number:09d}Z",
        "level": "info",
        "event": "document.read",
        "record_id": f"{number:08x}-0000-4000-8000-000000000000",
        "service_name": "shop",
        "resource": "ab",
        "n": number,
        **fields,
    }
    return json.dumps(said, separators=(",", ":")).encode()


class Place:
    """A trail, a far end, and what is between them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.trail = Trail.open(directory)
        stack.callback(self.trail.close)
        self.far_end = stack.enter_context(HttpFarEnd())
        self.cursors = Cursors(directory)
        stack.callback(self.cursors.close)
        self._stack = stack

    def append(self, *records: bytes) -> None:
        resources = {"ab": b'{"service.name":"shop","host.name":"a"}'}
        self.trail.store.append(records, resources)

    def fill(self, count: int) -> list[bytes]:
        first = self.trail.reader.tree().size
        records = [record(number) for number in range(first, first + count)]
        self.append(*records)
        return records

    def shipper(self, name: str = "otlp", **options: Any) -> Shipper:
        options = {"endpoint": f"{self.far_end.url}/v1/logs", "timeout": 5.0, **options}
        out = sender(Destination(name, variable="X", **options))
        shipper = Shipper(name, TrailReader(self.directory), self.cursors, out)
        self._stack.callback(shipper.close)
        return shipper

    def position(self, name: str = "otlp") -> int:
        return self.cursors.get(cursor_name(name))
