"""FastAPI under uvicorn, bare and with one durable record a request.

    python -m benchmarks.web [--rounds 9] [--quick] [--slower MICROSECONDS]

How the servers are asked stands in `benchmarks/servers.py`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import slower_disk
from benchmarks.rounds import ratio
from benchmarks.servers import (
    CONNECTIONS,
    Ask,
    Server,
    compare_servers,
    ratio_of_costs,
    show_costs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def serve(
    kind: str,
    directory: Path,
    *,
    workers: int = 1,
    mirror: bool = False,
    launcher: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Serve one of the applications of `benchmarks/web_app.py`, with a trail in ``directory``."""
    return Server(
        "benchmarks.web_app:app",
        Ask("POST", "/users/u-4711", 200),
        workers=workers,
        launcher=launcher,
        environment={
            "BENCH_AUDIT": kind,
            "LOG_DIR": str(directory / f"{kind}-{workers}-{mirror}"),
            "AUDIT_LOG_LOCAL_FILE": str(mirror).lower(),
            **(environment or {}),
        },
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="half a second a measurement")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--slower", type=int, default=0, help="microseconds more for each sync")
    options = parser.parse_args()
    disk = slower_disk.environment(options.slower)
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-bench-", dir=options.dir or Path.cwd()))
    try:
        _measure(directory, options.rounds, 0.5 if options.quick else 2.0, disk)
    finally:
        shutil.rmtree(directory)


def _measure(directory: Path, rounds: int, seconds: float, disk: Mapping[str, str]) -> None:
    for workers, goal in ((1, "at least 0.70, aim 0.85"), (2, "at least 0.60")):
        servers = {
            name: serve(kind, directory, workers=workers, mirror=mirror, environment=disk)
            for name, kind, mirror in (
                ("bare FastAPI", "", False),
                ("one durable record", "record", False),
                ("... and the mirror", "record", True),
                ("... and http.request activity", "activity", False),
            )
        }
        slower = disk.get("SLOWER_MICROSECONDS", "0")
        print(
            f"{workers} worker(s), {CONNECTIONS} connections, each sync {slower} us slower, "
            "answers a second"
        )
        figures = compare_servers(servers, rounds=rounds, seconds=seconds)
        bare, *others = servers
        for name in others:
            wanted = goal if name == "one durable record" else "none"
            ratio(f"{name} / bare", figures[name], figures[bare], wanted)
        show_costs(servers)
        for name in others:
            ratio_of_costs(f"  bare / {name}", servers[bare], servers[name], "none")


if __name__ == "__main__":
    main()
