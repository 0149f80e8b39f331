"""A trail that cannot go on gives way to a new one, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import (
    TrailError,
    TrailLockedError,
    TrailMismatchError,
    TrailVersionError,
)
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.lock import FileLock
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore
from otel_audit.trail.succession import Predecessor, look, succeed
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("trail.db", "trail.db-wal", "trail.db-shm", "signing.key", "signed")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a trail of three records, the last of which no checkpoint in the database covers."""
    path = tmp_path / "trail"
    append(path, b"one", b"two", sign=True)
    append(path, b"three")
    return path


def append(directory: Path, *records: bytes, sign: bool = False) -> None:
    trail = Trail.open(directory, service="hub")
    trail.store.append(records, {})
    if sign:
        trail.signer.sign()
    trail.close()


def begin(place: Path, ended: Predecessor) -> None:
    append(place, f"after {ended.origin}".encode(), sign=True)


def contents(directory: Path) -> tuple[str, list[bytes]]:
    with TrailReader(directory) as reader:
        return reader.origin, [leaf.record for leaf in reader.leaves()]


def test_the_new_trail_is_in_place_and_the_old_one_whole(directory: Path) -> None:
    old = contents(directory)
    signed = (directory / "signed").read_bytes()
    key = (directory / "signing.key").read_bytes()
    done = succeed(directory, begin)
    assert done.kept.parent == directory / "previous"
    assert contents(done.kept) == old
    assert (done.kept / "signed").read_bytes() == signed
    assert (done.kept / "signing.key").read_bytes() == key
    assert (done.kept / "trail.db").stat().st_nlink == 1
    origin, records = contents(directory)
    assert origin != old[0]
    assert records == [f"after {old[0]}".encode()]
    append(directory, b"next", sign=True)
    append(done.kept, b"the old one would even go on", sign=True)
    assert not (directory / ".next-origin").exists()


def test_it_is_done_again_later(directory: Path) -> None:
    origins = [contents(directory)[0]]
    for _ in range(3):
        succeed(directory, begin)
        origins.append(contents(directory)[0])
    assert len(set(origins)) == 4
    assert len(list((directory / "previous").iterdir())) == 3


def test_what_is_known_of_the_old_trail(directory: Path) -> None:
    known = look(directory)
    assert known.origin == contents(directory)[0]
    assert known.size == 3
    assert known.root is not None
    assert len(bytes.fromhex(known.root)) == 32
    assert known.checkpoint is not None
    assert read_checkpoint(known.checkpoint).size == 2
    assert known.trouble is None


def test_the_largest_checkpoint_counts_wherever_it_is(directory: Path) -> None:
    older = directory.parent / "older"
    shutil.copytree(directory, older)
    append(directory, b"four", sign=True)
    (older / "signed").write_bytes((directory / "signed").read_bytes())
    note = look(older).checkpoint
    assert note is not None
    assert read_checkpoint(note).size == 4
    (directory / "signed").unlink()
    assert look(directory).checkpoint == note


def test_a_database_that_is_missing_is_known_by_what_was_signed(directory: Path) -> None:
    origin = contents(directory)[0]
    for name in FILES[:3]:
        (directory / name).unlink()
    known = look(directory)
    assert (known.origin, known.size) == (origin, None)
    assert known.trouble == "trail.db is missing"
    done = succeed(directory, begin)
    assert (done.kept / "signing.key").exists()
    assert contents(directory)[1] == [f"after {origin}".encode()]


def test_a_trail_whose_tree_is_damaged_gives_way(directory: Path) -> None:
    origin = contents(directory)[0]
    connection = apsw.Connection(str(directory / "trail.db"))
    connection.execute("UPDATE tree SET size = 'many'")
    connection.close()
    known = look(directory)
    assert (known.origin, known.size) == (origin, None)
    assert "does not state a size" in str(known.trouble)
    succeed(directory, begin)
    assert contents(directory)[1] == [f"after {origin}".encode()]


def test_without_any_trace_the_origin_is_unknown(directory: Path) -> None:
    (directory / "trail.db").write_bytes(b"rubbish" * 1_000)
    (directory / "trail.db-wal").unlink()
    (directory / "signed").write_bytes(b"\xff")
    assert look(directory).origin is None
    assert succeed(directory, begin).kept.name.startswith("unknown-")


def test_a_newer_versions_trail_is_left_alone(directory: Path) -> None:
    set_pragma(directory, "user_version", 99)
    with pytest.raises(TrailVersionError, match="upgrade otel-audit"):
        succeed(directory, begin)
    assert not (directory / "previous").exists()


def test_another_programs_database_is_left_alone(directory: Path) -> None:
    set_pragma(directory, "application_id", 1)
    with pytest.raises(TrailError, match="not an audit trail"):
        succeed(directory, begin)


def set_pragma(directory: Path, name: str, value: int) -> None:
    import sqlite3

    database = sqlite3.connect(directory / "trail.db")
    database.execute(f"PRAGMA {name} = {value}")
    database.close()


def test_an_empty_directory_is_left_empty(tmp_path: Path) -> None:
    with pytest.raises(TrailError, match="there is no trail"):
        succeed(tmp_path, begin)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["agent.lock", "lock"])
def test_who_holds_a_lock_is_not_disturbed(directory: Path, name: str) -> None:
    lock = FileLock(directory / name)
    lock.acquire(1)
    with pytest.raises(TrailLockedError, match="process"):
        succeed(directory, begin, timeout=0.1)
    lock.release()
    lock.close()
    succeed(directory, begin)


def test_who_has_the_database_open_is_not_disturbed(directory: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with TrailReader(directory) as reader:
            reader.tree()
            os.write(ready[1], b".")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(TrailLockedError, match=f"in use by process {child} "):
            succeed(directory, begin)
    finally:
        os.write(go[1], b".")
        os.waitpid(child, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)
    assert not {".next-origin", "previous"} & {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("trouble", ["raises", "same origin", "no checkpoint", "nothing"])
def test_a_beginning_that_fails_leaves_the_old_trail(directory: Path, trouble: str) -> None:
    old = contents(directory)

    def fail(place: Path, _: Predecessor) -> None:
        if trouble == "raises":
            raise OSError(28, "No space left on device")
        if trouble == "same origin":
            trail = Trail.open(place, keys=TrailKeys.generate(old[0]))
            trail.signer.sign()
            trail.close()
        if trouble == "no checkpoint":
            append(place, b"x")

    with pytest.raises(TrailError) as caught:
        succeed(directory, fail)
    assert isinstance(caught.value, TrailMismatchError) is (trouble == "same origin")
    assert contents(directory) == old
    append(directory, b"four", sign=True)
    succeed(directory, begin)
    assert contents(directory)[1] == [f"after {old[0]}".encode()]


def test_a_key_from_elsewhere_leaves_no_key_behind(directory: Path) -> None:
    keys = TrailKeys.generate("example.org/next")

    def begin_with_key(place: Path, _: Predecessor) -> None:
        trail = Trail.open(place, keys=keys)
        trail.store.append([b"x"], {})
        trail.signer.sign()
        trail.close()

    done = succeed(directory, begin_with_key)
    assert not (directory / "signing.key").exists()
    assert (done.kept / "signing.key").exists()
    Trail.open(directory, keys=keys).close()


CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def test_a_crash_at_any_moment_costs_nothing(directory: Path, tmp_path: Path) -> None:
    """MUST: the old trail, or the new one, or a directory that every writer refuses."""
    old = contents(directory)
    states = set()
    moment = 0
    finished = False
    while not finished:
        moment += 1
        place = tmp_path / f"crash-{moment}"
        shutil.copytree(directory, place)
        finished = crash_at(place, moment)
        state = state_of(place, old)
        states.add(state)
        if state != "new":
            succeed(place, begin)
            assert not (place / ".next-origin").exists()
        origin, records = contents(place)
        assert (origin != old[0], records[0]) == (True, f"after {old[0]}".encode())
        append(place, b"next", sign=True)
        with TrailReader(place) as reader:
            # These records are no JSON, which is nobody's business here.
            assert set(verify(reader).counts) == {"record-malformed"}
        kept = [contents(path) for path in (place / "previous").iterdir()]
        assert old in kept
        shutil.rmtree(place)
    assert states == {"old", "refused", "new"}
    assert moment > 20


def crash_at(place: Path, moment: int) -> bool:
    """End a process at the given change of the directory; whether it got to the end before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in CHANGES and str(place) in str(arguments):
                seen += 1
                if seen == moment:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            succeed(place, begin)
        except BaseException:  # noqa: BLE001 - it must not reach pytest a second time
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


def state_of(place: Path, old: tuple[str, list[bytes]]) -> str:
    copy = place.with_name(f"{place.name}-looked-at")
    shutil.copytree(place, copy)
    try:
        Trail.open(copy).close()
    except TrailMismatchError:
        return "refused"
    else:
        return "old" if contents(copy) == old else "new"
    finally:
        shutil.rmtree(copy)


def test_the_store_would_not_begin_a_trail_meanwhile(directory: Path) -> None:
    """What the above relies on: a key or a memory without a database is refused."""
    for name in FILES[:3]:
        (directory / name).unlink()
    for name in ("signing.key", "signed"):
        with pytest.raises(TrailMismatchError):
            TrailStore(directory, new_origin=lambda: "x").close()
        (directory / name).unlink()
