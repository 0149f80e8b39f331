"""What one record costs the caller: non-blocking, durable, from threads and from tasks.

    python -m benchmarks.emit [--rounds 9] [--quick] [--slower MICROSECONDS]

A record has about 20 keys, eight of them the caller's, with redaction on, in a
request and a span. Everything runs in one process and one run; see
`benchmarks/rounds.py` for how to read the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.trace import TracerProvider

from benchmarks import sample, slower_disk
from benchmarks.rounds import compare, ratio
from otel_audit import AuditEvent, AuditLogger, AuditProvider, Settings
from otel_audit.api.context import RequestScope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord

# Eight of the caller's, in all.
FIELDS: dict[str, Any] = {"route": "/users/{id}", **sample.FIELDS}


class NoExporter(LogRecordExporter):
    """An exporter that does nothing: what is left is the pipeline."""

    def export(
        self,
        batch: Sequence[ReadableLogRecord],  # noqa: ARG002 - the interface has it
    ) -> LogRecordExportResult:
        """Take the batch and do nothing."""
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the interface has it
        """Have nothing to flush."""
        return True

    def shutdown(self) -> None:
        """Have nothing to end."""


class Contenders:
    """The loops that are measured; each returns microseconds a record, or records a second."""

    def __init__(self, directory: Path, scale: float, scope: RequestScope) -> None:
        self.scale = scale
        self.scope = scope
        self.directory = directory
        settings = Settings.from_env({"LOG_DIR": str(directory)}, mirror=False, agent="off")
        self.provider = AuditProvider(settings)
        self.logger = AuditLogger(provider=self.provider)
        otel = LoggerProvider(shutdown_on_exit=False)
        otel.add_log_record_processor(BatchLogRecordProcessor(NoExporter(), max_queue_size=1 << 20))
        self.otel_provider = otel
        self.otel = otel.get_logger("benchmark")
        self.raw = self.directory / "raw.log"
        self.line = self._stored_line()

    def close(self) -> None:
        """End what runs in the background."""
        self.otel_provider.shutdown()
        self.provider.close()

    def emit(self) -> Any:  # noqa: ANN401 - a receipt of either kind
        """Say one thing, as OpenTelemetry's loggers are told."""
        return self.logger.emit(
            AuditEvent(
                "user_update",
                "update",
                status="success",
                level="info",
                resource_type="user",
                resource_name="u-4711",
                fields={**FIELDS},
            )
        )

    def audit_event(self) -> Any:  # noqa: ANN401 - a receipt of either kind
        """Say the same by keywords, which Python sorts at each call."""
        return self.logger.audit_event(
            "user_update", "update", "user", "u-4711", "success", severity="info", **FIELDS
        )

    def non_blocking(self, say: Callable[[], Any]) -> float:
        """Microseconds that a coroutine spends on saying one thing."""
        count = self._count(2_000)

        async def run() -> float:
            gc.collect()
            started = time.perf_counter()
            for _ in range(count):
                say()
            spent = time.perf_counter() - started
            await self.scope.barrier()
            return spent / count * 1e6

        return asyncio.run(run())

    def otel_batch(self) -> float:
        """Microseconds for one emit of OTel's batch processor with the same facts."""
        count = self._count(2_000)
        gc.collect()
        started = time.perf_counter()
        for _ in range(count):
            self.otel.emit(
                LogRecord(
                    timestamp=time.time_ns(),
                    severity_number=SeverityNumber.INFO,
                    severity_text="info",
                    event_name="user_update",
                    body="user_update",
                    attributes={
                        "audit.action": "UPDATE",
                        "audit.status": "success",
                        "audit.outcome": "success",
                        "audit.target.type": "user",
                        "audit.target.id": "u-4711",
                        "audit.actor.id": "anonymous",
                        "audit.actor.type": "user",
                        "client.address": "192.0.2.7",
                        "user_agent.original": "benchmark/1",
                        "audit.source.request_id": "r-1",
                        **FIELDS,
                    },
                )
            )
        spent = time.perf_counter() - started
        self.otel_provider.force_flush()
        return spent / count * 1e6

    def one_thread(self) -> float:
        """Durable records a second from one thread."""
        count = self._count(1_500)
        started = time.perf_counter()
        for _ in range(count):
            self.emit()
        return self._rate(count, started)

    def raw_file(self) -> float:
        """Append the same line to a plain file, each with fdatasync; appends a second."""
        count = self._count(1_500)
        descriptor = os.open(self.raw, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        started = time.perf_counter()
        for _ in range(count):
            os.write(descriptor, self.line)
            os.fdatasync(descriptor)
        rate = self._rate(count, started)
        os.close(descriptor)
        return rate

    def threads(self, number: int = 32) -> float:
        """Durable records a second from threads that each wait for their own receipt."""
        count = self._count(300)

        def work() -> None:
            for _ in range(count):
                self.emit()

        workers = [threading.Thread(target=work) for _ in range(number)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return self._rate(count * number, started)

    def tasks(self, number: int) -> float:
        """Durable records a second from tasks that each await their own receipt."""
        count = self._count(1_000 if number == 1 else 150)

        async def work() -> None:
            for turn in range(count):
                await self.emit()
                if turn % 10 == 0:
                    # A request ends now and then, and with it what it waits for.
                    self.scope.pending.clear()

        async def run() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(number)))
            rate = self._rate(count * number, started)
            await self.scope.barrier()
            return rate

        return asyncio.run(run())

    def empty_log(self) -> float:
        """Do between the rounds what the agent does beside them."""
        self.provider.trail.store.wal.empty()
        return 0.0

    def _count(self, count: int) -> int:
        return max(1, int(count * self.scale))

    def _rate(self, count: int, started: float) -> float:
        return count / (time.perf_counter() - started)

    def _stored_line(self) -> bytes:
        self.emit()
        with self.provider.reader() as reader:
            leaf = reader.leaf(0)
        assert leaf is not None
        return leaf.record + b"\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--slower", type=int, default=0, help="microseconds more for each sync")
    options = parser.parse_args()
    if options.slower and "SLOWER_MICROSECONDS" not in os.environ:
        command = [sys.executable, "-m", "benchmarks.emit", *sys.argv[1:]]
        environ = {**os.environ, **slower_disk.environment(options.slower)}
        raise SystemExit(subprocess.run(command, env=environ, check=False).returncode)
    trace.set_tracer_provider(TracerProvider())
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    scope = RequestScope("r-1", client_ip="192.0.2.7", user_agent="benchmark/1")
    contenders = Contenders(directory, 0.1 if options.quick else 1.0, scope)
    token = scope.attach()
    try:
        with trace.get_tracer("benchmark").start_as_current_span("request"):
            _measure(contenders, options.rounds)
    finally:
        scope.detach(token)
        contenders.close()
        shutil.rmtree(directory)


def _measure(contenders: Contenders, rounds: int) -> None:
    slower = os.environ.get("SLOWER_MICROSECONDS", "0")
    print(
        f"emit: {len(contenders.line)} bytes a record, {rounds} interleaved rounds, "
        f"each sync {slower} us slower"
    )
    figures = compare(
        {
            "non-blocking emit (us)": lambda: contenders.non_blocking(contenders.emit),
            "... by audit_event() (us)": lambda: contenders.non_blocking(contenders.audit_event),
            "OTel BatchLogRecordProcessor, no-op (us)": contenders.otel_batch,
        },
        rounds=rounds,
        show="{:.1f}",
    )
    ours, by_keywords, otel = figures.values()
    ratio("emit / OTel batch", ours, otel, "below 0.50")
    ratio("audit_event() / OTel batch", by_keywords, otel, "below 0.50")
    figures = compare(
        {
            "write + fdatasync, one thread (1/s)": contenders.raw_file,
            "durable, one thread (1/s)": contenders.one_thread,
            "durable, 32 threads (1/s)": contenders.threads,
            "durable, 1 task (1/s)": lambda: contenders.tasks(1),
            "durable, 128 tasks (1/s)": lambda: contenders.tasks(128),
            "(log emptied)": contenders.empty_log,
        },
        rounds=rounds,
    )
    raw, one, threads, task, tasks, _ = figures.values()
    ratio("one thread / raw file", one, raw, "at least 0.65")
    ratio("32 threads / one thread", threads, one, "at least 5")
    ratio("128 tasks / one task", tasks, task, "at least 20")


if __name__ == "__main__":
    main()
