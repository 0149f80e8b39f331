"""FastAPI under uvicorn, bare and with one durable record a request.

    python -m benchmarks.web [--rounds 9] [--quick]

All servers run through the whole benchmark and are asked in turn: 64
connections, one request at a time on each. The client has a process of its own.
Beside the answers a second stands what an answer costs the server's processes
in processor time, which tells more where others use the machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.rounds import compare, ratio

CONNECTIONS = 64


class Connection(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again, until it is told to stop."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failed = 0
        self.running = True
        self._request = (
            f"POST /users/u-4711 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "User-Agent: benchmark/1\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count an answer that is complete; the body is the end of its segment."""
        assert self._transport is not None
        if not data.endswith(b"}"):
            return
        if data.startswith((b"HTTP/1.1 200", b"{")):
            self.answered += 1
        else:
            self.failed += 1
        if self.running:
            self._transport.write(self._request)


async def ask(port: int, seconds: float) -> int:
    """Return how many requests were answered with 200; none may fail."""
    loop = asyncio.get_running_loop()
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    transports = [
        (await loop.create_connection(lambda c=one: c, "127.0.0.1", port))[0]  # type: ignore[misc] # mypy knows no default in a lambda
        for one in connections
    ]
    await asyncio.sleep(seconds)
    for one in connections:
        one.running = False
    answered = sum(one.answered for one in connections)
    await asyncio.sleep(0.05)
    for transport in transports:
        transport.close()
    assert not any(one.failed for one in connections)
    return answered


class Server:
    """One uvicorn with the given number of workers."""

    def __init__(
        self, kind: str, workers: int, directory: Path, *, mirror: bool = False, ship_to: str = ""
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        environ = {name: value for name, value in os.environ.items() if "OTEL" not in name}
        place = directory / f"{kind}-{workers}-{mirror}"
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", "benchmarks.web_app:app", "--host", "127.0.0.1",
                "--port", str(self.port), "--workers", str(workers), "--log-level", "error",
                "--no-access-log",
            ],
            env=environ | {
                "BENCH_AUDIT": kind,
                "LOG_DIR": str(place),
                "AUDIT_LOG_LOCAL_FILE": str(mirror).lower(),
                "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": ship_to,
            },
        )  # fmt: skip
        self._wait()
        self.microseconds: list[float] = []

    def rate(self, seconds: float) -> float:
        """Answered requests a second, asked by a process of its own.

        Adds to ``microseconds`` what an answer cost in processor time.
        """
        before = self._processor_seconds()
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.web", "--ask", str(self.port), str(seconds)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        rate = float(output)
        spent = self._processor_seconds() - before
        self.microseconds.append(spent / (rate * seconds) * 1e6)
        return rate

    def stop(self) -> None:
        """End the server as an operator does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def _processor_seconds(self) -> float:
        """Processor time of the server and its workers until now (proc(5))."""
        server = psutil.Process(self._process.pid)
        return sum(
            times.user + times.system
            for times in (one.cpu_times() for one in [server, *server.children(recursive=True)])
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        message = f"the server on port {self.port} did not start"
        raise RuntimeError(message)


def main() -> None:
    """Measure and print, or be the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="half a second a measurement")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--ask", nargs=2, metavar=("PORT", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        port, seconds = int(options.ask[0]), float(options.ask[1])
        print(asyncio.run(ask(port, seconds)) / seconds)
        return
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    try:
        _measure(directory, options.rounds, 0.5 if options.quick else 2.0)
    finally:
        shutil.rmtree(directory)


def _measure(directory: Path, rounds: int, seconds: float) -> None:
    for workers, goal in ((1, "at least 0.70, aim 0.85"), (2, "at least 0.60")):
        servers = {
            "bare FastAPI": Server("", workers, directory),
            "one durable record": Server("record", workers, directory),
            "... and the mirror": Server("record", workers, directory, mirror=True),
            "... and http.request activity": Server("activity", workers, directory),
        }
        print(f"{workers} worker(s), {CONNECTIONS} connections, answers a second")
        try:
            for server in servers.values():
                server.rate(0.5)
                server.microseconds.clear()
            figures = compare(
                {name: lambda s=server: s.rate(seconds) for name, server in servers.items()},  # type: ignore[misc] # mypy knows no default in a lambda
                rounds=rounds,
            )
        finally:
            for server in servers.values():
                server.stop()
        bare = figures["bare FastAPI"]
        for name in list(figures)[1:]:
            wanted = goal if name == "one durable record" else "none"
            ratio(f"{name} / bare", figures[name], bare, wanted)
        print("  processor time an answer, us")
        bare_cost = servers["bare FastAPI"].microseconds
        for name, server in servers.items():
            print(f"    {name:<42} median {statistics.median(server.microseconds):.0f}")
            if server is not servers["bare FastAPI"]:
                ratio(f"  bare / {name}", bare_cost, server.microseconds, "none")


if __name__ == "__main__":
    main()
