"""Health: requests a second, latency, the cost of reading and of a thousand components.

    python -m benchmarks.health [--rounds 9] [--quick]

How the servers are asked stands in `benchmarks/servers.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit

from benchmarks.rounds import ratio
from benchmarks.servers import (
    CONNECTIONS,
    Ask,
    Server,
    compare_servers,
    ratio_of_costs,
    show_costs,
)
from otel_audit import HealthChecker

KINDS = ("bare", "healthy", "hanging")


def requests(rounds: int, seconds: float) -> None:
    """Compare the three applications."""
    servers = {
        kind: Server(
            "benchmarks.health_app:app",
            Ask("GET", "/health"),
            environment={"BENCH_HEALTH": kind},
            quiet=True,
        )
        for kind in KINDS
    }
    print(f"GET /health, {CONNECTIONS} connections, answers a second")
    # Long enough for what hangs to be known for unhealthy.
    figures = compare_servers(servers, rounds=rounds, seconds=seconds, settle=4.0)
    ratio("20 components / FastAPI JSONResponse", figures["healthy"], figures["bare"], "3")
    ratio("all 20 hang / all answer", figures["hanging"], figures["healthy"], "1")
    show_costs(servers)
    bare, healthy, hanging = servers.values()
    ratio_of_costs("  FastAPI JSONResponse / 20 components", bare, healthy, "3")
    ratio_of_costs("  all answer / all 20 hang", healthy, hanging, "1")
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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="half a second a measurement")
    options = parser.parse_args()
    requests(options.rounds, 0.5 if options.quick else 2.0)
    print("in process")
    reading()
    thousand(5.0 if options.quick else 20.0)


if __name__ == "__main__":
    main()
