"""When to ship: one thread a destination, patience where the far end has trouble.

`Shipping` promises: each destination goes on by itself, whatever the others
do; it tries for ever, with pauses that grow to a minute, differ from process
to process, and are as long as the far end asked for; the first failure is
logged at once, then one line a minute; beside an application it takes a tenth
of one processor, and half of one while that rests. What is sent, and what counts as delivered, is the shipper's
business.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from otel_audit.readers.cursors import Cursors
from otel_audit.readers.failures import Failures
from otel_audit.readers.pace import Pace, Share
from otel_audit.readers.shipping import instruments
from otel_audit.readers.shipping.otlp.sender import sender
from otel_audit.readers.shipping.shipper import Shipper
from otel_audit.readers.shipping.standing import cursor_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from otel_audit.destinations import Destination
    from otel_audit.trail.reader import TrailReader

_TICK: Final = 0.2
_POLL_SECONDS: Final = 0.01
SHARE: Final = Share(0.1, least=0.1)
"""Of one processor's time: what a destination takes at most beside an application that works."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_COUNT_SECONDS: Final = 5.0

_logger = logging.getLogger("otel_audit.shipper")


class Backoff:
    """Pauses that double from half a second to a minute, each cut by a random half at most."""

    def __init__(self, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> None:
        """Begin with no failure."""
        self._first = first
        self._longest = longest
        self._failures = 0

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0

    def failed(self, asked: float = 0.0) -> float:
        """Return how many seconds to wait now; at least what was ``asked`` for."""
        pause: float = min(self._longest, self._first * 2 ** min(self._failures, 32))
        self._failures += 1
        return max(asked, pause * random.uniform(0.5, 1))  # noqa: S311 - spreads load, keeps no secret


class Shipping:
    """All destinations of one trail, served while this process leads."""

    def __init__(
        self,
        directory: Path,
        destinations: Iterable[Destination],
        reader_factory: Callable[[], TrailReader],
        *,
        share: Share | None = None,
    ) -> None:
        """Remember where to and from; nothing is opened and nothing runs yet.

        ``share`` is what each destination may take of a processor to catch up, if not its own.
        """
        self._make = partial(_Worker, directory, reader_factory, share or SHARE)
        self._destinations = tuple(destinations)
        self._workers: list[_Worker] = []

    @property
    def follows(self) -> list[str]:
        """The cursors of the destinations."""
        return [cursor_name(destination.name) for destination in self._destinations]

    def start(self) -> None:
        """Begin to ship; harmless when it runs."""
        for destination in self._destinations[len(self._workers) :]:
            worker = self._make(destination)
            worker.start()
            self._workers.append(worker)

    def drain(self, timeout: float) -> None:
        """Ship what is committed now, if the far ends take it, for at most ``timeout`` seconds."""
        asked = time.monotonic()
        workers = self._workers
        for worker in workers:
            worker.hurry()
        while time.monotonic() < asked + timeout:
            if all(worker.done_since >= asked for worker in workers):
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, timeout: float) -> None:
        """Ship what is left if the far ends take it, for at most ``timeout`` seconds, and end."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_end()
        deadline = time.monotonic() + timeout
        for worker in workers:
            worker.end(deadline)

    def forget(self) -> None:
        """Leave the threads to the parent: in a forked child."""
        for worker in self._workers:
            worker.forget()
        self._workers = []


class _Worker:
    """One destination's thread."""

    def __init__(
        self,
        directory: Path,
        reader_factory: Callable[[], TrailReader],
        share: Share,
        destination: Destination,
    ) -> None:
        self._destination = destination
        self._directory = directory
        self._reader_factory = reader_factory
        self._pace = Pace(share)
        self._wake = threading.Event()
        self._ending = False
        self._abandoned = False
        self.done_since = 0.0
        """When the last step began (monotonic clock) that left nothing to do, or could do nothing."""
        self._backoff = Backoff()
        self._not_before = 0.0
        """When the far end may be asked again, as it said itself (monotonic clock)."""
        self._failures = Failures(f"shipping to {destination.name!r}", _logger)
        self._shipper: Shipper | None = None
        self._set_aside = 0
        self._counted_at = 0.0
        self._thread = threading.Thread(
            target=self._run, name=f"otel-audit-ship-{destination.name}", daemon=True
        )
        instruments.watch(self)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Make a step now."""
        self._wake.set()

    def ask_to_end(self) -> None:
        self._ending = True
        self._wake.set()

    def end(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        # Whatever it still sends, it cannot count: the next shipper of this destination does.
        self._abandoned = True

    def forget(self) -> None:
        """Report nothing any more."""
        self._shipper = None

    def observe(self) -> Iterator[tuple[str, float, Mapping[str, str]]]:
        """Tell how far behind the destination is."""
        shipper = self._shipper
        if shipper is None:
            return
        attributes = {instruments.DESTINATION: self._destination.name}
        oldest = shipper.oldest_unix_nano
        yield "audit.queue.depth", shipper.waiting, attributes
        yield "otel_audit.queue.age", instruments.age(oldest) if oldest else 0.0, attributes
        yield "otel_audit.quarantine.size", self._set_aside, attributes

    def _run(self) -> None:
        while not self._abandoned:
            # Only a step that began after it was asked for is the last one: another one may have
            # looked before the last records were there.
            ending, began = self._ending, time.monotonic()
            pause, done = self._turn()
            if done:
                self.done_since = began
                if ending:
                    break
            self._wake.wait(pause)
            if not self._ending:
                self._wake.clear()
        self._close()

    def _turn(self) -> tuple[float, bool]:
        """Make a step; return the pause after it, and whether it was the last for now."""
        asked_for = self._not_before - time.monotonic()
        if asked_for > 0:  # whoever woke us: the far end comes first
            return asked_for, True
        self._pace.begin()
        try:
            shipper = self._shipper or self._open()
            progress = shipper.step()
            self._count(shipper, at_once=progress.set_aside > 0)
        except Exception as error:  # noqa: BLE001 - whatever fails, it is tried again
            self._close()
            return self._failed(error), True
        if progress.trouble is not None:
            self._not_before = time.monotonic() + progress.trouble.wait
            reason = f"{progress.trouble.reason}; the records stay in the trail"
            return self._failed(reason, progress.trouble.wait), True
        self._backoff.succeeded()
        self._failures.end()
        if not progress.more:
            return _TICK, True
        return self._pace.due(), False

    def _failed(self, reason: Exception | str, asked: float = 0.0) -> float:
        pause = self._backoff.failed(asked)
        self._failures.add(reason, pause)
        return pause

    def _count(self, shipper: Shipper, *, at_once: bool) -> None:
        if at_once or time.monotonic() >= self._counted_at + _COUNT_SECONDS:
            self._set_aside = shipper.quarantine.count()
            self._counted_at = time.monotonic()

    def _open(self) -> Shipper:
        self._shipper = Shipper(
            self._destination.name,
            self._reader_factory(),
            Cursors(self._directory),
            sender(self._destination),
            instruments.ExportMeter(self._destination.name),
        )
        return self._shipper

    def _close(self) -> None:
        shipper, self._shipper = self._shipper, None
        if shipper is not None:
            shipper.close()
