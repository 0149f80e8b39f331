"""Run all benchmarks, one after the other: ``python -m benchmarks [--rounds N] [--quick]``."""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    "record_stages", "emit", "web", "ways_in", "verify", "query", "index_thread", "health", "shipping",
)  # fmt: skip


def main() -> None:
    """Give each part a process of its own, so that none runs in another one's heap."""
    for part in PARTS:
        print(f"\n== {part}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{part}"]
        arguments = [] if part == "record_stages" else sys.argv[1:]
        subprocess.run([*command, *arguments], check=True)


if __name__ == "__main__":
    main()
