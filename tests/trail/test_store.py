"""The store: durable, gapless, O(1), and clear about what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from otel_audit.errors import (
    TrailError,
    TrailFileSystemError,
    TrailLockedError,
    TrailMismatchError,
    TrailVersionError,
)
from otel_audit.trail import merkle, schema
from otel_audit.trail.lock import FileLock
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def records(start: int, count: int) -> list[bytes]:
    return [b'{"record_id":"%d"}' % number for number in range(start, start + count)]


def open_store(directory: Path, **options: object) -> TrailStore:
    return TrailStore(directory, new_origin=lambda: "test/origin", **options)  # type: ignore[arg-type] # options of each test


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TrailStore]:
    opened = open_store(tmp_path / "trail", timeout=1.0)
    yield opened
    opened.close()


def test_the_first_use_makes_a_private_directory_and_database(store: TrailStore) -> None:
    assert store.directory.stat().st_mode & 0o777 == 0o700
    for name in ("trail.db", "trail.db-wal", "trail.db-shm", "lock"):
        assert (store.directory / name).stat().st_mode & 0o777 == 0o600, name


def test_the_promised_pragmas_are_in_force(store: TrailStore) -> None:
    with store._handle.use() as connection:
        assert connection.pragma("journal_mode") == "wal"
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("secure_delete") == 1
        assert connection.pragma("auto_vacuum") == 2
        assert connection.pragma("trusted_schema") == 0
        assert connection.pragma("wal_autocheckpoint") == 50_000


@pytest.mark.parametrize(
    "sizes", [(1,), (255, 1, 1), (256,), (700,), (100, 200, 300, 1), (3,) * 90]
)
def test_groups_of_any_size_give_the_tree_of_rfc_6962(
    store: TrailStore, sizes: tuple[int, ...]
) -> None:
    hashes: list[bytes] = []
    for size in sizes:
        group = records(len(hashes), size)
        commit = store.append(group, {})
        assert commit.first == len(hashes)
        assert commit.leaf_hashes == [merkle.leaf_hash(record) for record in group]
        hashes += commit.leaf_hashes
    with TrailReader(store.directory) as reader:
        tree = reader.tree()
        assert tree.size == sum(sizes)
        assert list(tree.edge) == merkle.extend([], 0, hashes)
        assert merkle.edge_at(tree.size, reader.hash_at) == list(tree.edge)
        assert [leaf.hash for leaf in reader.leaves()] == hashes
        assert [leaf.sequence for leaf in reader.leaves()] == list(range(tree.size))


def test_upper_tiles_are_right_when_a_second_level_begins(store: TrailStore) -> None:
    hashes: list[bytes] = []
    for _ in range(10):
        group = records(len(hashes), 7_000)
        hashes += store.append(group, {}).leaf_hashes
    with TrailReader(store.directory) as reader:
        first = b"".join(
            merkle.tile_root(b"".join(hashes[i * 256 : i * 256 + 256])) for i in range(256)
        )
        assert reader.tile(1, 0) == first
        assert reader.tile(2, 0) == merkle.tile_root(first)
        assert merkle.edge_root(merkle.edge_at(70_000, reader.hash_at)) == reader.tree().root


def test_the_commit_time_never_decreases_when_the_clock_does(tmp_path: Path) -> None:
    times = iter([1_000, 500, 1_001] + [2_000] * 10)
    store = open_store(tmp_path / "trail", clock=lambda: next(times))
    committed = [store.append(records(n, 1), {}).committed_unix_nano for n in range(3)]
    store.close()
    assert committed == sorted(committed)
    assert committed[0] == committed[1] or committed[1] < committed[2]


def test_two_stores_on_one_trail_take_turns(tmp_path: Path) -> None:
    first, second = open_store(tmp_path / "t"), open_store(tmp_path / "t")
    taken = [
        (first if number % 2 else second).append(records(number * 3, 3), {}).first
        for number in range(200)
    ]
    assert taken == list(range(0, 600, 3))
    with TrailReader(tmp_path / "t") as reader:
        assert merkle.edge_root(merkle.edge_at(600, reader.hash_at)) == reader.tree().root
    first.close()
    second.close()


def test_resources_are_stored_once(store: TrailStore) -> None:
    for number in range(3):
        store.append(records(number, 1), {"abc": b'{"service.name":"x"}'})
    with TrailReader(store.directory) as reader, reader._handle.use() as connection:
        assert connection.execute("SELECT hash, json FROM resource").fetchall() == [
            ("abc", b'{"service.name":"x"}')
        ]


def test_a_lock_that_somebody_holds_is_an_error_that_names_the_process(store: TrailStore) -> None:
    holder = FileLock(store.directory / "lock")
    assert holder.try_acquire()
    with pytest.raises(TrailLockedError, match=f"held for 1 s by process {os.getpid()}"):
        store.append(records(0, 1), {})
    holder.release()
    assert store.append(records(0, 1), {}).first == 0


def test_a_stopped_process_blocks_and_a_dead_one_does_not(store: TrailStore) -> None:
    program = (
        "import sys, fcntl, time\n"
        f"file = open({str(store.directory / 'lock')!r}, 'r+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TrailLockedError, match=f"by process {process.pid}"):
            store.append(records(0, 1), {})
        process.kill()
        process.wait()
        assert store.append(records(0, 1), {}).first == 0


def test_a_newer_schema_is_refused_and_left_alone(store: TrailStore) -> None:
    store.append(records(0, 1), {})
    with store._handle.use() as connection:
        connection.pragma("user_version", 99)
    store.close()
    for opening in (lambda: open_store(store.directory), lambda: TrailReader(store.directory)):
        with pytest.raises(TrailVersionError, match=r"schema version 99.*upgrade otel-audit"):
            opening()


def other_program(store: TrailStore, *statements: str) -> None:
    with apsw.Connection(str(store.path)) as connection:
        connection.pragma("writable_schema", "on")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def stored(store: TrailStore) -> list[bytes]:
    with TrailReader(store.directory) as reader:
        return [leaf.record for leaf in reader.leaves()]


SWALLOWING = """
CREATE TRIGGER swallow BEFORE INSERT ON leaf WHEN instr(NEW.record, 'mallory') > 0
BEGIN SELECT RAISE(IGNORE); END
"""


def test_a_trigger_swallows_nothing_and_is_refused_with_its_name(store: TrailStore) -> None:
    store.append([b"alice"], {})
    other_program(store, SWALLOWING)
    # Within a tenth of a second: it does nothing.
    with suppress(TrailMismatchError):
        store.append([b"mallory"], {})
        assert stored(store) == [b"alice", b"mallory"]
    time.sleep(0.11)
    with pytest.raises(TrailMismatchError, match="there is 'trigger' 'swallow' on 'leaf'"):
        store.append([b"bob"], {})
    with pytest.raises(TrailMismatchError, match="not as a trail is made: there is 'trigger'"):
        open_store(store.directory)
    other_program(store, "DROP TRIGGER swallow")
    store.append([b"bob"], {})
    open_store(store.directory).close()


def test_a_schema_whose_number_was_set_to_nothing_is_refused_as_well(store: TrailStore) -> None:
    store.close()
    other_program(
        store, "CREATE INDEX few ON leaf (seq) WHERE seq < 3", "PRAGMA schema_version = 0"
    )
    with pytest.raises(TrailMismatchError, match="there is 'index' 'few' on 'leaf'"):
        open_store(store.directory)


def test_a_table_that_swallows_records_gives_no_receipt(store: TrailStore) -> None:
    """Seen in the same transaction, whatever the schema was when it was looked at last."""
    store.append([b"alice"], {})
    definition = schema.TABLES["leaf"].replace(
        "record BLOB NOT NULL)",
        "record BLOB NOT NULL, x AS (nullif(1, instr(record, 'mallory'))) "
        "NOT NULL ON CONFLICT IGNORE)",
    )
    other_program(
        store,
        f"UPDATE sqlite_schema SET sql = \"{definition}\" WHERE name = 'leaf'",  # noqa: S608 - our own words
        "PRAGMA schema_version = 1234",
    )
    with pytest.raises(TrailMismatchError, match=r"does not keep|'leaf' is defined otherwise"):
        store.append([b"mallory"], {})
    store._file._look_again = time.monotonic() + 60
    with pytest.raises(TrailMismatchError, match="does not keep"):
        store.append([b"mallory"], {})
    assert stored(store) == [b"alice"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE leaf SET hash = 'a text' WHERE seq = 2", "hashes of its last records are missing"),
        ("UPDATE leaf SET hash = CAST(x'ff' AS TEXT) WHERE seq = 2", "hashes of its last records"),
        ("DELETE FROM leaf WHERE seq = 2", "hashes of its last records are missing"),
        ("INSERT INTO tile VALUES (0, 0, x'')", "somebody put rows where new ones belong"),
        ("INSERT INTO leaf VALUES (9, 0, x'', x'')", "somebody put rows where new ones belong"),
    ],
)
def test_rows_that_do_not_make_a_tile_are_an_error_that_says_what_to_do(
    store: TrailStore, statement: str, words: str
) -> None:
    store.append(records(0, 5), {})
    other_program(store, statement)
    for _ in range(2):
        with pytest.raises(TrailError, match=f"{words}.*run `otel-audit verify`"):
            store.append(records(5, 256), {})
    assert TrailReader(store.directory).tree().size == 5


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "trail.db"
    foreign = apsw.Connection(str(path))
    foreign.execute("CREATE TABLE customers (name)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(TrailMismatchError, match="not an audit trail"):
        open_store(tmp_path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trail.db").write_bytes(b"not a database at all, but long enough to look" * 100)
    with pytest.raises(TrailError, match="this is not a trail"):
        open_store(tmp_path)


@pytest.mark.parametrize("name", ["signing.key", "signed"])
def test_a_database_that_went_missing_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("something", "utf-8")
    with pytest.raises(TrailMismatchError, match=f"has {name} but no trail.db"):
        open_store(tmp_path)
    assert not (tmp_path / "trail.db").exists()


def test_an_empty_file_left_by_a_crash_becomes_a_trail(tmp_path: Path) -> None:
    (tmp_path / "trail.db").touch(mode=0o600)
    store = open_store(tmp_path)
    assert store.append(records(0, 1), {}).first == 0
    store.close()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrailFileSystemError, match="cannot be made"):
        open_store(tmp_path / "file" / "trail")


class Faulty(apsw.VFS):
    """A VFS whose syncs or writes of the log fail while a switch is on."""

    def __init__(self, name: str) -> None:
        self.failing: set[str] = set()
        super().__init__(name, "")

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, vfs: Faulty, name: object, flags: list[int]) -> None:
        self.vfs = vfs
        super().__init__("", name, flags)  # type: ignore[arg-type] # apsw's own URI type

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
        if "write" in self.vfs.failing:
            raise apsw.FullError
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        if "sync" in self.vfs.failing:
            raise apsw.IOError
        super().xSync(flags)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[tuple[Faulty, TrailStore]]:
    vfs = Faulty(f"faulty-{id(tmp_path)}")
    store = open_store(tmp_path / "trail", vfs=f"faulty-{id(tmp_path)}")
    yield vfs, store
    vfs.failing.clear()
    store.close()
    vfs.unregister()


@pytest.mark.parametrize(
    ("kind", "advice"), [("write", "free space on the disk"), ("sync", "kernel's log")]
)
def test_a_failing_disk_confirms_nothing_and_the_trail_goes_on_afterwards(
    faulty: tuple[Faulty, TrailStore], kind: str, advice: str
) -> None:
    vfs, store = faulty
    store.append(records(0, 3), {})
    vfs.failing.add(kind)
    for _ in range(3):
        with pytest.raises(TrailError, match=advice):
            store.append(records(3, 2), {})
    vfs.failing.clear()
    assert store.append(records(3, 300), {}).first == 3
    with TrailReader(store.directory) as reader:
        assert [leaf.record for leaf in reader.leaves()] == records(0, 303)
        assert merkle.edge_root(merkle.edge_at(303, reader.hash_at)) == reader.tree().root


def test_after_a_failed_sync_of_the_database_the_log_is_never_reused(
    faulty: tuple[Faulty, TrailStore], caplog: pytest.LogCaptureFixture
) -> None:
    vfs, store = faulty
    store.append(records(0, 10), {})
    vfs.failing.add("sync")
    store.wal.empty()
    assert "restart" in caplog.text
    assert store.wal.stuck
    vfs.failing.clear()
    store.append(records(10, 10), {})
    store.wal.empty()
    with store._handle.use() as connection:
        total, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        assert connection.pragma("wal_autocheckpoint") == 0, "nor does SQLite by itself"
    assert copied < total
    before = store.path.read_bytes()
    store._handle.close()
    store.append(records(20, 10), {})
    store.close()
    assert store.path.read_bytes() == before, "nor when the last connection closes"
    again = open_store(store.directory)
    assert again.append(records(30, 1), {}).first == 30
    again.close()


def test_a_stuck_log_is_left_alone_also_when_the_database_cannot_be_opened_again(
    faulty: tuple[Faulty, TrailStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs, store = faulty
    store.append(records(0, 10), {})
    vfs.failing.add("sync")
    store.wal.empty()
    vfs.failing.clear()
    before = store.path.read_bytes()
    store.wal._handle.close()
    store._handle.close()

    def fails(_: Path) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("otel_audit.trail.wal.preallocate", fails)
        with pytest.raises(MemoryError):
            store.append(records(10, 1), {})
    assert store.path.read_bytes() == before
    assert store.append(records(10, 1), {}).first == 10


def test_what_is_known_of_the_tree_is_never_older_than_what_was_written_since(
    store: TrailStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our commit and the next, another process commits, and then we sign."""
    other = open_store(store.directory)
    write = store._write

    def written(work: Callable[[apsw.Connection], Any]) -> Any:
        done = write(work)
        monkeypatch.undo()
        other.append(records(100, 1), {})
        store.probe()
        return done

    monkeypatch.setattr(store, "_write", written)
    assert store.append(records(0, 1), {}).first == 0
    assert store.append(records(1, 1), {}).first == 2
    other.close()


def test_emptying_the_log_keeps_its_length_bounded(store: TrailStore) -> None:
    wal = store.directory / "trail.db-wal"
    preallocated = wal.stat().st_size
    assert preallocated >= 8 << 20
    for number in range(60):
        store.append(records(number * 1_000, 1_000), {})
        store.wal.empty(above=1 << 20)
    assert wal.stat().st_size <= preallocated * 2


def test_commits_go_on_while_the_log_is_emptied(store: TrailStore) -> None:
    stop = threading.Event()

    def empty() -> None:
        while not stop.is_set():
            store.wal.empty()

    emptier = threading.Thread(target=empty)
    emptier.start()
    for number in range(300):
        store.append(records(number, 1), {})
    stop.set()
    emptier.join()
    with TrailReader(store.directory) as reader:
        assert merkle.edge_root(merkle.edge_at(300, reader.hash_at)) == reader.tree().root


def _in_child(action: Callable[[], None]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_parent_and_forked_child_both_go_on(store: TrailStore) -> None:
    store.append(records(0, 1), {})

    def child() -> None:
        for number in range(50):
            store.append(records(100 + number, 1), {})

    assert _in_child(child) == 0
    assert store.append(records(1, 1), {}).first == 51
    with TrailReader(store.directory) as reader:
        assert merkle.edge_root(merkle.edge_at(52, reader.hash_at)) == reader.tree().root


def test_a_child_survives_its_parents_close(store: TrailStore) -> None:
    """The parent's close, as last one in its own lock table, must not delete the child's log."""
    store.append(records(0, 1), {})
    ready, go = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            store.append(records(1, 1), {})
            os.read(ready, 1)
            for number in range(100):
                store.append(records(2 + number, 1), {})
            code = 0
        finally:
            os._exit(code)
    with TrailReader(store.directory) as reader:
        while reader.tree().size < 2:
            pass
    store.close()
    os.write(go, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(ready)
    os.close(go)
    with TrailReader(store.directory) as reader:
        assert reader.tree().size == 102
        assert merkle.edge_root(merkle.edge_at(102, reader.hash_at)) == reader.tree().root


def test_a_fork_does_not_give_the_lock_to_the_child(store: TrailStore) -> None:
    lock = FileLock(store.directory / "other")
    assert lock.try_acquire()
    running, runs = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(runs, b"x")
        time.sleep(60)
    os.read(running, 1)
    lock.close()
    free = FileLock(store.directory / "other").try_acquire()
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(running)
    os.close(runs)
    assert free


def test_a_transaction_cut_off_by_sigkill_leaves_all_that_was_acknowledged(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from otel_audit.trail.store import TrailStore\n"
        "store = TrailStore(Path(sys.argv[1]), new_origin=lambda: 'test/origin')\n"
        "while True:\n"
        "    records = [b'x%d' % n for n in range(40)]\n"
        "    commit = store.append(records, {})\n"
        "    print(commit.first + 39, flush=True)\n"
    )
    directory = tmp_path / "trail"
    acknowledged = -1
    for round_ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(20 + round_ * 37):
                acknowledged = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split("\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        store = open_store(directory)
        store.close()
        with TrailReader(directory) as reader:
            tree = reader.tree()
            assert tree.size > acknowledged
            assert merkle.edge_root(merkle.edge_at(tree.size, reader.hash_at)) == tree.root
            assert all(merkle.leaf_hash(leaf.record) == leaf.hash for leaf in reader.leaves())


def copies(path: Path, needle: bytes) -> int:
    return path.read_bytes().count(needle)


def test_nothing_stays_in_the_log_at_close_nor_when_it_is_idle(store: TrailStore) -> None:
    """Or a change made to the database's file would hide behind the log."""
    log, record = store.directory / "trail.db-wal", b'{"record_id":"3"}'
    store.append(records(0, 10), {})
    store.wal.empty(above=1 << 20)
    assert copies(log, record) == 1
    store.wal.empty(above=1 << 20)
    assert copies(log, record) == 0
    assert copies(store.path, record) == 1
    assert log.stat().st_size >= 8 << 20, "and the log is as long as before"
    store.append(records(10, 10), {})
    store.close()
    assert copies(store.path, b'{"record_id":"13"}') == 1
    assert copies(log, b'{"record_id":"13"}') == 0


def test_emptying_an_idle_log_lets_other_writers_go_on(store: TrailStore) -> None:
    other = open_store(store.directory)
    for number in range(100):
        (store if number % 2 else other).append(records(number, 1), {})
        store.wal.empty(reset=True)
    with TrailReader(store.directory) as reader:
        assert merkle.edge_root(merkle.edge_at(100, reader.hash_at)) == reader.tree().root
    other.close()
