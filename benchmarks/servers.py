"""Servers that benchmarks start, ask from a process of their own, and compare.

64 connections, one request at a time on each; all servers run through the whole
benchmark and are asked in turn. Beside the answers a second stands what an
answer costs the server's processes in processor time, which tells more where
others use the machine too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

from benchmarks.rounds import compare, ratio
from collector.stack.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECTIONS = 64


class Ask(NamedTuple):
    """What is asked for; with a ``status``, any other one ends the benchmark."""

    method: str
    path: str
    status: int = 0


class Connection(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again, until it is told to stop."""

    def __init__(self, port: int, ask: Ask) -> None:
        self.times: list[float] = []
        self.failed = 0
        self.running = True
        self._asked = 0.0
        self._request = (
            f"{ask.method} {ask.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "User-Agent: benchmark/1\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        self._begins = f"HTTP/1.1 {ask.status or ''}".encode(), b"{"
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Note the time of an answer that is complete; the body is the end of its segment."""
        if not data.endswith(b"}"):
            return
        self.times.append(time.perf_counter() - self._asked)
        self.failed += not data.startswith(self._begins)
        if self.running:
            self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def ask_for(port: int, seconds: float, ask: Ask) -> tuple[float, float]:
    """Return answers a second, and the 99th percentile of the latency in milliseconds."""
    loop = asyncio.get_running_loop()
    connections = [Connection(port, ask) for _ in range(CONNECTIONS)]
    transports = [
        (await loop.create_connection(lambda c=one: c, "127.0.0.1", port))[0]  # type: ignore[misc] # mypy knows no default in a lambda
        for one in connections
    ]
    await asyncio.sleep(seconds)
    times = [took for one in connections for took in one.times]
    for one in connections:
        one.running = False
    await asyncio.sleep(0.05)
    for transport in transports:
        transport.close()
    assert not any(one.failed for one in connections)
    return len(times) / seconds, statistics.quantiles(times, n=100)[98] * 1_000


class Server:
    """One uvicorn, and what its rounds took: ``microseconds`` of processor time, ``latencies``."""

    def __init__(
        self,
        application: str,
        ask: Ask,
        *,
        environment: Mapping[str, str],
        workers: int = 1,
        launcher: str | None = None,
        quiet: bool = False,
    ) -> None:
        """Start it, under a launcher if there is one, with more of an environment."""
        self.port = free_port()
        self.microseconds: list[float] = []
        self.latencies: list[float] = []
        self._ask = ask
        environ = {name: value for name, value in os.environ.items() if "OTEL" not in name}
        self._process = subprocess.Popen(
            [
                *([launcher] if launcher else []), sys.executable, "-m", "uvicorn", application,
                "--host", "127.0.0.1", "--port", str(self.port), "--workers", str(workers),
                "--log-level", "error", "--no-access-log",
            ],
            env={**environ, **environment},
            stderr=subprocess.DEVNULL if quiet else None,
        )  # fmt: skip
        wait_for(self.port)

    def rate(self, seconds: float) -> float:
        """Return answered requests a second, asked by a process of its own."""
        before = self._processor_seconds()
        asked = [str(self.port), str(seconds), *map(str, self._ask)]
        command = [sys.executable, "-m", "benchmarks.servers", *asked]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rate, latency = map(float, output.split())
        spent = self._processor_seconds() - before
        self.microseconds.append(spent / (rate * seconds) * 1e6)
        self.latencies.append(latency)
        return rate

    def forget(self) -> None:
        """Begin anew, after what is slow once."""
        self.microseconds.clear()
        self.latencies.clear()

    def stop(self) -> None:
        """End the server as an operator does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def _processor_seconds(self) -> float:
        """Return the processor time of the server and its workers until now (proc(5))."""
        server = psutil.Process(self._process.pid)
        return sum(
            times.user + times.system
            for times in (one.cpu_times() for one in [server, *server.children(recursive=True)])
        )


def compare_servers(
    servers: Mapping[str, Server], *, rounds: int, seconds: float, settle: float = 0.0
) -> dict[str, list[float]]:
    """Ask each server once a round; return the answers a second, and end the servers.

    ``settle`` is how long they are left alone after the first requests.
    """
    try:
        for server in servers.values():
            server.rate(0.5)
            server.forget()
        time.sleep(settle)
        return compare(
            {name: lambda s=server: s.rate(seconds) for name, server in servers.items()},  # type: ignore[misc] # mypy knows no default in a lambda
            rounds=rounds,
        )
    finally:
        for server in servers.values():
            server.stop()


def show_costs(servers: Mapping[str, Server]) -> None:
    """Print what an answer of each server costs in processor time."""
    print("  processor time of an answer")
    for name, server in servers.items():
        print(f"    {name:<42} median {statistics.median(server.microseconds):.0f} us")


def ratio_of_costs(label: str, above: Server, below: Server, goal: str) -> None:
    """Print how the processor times of two servers' answers compare."""
    ratio(label, above.microseconds, below.microseconds, goal)


def wait_for(port: int) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    message = f"the server on port {port} did not start"
    raise RuntimeError(message)


if __name__ == "__main__":
    _port, _seconds, _method, _path, _status = sys.argv[1:]
    _asked = Ask(_method, _path, int(_status))
    print(*asyncio.run(ask_for(int(_port), float(_seconds), _asked)))
