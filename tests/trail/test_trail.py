"""A trail as a whole: its parts belong together, or it is refused with a way out."""

from __future__ import annotations

import multiprocessing
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import (
    ProofError,
    TrailError,
    TrailKeyError,
    TrailMismatchError,
    TrailVersionError,
)
from otel_audit.trail import merkle, proof
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.reader import SCHEMA_VERSION, TrailReader
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator


def append(trail: Trail, *records: bytes) -> None:
    trail.store.append([(merkle.leaf_hash(record), record) for record in records], {})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def trail(directory: Path) -> Iterator[Trail]:
    opened = Trail.open(directory, service="shop")
    yield opened
    opened.close()


def test_the_first_use_makes_an_origin_and_private_keys(trail: Trail, directory: Path) -> None:
    assert trail.store.origin.startswith("otel-audit.local/shop/")
    assert (directory / "signing.key").stat().st_mode & 0o777 == 0o600
    assert trail.keys.origin == trail.store.origin
    assert f"PRIVATE+KEY+{trail.store.origin}+" in (directory / "signing.key").read_text("utf-8")


def test_it_is_the_same_trail_when_it_is_opened_again(trail: Trail, directory: Path) -> None:
    append(trail, b"a")
    trail.close()
    again = Trail.open(directory, service="another name")
    assert again.store.origin == trail.store.origin
    assert again.keys.verifier_keys() == trail.keys.verifier_keys()
    append(again, b"b")
    assert again.reader.tree().size == 2
    again.close()


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


def test_a_missing_key_is_not_replaced(trail: Trail, directory: Path) -> None:
    append(trail, b"a")
    trail.close()
    (directory / "signing.key").rename(directory / "backup")
    with pytest.raises(TrailKeyError, match=r"signing\.key is missing.*put it back.*new-origin"):
        Trail.open(directory)
    assert not (directory / "signing.key").exists()
    (directory / "backup").rename(directory / "signing.key")
    Trail.open(directory).close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_a_key_that_others_can_get_at_is_refused(trail: Trail, directory: Path, mode: int) -> None:
    trail.close()
    (directory / "signing.key").chmod(mode)
    with pytest.raises(TrailKeyError, match=f"mode {mode:04o} .*chmod 600"):
        Trail.open(directory)


def test_a_key_of_another_trail_is_refused(trail: Trail, directory: Path, tmp_path: Path) -> None:
    trail.close()
    other = Trail.open(tmp_path / "other")
    other.close()
    shutil.copy(tmp_path / "other" / "signing.key", directory / "signing.key")
    with pytest.raises(TrailKeyError, match="put back the key that was made with the trail"):
        Trail.open(directory)


def test_keys_from_elsewhere_name_the_trail_and_leave_no_file(directory: Path) -> None:
    keys = TrailKeys.generate("example.com/audit/shop")
    trail = Trail.open(directory, keys=keys)
    assert trail.store.origin == "example.com/audit/shop"
    assert not (directory / "signing.key").exists()
    append(trail, b"a")
    assert read_checkpoint(trail.signer.sign()).origin == "example.com/audit/shop"
    trail.close()
    with pytest.raises(TrailKeyError, match=r"signing\.key is missing"):
        Trail.open(directory)


def test_a_key_file_from_elsewhere(directory: Path, tmp_path: Path) -> None:
    keys = TrailKeys.load_or_create(tmp_path / "elsewhere.key", "example.com/audit/shop")
    trail = Trail.open(directory, key_file=tmp_path / "elsewhere.key")
    assert trail.keys.verifier_keys() == keys.verifier_keys()
    trail.close()
    with pytest.raises(TrailKeyError, match="no signing key at"):
        Trail.open(directory, key_file=tmp_path / "nowhere.key")


def test_keys_of_another_origin_do_not_fit_an_existing_trail(trail: Trail, directory: Path) -> None:
    trail.close()
    with pytest.raises(TrailKeyError, match=r"belongs to example\.com/other, the trail in"):
        Trail.open(directory, keys=TrailKeys.generate("example.com/other"))


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


def test_a_database_that_is_replaced_under_a_running_process_takes_no_more_records(
    trail: Trail, directory: Path, tmp_path: Path
) -> None:
    append(trail, b"a")
    other = Trail.open(tmp_path / "other")
    other.close()
    shutil.copy(tmp_path / "other" / "trail.db", directory / "next.db")
    (directory / "next.db").rename(directory / "trail.db")
    with pytest.raises(TrailMismatchError, match="restart this process"):
        append(trail, b"b")
    with pytest.raises(TrailMismatchError):
        trail.store.probe()


def test_a_newer_schema_that_appears_under_a_running_process_is_left_alone(
    trail: Trail, directory: Path
) -> None:
    """A newer version upgrades the trail while an older one still runs beside it."""
    append(trail, b"a")
    newer = Trail.open(directory)
    with newer.store._handle.use() as connection:
        connection.execute("ALTER TABLE tree ADD COLUMN shape TEXT DEFAULT 'new'")
        connection.pragma("user_version", SCHEMA_VERSION + 1)
    with pytest.raises(TrailVersionError, match="upgrade otel-audit"):
        append(trail, b"b")
    with pytest.raises(TrailVersionError):
        trail.signer.sign()
    with newer.store._handle.use() as connection:
        assert connection.execute("SELECT count(*) FROM leaf").get == 1
        connection.pragma("user_version", SCHEMA_VERSION)
    append(trail, b"c")
    newer.close()


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


def test_a_proof_signs_only_when_no_checkpoint_covers_the_record(trail: Trail) -> None:
    append(trail, b"a", b"b")
    for sequence in (0, 1, 0):
        trail.prove(sequence)
    assert len(list(trail.reader.checkpoints())) == 1
    append(trail, b"c")
    trail.prove(1)
    assert len(list(trail.reader.checkpoints())) == 1
    trail.prove(2)
    assert len(list(trail.reader.checkpoints())) == 2


def test_what_is_not_there_cannot_be_proved(trail: Trail) -> None:
    with pytest.raises(TrailError, match="has no record 0"):
        trail.prove(0)
    append(trail, b"a")
    with pytest.raises(TrailError, match="has no record 1"):
        trail.prove(1)


def test_a_damaged_record_cannot_be_proved(trail: Trail) -> None:
    append(trail, b"a", b"b")
    with trail.store._handle.use() as connection:
        connection.execute("UPDATE leaf SET record = x'00' WHERE seq = 1")
    with pytest.raises(ProofError, match="the trail is damaged, run otel-audit verify"):
        trail.prove(1)


def test_it_is_signed_at_the_end_only_if_it_has_grown(trail: Trail) -> None:
    assert trail.sign_if_grown() is None
    append(trail, b"a")
    note = trail.sign_if_grown()
    assert note is not None
    assert read_checkpoint(note).size == 1
    assert trail.sign_if_grown() is None


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
