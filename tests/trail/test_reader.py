"""Reading a trail: live, copied, damaged, from threads and across forks."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import ProofError, TrailError, TrailVersionError
from otel_audit.trail import merkle
from otel_audit.trail.nearby import nearby
from otel_audit.trail.reader import APPLICATION_ID, SCHEMA_VERSION, TrailReader
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def append(store: TrailStore, *records: bytes) -> None:
    store.append(records, {})


def numbered(count: int) -> list[bytes]:
    return [b'{"record_id":"r-%d"}' % number for number in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TrailStore]:
    opened = TrailStore(tmp_path / "trail", new_origin=lambda: "test/origin")
    yield opened
    opened.close()


@pytest.fixture
def reader(store: TrailStore) -> Iterator[TrailReader]:
    with TrailReader(store.directory) as opened:
        yield opened


def test_an_empty_trail_has_the_tree_of_rfc_6962(reader: TrailReader) -> None:
    tree = reader.tree()
    assert (tree.size, tree.edge, tree.root) == (0, (), merkle.EMPTY_ROOT)
    assert list(reader.leaves()) == []
    assert reader.leaf(0) is None
    assert reader.find("r-0") is None
    assert reader.last_checkpoint() is None
    assert reader.origin == "test/origin"
    assert reader.claimed_keys == ()


def test_a_directory_may_be_a_text(store: TrailStore) -> None:
    with TrailReader(str(store.directory)) as opened:
        assert opened.directory == store.directory
        assert opened.tree().size == 0


def test_leaves_come_in_order_and_from_where_one_wants_them(
    store: TrailStore, reader: TrailReader
) -> None:
    records = numbered(5_000)
    append(store, *records)
    assert [leaf.record for leaf in reader.leaves()] == records
    assert [leaf.sequence for leaf in reader.leaves(4_990)] == list(range(4_990, 5_000))
    assert [leaf.sequence for leaf in reader.leaves(10, 13)] == [10, 11, 12]
    assert list(reader.leaves(13, 13)) == []
    assert list(reader.leaves(5_000)) == []
    leaf = reader.leaf(4_999)
    assert leaf is not None
    assert leaf.record == records[-1]
    assert leaf.hash == merkle.leaf_hash(records[-1])


def test_what_is_appended_meanwhile_is_seen(store: TrailStore, reader: TrailReader) -> None:
    for size in range(1, 5):
        append(store, b"x")
        assert reader.tree().size == size
        assert len(list(reader.leaves())) == size


def test_no_transaction_stays_open_between_batches(store: TrailStore, reader: TrailReader) -> None:
    """Otherwise a slow reader would keep the log from being emptied."""
    append(store, *numbered(5_000))
    leaves = reader.leaves()
    next(leaves)
    tiles = reader.tiles()
    next(tiles)
    with reader._handle.use() as connection:
        assert not connection.in_transaction
        assert connection.txn_state() == apsw.SQLITE_TXN_NONE
    append(store, b"later")
    assert len(list(leaves)) == 5_000


def test_find_looks_for_the_record_itself_not_for_one_that_mentions_it(
    store: TrailStore, reader: TrailReader
) -> None:
    append(store, b'{"record_id":"wanted","event":"login"}')
    append(store, b'{"record_id":"other","refers":{"record_id":"wanted"}}')
    append(store, b'{"record_id":"third","text":"\\"record_id\\":\\"wanted\\""}')
    append(store, b'["record_id"]"record_id":"wanted"')
    append(store, b'[{"record_id":"wanted"}]')
    found = reader.find("wanted")
    assert found is not None
    assert found.sequence == 0


def test_find_takes_the_newest_of_two(store: TrailStore, reader: TrailReader) -> None:
    append(store, *numbered(3), *numbered(3))
    found = reader.find("r-1")
    assert found is not None
    assert found.sequence == 4


@pytest.mark.parametrize("record_id", ["", "r", "R-1", 'r-1"', "%", "r_1", "\udcff", "é"])
def test_find_matches_exactly_or_not_at_all(
    store: TrailStore, reader: TrailReader, record_id: str
) -> None:
    append(store, *numbered(3))
    assert reader.find(record_id) is None


def test_find_reaches_the_first_record_of_a_long_trail(
    store: TrailStore, reader: TrailReader
) -> None:
    append(store, b'{"record_id":"first"}')
    append(store, *numbered(45_000))
    found = reader.find("first")
    assert found is not None
    assert found.sequence == 0


def test_records_that_contain_something_are_told_from_the_others(
    store: TrailStore, reader: TrailReader
) -> None:
    append(store, b'{"a":"one two"}', b'{"a":"One"}', "ö\x00two".encode(), b"\xff one \xfe", b"")

    def found(*parts: bytes, start: int = 0, stop: int = 9) -> list[int]:
        return [leaf.sequence for leaf in reader.containing(parts, start, stop)]

    assert found() == [0, 1, 2, 3, 4]
    assert found(b"") == [0, 1, 2, 3, 4]
    assert found(b"one") == [0, 3]
    assert found(b"one", b"two") == [0]
    assert found(b"two") == [0, 2]
    assert found(b"\xfe") == [3]
    assert found("ö".encode(), start=1, stop=2) == []
    assert found(b"two", start=1) == [2]


def test_tiles_are_whole_partial_or_an_error(store: TrailStore, reader: TrailReader) -> None:
    append(store, *numbered(600))
    hashes = [merkle.leaf_hash(record) for record in numbered(600)]
    assert reader.tile(0, 1) == b"".join(hashes[256:512])
    assert reader.tile(0, 2) == b"".join(hashes[512:])
    assert reader.tile(1, 0) == b"".join(
        merkle.tile_root(b"".join(hashes[start : start + 256])) for start in (0, 256)
    )
    assert [index for index, _ in reader.tiles()] == [0, 1]
    for level, index in ((0, 3), (1, 1), (2, 0)):
        with pytest.raises(ProofError, match=f"no tile {level}/{index}; the trail is incomplete"):
            reader.tile(level, index)


def test_checkpoints_come_oldest_first_and_by_size(store: TrailStore, reader: TrailReader) -> None:
    for size in (3, 5, 5, 9):
        store.add_checkpoint(size, size * 1_000, f"note {size}")
    assert [one.size for one in reader.checkpoints()] == [3, 5, 5, 9]
    assert [one.size for one in reader.checkpoints(5)] == [5, 5, 9]
    assert reader.last_checkpoint() == (9, 9_000, "note 9")


def test_several_threads_share_a_reader(store: TrailStore, reader: TrailReader) -> None:
    append(store, *numbered(3_000))
    counts: list[int] = []

    def read() -> None:
        counts.append(sum(1 for _ in reader.leaves()))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [3_000] * 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_reader_goes_on_in_a_forked_child(store: TrailStore, reader: TrailReader) -> None:
    append(store, *numbered(3))
    leaves = reader.leaves()
    next(leaves)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            assert reader.tree().size == 3
            assert len(list(leaves)) == 2
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert len(list(leaves)) == 2


def test_a_copy_of_a_live_trail_can_be_read(store: TrailStore, tmp_path: Path) -> None:
    append(store, *numbered(300))
    shutil.copytree(store.directory, tmp_path / "copy")
    append(store, b"later")
    with TrailReader(tmp_path / "copy") as reader:
        assert len(list(reader.leaves())) == reader.tree().size == 300


def test_the_database_alone_can_be_read_once_the_trail_was_closed(
    store: TrailStore, tmp_path: Path
) -> None:
    append(store, *numbered(300))
    store.close()
    (tmp_path / "copy").mkdir()
    shutil.copy(store.path, tmp_path / "copy")
    with TrailReader(tmp_path / "copy") as reader:
        assert len(list(reader.leaves())) == reader.tree().size == 300


def test_a_reader_writes_nothing_of_the_trail(store: TrailStore) -> None:
    append(store, *numbered(300))
    store.close()
    before = {path.name: path.read_bytes() for path in store.directory.iterdir()}
    with TrailReader(store.directory) as reader:
        reader.find("r-0")
        with reader._handle.use() as connection, pytest.raises(apsw.ReadOnlyError):
            connection.execute("DELETE FROM leaf")
    after = {path.name: path.read_bytes() for path in store.directory.iterdir()}
    # SQLite's shared memory is an index of the log in use, not a part of the trail.
    for files in (before, after):
        files.pop("trail.db-shm", None)
    assert after == before


def test_a_directory_without_a_trail_is_an_error_that_says_how_to_name_another(
    tmp_path: Path,
) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TrailError, match=r"no trail in .*--dir or OTEL_AUDIT_DIR"):
            TrailReader(directory)
    assert list(tmp_path.iterdir()) == []


def test_who_names_the_log_directory_is_told_where_the_trail_is(tmp_path: Path) -> None:
    with pytest.raises(TrailError, match="there is no trail in") as nowhere:
        TrailReader(tmp_path)
    assert "there is one" not in str(nowhere.value)
    TrailStore(tmp_path / "trail", new_origin=lambda: "x/y").close()
    with pytest.raises(TrailError, match=f"; there is one in {tmp_path / 'trail'}$"):
        TrailReader(tmp_path)


def test_who_names_a_directory_too_deep_or_two_too_high_is_told_as_well(tmp_path: Path) -> None:
    trail = tmp_path / "data" / "logs" / "trail"
    trail.parent.mkdir(parents=True)
    TrailStore(trail, new_origin=lambda: "x/y").close()
    for wrong in (trail / "trail", trail.parent, tmp_path / "data"):
        with pytest.raises(TrailError, match=f"; there is one in {trail}$"):
            TrailReader(wrong)
    with pytest.raises(TrailError, match=r"with --dir or OTEL_AUDIT_DIR$"):
        TrailReader(tmp_path)
    assert nearby(tmp_path / ("x" * 300) / "y") == []


def test_what_is_no_trail_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trail.db"
    foreign = apsw.Connection(str(path))
    foreign.execute("CREATE TABLE customers (name)")
    foreign.close()
    with pytest.raises(TrailError, match="not an audit trail"):
        TrailReader(tmp_path)
    path.write_bytes(b"not a database, but long enough to look at it" * 100)
    with pytest.raises(TrailError, match=r"cannot be read: .*is it a trail"):
        TrailReader(tmp_path)


def test_a_newer_schema_is_refused_with_the_way_out(store: TrailStore) -> None:
    with store._handle.use() as connection:
        assert connection.pragma("application_id") == APPLICATION_ID
        connection.pragma("user_version", SCHEMA_VERSION + 1)
    with pytest.raises(TrailVersionError, match=r"upgrade otel-audit .*nothing was changed"):
        TrailReader(store.directory)


def test_a_closed_reader_opens_again_when_it_is_used(store: TrailStore) -> None:
    append(store, b"x")
    reader = TrailReader(store.directory)
    reader.close()
    reader.close()
    assert reader.tree().size == 1
    reader.close()
