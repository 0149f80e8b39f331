"""cursors.db: durable, shared, fork-safe, and clear about what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import TrailError, TrailLockedError
from otel_audit.readers import cursors as module
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.aside import Quarantine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cursors(tmp_path: Path) -> Iterator[Cursors]:
    cursors = Cursors(tmp_path)
    yield cursors
    cursors.close()


def test_nothing_is_opened_before_it_is_used(tmp_path: Path, cursors: Cursors) -> None:
    assert not (tmp_path / "cursors.db").exists()
    assert cursors.get("mirror") == 0
    assert cursors.row("mirror") is None
    assert stat.S_IMODE((tmp_path / "cursors.db").stat().st_mode) == 0o600


def test_each_reader_has_its_own_row(cursors: Cursors) -> None:
    cursors.set("mirror", 7, {"inode": 1})
    cursors.set("shipper", 9)
    assert cursors.get("mirror") == 7
    assert {name: row[:2] for name, row in cursors.rows().items()} == {
        "mirror": (7, {"inode": 1}),
        "shipper": (9, {}),
    }
    cursors.remove("mirror")
    assert set(cursors.rows()) == {"shipper"}


def test_a_position_alone_leaves_the_state_as_it_is(cursors: Cursors) -> None:
    cursors.set("mirror", 7, {"inode": 1})
    cursors.set("mirror", 8)
    row = cursors.row("mirror")
    assert row is not None
    assert row[:2] == (8, {"inode": 1})


def test_another_process_sees_it(tmp_path: Path, cursors: Cursors) -> None:
    cursors.set("mirror", 7)
    other = Cursors(tmp_path)
    try:
        assert other.get("mirror") == 7
        other.set("mirror", 8)
        assert cursors.get("mirror") == 8
    finally:
        other.close()


def test_each_position_is_synced_to_the_disk(cursors: Cursors) -> None:
    with cursors.connection() as connection:
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("journal_mode") == "wal"


def _count(directory: Path, name: str) -> None:
    cursors = Cursors(directory)
    for position in range(1, 101):
        cursors.set(name, position)
        # SQLite's lock knows no order: who writes again at once may shut the others out for as long
        # as it goes on, which on a slow disk is longer than they wait.
        time.sleep(0.01)
    cursors.close()


def test_several_processes_write_at_once(tmp_path: Path, cursors: Cursors) -> None:
    context = multiprocessing.get_context("spawn")
    names = ["a", "b", "c"]
    processes = [context.Process(target=_count, args=(tmp_path, name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {name: row.position for name, row in cursors.rows().items()} == dict.fromkeys(names, 100)


def test_a_forked_child_opens_its_own(cursors: Cursors) -> None:
    cursors.set("mirror", 7)
    child = os.fork()
    if child == 0:
        cursors.set("mirror", cursors.get("mirror") + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cursors.get("mirror") == 8
    cursors.set("mirror", 9)
    assert cursors.get("mirror") == 9


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    cursors = Cursors(tmp_path / "missing")
    with pytest.raises(TrailError, match=r"missing/cursors\.db cannot be opened.*writable"):
        cursors.get("mirror")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, cursors: Cursors) -> None:
    cursors.set("mirror", 1)
    with cursors.connection() as connection:
        connection.pragma("query_only", 1)
    with pytest.raises(TrailError, match=r"cursors\.db cannot be used.*writable"):
        cursors.set("mirror", 2)
    assert (tmp_path / "cursors.db").exists()


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, cursors: Cursors) -> None:
    (tmp_path / "cursors.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TrailError, match="delete it with all agents stopped"):
        cursors.get("mirror")


def test_a_full_disk_is_named(cursors: Cursors) -> None:
    with cursors.connection() as connection:
        connection.pragma("max_page_count", 1)
    with pytest.raises(TrailError, match="free space"):
        cursors.set("mirror", 1, {"long": "x" * 100_000})


def test_a_lock_that_is_not_given_back_is_named(
    tmp_path: Path, cursors: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cursors(tmp_path).set("mirror", 1)
    other = apsw.Connection(str(tmp_path / "cursors.db"))
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(module, "BUSY_MILLISECONDS", 10)
    with pytest.raises(TrailLockedError, match="locked by another process"):
        cursors.set("mirror", 2)
    other.close()


def test_who_only_looks_writes_nothing(tmp_path: Path, cursors: Cursors) -> None:
    cursors.set("mirror", 7, {"inode": 1})

    def contents() -> dict[str, bytes]:
        return {name: (tmp_path / name).read_bytes() for name in ("cursors.db", "cursors.db-wal")}

    before = contents()
    looking = Cursors(tmp_path, read_only=True)
    assert looking.get("mirror") == 7
    with pytest.raises(TrailError, match="readonly"):
        looking.set("mirror", 8)
    looking.close()
    assert contents() == before


def test_who_only_looks_takes_for_empty_what_nobody_has_made(tmp_path: Path) -> None:
    (tmp_path / "cursors.db").touch()
    looking = Cursors(tmp_path, read_only=True)
    assert looking.rows() == {}
    assert Quarantine(looking, "loki").count() == 0
    looking.close()
    assert (tmp_path / "cursors.db").read_bytes() == b""


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "[]"),
        ("state", "{"),
        ("state", b"\xff"),
        ("position", "far"),
        ("position", -1),
        ("updated_unix_nano", "now"),
    ],
)
def test_a_row_that_another_program_changed_counts_as_missing(
    tmp_path: Path,
    cursors: Cursors,
    caplog: pytest.LogCaptureFixture,
    column: str,
    value: object,
) -> None:
    cursors.set("mirror", 7, {"inode": 1})
    cursors.set("shipper", 9)
    connection = apsw.Connection(str(tmp_path / "cursors.db"))
    statement = f"UPDATE cursor SET {column} = ? WHERE reader = 'mirror'"  # noqa: S608 - a column of the parameters above
    connection.execute(statement, (value,))
    connection.close()
    assert cursors.row("mirror") is None
    assert set(cursors.rows()) == {"shipper"}
    assert "the row of mirror is damaged" in caplog.text
    cursors.set("mirror", 3, {})
    assert cursors.get("mirror") == 3
