"""Signing checkpoints: one tree a size, never backwards, whoever signs and whatever was restored."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from otel_audit.errors import TrailError, TrailKeyError, TrailLockedError, TrailMismatchError
from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import Checkpoint, open_checkpoint, read_checkpoint, sign
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.lock import FileLock
from otel_audit.trail.reader import TrailReader, Tree
from otel_audit.trail.signer import CheckpointSigner
from otel_audit.trail.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND = 1_000_000_000


def append(trail: Trail, *records: bytes) -> None:
    trail.store.append(records, {})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def trail(directory: Path) -> Iterator[Trail]:
    opened = Trail.open(directory, service="shop", timeout=1.0)
    yield opened
    opened.close()


def test_a_checkpoint_states_the_committed_tree_and_both_keys_signed_it(trail: Trail) -> None:
    append(trail, b"a", b"b", b"c")
    note = trail.signer.sign()
    signed = open_checkpoint(note, trail.keys.verifiers())
    tree = trail.reader.tree()
    assert signed.checkpoint.origin == trail.store.origin
    assert (signed.checkpoint.size, signed.checkpoint.root) == (3, tree.root)
    assert signed.timestamp is not None
    assert len(signed.note.strip().split("\n\n")[1].splitlines()) == 2
    stored = trail.reader.last_checkpoint()
    assert stored is not None
    assert (stored.size, stored.note) == (3, note)
    assert stored.unix_nano // SECOND == signed.timestamp


def test_an_empty_trail_can_be_signed(trail: Trail) -> None:
    signed = read_checkpoint(trail.signer.sign())
    assert (signed.size, signed.root) == (0, merkle.EMPTY_ROOT)


def test_the_trail_names_its_public_keys(trail: Trail) -> None:
    with TrailReader(trail.store.directory) as reader:
        assert reader.claimed_keys == trail.keys.verifier_keys()


def test_checkpoint_times_never_decrease_when_the_clock_does(directory: Path) -> None:
    times = iter([1_000 * SECOND] * 20 + [10 * SECOND] * 20)
    trail = Trail.open(directory, clock=lambda: next(times, 2_000 * SECOND))
    signed = []
    for _ in range(20):
        append(trail, b"x")
        note = trail.signer.sign()
        signed.append(open_checkpoint(note, trail.keys.verifiers()).timestamp)
    assert signed == sorted(signed, key=lambda timestamp: timestamp or 0)
    assert set(signed) == {1_000, 2_000}
    stored = [one.unix_nano for one in trail.reader.checkpoints()]
    assert stored == sorted(stored)
    committed = [leaf.committed_unix_nano for leaf in trail.reader.leaves()]
    assert committed == sorted(committed)
    trail.close()


@pytest.mark.parametrize("time", ["4000000000000000000", "'a text'"])
def test_what_the_database_states_decides_no_time_that_is_signed(trail: Trail, time: str) -> None:
    append(trail, b"a")
    trail.signer.sign()
    changed(trail, f"UPDATE checkpoint SET unix_nano = {time}")  # noqa: S608 - our own words
    append(trail, b"b")
    signed = open_checkpoint(trail.signer.sign(), trail.keys.verifiers())
    assert signed.timestamp is not None
    assert signed.timestamp < 3_900_000_000


def test_a_restored_older_database_is_refused_when_it_is_opened(
    trail: Trail, directory: Path, tmp_path: Path
) -> None:
    append(trail, b"a", b"b")
    trail.close()
    shutil.copy(directory / "trail.db", tmp_path / "older.db")
    later = Trail.open(directory)
    append(later, b"c")
    later.signer.sign()
    later.close()
    for path in directory.glob("trail.db*"):
        path.unlink()
    shutil.copy(tmp_path / "older.db", directory / "trail.db")
    with pytest.raises(TrailMismatchError) as caught:
        Trail.open(directory)
    message = str(caught.value)
    assert "holds 2 records, but a checkpoint of 3 records was signed" in message
    assert "an older copy was restored" in message
    assert "otel-audit new-origin" in message


def test_a_trail_that_another_process_signs_meanwhile_is_no_older_copy(
    trail: Trail, directory: Path
) -> None:
    """What is signed between the two looks of one that starts is in the tree that it sees."""
    append(trail, b"a")
    trail.signer.sign()

    class Overtaken(TrailReader):
        def tree(self) -> Tree:
            found = super().tree()
            append(trail, b"b")
            trail.signer.sign()
            return found

    with Overtaken(directory) as reader:
        for _ in range(3):
            CheckpointSigner(trail.store, reader, trail.keys)


def test_an_older_database_that_grew_past_the_signed_size_is_refused(
    trail: Trail, directory: Path, tmp_path: Path
) -> None:
    append(trail, b"a", b"b")
    trail.close()
    shutil.copy(directory / "trail.db", tmp_path / "older.db")
    later = Trail.open(directory)
    append(later, b"c")
    later.signer.sign()
    later.close()
    memory = (directory / "signed").read_bytes()
    for name in ("signed", *(path.name for path in directory.glob("trail.db*"))):
        (directory / name).unlink()
    shutil.copy(tmp_path / "older.db", directory / "trail.db")
    other = Trail.open(directory)
    append(other, *(b"other %d" % number for number in range(600)))
    other.close()
    (directory / "signed").write_bytes(memory)
    with pytest.raises(TrailMismatchError, match="has another root at 3 records"):
        Trail.open(directory)


def test_a_database_that_shrinks_under_a_running_process_is_not_signed(trail: Trail) -> None:
    append(trail, b"a", b"b", b"c")
    trail.signer.sign()
    with trail.store._handle.use() as connection:
        connection.execute("DELETE FROM leaf WHERE seq = 2")
        connection.execute(
            "UPDATE tree SET size = 2, edge = ?",
            (b"".join(merkle.extend([], 0, [merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")])),),
        )
    with pytest.raises(TrailMismatchError, match="records were changed or removed"):
        trail.signer.sign()
    with pytest.raises(TrailMismatchError):
        trail.sign_if_grown()
    assert len(list(trail.reader.checkpoints())) == 1


def changed(trail: Trail, statement: str, *values: object) -> None:
    """Change the database as somebody does who may write it, and has no key."""
    with apsw.Connection(str(trail.store.path)) as connection:
        connection.execute(statement, values)
    connection.close()


def forged_hashes(number: int) -> list[bytes]:
    """Hashes of a trail whose record 50 is another one."""
    return merkle.leaf_hashes(b"forged" if at == 50 else b"%d" % at for at in range(number))


def test_a_forged_edge_is_not_signed(trail: Trail, directory: Path) -> None:
    """Once it was, record and tiles could be made to fit, and older checkpoints be removed."""
    append(trail, *(b"%d" % number for number in range(300)))
    trail.signer.sign()
    edge = merkle.extend([], 0, forged_hashes(300))
    changed(trail, "UPDATE tree SET edge = ?", b"".join(edge))
    append(trail, b"innocent")
    for attempt in (trail.signer.sign, lambda: Trail.open(directory)):
        with pytest.raises(TrailMismatchError, match="not the one of its 301 records"):
            attempt()
    assert len(list(trail.reader.checkpoints())) == 1


@pytest.mark.parametrize("more", [212, 213, 300, 512, 1_000])
def test_a_forged_tile_above_what_was_signed_is_not_signed(trail: Trail, more: int) -> None:
    """The root that was signed is made of the leaves of the tile, the new one of what is above it."""
    append(trail, *(b"%d" % number for number in range(300)))
    trail.signer.sign()
    append(trail, *(b"%d" % number for number in range(300, 300 + more)))
    hashes = merkle.leaf_hashes(b"forged" if at == 270 else b"%d" % at for at in range(300 + more))
    roots = [
        merkle.tile_root(b"".join(hashes[first : first + 256]))
        for first in range(0, len(hashes) - 255, 256)
    ]
    changed(trail, "UPDATE tile SET hashes = ? WHERE level = 1", b"".join(roots))
    edge = merkle.extend([], 0, hashes)
    changed(trail, "UPDATE tree SET edge = ?", b"".join(edge))
    with pytest.raises(TrailMismatchError, match="does not continue what was signed"):
        trail.signer.sign()


def test_a_missing_tile_is_not_signed_over(trail: Trail) -> None:
    append(trail, *(b"%d" % number for number in range(300)))
    changed(trail, "DELETE FROM tile WHERE level = 1")
    with pytest.raises(TrailMismatchError, match=r"cannot be signed: .* has no tile 1/0"):
        trail.signer.sign()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tile SET hashes = 'a text' WHERE level = 1",
        "UPDATE tile SET hashes = 1000000000000 WHERE level = 1",
        "UPDATE leaf SET hash = CAST(x'ff' AS TEXT) WHERE seq = 299",
    ],
)
def test_values_of_other_types_are_an_error_that_says_what_to_do(
    trail: Trail, statement: str
) -> None:
    append(trail, *(b"%d" % number for number in range(300)))
    trail.signer.sign()
    changed(trail, statement)
    for _ in range(2):
        with pytest.raises(TrailError, match=r"was tampered with: .*run `otel-audit verify`"):
            trail.signer.sign()


def test_damaged_pages_are_an_error_that_says_what_to_do(trail: Trail, directory: Path) -> None:
    append(trail, *(b"%d" % number for number in range(300)))
    trail.signer.sign()
    with trail.store._handle.use() as connection:
        (page,) = (
            connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'tile'").get,
        )
    trail.close()
    with (directory / "trail.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(TrailError, match=r"the file is damaged; .*run `otel-audit verify`"):
        Trail.open(directory)


@pytest.mark.parametrize("content", ["", "not a checkpoint", "x\n0\n", "\u2014 é"])
def test_a_damaged_memory_is_an_error_that_says_what_to_do(
    trail: Trail, directory: Path, content: str
) -> None:
    trail.signer.sign()
    (directory / "signed").write_text(content, "utf-8")
    with pytest.raises(TrailMismatchError, match=r"signed is damaged .*otel-audit verify"):
        trail.signer.sign()
    trail.close()
    with pytest.raises(TrailMismatchError, match=r"move it away"):
        Trail.open(directory)
    (directory / "signed").unlink()
    Trail.open(directory).close()


def test_the_memory_of_another_trail_is_recognised(
    trail: Trail, directory: Path, tmp_path: Path
) -> None:
    append(trail, b"a")
    other = Trail.open(tmp_path / "other")
    append(other, b"b", b"c")
    other.signer.sign()
    origin = other.store.origin
    other.close()
    shutil.copy(tmp_path / "other" / "signed", directory / "signed")
    with pytest.raises(TrailMismatchError, match=f"is of the trail {origin}, not of"):
        trail.signer.sign()


def test_another_key_is_refused_and_named(trail: Trail, directory: Path) -> None:
    origin, key = trail.store.origin, trail.keys.verifier_keys()[0]
    trail.close()
    (directory / "signing.key").unlink()
    (directory / "signing.key").write_text(TrailKeys.generate(origin).to_text(), "utf-8")
    (directory / "signing.key").chmod(0o600)
    with pytest.raises(TrailKeyError, match="put back the key") as caught:
        Trail.open(directory)
    assert key in str(caught.value)


def sign_often(directory: Path, rounds: int) -> None:
    trail = Trail.open(directory, timeout=60.0)  # the lock is for whoever comes, in no order
    for _ in range(rounds):
        append(trail, b"x")
        trail.signer.sign()
    trail.close()


def test_processes_and_threads_that_sign_at_the_same_time_never_go_backwards(
    trail: Trail, directory: Path
) -> None:
    """Also two openings of one trail in one process."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=sign_often, args=(directory, 30)) for _ in range(2)]
    threads = [threading.Thread(target=sign_often, args=(directory, 30)) for _ in range(2)]
    workers: list[Any] = [*processes, *threads]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)  # each of the 120 rounds syncs several times
    assert [process.exitcode for process in processes] == [0, 0]
    stored = list(trail.reader.checkpoints())
    assert len(stored) == 120
    assert [one.size for one in stored] == sorted(one.size for one in stored)
    assert [one.unix_nano for one in stored] == sorted(one.unix_nano for one in stored)
    roots: dict[int, bytes] = {}
    for one in stored:
        signed = open_checkpoint(one.note, trail.keys.verifiers()).checkpoint
        assert roots.setdefault(signed.size, signed.root) == signed.root
    assert read_checkpoint((directory / "signed").read_text("utf-8")).size == stored[-1].size
    assert not list(directory.glob(".signed.*"))


def test_a_signer_that_hangs_elsewhere_is_waited_for_no_longer_than_the_time_out(
    trail: Trail, directory: Path
) -> None:
    lock = FileLock(directory / "signed.lock")
    assert lock.try_acquire()
    with pytest.raises(TrailLockedError, match=r"signed\.lock has been held"):
        trail.signer.sign()
    append(trail, b"commits go on")
    lock.close()
    trail.signer.sign()


def test_a_key_that_does_not_answer_leaves_nothing_half_done(directory: Path) -> None:
    inner = TrailKeys.generate("test/origin")

    def unreachable(message: bytes) -> bytes:
        raise TimeoutError(message)

    keys = TrailKeys.from_signers(
        "test/origin",
        log_sign=inner.log.sign,
        log_public=inner.log.verifier.public_key,
        cosigner_sign=unreachable,
        cosigner_public=inner.cosigner.verifier.public_key,
    )
    trail = Trail.open(directory, keys=keys)
    append(trail, b"a")
    with pytest.raises(TimeoutError):
        trail.signer.sign()
    assert trail.reader.last_checkpoint() is None
    assert not (directory / "signed").exists()
    trail.close()
    whole = Trail.open(directory, keys=inner)
    assert read_checkpoint(whole.signer.sign()).size == 1
    whole.close()


def test_a_trail_without_memory_of_what_was_signed_is_warned_about(
    trail: Trail, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a restore to another place, which may be of an older copy."""
    append(trail, b"a")
    Trail.open(directory).close()
    assert "is missing" not in caplog.text, "nothing was signed yet"
    trail.signer.sign()
    trail.close()
    (directory / "signed").unlink()
    again = Trail.open(directory)
    assert caplog.text.count("whether it is an older copy") == 1
    again.signer.sign()
    again.close()
    Trail.open(directory).close()
    assert caplog.text.count("whether it is an older copy") == 1


def test_a_trail_that_should_have_been_signed_is_warned_about_without_any_trace_of_it(
    trail: Trail, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(trail, b"a")
    trail.signer.sign()
    changed(trail, "DELETE FROM checkpoint")
    trail.close()
    (directory / "signed").unlink()
    Trail.open(directory).close()
    assert "is missing" not in caplog.text, "it is as young as one that was not signed yet"
    in_a_minute = time.time_ns() + 60 * SECOND
    Trail.open(directory, clock=lambda: in_a_minute).close()
    assert caplog.text.count("or should have been") == 1
    changed(trail, "UPDATE leaf SET record = CAST(x'ff' AS TEXT)")
    Trail.open(directory).close()
    assert caplog.text.count("or should have been") == 2, "what cannot be read is no reason to stop"


def test_what_was_signed_is_not_forgotten_with_the_file(trail: Trail, directory: Path) -> None:
    """Else the process that has signed a tree would sign another one of the same records."""
    append(trail, b"a")
    first = trail.signer.sign()
    append(trail, b"b")
    trail.signer.sign()
    changed(trail, "DELETE FROM checkpoint")
    kept = (directory / "signed").read_bytes()
    (directory / "signed").unlink()
    with pytest.raises(
        TrailMismatchError, match=r"signed was removed under .* that 2 records were"
    ):
        trail.signer.sign()
    (directory / "signed").write_text(first, "utf-8")
    with pytest.raises(TrailMismatchError, match=r"signed was set back to 1 records under"):
        trail.signer.sign()
    (directory / "signed").write_bytes(kept)
    assert read_checkpoint(trail.signer.sign()).size == 2


def test_what_the_file_says_counts_only_with_the_signatures(trail: Trail, directory: Path) -> None:
    append(trail, b"a")
    trail.signer.sign()
    forged = Checkpoint(trail.store.origin, 1, merkle.leaf_hash(b"b"))
    stranger = TrailKeys.generate(trail.store.origin)
    (directory / "signed").write_text(sign(forged, stranger, 1), "utf-8")
    for attempt in (trail.signer.sign, lambda: Trail.open(directory)):
        with pytest.raises(TrailMismatchError, match="signed by no known key"):
            attempt()


def test_one_size_is_not_signed_twice_by_a_process_whose_file_was_exchanged(
    trail: Trail, directory: Path
) -> None:
    """Also not by who has the key, but not this process's memory."""
    append(trail, b"a")
    trail.signer.sign()
    leaf = merkle.leaf_hash(b"b")
    changed(trail, "UPDATE tree SET edge = ?", leaf)
    changed(trail, "UPDATE leaf SET hash = ?, record = ?", leaf, b"b")
    other = sign(Checkpoint(trail.store.origin, 1, leaf), trail.keys, 1)
    (directory / "signed").write_text(other, "utf-8")
    with pytest.raises(TrailMismatchError, match="has another root at 1 records"):
        trail.signer.sign()


def test_a_memory_that_cannot_be_read_or_written_signs_nothing(
    trail: Trail, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "signed").mkdir()
    with pytest.raises(TrailError, match="signed cannot be read: Is a directory; it says"):
        trail.signer.sign()
    with pytest.raises(TrailError, match="signed cannot be read: Is a directory; it says"):
        Trail.open(directory)
    (directory / "signed").rmdir()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrailError, match=r"cannot be kept in .*signed: Input/output error; until"):
        trail.signer.sign()
    assert trail.reader.last_checkpoint() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="ONLY ROOT CAN GIVE FILES TO OTHERS: not tested")
def test_what_root_signs_stays_with_the_owner_of_the_trail(trail: Trail, directory: Path) -> None:
    """Or the service could not read it, and so not start any more."""
    append(trail, b"a")
    os.chown(directory, 65_534, 65_533)
    trail.signer.sign()
    owner = (directory / "signed").stat()
    assert (owner.st_uid, owner.st_gid, owner.st_mode & 0o777) == (65_534, 65_533, 0o600)
