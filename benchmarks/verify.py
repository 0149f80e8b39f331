"""Verification, opening, and memory on a trail of a million records.

    python -m benchmarks.verify [--rounds 3] [--quick]

Opening is compared with opening an empty trail in the same run; verification
in one process with verification in two.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.rounds import compare, ratio
from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

_BATCH = 2_000


def fill(directory: Path, count: int) -> None:
    """Emit ``count`` records from coroutines, and print how memory went."""
    settings = Settings.from_env({"OTEL_AUDIT_DIR": str(directory)}, mirror=False)
    provider = AuditProvider(settings)
    logger = AuditLogger(provider=provider)
    print(f"filling: {count:,} emits")
    started = time.perf_counter()
    after_tenth = 0.0
    for first in range(0, count, _BATCH):
        _emit_batch(logger, first, min(_BATCH, count - first))
        if first <= count // 10 < first + _BATCH:
            after_tenth = _resident()
    rate = count / (time.perf_counter() - started)
    print(f"  {rate:,.0f} a second")
    print(
        f"  resident memory after a tenth {after_tenth:.1f} MiB, after all {_resident():.1f} MiB "
        f"(peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f})"
    )
    provider.close()


def _emit_batch(logger: AuditLogger, first: int, count: int) -> None:
    import asyncio  # noqa: PLC0415 - only this part of the benchmark has a loop

    async def run() -> None:
        receipts = [
            logger.audit_event(
                "user_update", "update", "user", f"u-{number}", "success",
                method="PATCH", route="/users/{id}", reason="requested by the customer",
                ticket="SUP-20391", attempt=1, duration_ms=12.75, notified=True,
            )
            for number in range(first, first + count)
        ]  # fmt: skip
        await receipts[-1]

    asyncio.run(run())


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def open_milliseconds(directory: Path) -> float:
    """Open a trail for writing as a service does at its start."""
    started = time.perf_counter()
    trail = Trail.open(directory)
    spent = (time.perf_counter() - started) * 1e3
    trail.close()
    return spent


def verify_rate(directory: Path, processes: int) -> float:
    """Verify everything; records a second."""
    with TrailReader(directory) as reader:
        started = time.perf_counter()
        report = verify(reader, processes=processes)
        spent = time.perf_counter() - started
    assert report.ok, report.findings
    return report.size / spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the records")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    full, empty = directory / "full", directory / "empty"
    try:
        fill(full, 50_000 if options.quick else 1_000_000)
        Trail.open(empty).close()
        print("open, ms")
        opened = compare(
            {
                "trail with all records": lambda: open_milliseconds(full),
                "empty trail": lambda: open_milliseconds(empty),
            },
            rounds=options.rounds * 5,
            show="{:.2f}",
        )
        more = [one - other for one, other in zip(*opened.values(), strict=True)]
        print(f"  {'difference':<44} {sorted(more)[len(more) // 2]:.2f} ms (goal within 20 ms)")
        print("verify, records a second")
        one, two = compare(
            {
                "one process": lambda: verify_rate(full, 1),
                "two processes": lambda: verify_rate(full, 2),
            },
            rounds=options.rounds,
        ).values()
        ratio("two processes / one", two, one, "at least 1.5")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
