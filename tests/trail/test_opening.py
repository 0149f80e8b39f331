"""Opening a trail: by many at a time, at any length, and where something is missing."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import (
    ProofError,
    TrailKeyError,
    TrailMismatchError,
)
from otel_audit.trail import proof
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator


def append(trail: Trail, *records: bytes) -> None:
    trail.store.append(records, {})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def trail(directory: Path) -> Iterator[Trail]:
    opened = Trail.open(directory, service="shop")
    yield opened
    opened.close()


def test_two_trails_never_share_an_origin(tmp_path: Path) -> None:
    trails = [Trail.open(tmp_path / name, service="shop") for name in ("one", "two")]
    assert trails[0].store.origin != trails[1].store.origin
    for one in trails:
        one.close()


@pytest.mark.parametrize("service", ["Größe/../x", "a b\nc", "", "x" * 500, "\udcff", "+"])
def test_any_service_name_makes_a_usable_origin(directory: Path, service: str) -> None:
    trail = Trail.open(directory, service=service)
    append(trail, b"a")
    assert read_checkpoint(trail.signer.sign()).origin == trail.store.origin
    trail.close()


@pytest.mark.parametrize("lost", ["all", "the log"])
def test_an_emptied_database_is_not_made_anew(trail: Trail, directory: Path, lost: str) -> None:
    """As by truncate, or when a young trail is copied without its log."""
    trail.store.append([b'{"record_id":"1"}'], {})
    path = directory / "trail.db"
    young = path.read_bytes()
    trail.close()
    path.write_bytes(b"" if lost == "all" else young)
    for name in ("trail.db-wal", "trail.db-shm"):
        (directory / name).unlink(missing_ok=True)
    before = path.read_bytes()
    with pytest.raises(TrailMismatchError, match=r"has signing\.key but an empty trail\.db"):
        Trail.open(directory)
    assert path.read_bytes() == before


def test_a_missing_database_is_not_replaced_by_an_empty_one(trail: Trail, directory: Path) -> None:
    trail.close()
    for path in directory.glob("trail.db*"):
        path.unlink()
    with pytest.raises(TrailMismatchError, match=r"has signing\.key but no trail\.db"):
        Trail.open(directory)


def test_what_could_not_be_opened_is_closed_again(trail: Trail, directory: Path) -> None:
    trail.close()
    (directory / "signing.key").chmod(0o644)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(TrailKeyError):
            Trail.open(directory)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_database_that_is_removed_under_a_running_process_takes_no_more_records(
    trail: Trail, directory: Path
) -> None:
    """They would go into a file that nobody can open any more."""
    append(trail, b"a")
    for path in directory.glob("trail.db*"):
        path.rename(directory / f"moved-{path.name}")
    for _ in range(2):
        with pytest.raises(TrailMismatchError, match="removed or replaced while this process had"):
            append(trail, b"b")
    for path in directory.glob("moved-trail.db*"):
        path.rename(directory / path.name.removeprefix("moved-"))
    append(trail, b"c")
    assert [leaf.record for leaf in trail.reader.leaves()] == [b"a", b"c"]


def test_a_database_that_is_removed_alone_takes_no_more_records(
    trail: Trail, directory: Path
) -> None:
    append(trail, b"a")
    (directory / "trail.db").rename(directory / "moved")
    time.sleep(0.11)
    with pytest.raises(TrailMismatchError, match="removed or replaced while this process had"):
        append(trail, b"b")


@pytest.mark.parametrize("name", ["trail.db-wal", "trail.db-shm"])
def test_a_log_that_is_removed_under_a_running_process_takes_no_more_records(
    trail: Trail, directory: Path, name: str
) -> None:
    """What is written there is gone with the process; beside another index two would write at once."""
    append(trail, b"a")
    (directory / name).rename(directory / "moved")
    time.sleep(0.11)  # it is looked at ten times a second
    with pytest.raises(TrailMismatchError, match="removed or replaced while this process had"):
        append(trail, b"b")
    (directory / name).touch()
    trail.store.wal.empty(reset=True)
    with pytest.raises(TrailMismatchError, match="removed or replaced while this process had"):
        append(trail, b"b")
    (directory / "moved").rename(directory / name)
    append(trail, b"c")
    assert [leaf.record for leaf in trail.reader.leaves()] == [b"a", b"c"]


LONG = 10_000
"""Bytes of a record of which a thousand make the log longer than it is in advance."""


@pytest.mark.parametrize("number", [10, 1_000], ids=["short", "long"])
@pytest.mark.parametrize("kept", [0, 5_000, -4_200, -100], ids=str)
@pytest.mark.parametrize("meanwhile", [0, 1, 3])
def test_a_log_that_is_cut_off_in_place_takes_no_more_records(
    trail: Trail, directory: Path, number: int, kept: int, meanwhile: int
) -> None:
    """SQLite goes on behind the hole, and will not find again what it writes there."""
    append(trail, b"copied")
    trail.store.wal.empty(reset=True)
    for _ in range(number // 10):
        append(trail, *[b"x" * LONG] * 10)
    time.sleep(0.11)
    append(trail, b"the last look is here")
    with trail.store._handle.use() as connection:
        frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    os.truncate(directory / "trail.db-wal", kept if kept >= 0 else 32 + frames * 4_120 + kept)
    for _ in range(meanwhile):
        with suppress(TrailMismatchError):  # already, where the machine is slow
            append(trail, b"before the next look")
    time.sleep(0.11)
    for _ in range(2):
        with pytest.raises(TrailMismatchError, match=r"trail\.db-wal was cut off or overwritten"):
            append(trail, b"refused")
    before = (directory / "trail.db").read_bytes()
    trail.close()
    assert (directory / "trail.db").read_bytes() == before, "no zeros are copied into it"


@pytest.mark.parametrize("place", [0, 8, 16, 24, 31])
def test_a_log_whose_header_was_overwritten_takes_no_more_records(
    trail: Trail, directory: Path, place: int
) -> None:
    append(trail, b"a")
    with (directory / "trail.db-wal").open("r+b") as log:
        log.seek(place)
        byte = log.read(1)
        log.seek(place)
        log.write(bytes([byte[0] ^ 1]))
    time.sleep(0.11)
    with pytest.raises(TrailMismatchError, match="it has no header, or a damaged one"):
        append(trail, b"b")
    with (directory / "trail.db-wal").open("r+b") as log:
        log.seek(place)
        log.write(byte)
    assert trail.store.append([b"c"], {}).first == 1


def test_a_log_that_was_cut_off_is_not_copied_and_told(
    trail: Trail, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing is recorded any more, it is the emptying that comes across it."""
    trail.store.wal.empty()
    append(trail, b"a", b"x" * LONG)
    before = (directory / "trail.db").read_bytes()
    os.truncate(directory / "trail.db-wal", 0)
    trail.store.wal.empty(reset=True)
    assert caplog.text.count("trail.db-wal was cut off or overwritten") == 1
    assert trail.store.wal.stuck
    trail.close()
    assert (directory / "trail.db").read_bytes() == before


def test_a_log_from_which_a_frame_went_may_only_begin_anew(trail: Trail, directory: Path) -> None:
    """Another process empties it, and it begins with other salts."""
    other = Trail.open(directory)
    for _ in range(5):
        append(trail, *[b"x" * LONG] * 200)
        time.sleep(0.11)
        append(trail, b"looked at")
        other.store.wal.empty(reset=True)
        time.sleep(0.11)
        append(trail, b"looked at")
    other.close()
    assert trail.reader.tree().size == 5 * 202


def test_a_database_that_is_cut_off_in_place_takes_no_more_records(
    trail: Trail, directory: Path
) -> None:
    append(trail, *[b"x" * LONG] * 20)
    trail.store.wal.empty(reset=True)
    append(trail, b"a")
    os.truncate(directory / "trail.db", 100_000)
    time.sleep(0.11)
    for _ in range(2):
        with pytest.raises(
            TrailMismatchError, match=r"trail\.db was cut off \(it has 100000 bytes"
        ):
            append(trail, b"b")


def test_a_database_that_vacuum_made_shorter_takes_records(trail: Trail, directory: Path) -> None:
    append(trail, *[b"x" * LONG] * 20)
    tool = apsw.Connection(str(directory / "trail.db"))
    tool.execute("CREATE TABLE scratch AS SELECT zeroblob(500000); DROP TABLE scratch")
    trail.store.wal.empty(reset=True)
    time.sleep(0.11)
    append(trail, b"a")
    before = (directory / "trail.db").stat().st_size
    tool.execute("VACUUM")
    tool.close()
    trail.store.wal.empty(reset=True)
    assert (directory / "trail.db").stat().st_size < before
    time.sleep(0.11)
    append(trail, b"b")


def test_a_database_that_vacuum_made_shorter_may_grow_in_the_log_of_another_process(
    trail: Trail, directory: Path
) -> None:
    """What it needs is then more than it has, although nobody cut it off."""
    tool = apsw.Connection(str(directory / "trail.db"))
    tool.execute("CREATE TABLE scratch AS SELECT zeroblob(500000); DROP TABLE scratch")
    trail.store.wal.empty(reset=True)
    time.sleep(0.11)
    append(trail, b"the last look is here")
    other = Trail.open(directory)
    before = (directory / "trail.db").stat().st_size
    tool.execute("VACUUM")
    tool.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    tool.close()
    assert (directory / "trail.db").stat().st_size < before
    append(other, *[b"x" * LONG] * 100)
    time.sleep(0.11)
    append(trail, b"looked at")
    other.close()


def test_who_has_no_descriptor_left_records_and_copies_nothing(
    trail: Trail, directory: Path
) -> None:
    append(trail, b"a")
    before = (directory / "trail.db").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 300), limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(directory, os.O_RDONLY))
        time.sleep(0.11)
        append(trail, b"b")
        with pytest.raises(OSError, match="Too many open files"):
            trail.store.wal.empty(reset=True)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (directory / "trail.db").stat().st_size == before
    os.truncate(directory / "trail.db-wal", 5_000)
    time.sleep(0.11)
    with pytest.raises(TrailMismatchError, match="was cut off or overwritten"):
        append(trail, b"c")


def open_and_append(directory: Path, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))
    trail = Trail.open(directory, service="shop")
    for _ in range(20):
        append(trail, b'{"record_id":"%s"}' % str(uuid.uuid4()).encode())
    trail.signer.sign()
    trail.close()


def test_processes_that_begin_a_trail_at_the_same_time_share_it(directory: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start = time.time() + 1.5
    processes = [spawn.Process(target=open_and_append, args=(directory, start)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    with TrailReader(directory) as reader:
        report = verify(reader)
        assert report.ok, report.findings
        assert report.size == 120


def test_a_proof_holds_offline_with_the_public_key(trail: Trail) -> None:
    append(trail, *(b"%d" % number for number in range(700)))
    verifiers = trail.keys.verifiers()
    for sequence in (0, 255, 256, 511, 699):
        text = trail.prove(sequence)
        checked = proof.check(text, None, verifiers)
        assert (checked.index, checked.record) == (sequence, b"%d" % sequence)
        assert proof.check(text, b"%d" % sequence, verifiers).index == sequence
        with pytest.raises(ProofError):
            proof.check(text, b"another record", verifiers)
    with pytest.raises(ProofError):
        proof.check(trail.prove(0), None, TrailKeys.generate(trail.store.origin).verifiers())


def test_a_damaged_record_cannot_be_proved(trail: Trail) -> None:
    append(trail, b"a", b"b")
    with trail.store._handle.use() as connection:
        connection.execute("UPDATE leaf SET record = x'00' WHERE seq = 1")
    with pytest.raises(ProofError, match="the trail is damaged, run otel-audit verify"):
        trail.prove(1)


def test_opening_costs_the_same_whatever_the_length(directory: Path, tmp_path: Path) -> None:
    """Counted in the pages that SQLite reads, as time is not reliable in a test."""
    long = Trail.open(directory)
    for _ in range(40):
        append(long, *[b"x" * 200] * 1_000)
    long.close()
    Trail.open(tmp_path / "short").close()

    def pages(place: Path) -> int:
        trail = Trail.open(place)
        with trail.store._handle.use() as connection:
            read = connection.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)[0]
        trail.close()
        return int(read)

    assert pages(directory) <= pages(tmp_path / "short") + 8
