"""How programs end, and what is on record and signed then."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify
from tests.readers.farend import HttpFarEnd

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
from otel_audit import AuditLogger, configure
configure()
audit = AuditLogger()
audit.audit_event("job", "run")
"""

IN_A_LOOP = """
import asyncio
from otel_audit import AuditLogger, configure
configure()

async def main():
    for _ in range(100):
        AuditLogger().audit_event("job", "run")

asyncio.run(main())
"""

AT_EXIT = (
    """
import atexit
"""
    + SCRIPT
    + """
atexit.register(audit.audit_event, "job", "end")
"""
)

FIRST_AT_EXIT = """
import atexit
from otel_audit import get_audit_logger
audit = get_audit_logger()
atexit.register(lambda: audit.audit_event("job", "end"))
"""

FORKED = (
    SCRIPT
    + """
import os, sys
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    if sys.argv[1] == "emits":
        audit.audit_event("job", "run in the child")
    sys.exit(0)
"""
)

IN_A_PROCESS = """
import asyncio, multiprocessing, sys
from otel_audit import AuditLogger, configure

async def emit():
    for _ in range(50):
        AuditLogger().audit_event("job", "run")  # nobody awaits it

def work():
    asyncio.run(emit())

if __name__ == "__main__":
    configure()
    AuditLogger().audit_event("job", "start")
    processes = [multiprocessing.get_context(sys.argv[1]).Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(process.exitcode for process in processes))
"""

FAILED = SCRIPT + "raise SystemExit(3)\n"

NO_THREADS = """
import os, threading
from otel_audit import AuditLogger, configure
configure()
AuditLogger().audit_event("job", "run")
threading.stack_size(1 << 46)
child = os.fork()
if not child:
    receipt = AuditLogger().audit_event("job", "run in the child")
    os._exit(0 if receipt else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(program: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments],
        env={**os.environ, "LOG_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("program", "argument", "code", "size"),
    [
        (SCRIPT, "", 0, 1),
        (IN_A_LOOP, "", 0, 100),
        (AT_EXIT, "", 0, 2),
        (FORKED, "", 0, 1),
        (FORKED, "emits", 0, 2),
        (FAILED, "", 3, 1),
    ],
)
def test_a_program_that_ends_leaves_a_signed_trail_and_a_whole_mirror(
    tmp_path: Path, program: str, argument: str, code: int, size: int
) -> None:
    result = run(program, tmp_path, argument)
    assert (result.returncode, result.stderr) == (code, "")
    with TrailReader(tmp_path / "trail") as reader:
        report = verify(reader)
        assert report.ok, report.findings
        assert (report.size, report.covered) == (size, size)
    assert (tmp_path / "audit.log").read_bytes().count(b"\n") == size


def test_a_program_that_ends_at_once_has_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpFarEnd() as far_end:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT", far_end.url)
        result = run(SCRIPT, tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(far_end.records) == 1


def test_a_child_that_can_start_no_thread_audits_without_an_agent(tmp_path: Path) -> None:
    result = run(NO_THREADS, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the agent cannot run in process" in result.stderr
    with TrailReader(tmp_path / "trail") as reader:
        assert reader.tree().size == 2


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_ends_with_everything_on_record(
    tmp_path: Path, start: str
) -> None:
    """Such a process, when it was forked, runs no atexit."""
    program = tmp_path / "program.py"
    program.write_text(IN_A_PROCESS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(program), start],
        env={**os.environ, "LOG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with TrailReader(tmp_path / "trail") as reader:
        assert reader.tree().size == 101
        assert verify(reader).covered == 101


def test_the_first_record_of_a_process_may_be_its_last_word(tmp_path: Path) -> None:
    """At the interpreter's end OpenTelemetry's detectors of resources get no threads."""
    result = run(FIRST_AT_EXIT, tmp_path, "")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    with TrailReader(tmp_path / "trail") as reader:
        assert reader.tree().size == 1
