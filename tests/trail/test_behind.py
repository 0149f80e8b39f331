"""A change to the database's file is found although the log hides it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otel_audit.trail.behind import changed_behind_log
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, signal, sys
from pathlib import Path
from otel_audit.trail.trail import Trail
trail = Trail.open(Path(sys.argv[1]))
for number in range(50):
    record = b'{"record_id":"00000000-0000-4000-8000-0000000000%02d"}' % number
    trail.store.append([record], {})
trail.signer.sign()
trail.store.wal.empty()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return a trail whose log was copied, and still holds everything."""
    directory = tmp_path / "trail"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(directory)], check=False)
    assert done.returncode == -signal.SIGKILL
    return directory


def change(path: Path, sequence: int) -> None:
    needle = b"00000000-0000-4000-8000-0000000000%02d" % sequence
    content = path.read_bytes()
    assert content.count(needle) == 1
    place = content.index(needle)
    with path.open("r+b") as file:
        file.seek(place - 1)
        file.write(b"'")


@pytest.mark.parametrize("sequence", [0, 7, 49])
def test_verify_names_a_record_that_was_changed_behind_the_log(killed: Path, sequence: int) -> None:
    with TrailReader(killed) as reader:
        assert verify(reader).ok
    change(killed / "trail.db", sequence)
    with TrailReader(killed) as reader:
        report = verify(reader)
    assert [finding.sequence for finding in report.findings] == [sequence]
    assert report.findings[0].record_id == f"00000000-0000-4000-8000-0000000000{sequence:02d}"


def test_a_busy_trail_is_not_suspected(tmp_path: Path) -> None:
    store = TrailStore(tmp_path / "trail", new_origin=lambda: "test/origin")
    pid = os.fork()
    if pid == 0:
        for number in range(3_000):
            store.append([b'{"record_id":"%d"}' % number], {})
            if number % 50 == 0:
                store.wal.empty()
        os._exit(0)
    suspected: list[object] = []
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        suspected += changed_behind_log(store.path)
    assert suspected == []
    store.close()


def test_a_file_that_cannot_be_read_alone_says_nothing(killed: Path, tmp_path: Path) -> None:
    assert changed_behind_log(tmp_path / "missing.db") == []
    (killed / "trail.db").write_bytes(b"no database")
    assert changed_behind_log(killed / "trail.db") == []
    (killed / "trail.db").unlink()
    assert changed_behind_log(killed / "trail.db") == []
