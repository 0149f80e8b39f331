"""Measuring does not hang a forked child (tests/coverage_forks.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Without the plugin every child hangs: one of the three has the lock at nearly every moment.
FORKS = """
import os, signal, threading
from otel_audit.record.encode import timestamp_of

def busy():
    while not stop.is_set():
        timestamp_of(1)

stop = threading.Event()
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        timestamp_of(2)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_measured_child_does_not_wait_for_its_parents_threads(tmp_path: Path) -> None:
    program = tmp_path / "forks.py"
    program.write_text(FORKS, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    environment["COVERAGE_FILE"] = str(tmp_path / "data")
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [*command, str(program)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.split() == ["7"] * 20, done.stderr
    assert len(list(tmp_path.glob("data.*"))) > 20  # the children's measurements, and the parent's
