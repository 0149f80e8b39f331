"""From the trail to what goes out: records and checkpoints, encoded, in order.

`Outbound` promises that each item's body is exactly what the trail has, that
one item always becomes the same bytes, so that a far end can tell that it has
it already, and that a batch never holds more than a few megabytes.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from otel_audit.readers.shipping.otlp.encode import Encoder
from otel_audit.record.semconv import OtelLogRecord, to_log_record
from otel_audit.trail.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from otel_audit.readers.shipping.aside import Kind
    from otel_audit.trail.reader import Leaf, StoredCheckpoint, TrailReader

CHECKPOINT_EVENT: Final = "audit.checkpoint"

_RETENTION: Final = "3y"
"""A checkpoint is worth as long as any record that it covers."""

_RESOURCES: Final = 64
_INFO: Final = 9


class Item(NamedTuple):
    """A record or checkpoint, ready to go: an encoded Resource and LogRecord.

    ``unix_nano`` is when it was committed, or signed; ``trace`` the record's
    trace, span and flags. ``unusable`` says why it could not be encoded; then
    it cannot go anywhere.
    """

    kind: Kind
    number: int
    resource: bytes
    record: bytes
    unix_nano: int = 0
    trace: tuple[bytes, bytes, int] = (b"", b"", 0)
    unusable: str = ""


class Outbound:
    """Prepares what a trail sends. For one thread."""

    def __init__(self, reader: TrailReader) -> None:
        """Take the trail."""
        self._reader = reader
        self._encoder = Encoder()
        self._resources: OrderedDict[str, Mapping[str, Any] | None] = OrderedDict()

    def records(self, start: int, stop: int, max_items: int, max_bytes: int) -> list[Item]:
        """Return the first items of a range of sequence numbers, at least one if there is any."""
        items: list[Item] = []
        size = 0
        for leaf in self._reader.leaves(start, min(stop, start + max_items)):
            item = self.record(leaf)
            if items and size + len(item.record) > max_bytes:
                break
            items.append(item)
            size += len(item.record)
        return items

    def record(self, leaf: Leaf) -> Item:
        """Prepare one record."""
        try:
            mapped = to_log_record(
                leaf.record,
                sequence_number=leaf.sequence,
                stream_id=self._reader.origin,
                leaf_hash=leaf.hash,
                committed_unix_nano=leaf.committed_unix_nano,
                resource=self._resource,
            )
            return Item(
                "record",
                leaf.sequence,
                self._encoder.resource(mapped.resource),
                self._encoder.record(mapped),
                leaf.committed_unix_nano,
                (mapped.trace_id, mapped.span_id, mapped.trace_flags),
            )
        except Exception as error:  # noqa: BLE001 - a changed row may hold anything; the others go on
            why = f"it cannot be mapped to a log record ({type(error).__name__}: {error})"
            return Item("record", leaf.sequence, b"", b"", unusable=why)

    def checkpoints(self, after: int, limit: int) -> list[Item]:
        """Return the checkpoints that were stored after the one of this number."""
        return [
            self.checkpoint(number, stored)
            for number, stored in self._reader.checkpoints_after(after, limit)
        ]

    def checkpoint(self, number: int, stored: StoredCheckpoint) -> Item:
        """Prepare one checkpoint; its Resource is that of the last record that it covers."""
        try:
            mapped = self._checkpoint_record(stored)
        except Exception as error:  # noqa: BLE001 - as above
            why = f"it is no checkpoint ({type(error).__name__}: {error})"
            return Item("checkpoint", number, b"", b"", unusable=why)
        resource = self._encoder.resource(mapped.resource)
        return Item("checkpoint", number, resource, self._encoder.record(mapped))

    def request(self, items: Iterable[Item]) -> bytes:
        """Write the request that carries these items."""
        return self._encoder.request((item.resource, item.record) for item in items)

    def again(self, wanted: Sequence[tuple[Kind, int]]) -> list[Item]:
        """Prepare items by their numbers; those that are not there any more are left out."""
        items = []
        for kind, number in wanted:
            if kind == "record":
                leaf = self._reader.leaf(number)
                if leaf is not None:
                    items.append(self.record(leaf))
            else:
                items += [
                    self.checkpoint(found, stored)
                    for found, stored in self._reader.checkpoints_after(number - 1, 1)
                    if found == number
                ]
        return items

    def _checkpoint_record(self, stored: StoredCheckpoint) -> OtelLogRecord:
        origin, root = self._reader.origin, read_checkpoint(stored.note).root.hex()
        return OtelLogRecord(
            timestamp=stored.unix_nano,
            observed_timestamp=stored.unix_nano,
            severity_number=_INFO,
            severity_text="info",
            event_name=CHECKPOINT_EVENT,
            body=checkpoint_body(origin, stored),
            attributes={
                "event.name": CHECKPOINT_EVENT,
                "audit.event.type": CHECKPOINT_EVENT,
                "audit.retention": _RETENTION,
                "audit.sequence.stream_id": origin,
                "otel_audit.checkpoint.size": stored.size,
                "otel_audit.checkpoint.root": root,
            },
            dropped_attributes_count=0,
            trace_id=b"",
            span_id=b"",
            trace_flags=0,
            resource=self._resource_at(stored.size - 1),
        )

    def _resource_at(self, sequence: int) -> Mapping[str, Any]:
        leaf = self._reader.leaf(sequence) if sequence >= 0 else None
        if leaf is None:
            return _NOBODY
        said = orjson.loads(leaf.record)
        known = self._resource(str(said.get("resource", "")))
        return known or {"service.name": str(said.get("service_name", "unknown_service"))}

    def _resource(self, resource_hash: str) -> Mapping[str, Any] | None:
        if resource_hash in self._resources:
            return self._resources[resource_hash]
        json = self._reader.resource(resource_hash)
        found = None if json is None else orjson.loads(json)
        if len(self._resources) >= _RESOURCES:
            self._resources.popitem(last=False)
        self._resources[resource_hash] = found
        return found


_NOBODY: Final[Mapping[str, Any]] = {"service.name": "unknown_service"}


def checkpoint_body(origin: str, stored: StoredCheckpoint) -> str:
    """Write a checkpoint as a line of JSON in the keys of records; ``note`` is the evidence."""
    seconds, nano = divmod(stored.unix_nano, 1_000_000_000)
    when = datetime.fromtimestamp(seconds, timezone.utc)
    body = {
        "schema": "otel-audit/1",
        "timestamp": f"{when:%Y-%m-%dT%H:%M:%S}.{nano:09d}Z",
        "level": "info",
        "event": CHECKPOINT_EVENT,
        "event_type": CHECKPOINT_EVENT,
        "origin": origin,
        "size": stored.size,
        "root": read_checkpoint(stored.note).root.hex(),
        "note": stored.note,
        "retention": _RETENTION,
    }
    return orjson.dumps(body).decode()
