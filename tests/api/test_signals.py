"""What a signal handler does in the middle of a commit of its own thread: never waits for itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = """
import faulthandler, os, random, signal, sys, time
from otel_audit import AuditLogger, AuditUnavailableError, TrailError, configure
faulthandler.dump_traceback_later(50, exit=True)
provider = configure()
audit = AuditLogger()
receipts, handled, refused, others = 0, 0, 0, 0

def again():
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.005))

def during(handler, work, enough):
    def handle(*_):
        handler()
        again()
    signal.signal(signal.SIGALRM, handle)
    again()
    until = time.monotonic() + 20
    while not enough() and time.monotonic() < until:
        work()
    signal.setitimer(signal.ITIMER_REAL, 0)

def emit():
    global receipts
    receipts += bool(audit.audit_event("job", "run"))
"""

END = """
assert provider.flush(20)
print(receipts, handled, refused)
"""

CLOSES = """
def stop(*_):
    began = time.monotonic()
    provider.close()
    assert time.monotonic() - began < 9, "it waited for itself"
    print(receipts, 0, 0, flush=True)
    sys.exit(3)

signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, random.uniform(0.2, 0.3))
while True:
    try:
        emit()
    except AuditUnavailableError as error:
        # What is tried after close() is refused; SystemExit is not.
        assert "closed" in str(error), error
"""

FLUSHES = """
def flush():
    global handled
    began = time.monotonic()
    provider.flush(20)
    assert time.monotonic() - began < 19, "it waited for itself"
    handled += 1

during(flush, emit, lambda: handled >= 100)
"""

EMITS = """
def emit_in_handler():
    global handled
    emit()
    handled += 1

during(emit_in_handler, provider.checkpoint, lambda: handled >= 100)
"""

SIGNS = """
def sign():
    global handled, refused
    try:
        provider.checkpoint()
        handled += 1
    except TrailError as error:
        assert "signal handler" in str(error), error
        refused += 1

during(sign, provider.checkpoint, lambda: refused >= 50)
during(sign, emit, lambda: handled >= 20)
assert refused >= 50
"""

FORKS = """
def fork():
    global handled
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    handled += 1

during(fork, emit, lambda: handled >= 100)
"""

EMITS_IN_A_FORK = """
import threading
ends = threading.Event()

def keep_the_trail_busy():
    while not ends.is_set():
        audit.audit_event("job", "other")

def emit_in_handler():
    global handled
    began = time.monotonic()
    emit()
    assert time.monotonic() - began < 9, "it waited for the fork that it has interrupted"
    handled += 1

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

other = threading.Thread(target=keep_the_trail_busy)
other.start()
during(emit_in_handler, fork, lambda: handled >= 200)
ends.set()
other.join()
"""


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (CLOSES, 3),
        (FLUSHES + END, 0),
        (EMITS + END, 0),
        (SIGNS + END, 0),
        pytest.param(
            FORKS + END, 0, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
        ),
        pytest.param(
            EMITS_IN_A_FORK + END,
            0,
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
        ),
    ],
    ids=["closes", "flushes", "emits", "signs", "forks", "emits-in-a-fork"],
)
def test_a_signal_handler(tmp_path: Path, program: str, code: int) -> None:
    # Not measured (`measures_programs`): what a handler raises may strike while coverage has its
    # lock, for ever.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEGIN + program],
        env={**os.environ, "LOG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    receipts = int(done.stdout.split()[0])
    with TrailReader(tmp_path / "trail") as reader:
        assert reader.tree().size >= receipts
        report = verify(reader)
        assert report.ok
        assert report.covered == reader.tree().size
