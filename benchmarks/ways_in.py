"""What the ways in cost: spans, structlog, an application under the launcher, and the import.

    python -m benchmarks.ways_in [--rounds 9] [--quick]

Everything that emits does so in an event loop, where nobody waits for the disk; the queue is
emptied between the measurements. See `benchmarks/rounds.py` for how to read the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanKind

from benchmarks.rounds import compare, ratio
from benchmarks.servers import compare_servers, ratio_of_costs
from benchmarks.web import serve
from otel_audit import AuditLogger, AuditProcessor, AuditProvider, Settings
from otel_audit.api.policy_file import rule_set, rule_set_names
from otel_audit.instrumentation.spans import RuleProcessor
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, WrappedLogger

REPEATS = 500
STATEMENT = "UPDATE users SET email = ? WHERE id = ?"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="half a second a measurement")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=Path.cwd()))
    try:
        asyncio.run(_emitting(directory, options.rounds))
        _launched(directory, options.rounds, 0.5 if options.quick else 2.0)
        _importing(options.rounds)
    finally:
        shutil.rmtree(directory)


async def _emitting(directory: Path, rounds: int) -> None:
    settings = Settings.from_env({}, directory=directory / "emit", agent="off", service_name="b")
    provider = AuditProvider(settings)
    audit = AuditLogger(provider=provider)
    rules = tuple(
        rule for name in rule_set_names() for rule in rule_set(name, "benchmark").policy.spans
    )
    processor = RuleProcessor(rules, audit)
    matching = _span("opentelemetry.instrumentation.psycopg", SpanKind.CLIENT, STATEMENT)
    reading = _span("opentelemetry.instrumentation.psycopg", SpanKind.CLIENT, "SELECT * FROM t")
    foreign = _span("opentelemetry.instrumentation.fastapi", SpanKind.SERVER, "")
    event = _database_write()
    in_the_span = trace.set_span_in_context(trace.NonRecordingSpan(matching.context))
    structlog.configure(processors=[AuditProcessor(audit=audit)], cache_logger_on_first_use=False)
    log = structlog.get_logger("audit")
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    fields = {
        "action": "UPDATE",
        "resource_type": "table",
        "resource_name": "users",
        **event.fields,
    }

    def through_structlog() -> None:
        log.info("database_write", **fields)

    def alone() -> None:
        structlog.configure(processors=[_drop])
        _repeat(through_structlog)

    def ours() -> None:
        structlog.configure(processors=[AuditProcessor(audit=audit)])
        _repeat(through_structlog)

    def timed(work: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            # The calling thread's own: the writer's thread has a processor of its own.
            began = time.thread_time()
            work()
            took = time.thread_time() - began
            assert provider.flush(30)
            return took / REPEATS * 1e6

        return measure

    print("µs of processor time a call, in an event loop")
    figures = compare(
        {
            "emit, of one event again and again": timed(lambda: _repeat(lambda: audit.emit(event))),
            "emit, of a new event": timed(lambda: _repeat(lambda: audit.emit(_database_write()))),
            "emit, of a new event, in a span": timed(
                lambda: _repeat(lambda: audit.emit(_database_write(), in_the_span))
            ),
            "a span that no rule can match": timed(lambda: _repeat(lambda: processor.on_end(foreign))),
            "a SELECT, with all shipped rules": timed(lambda: _repeat(lambda: processor.on_end(reading))),
            "a span that matches": timed(lambda: _repeat(lambda: processor.on_end(matching))),
            "structlog alone": timed(alone),
            "structlog with AuditProcessor": timed(ours),
        },
        rounds=rounds,
        show="{:,.2f}",
    )  # fmt: skip
    span = figures["a span that matches"]
    ratio(
        "a span that matches / its record emitted directly",
        span,
        figures["emit, of a new event, in a span"],
        "under 1.5",
    )
    ratio(
        "a span that matches / emit, of one event again and again",
        span,
        figures["emit, of one event again and again"],
        "under 1.5",
    )
    for emit in ("emit, of a new event", "emit, of one event again and again"):
        alone_too = zip(figures[emit], figures["structlog alone"], strict=True)
        ratio(
            f"structlog / structlog alone plus {emit}",
            figures["structlog with AuditProcessor"],
            [one + other for one, other in alone_too],
            "under 1.2",
        )
    provider.close()


def _database_write() -> AuditEvent:
    """Say directly what the shipped rule makes of the span that matches."""
    return AuditEvent(
        "database_write",
        "UPDATE",
        resource_type="table",
        resource_name="users",
        fields={
            "database_system": "postgresql",
            "database": "shop",
            "statement": STATEMENT,
            "duration_ms": 1.25,
        },
    )


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(REPEATS):
        call()


def _drop(_logger: WrappedLogger, _method: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


def _span(scope: str, kind: SpanKind, statement: str) -> ReadableSpan:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer(scope)
    attributes = {"db.system": "postgresql", "db.statement": statement, "db.name": "shop"}
    span = tracer.start_span("UPDATE", kind=kind, attributes=attributes if statement else None)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def _launched(directory: Path, rounds: int, seconds: float) -> None:
    launcher = str(Path(sys.executable).parent / "opentelemetry-instrument")
    telemetry = {
        "OTEL_PYTHON_DISTRO": "otel_audit",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "PYTHONPATH": os.fspath(Path.cwd()),
    }
    servers = {
        "auto-instrumented, audit disabled": serve(
            "",
            directory / "off",
            launcher=launcher,
            environment={"OTEL_AUDIT_DISABLED": "true", **telemetry},
        ),
        "auto-instrumented and audited": serve(
            "", directory / "on", launcher=launcher, environment=telemetry
        ),
    }
    print("FastAPI under opentelemetry-instrument, answers a second")
    without, audited = compare_servers(servers, rounds=rounds, seconds=seconds).values()
    ratio("audited / not audited", audited, without, "at least 0.9")
    off, on = servers.values()
    ratio_of_costs("the same in processor time an answer", off, on, "at least 0.9")


def _importing(rounds: int) -> None:
    sdk = "import opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.sdk._logs"
    ours = "import otel_audit; otel_audit.get_audit_logger, otel_audit.instrument_app"
    print("importing, ms of processor time (a new process each time)")
    figures = compare(
        {
            "OpenTelemetry's SDK": lambda: _took(sdk),
            "... and otel_audit": lambda: _took(f"{sdk}; import otel_audit"),
            "... and all that an application uses": lambda: _took(f"{sdk}; {ours}"),
        },
        rounds=rounds,
        show="{:,.1f}",
    )
    first, *more = figures.items()
    for name, values in more:
        extra = sorted(one - other for one, other in zip(values, first[1], strict=True))
        print(f"  {name:<44} {extra[len(extra) // 2]:.1f} ms more (goal: under 60)")


def _took(statement: str) -> float:
    """Return how many milliseconds of processor time a statement takes in a new interpreter, without its start."""
    code = f"import time; t = time.process_time()\n{statement}\nprint(time.process_time() - t)"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True)) * 1e3


if __name__ == "__main__":
    main()
