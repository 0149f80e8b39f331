"""The shipper: sends a trail's records and checkpoints to one destination.

`Shipper` promises (MUST): a record counts as delivered only when the far end
said so; the cursor moves only then, and over a refused record only after it is
set aside on the disk; each record is delivered at least once, in the trail's
order as far as nothing is refused. What the far end refuses is looked for by
halving the batch, and only a single record is ever set aside - and not even
that one when the far end refuses an empty request as well, because then the
records are not to blame. Anything else is for whoever calls `step` again:
when, and how loudly, is left to `schedule`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from otel_audit.readers.cursors import Cursor
from otel_audit.readers.shipping.aside import Quarantine
from otel_audit.readers.shipping.otlp.answer import Answer
from otel_audit.readers.shipping.outbound import Item, Outbound
from otel_audit.readers.shipping.standing import cursor_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_audit.readers.cursors import Cursors
    from otel_audit.readers.shipping.otlp.sender import Sender
    from otel_audit.trail.reader import TrailReader

MAX_RECORDS: Final = 1_000
MAX_BYTES: Final = 2 << 20
"""Of one request before compression: gRPC servers take 4 MiB unless told otherwise."""

_MAX_CHECKPOINTS: Final = 100
_LOOK_SECONDS: Final = 2.0
"""Between two looks for what is to be sent again."""

_EMPTY: Final = b""
"""An ExportLogsServiceRequest without records."""
_NOTHING_IN_IT: Final = "422"
"""Loki's answer to an empty request: it understood."""

_logger = logging.getLogger("otel_audit.shipper")


class Progress(NamedTuple):
    """What a step came to: items delivered and set aside, whether more wait, what stopped it."""

    delivered: int = 0
    set_aside: int = 0
    more: bool = False
    trouble: Answer | None = None


class Meter(Protocol):
    """Told about each request."""

    def sent(self, items: Sequence[Item], seconds: float, answer: Answer) -> None:
        """Count one request that took ``seconds``."""
        ...


class _Done(Protocol):
    """Takes note of items that were delivered, or set aside."""

    def __call__(self, items: Sequence[Item], *, delivered: bool) -> None: ...


class _MovedError(Exception):
    """The cursor is not where this shipper left it."""


class Shipper:
    """Sends one trail to one destination, step by step. For one thread at a time."""

    def __init__(
        self,
        destination: str,
        reader: TrailReader,
        cursors: Cursors,
        sender: Sender,
        meter: Meter | None = None,
    ) -> None:
        """Take the trail, the place of the cursor and the way out."""
        self.name = cursor_name(destination)
        self.destination = destination
        self.quarantine = Quarantine(cursors, destination)
        self.waiting = 0
        """Records that are not delivered yet, as of the last step."""
        self.oldest_unix_nano = 0
        """When the first of them was committed; 0 when none waits."""
        self._reader = reader
        self._cursors = cursors
        self._sender = sender
        self._meter = meter
        self._outbound = Outbound(reader)
        self._look_at = 0.0
        self._delivered = 0
        self._set_aside = 0
        self._row: Cursor | None = None

    def step(self) -> Progress:
        """Send what is next, a batch at most. Raises `TrailError`."""
        self._delivered = self._set_aside = 0
        size = self._reader.tree().size
        position = self._place(size)
        records = self._outbound.records(position, size, MAX_RECORDS, MAX_BYTES)
        self._see(size, records[0].unix_nano if records else 0)
        checkpoints: list[Item] = []
        if not records or records[-1].number + 1 == size:
            checkpoints = self._outbound.checkpoints(self._checkpoint, _MAX_CHECKPOINTS)
        try:
            self._pass_gaps(position, size, records)
            trouble = self._deliver([*records, *checkpoints], self._advance) or self._again()
            self._note(trouble)
        except _MovedError:
            # Somebody replays: the next step begins where they say.
            return Progress(self._delivered, self._set_aside, more=True)
        self._see(size, records[-1].unix_nano if records else 0)
        more = self.waiting > 0 or len(checkpoints) == _MAX_CHECKPOINTS or self._look_at == 0
        return Progress(self._delivered, self._set_aside, more, trouble)

    def close(self) -> None:
        """Let go of the connection."""
        self._sender.close()

    @property
    def _position(self) -> int:
        return 0 if self._row is None else self._row.position

    @property
    def _checkpoint(self) -> int:
        """The number of the last checkpoint that was delivered."""
        return 0 if self._row is None else int(self._row.state.get("checkpoint", 0))

    def _see(self, size: int, oldest_unix_nano: int) -> None:
        self.waiting = size - self._position
        self.oldest_unix_nano = oldest_unix_nano if self.waiting else 0

    def _place(self, size: int) -> int:
        """Find where to go on: at the beginning when the cursor is ahead, or of another trail."""
        self._row = row = self._cursors.row(self.name)
        if row is None:
            return 0
        origin = row.state.get("origin", self._reader.origin)
        if origin != self._reader.origin or row.position > size:
            _logger.error(
                "%r was sent %d records of %s, and this trail is %s with %d: all is sent again",
                self.destination,
                row.position,
                origin,
                self._reader.origin,
                size,
            )
            self._store(0, {})
        elif self._checkpoint and not self._reader.checkpoints_after(self._checkpoint - 1, 1):
            # The next ones get the numbers of those that are gone.
            _logger.error(
                "%r was sent checkpoint %d, and this trail has none of that number or after it: "
                "somebody removed them, all that are there are sent again",
                self.destination,
                self._checkpoint,
            )
            self._store(row.position, {"checkpoint": 0})
        return self._position

    def _pass_gaps(self, position: int, size: int, records: Sequence[Item]) -> None:
        """Say which records are not in the trail any more, though they were never sent."""
        expected = position
        for number in (*(item.number for item in records), *(() if records else (size,))):
            if number != expected:
                _logger.error(
                    "records %d to %d were removed from the trail before %r had them",
                    expected,
                    number - 1,
                    self.destination,
                )
            expected = number + 1
        if not records and position < size:
            self._store(size, {"checkpoint": self._checkpoint})

    def _advance(self, items: Sequence[Item], *, delivered: bool) -> None:  # noqa: ARG002 - what is set aside is passed, too
        """Move the cursor over items. Raises `_MovedError` when somebody else moved it."""
        position, checkpoint = self._position, self._checkpoint
        for item in items:
            if item.kind == "record":
                position = item.number + 1
            else:
                checkpoint = item.number
        self._store(position, {"checkpoint": checkpoint})

    def _store(self, position: int, state: dict[str, Any]) -> None:
        state = {"origin": self._reader.origin, **state}
        if not self._cursors.advance(self.name, self._row, position, state):
            raise _MovedError
        self._row = Cursor(position, state, time.time_ns())

    def _note(self, trouble: Answer | None) -> None:
        """Keep what is wrong beside the cursor, for `ship status` and `doctor`."""
        known = self._row.state.get("trouble") if self._row else None
        if (trouble and trouble.reason) == (known and known["reason"]):
            return
        state: dict[str, Any] = {"checkpoint": self._checkpoint}
        if trouble is not None:
            since = known["since_unix_nano"] if known else time.time_ns()
            state["trouble"] = {"reason": trouble.reason, "since_unix_nano": since}
        self._store(self._position, state)

    def _again(self) -> Answer | None:
        """Send what was set aside, or found missing, and is wanted now."""
        if time.monotonic() < self._look_at:
            return None
        wanted = [
            (item.kind, item.number) for item in self.quarantine.items(wanted=True, limit=100)
        ]
        if not wanted:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            return None
        self._look_at = 0.0
        items = self._outbound.again(wanted)
        gone = set(wanted) - {(item.kind, item.number) for item in items}
        if gone:
            _logger.error("%s were removed from the trail before they could be sent again", gone)
            self.quarantine.remove(gone)
        return self._deliver(items, self._settle)

    def _settle(self, items: Sequence[Item], *, delivered: bool) -> None:
        if delivered:
            self.quarantine.remove((item.kind, item.number) for item in items)

    def _deliver(self, items: Sequence[Item], done: _Done) -> Answer | None:
        """Deliver or set aside all items; return what kept the rest from it."""
        if not items:
            return None
        unusable = next((index for index, item in enumerate(items) if item.unusable), None)
        if unusable is not None:
            return self._around(items, unusable, done)
        answer = self._send(items)
        if answer.verdict == "delivered":
            if answer.reason:
                _logger.warning("%r took the records and said: %s", self.destination, answer.reason)
            self._delivered += len(items)
            done(items, delivered=True)
            return None
        if answer.verdict == "later":
            return answer
        if len(items) == 1:
            return self._isolated(items[0], answer, done)
        half = len(items) // 2
        return self._deliver(items[:half], done) or self._deliver(items[half:], done)

    def _around(self, items: Sequence[Item], index: int, done: _Done) -> Answer | None:
        """Deliver what comes before an item that cannot be sent, set that aside, and go on."""
        trouble = self._deliver(items[:index], done)
        if trouble is not None:
            return trouble
        self._put_aside(items[index], items[index].unusable, done)
        return self._deliver(items[index + 1 :], done)

    def _isolated(self, item: Item, refusal: Answer, done: _Done) -> Answer | None:
        """Set aside the one item that is refused, if it is to blame."""
        probe = self._sender.send(_EMPTY)
        if probe.verdict == "refused":
            reason = f"even an empty request is refused, so no record is to blame: {probe.reason}"
            return Answer("later", reason, kind=probe.kind)
        if probe.verdict == "later" and probe.kind != _NOTHING_IN_IT:
            return probe
        self._put_aside(item, refusal.reason, done)
        return None

    def _put_aside(self, item: Item, reason: str, done: _Done) -> None:
        _logger.error(
            "%s %d is set aside, %r does not take it: %s. The trail keeps it; when the cause is "
            "gone, send it again by `otel-audit ship requeue`",
            item.kind,
            item.number,
            self.destination,
            reason,
        )
        self.quarantine.add([(item.kind, item.number)], reason)
        done([item], delivered=False)
        self._set_aside += 1

    def _send(self, items: Sequence[Item]) -> Answer:
        began = time.monotonic()
        answer = self._sender.send(self._outbound.request(items))
        if self._meter is not None:
            self._meter.sent(items, time.monotonic() - began, answer)
        return answer
