"""The lock file: one holder on the host, whichever way holders end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from otel_audit.errors import TrailError, TrailLockedError
from otel_audit.trail.lock import FairFileLock, FileLock
from tests.small_disk import mounted

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import sys, time
from pathlib import Path
from otel_audit.trail.lock import FairFileLock, FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
print("held", flush=True)
time.sleep(60)
"""

FORKING = HOLDER.replace(
    "time.sleep(60)", "import os\nif child := os.fork(): print(child, flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def holder(path: Path, program: str = HOLDER) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holds_it_at_a_time(path: Path) -> None:
    one, other = FileLock(path), FileLock(path)
    assert one.try_acquire()
    assert not other.try_acquire()
    assert one.try_acquire(), "the holder may ask again"
    one.release()
    assert other.try_acquire()
    assert not one.try_acquire()
    other.close()
    assert one.try_acquire()
    one.close()


def test_the_file_is_private_and_stays(path: Path) -> None:
    lock = FileLock(path)
    assert not path.exists()
    lock.release()
    lock.close()
    assert lock.try_acquire()
    lock.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_time_out_says_who_holds_it(path: Path) -> None:
    with holder(path) as process:
        began = time.monotonic()
        with pytest.raises(TrailLockedError) as caught:
            FileLock(path).acquire(0.2)
        assert time.monotonic() - began >= 0.2
        assert process.poll() is None
        assert f"held for 0.2 s by process {process.pid}; nothing can be committed until" in str(
            caught.value
        )
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, TrailError)
        process.kill()


def test_a_holder_that_nobody_knows_is_another_process(path: Path) -> None:
    assert FileLock(path).holder() == "another process"
    path.touch()
    assert FileLock(path).holder() == "another process"


def test_who_holds_a_file_of_the_same_number_on_another_disk_is_not_blamed(tmp_path: Path) -> None:
    with mounted(tmp_path / "one") as one, mounted(tmp_path / "other") as other:
        ours, theirs = FileLock(one / "lock"), FileLock(other / "lock")
        with holder(theirs.path) as process:
            assert ours.try_acquire()
            assert ours.path.stat().st_ino == theirs.path.stat().st_ino
            assert ours.holder() == f"process {os.getpid()}"
            assert theirs.holder() == f"process {process.pid}"
            process.kill()
        ours.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_dies_lets_go_at_once(path: Path, number: signal.Signals) -> None:
    lock = FileLock(path)
    with holder(path) as process:
        assert not lock.try_acquire()
        process.send_signal(number)
        process.wait()
        assert lock.try_acquire()
    lock.close()


def test_a_stopped_holder_keeps_it(path: Path) -> None:
    with holder(path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TrailLockedError, match=f"by process {process.pid}"):
            FileLock(path).acquire(0.1)
        process.kill()


def test_who_waits_gets_it_soon_after_it_is_free(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    freed: list[float] = []

    def let_go() -> None:
        freed.append(time.monotonic())
        first.release()

    waited: list[float] = []
    for _ in range(5):
        assert first.try_acquire()
        free = threading.Timer(0.2, let_go)
        free.start()
        second.acquire(30.0)
        waited.append(time.monotonic() - freed.pop())
        second.release()
        free.join()
    first.close()
    second.close()
    # A loaded machine lets some of them wait, and not all.
    assert min(waited) < 0.1


def test_a_block_lets_go_also_when_it_raises(path: Path) -> None:
    lock, other = FileLock(path), FileLock(path)

    def block() -> None:
        with lock.held(1.0):
            assert not other.try_acquire()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert other.try_acquire()
    other.close()
    lock.close()


def test_a_child_neither_has_nor_frees_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)
    assert lock.try_acquire()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            lock.release()
            lock.close()
            assert not lock.try_acquire()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert not FileLock(path).try_acquire()
    lock.close()
    assert FileLock(path).try_acquire()


def test_a_parents_end_frees_it_although_its_child_lives(path: Path) -> None:
    """A child inherits the open file description and, unless it is closed, the lock with it."""
    with holder(path, FORKING) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        lock = FileLock(path)
        try:
            lock.acquire(2.0)
        finally:
            os.kill(child, signal.SIGKILL)
        lock.close()


def test_programs_that_are_started_do_not_inherit_it(path: Path) -> None:
    lock = FileLock(path)
    assert lock.try_acquire()
    with subprocess.Popen(["sleep", "60"], close_fds=False) as process:
        lock.close()
        assert FileLock(path).try_acquire()
        process.kill()


BUSY = """
import sys, time
from pathlib import Path
from otel_audit.trail.lock import FairFileLock
lock = FairFileLock(Path(sys.argv[1]))
turns = Path(sys.argv[1]).with_name("turns").open("ab", buffering=0)
lock.acquire(10)
print("held", flush=True)
while True:
    turns.write(b".")
    time.sleep(SECONDS)
    lock.release()
    lock.acquire(10)
"""


@pytest.mark.parametrize(
    ("seconds", "most"),
    # In turn: one of its, one of ours. One that is quick has all that fit into a millisecond.
    # Without order it has hundreds of turns meanwhile.
    [(0.005, 2), (0.0001, 5)],
)
def test_who_waits_is_not_passed_by_the_holder_again_and_again(
    path: Path, seconds: float, most: int
) -> None:
    lock = FairFileLock(path)
    with holder(path, BUSY.replace("SECONDS", str(seconds))) as process:
        turns = path.with_name("turns")
        before = turns.stat().st_size
        for _ in range(30):
            lock.acquire(10)
            lock.release()
        passed = turns.stat().st_size - before
        process.kill()
    lock.close()
    assert passed <= most * 30


def test_a_waiter_that_was_stopped_in_the_turnstile_is_passed(path: Path) -> None:
    first, second = FairFileLock(path), FairFileLock(path)
    with holder(path.with_name("lock.turn")) as process:
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        first.acquire(10)
        first.release()
        assert time.monotonic() - began < 5.0
        turns = 0
        began = time.monotonic()
        while time.monotonic() - began < 1.0 and turns < 100:
            first.acquire(10)
            first.release()
            turns += 1
        assert turns == 100, "it is waited for once only"
        process.kill()
    first.acquire(10)
    with pytest.raises(TrailLockedError, match="lock has been held"):
        second.acquire(0.2)
    first.close()
    second.acquire(1.0)
    second.close()


def test_a_child_takes_no_turn_with_it(path: Path) -> None:
    lock = FairFileLock(path)
    lock.acquire(1.0)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    lock.release()
    other = FairFileLock(path)
    other.acquire(1.0)
    other.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lock.close()
