"""Shipping a trail, beside OpenTelemetry's stock log pipeline, to the same far end.

    python -m benchmarks.shipping [--rounds 5] [--quick] [--endpoint URL --header NAME=VALUE]
    python -m benchmarks.shipping --backlog 1000000
    python -m benchmarks.shipping --application

Without ``--endpoint`` the far end is a small server of this file, in a process
of its own, that reads each request and answers it; with it, for example the
Collector of `make stack`. The stock pipeline is BatchLogRecordProcessor with
OTLPLogExporter: it gets the same bodies and attributes, ready made.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from benchmarks.rounds import compare, ratio
from benchmarks.sample import FIELDS
from benchmarks.servers import compare_servers, ratio_of_costs, wait_for
from benchmarks.web import serve
from collector.stack.servers import free_port
from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.destinations import Destination
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.otlp.encode import Encoder
from otel_audit.readers.shipping.otlp.sender import gzipped, sender
from otel_audit.readers.shipping.shipper import Shipper
from otel_audit.record.semconv import OtelLogRecord, to_log_record
from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sink(BaseHTTPRequestHandler):
    """Reads and answers; keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take one request."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Keep quiet."""


@contextmanager
def far_end() -> Iterator[str]:
    """Run a sink as a process of its own."""
    port = free_port()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.shipping", "--sink", str(port)])
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def fill(directory: Path, count: int) -> None:
    """Write a trail of records like those of benchmarks/web.py."""
    settings = Settings.from_env(
        {"OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "bench", "OTEL_AUDIT_AGENT": "off"}
    )
    provider = AuditProvider(settings)
    audit = AuditLogger(provider=provider)
    pending: list[Any] = []

    async def emit() -> None:
        for number in range(count):
            pending.append(
                audit.audit_event("user_update", "update", "user", f"u-{number}", **FIELDS)
            )
            if len(pending) == 2_000:
                for each in pending:
                    await each
                pending.clear()
        for each in pending:
            await each

    asyncio.run(emit())
    provider.close()


def mapped(directory: Path) -> list[OtelLogRecord]:
    """Map the whole trail."""
    with TrailReader(directory) as reader:
        return [
            to_log_record(
                leaf.record,
                sequence_number=leaf.sequence,
                stream_id=reader.origin,
                leaf_hash=leaf.hash,
                committed_unix_nano=leaf.committed_unix_nano,
                resource={"service.name": "bench"},
            )
            for leaf in reader.leaves()
        ]


class Ours:
    """The shipper, without pauses."""

    def __init__(
        self, directory: Path, endpoint: str, headers: tuple[tuple[str, str], ...]
    ) -> None:
        self._directory = directory
        self._destination = Destination("bench", f"{endpoint}/v1/logs", "X", headers=headers)

    def __call__(self) -> float:
        """Ship the whole trail; return records a second."""
        cursors = Cursors(self._directory)
        cursors.remove("ship:bench")
        with TrailReader(self._directory) as reader:
            shipper = Shipper("bench", reader, cursors, sender(self._destination))
            count, began = 0, time.perf_counter()
            more = True
            while more:
                progress = shipper.step()
                assert progress.trouble is None, progress.trouble
                count += progress.delivered
                more = progress.more
            seconds = time.perf_counter() - began
            shipper.close()
        cursors.close()
        return count / seconds


class Stock:
    """The stock pipeline, with a queue that is long enough to drop nothing."""

    def __init__(
        self,
        records: list[OtelLogRecord],
        endpoint: str,
        headers: tuple[tuple[str, str], ...],
        compression: Compression,
    ) -> None:
        self._records = records
        self._endpoint = endpoint
        self._headers = dict(headers)
        self._compression = compression

    def __call__(self) -> float:
        """Emit and export all records; return records a second."""
        exporter = OTLPLogExporter(
            f"{self._endpoint}/v1/logs", headers=self._headers, compression=self._compression
        )
        provider = LoggerProvider(Resource({"service.name": "bench"}))
        size = len(self._records)
        provider.add_log_record_processor(
            BatchLogRecordProcessor(exporter, max_queue_size=2 * size, schedule_delay_millis=100)
        )
        logger = provider.get_logger("otel_audit")
        made = [
            LogRecord(
                timestamp=each.timestamp,
                observed_timestamp=each.observed_timestamp,
                severity_text=each.severity_text,
                severity_number=SeverityNumber(each.severity_number),
                body=each.body,
                attributes=dict(each.attributes),
                event_name=each.event_name,
            )
            for each in self._records
        ]
        began = time.perf_counter()
        for each in made:
            logger.emit(each)
        provider.force_flush(600_000)
        seconds = time.perf_counter() - began
        provider.shutdown()
        return size / seconds


def throughput(
    directory: Path, options: argparse.Namespace, headers: tuple[tuple[str, str], ...]
) -> None:
    """Compare both, and print what one record costs in each part of ours."""
    count = 5_000 if options.quick else 20_000
    fill(directory, count)
    records = mapped(directory)
    with far_end() as sink:
        endpoint = options.endpoint or sink
        figures = compare(
            {
                "otel-audit's shipper (gzip)": Ours(directory, endpoint, headers),
                "stock pipeline, gzip": Stock(records, endpoint, headers, Compression.Gzip),
                "stock pipeline, no compression": Stock(
                    records, endpoint, headers, Compression.NoCompression
                ),
            },
            rounds=options.rounds,
        )
    ours, stock, plain = figures.values()
    ratio("shipper / stock, both with gzip", ours, stock, "at least 1.5, aim 3")
    ratio("shipper with gzip / stock without", ours, plain, "none")
    _parts(directory, records)


def _parts(directory: Path, records: list[OtelLogRecord]) -> None:
    encoder = Encoder()
    began = time.process_time()
    mapped(directory)
    mapping = time.process_time()
    request = encoder.request(
        (encoder.resource(each.resource), encoder.record(each)) for each in records
    )
    encoding = time.process_time()
    gzipped(request)
    packing = time.process_time()
    for name, seconds in (
        ("read and map", mapping - began),
        ("encode", encoding - mapping),
        ("gzip (without the GIL)", packing - encoding),
    ):
        print(f"  {name:<44} {seconds / len(records) * 1e6:.1f} µs a record")


def backlog(directory: Path, count: int) -> None:
    """Drain a long trail, and show that memory stays where it is."""
    began = time.perf_counter()
    fill(directory, count)
    print(f"  {count:,} records written in {time.perf_counter() - began:.0f} s")
    with far_end() as sink, TrailReader(directory) as reader:
        cursors = Cursors(directory)
        out = sender(Destination("bench", f"{sink}/v1/logs", "X"))
        shipper = Shipper("bench", reader, cursors, out)
        delivered, began, early = 0, time.perf_counter(), 0.0
        while True:
            progress = shipper.step()
            assert progress.trouble is None, progress.trouble
            delivered += progress.delivered
            if not early and delivered >= count // 10:
                early = _resident()
            if not progress.more:
                break
        seconds = time.perf_counter() - began
        print(f"  drained in {seconds:.0f} s: {delivered / seconds:,.0f} a second")
        print(f"  memory after a tenth {early:.0f} MiB, after all {_resident():.0f} MiB")
        print(f"  most of this process, writing included: {_most():.0f} MiB")
        cursors.close()


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _most() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def application(directory: Path, rounds: int, seconds: float) -> None:
    """Ask an application for all that it can, with shipping on and off."""
    with far_end() as sink:
        servers = {
            name: serve(
                "record",
                directory / name.replace(" ", "-"),
                environment={"OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": endpoint},
            )
            for name, endpoint in (("one durable record", ""), ("... shipped by a thread", sink))
        }
        off, on = compare_servers(servers, rounds=rounds, seconds=seconds).values()
    ratio("shipping on / off", on, off, "at least 0.90")
    without, shipping = servers.values()
    ratio_of_costs("... in processor time", without, shipping, "at least 0.90")


def main() -> None:
    """Measure and print, or be the sink."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer records")
    parser.add_argument("--endpoint", help="an OTLP/HTTP endpoint instead of the sink")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--backlog", type=int, metavar="RECORDS", help="drain a long trail")
    parser.add_argument("--application", action="store_true", help="what it costs an application")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--sink", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink:
        ThreadingHTTPServer(("127.0.0.1", options.sink), Sink).serve_forever()
        return
    logging.disable(logging.WARNING)
    headers = tuple(tuple(each.split("=", 1)) for each in options.header)
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    try:
        if options.backlog:
            backlog(directory / "trail", options.backlog)
        elif options.application:
            application(directory, options.rounds, 0.5 if options.quick else 2.0)
        else:
            throughput(directory / "trail", options, headers)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
