"""A change to the database's file is found although the log hides it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.trail import behind, merkle
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


def changed_alone(directory: Path, *statements: str) -> None:
    """Change the file without its log, by SQL, and let the log stay."""
    alone = directory / "alone.db"
    shutil.copy(directory / "trail.db", alone)
    with apsw.Connection(str(alone)) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.pragma("journal_mode", "delete")
    connection.pragma("journal_mode", "wal")
    connection.close()
    with (directory / "trail.db").open("r+b") as file:
        file.write(alone.read_bytes())


FORGED = b'{"record_id":"00000000-0000-4000-8000-0000000000ff"}'
LEAF = merkle.leaf_hash(FORGED)
RECORD = f"UPDATE leaf SET record = x'{FORGED.hex()}' WHERE seq = 7"  # noqa: S608 - our own words
HASH = f"UPDATE leaf SET hash = x'{LEAF.hex()}' WHERE seq = 7"  # noqa: S608 - our own words


@pytest.mark.parametrize(
    ("statements", "sequences"),
    [
        ([RECORD], [7]),
        ([RECORD, HASH], [7]),
        ([HASH], [7]),
        ([RECORD, "UPDATE leaf SET record = CAST(record AS TEXT) WHERE seq = 49"], [7, 49]),
        ([RECORD, "UPDATE leaf SET record = CAST(x'ff' AS TEXT) WHERE seq = 20"], [7, 20]),
        ([RECORD, "UPDATE leaf SET hash = CAST(x'ff' AS TEXT) WHERE seq = 20"], [7, 20]),
    ],
    ids=["record", "record and hash", "hash", "a text", "no UTF-8", "a hash of no UTF-8"],
)
def test_whatever_the_file_alone_has_otherwise_is_found(
    killed: Path, statements: list[str], sequences: list[int]
) -> None:
    changed_alone(killed, *statements)
    with TrailReader(killed) as reader:
        report = verify(reader)
    assert [finding.sequence for finding in report.findings] == sequences
    assert report.counts == {"record-changed": len(sequences)}
    assert report.findings[0].record_id == "00000000-0000-4000-8000-000000000007"


def test_a_row_that_is_damaged_in_the_log_hides_no_other(killed: Path) -> None:
    changed_alone(killed, RECORD, HASH)
    with apsw.Connection(str(killed / "trail.db")) as connection:
        connection.execute("UPDATE leaf SET record = CAST(x'ff' AS TEXT) WHERE seq = 20")
        with TrailReader(killed) as reader:
            found = changed_behind_log(reader)
    connection.close()
    assert found == [7]


def test_pages_that_cannot_be_read_hide_none_of_the_others(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "_BATCH", 10)
    changed_alone(killed, RECORD, HASH)
    content = bytearray((killed / "trail.db").read_bytes())
    last = content.index(b"0000000049")
    start = last // 4_096 * 4_096
    content[start : start + 8] = bytes(8)
    (killed / "trail.db").write_bytes(content)
    with TrailReader(killed) as reader:
        assert changed_behind_log(reader) == [7]


def test_a_busy_trail_is_not_suspected(tmp_path: Path) -> None:
    store = TrailStore(tmp_path / "trail", new_origin=lambda: "test/origin")
    pid = os.fork()
    if pid == 0:
        ends = time.monotonic() + 20.0  # a slow disk writes fewer
        for number in range(3_000):
            if time.monotonic() > ends:
                break
            store.append([b'{"record_id":"%d"}' % number], {})
            if number % 50 == 0:
                store.wal.empty()
        os._exit(0)
    suspected: list[object] = []
    reader = TrailReader(store.directory)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        suspected += changed_behind_log(reader)
    assert suspected == []
    reader.close()
    store.close()


def test_a_file_that_cannot_be_read_alone_says_nothing(killed: Path) -> None:
    with TrailReader(killed) as reader:
        (killed / "trail.db").write_bytes(b"no database")
        assert changed_behind_log(reader) == []
        (killed / "trail.db").unlink()
        assert changed_behind_log(reader) == []
        (killed / "trail.db-wal").unlink()
        assert changed_behind_log(reader) == []
