"""What a thread that keeps the query index costs emits, at 1,000 a second.

    python -m benchmarks.index_thread [--rounds 9] [--quick] [--dir DIRECTORY]

Two trails, one with the thread and one without, take turns of two seconds in one process, each
first in half of the rounds: fifty tasks of an event loop emit to it. A turn ends when the thread
has indexed what it can, so that nothing of its work falls into another one's turn. Elapsed time is
what a caller notices, and mostly the disk's; processor time is what the code costs, and hardly
depends on who else uses the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rounds import ratio
from benchmarks.sample import FIELDS
from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.readers.index.segments import SMALL
from otel_audit.readers.index.view import IndexView
from otel_audit.readers.index.writer import following

if TYPE_CHECKING:
    from otel_audit.readers.beside import Beside

A_SECOND = 1_000
TASKS = 50


class Turn(NamedTuple):
    """What emitting for a while took: microseconds an emit, and of the index thread a record."""

    call: float
    durable: float
    slowest: float
    processor: float
    indexing: float


class Trail:
    """A trail that is emitted to, with or without an index thread beside."""

    def __init__(self, directory: Path, stack: ExitStack, *, beside: bool) -> None:
        settings = Settings.from_env(
            {"OTEL_AUDIT_DIR": str(directory), "OTEL_AUDIT_INDEX": "off"}, service_name="bench"
        )
        self._provider = AuditProvider(settings)
        stack.callback(self._provider.close)
        self._audit = AuditLogger(provider=self._provider)
        self._reader = self._provider.reader()
        stack.callback(self._reader.close)
        self._view = IndexView(directory, self._reader.origin)
        stack.callback(self._view.close)
        self._thread: Beside | None = None
        if beside:
            self._thread = following(directory, self._provider.reader)
            self._thread.start()
            stack.callback(self._thread.stop)

    def turn(self, seconds: float) -> Turn:
        """Emit at a steady pace, then wait until all is indexed that can be."""
        calls: list[float] = []
        waits: list[float] = []
        indexed, indexing, spent = self._indexed(), self._indexing(), time.process_time()
        asyncio.run(self._emit(seconds, calls, waits))
        self.settle()
        indexing = self._indexing() - indexing
        spent = time.process_time() - spent - indexing
        indexed = self._indexed() - indexed
        waits.sort()
        return Turn(
            statistics.fmean(calls) * 1e6,
            statistics.median(waits) * 1e6,
            waits[int(len(waits) * 0.99)] * 1e6,
            spent / len(waits) * 1e6,
            indexing / indexed * 1e6 if indexed else 0.0,
        )

    async def _emit(self, seconds: float, calls: list[float], waits: list[float]) -> None:
        began = time.perf_counter()

        async def one(first: int) -> None:
            for number in range(first, int(seconds * A_SECOND), TASKS):
                await asyncio.sleep(began + number / A_SECOND - time.perf_counter())
                before = time.perf_counter()
                pending = self._audit.audit_event(
                    "user_update", "update", "user", f"u-{number}", **FIELDS
                )
                calls.append(time.perf_counter() - before)
                await pending
                waits.append(time.perf_counter() - before)

        await asyncio.gather(*(one(first) for first in range(TASKS)))

    def settle(self) -> None:
        """Wait until the index thread has nothing more to do."""
        while self._thread is not None and self._reader.tree().size - self._indexed() >= SMALL:
            time.sleep(0.02)

    def _indexed(self) -> int:
        with self._view.use() as lookup:
            return 0 if lookup is None else lookup.position

    def _indexing(self) -> float:
        """Return the processor time of the index thread until now."""
        thread = None if self._thread is None else self._thread._thread  # noqa: SLF001 - of no use to anybody else
        if thread is None or thread.ident is None:
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def measure(place: Path, rounds: int, seconds: float) -> None:
    """Print what the thread costs."""
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    with ExitStack() as stack:
        trails = {
            beside: Trail(place / ("with" if beside else "without"), stack, beside=beside)
            for beside in (False, True)
        }
        for trail in trails.values():  # what is slow once is slow now
            trail.turn(2 * SMALL / A_SECOND)
        for number in range(rounds):
            for beside in (bool(number % 2), not number % 2):
                turns[beside].append(trails[beside].turn(seconds))
    without, with_it = turns[False], turns[True]
    for name, what in (
        ("call", "until emit returns"),
        ("durable", "until durable, median"),
        ("slowest", "until durable, p99"),
        ("processor", "processor time of all but the index"),
    ):
        on, off = ([getattr(turn, name) for turn in each] for each in (with_it, without))
        label = f"{what}: {statistics.median(off):,.0f} us, with it {statistics.median(on):,.0f}"
        ratio(label, on, off, "1.10")
    indexing = statistics.median(turn.indexing for turn in with_it if turn.indexing)
    print(
        f"  the index thread: {indexing:.1f} us of processor time a record, "
        f"{indexing * A_SECOND / 1e4:.1f} % of one processor at {A_SECOND:,} a second"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    try:
        measure(place, 2 if options.quick else options.rounds, 2.0)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
