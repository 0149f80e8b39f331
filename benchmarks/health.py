"""Health: requests a second, latency, the cost of reading and of a thousand components.

    python -m benchmarks.health [--rounds 9] [--quick]

The servers run through the whole benchmark and are asked in turn: 64
connections, one request at a time on each. The client has a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import timeit

import psutil

from benchmarks.rounds import compare, ratio
from otel_audit import HealthChecker

CONNECTIONS = 64
KINDS = ("bare", "healthy", "hanging")


class Connection(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again, until it is told to stop."""

    def __init__(self, port: int) -> None:
        self.times: list[float] = []
        self.running = True
        self._asked = 0.0
        self._request = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Note the time; the body is the end of its segment."""
        if not data.endswith(b"}"):
            return
        self.times.append(time.perf_counter() - self._asked)
        if self.running:
            self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def ask(port: int, seconds: float) -> tuple[float, float]:
    """Return answers a second, and the 99th percentile of the latency in milliseconds."""
    loop = asyncio.get_running_loop()
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    transports = [
        (await loop.create_connection(lambda c=one: c, "127.0.0.1", port))[0]  # type: ignore[misc] # mypy knows no default in a lambda
        for one in connections
    ]
    await asyncio.sleep(seconds)
    times = [seconds for one in connections for seconds in one.times]
    for one in connections:
        one.running = False
    await asyncio.sleep(0.05)
    for transport in transports:
        transport.close()
    return len(times) / seconds, statistics.quantiles(times, n=100)[98] * 1_000


class Server:
    """One uvicorn with one of the applications; keeps the latencies of its rounds."""

    def __init__(self, kind: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.latencies: list[float] = []
        self.microseconds: list[float] = []
        """Processor time of an answer, which tells more where others use the machine too."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", "benchmarks.health_app:app",
                "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "critical",
                "--no-access-log",
            ],
            env=os.environ | {"BENCH_HEALTH": kind},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._wait()

    def rate(self, seconds: float) -> float:
        """Answered requests a second, asked by a process of its own."""
        before = self._processor_seconds()
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.health", "--ask", str(self.port), str(seconds)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        rate, latency = map(float, output.split())
        self.latencies.append(latency)
        spent = self._processor_seconds() - before
        self.microseconds.append(spent / (rate * seconds) * 1e6)
        return rate

    def stop(self) -> None:
        """End the server as an operator does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def _processor_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        message = f"the server on port {self.port} did not start"
        raise RuntimeError(message)


def requests(rounds: int, seconds: float) -> None:
    """Compare the three applications."""
    servers = {kind: Server(kind) for kind in KINDS}
    print(f"GET /health, {CONNECTIONS} connections, answers a second")
    try:
        for server in servers.values():
            server.rate(0.5)
            server.latencies.clear()
            server.microseconds.clear()
        # Long enough for what hangs to be known for unhealthy.
        time.sleep(4)
        figures = compare(
            {kind: lambda s=server: s.rate(seconds) for kind, server in servers.items()},  # type: ignore[misc] # mypy knows no default in a lambda
            rounds=rounds,
        )
    finally:
        for server in servers.values():
            server.stop()
    ratio("20 components / FastAPI JSONResponse", figures["healthy"], figures["bare"], "3")
    ratio("all 20 hang / all answer", figures["hanging"], figures["healthy"], "1")
    print("  processor time of an answer")
    cost = {kind: server.microseconds for kind, server in servers.items()}
    for kind, spent in cost.items():
        print(f"    {kind:<42} median {statistics.median(spent):.0f} µs")
    ratio("  FastAPI JSONResponse / 20 components", cost["bare"], cost["healthy"], "3")
    ratio("  all answer / all 20 hang", cost["healthy"], cost["hanging"], "1")
    for kind, server in servers.items():
        worst = max(server.latencies)
        middle = statistics.median(server.latencies)
        print(f"  p99 of {kind:<36} {middle:.1f} ms, at worst {worst:.1f} (goal 10)")


def reading() -> None:
    """Measure what it costs to read the status, of a checker of 1,000 components."""
    checker = HealthChecker(watch_trail=False)
    for number in range(1_000):
        checker.register(f"component-{number}", lambda: None)
    checker.start()
    while not checker.started:
        time.sleep(0.01)
    for name in ("get_quick_status", "get_http_status_code"):
        read = getattr(checker, name)
        best = min(timeit.repeat(read, number=20_000, repeat=7)) / 20_000
        print(f"  {name:<44} {best * 1e6:.2f} µs (goal 2)")
    checker.stop()


def thousand(seconds: float) -> None:
    """Measure what a process spends that does nothing but check 1,000 components each 5 s."""

    async def coroutine() -> None:
        pass

    for kind, probe in (("coroutines", coroutine), ("plain functions", lambda: None)):
        checker = HealthChecker(watch_trail=False)
        for number in range(1_000):
            checker.register(f"component-{number}", probe)
        checker.start()
        # Past the burst of the start, and the spreading out that follows it.
        time.sleep(8)
        before, checks = time.process_time(), sum(state.checks for state in checker.states)
        time.sleep(seconds)
        spent = (time.process_time() - before) / seconds
        checks = sum(state.checks for state in checker.states) - checks
        checker.stop()
        print(
            f"  1,000 {kind:<38} {spent:.2%} of a core (goal 1 %), {checks / seconds:.0f} checks/s"
        )


def main() -> None:
    """Measure and print, or be the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="half a second a measurement")
    parser.add_argument("--ask", nargs=2, metavar=("PORT", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(*asyncio.run(ask(int(options.ask[0]), float(options.ask[1]))))
        return
    requests(options.rounds, 0.5 if options.quick else 2.0)
    print("in process")
    reading()
    thousand(5.0 if options.quick else 20.0)


if __name__ == "__main__":
    main()
