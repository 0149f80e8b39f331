"""Which processes hold a trail's files."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_audit.trail.occupants import holders, is_stopped, name_of

if TYPE_CHECKING:
    from pathlib import Path


def test_holders_of_both_kinds_of_locks_are_found(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert holders(path) == ()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holders(path) == (os.getpid(),)
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 128)
        assert holders(path) == (os.getpid(),)


def test_who_waits_is_no_holder_and_other_files_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    locks = (
        f"1: FLOCK  ADVISORY  WRITE 17 {device}:{status.st_ino} 0 EOF\n"
        f"1: -> FLOCK  ADVISORY  WRITE 18 {device}:{status.st_ino} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 19 {device}:{status.st_ino + 1} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 20 ff:ff:{status.st_ino} 0 EOF\n"
        f"4: POSIX  ADVISORY  READ -1 {device}:{status.st_ino} 0 EOF\n"
        "5: LEASE\n"
    )
    assert holders(path, locks) == (17,)


def test_a_device_that_stat_does_not_know_is_believed_when_no_other_fits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    locks = f"3: FLOCK  ADVISORY  WRITE 20 ff:ff:{path.stat().st_ino} 0 EOF\n"
    assert holders(path, locks) == (20,)


def test_a_missing_file_has_no_holder(tmp_path: Path) -> None:
    assert holders(tmp_path / "lock") == ()


def test_a_process_is_named_with_its_program() -> None:
    name = name_of(os.getpid())
    assert name.startswith(f"process {os.getpid()} (")


def test_a_process_that_is_gone_has_a_number_only() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert name_of(child.pid) == f"process {child.pid}"
    assert not is_stopped(child.pid)


@pytest.mark.parametrize("number", [signal.SIGSTOP, None])
def test_a_stopped_process_is_noticed(number: signal.Signals | None) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        if number is not None:
            child.send_signal(number)
            os.waitpid(child.pid, os.WUNTRACED)  # until it stands still
        assert is_stopped(child.pid) is (number is not None)
    finally:
        child.kill()
        child.wait()
