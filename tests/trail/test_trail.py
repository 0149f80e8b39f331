"""The trail as a whole: what may be opened, what is refused, what is proved and when it is signed."""

from __future__ import annotations

import os
import shutil
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
from otel_audit.trail import proof
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def make(directory: Path) -> Iterator[Callable[..., Trail]]:
    made = []

    def make_one(**options: object) -> Trail:
        made.append(Trail.open(directory, service="shop", timeout=1.0, **options))  # type: ignore[arg-type] # options of each test
        return made[-1]

    yield make_one
    for trail in made:
        trail.close()


@pytest.fixture
def trail(make: Callable[..., Trail]) -> Trail:
    return make()


def append(trail: Trail, *records: bytes) -> int:
    return trail.store.append(records, {}).first


def open_files(directory: Path) -> list[str]:
    links = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.startswith(str(directory))]


def test_the_first_use_makes_an_origin_and_keys_that_stay(
    make: Callable[..., Trail], directory: Path
) -> None:
    first = make()
    origin, keys = first.store.origin, first.keys.verifier_keys()
    assert origin.startswith("otel-audit.local/shop/")
    assert first.keys.origin == origin
    path = directory / "signing.key"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    first.close()
    second = make()
    assert (second.store.origin, second.keys.verifier_keys()) == (origin, keys)
    assert path.read_bytes() == before


def test_a_given_key_names_the_trail(make: Callable[..., Trail], directory: Path) -> None:
    keys = TrailKeys.generate("example.com/shop")
    assert make(keys=keys).store.origin == "example.com/shop"
    assert make(keys=keys).keys is keys
    assert not (directory / "signing.key").exists()


def test_a_key_file_elsewhere_must_be_there(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(TrailKeyError, match="there is no signing key at"):
        Trail.open(directory, key_file=tmp_path / "nothing")
    assert not directory.exists()


def test_a_trail_of_a_kms_is_not_opened_with_a_key_of_its_own(
    make: Callable[..., Trail], directory: Path
) -> None:
    make(keys=TrailKeys.generate("example.com/shop")).close()
    with pytest.raises(TrailKeyError, match="is missing, but the trail has been signed with it"):
        make()
    assert not (directory / "signing.key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_use_is_refused(
    make: Callable[..., Trail], directory: Path, mode: int
) -> None:
    make().close()
    (directory / "signing.key").chmod(mode)
    with pytest.raises(TrailKeyError, match="chmod 600"):
        make()
    assert open_files(directory) == []


def test_a_missing_key_is_not_replaced(make: Callable[..., Trail], directory: Path) -> None:
    make().close()
    (directory / "signing.key").unlink()
    with pytest.raises(TrailKeyError, match=r"put it back from your backup.*new-origin"):
        make()
    assert not (directory / "signing.key").exists()
    assert open_files(directory) == []


def test_another_key_of_the_same_name_is_refused(
    make: Callable[..., Trail], directory: Path
) -> None:
    trail = make()
    own = trail.keys.verifier_keys()
    trail.close()
    foreign = TrailKeys.generate(trail.store.origin)
    with pytest.raises(TrailKeyError, match="was begun with") as caught:
        make(keys=foreign)
    assert own[0] in str(caught.value)
    assert make().reader.claimed_keys == own
    make().close()
    (directory / "signing.key").unlink()
    TrailKeys.load_or_create(directory / "signing.key", trail.store.origin)
    with pytest.raises(TrailKeyError, match="was begun with"):
        make()


def test_the_key_of_another_origin_is_refused(make: Callable[..., Trail], directory: Path) -> None:
    make().close()
    with pytest.raises(TrailKeyError, match=r"belongs to example\.com/other, the trail in"):
        make(keys=TrailKeys.generate("example.com/other"))
    (directory / "signing.key").unlink()
    TrailKeys.load_or_create(directory / "signing.key", "example.com/other")
    with pytest.raises(TrailKeyError, match=r"belongs to example\.com/other"):
        make()
    assert open_files(directory) == []


def test_an_older_database_put_back_is_refused_until_the_right_one_is_back(
    make: Callable[..., Trail], directory: Path, tmp_path: Path
) -> None:
    trail = make()
    append(trail, b"a", b"b")
    trail.signer.sign()
    trail.close()
    shutil.copy(directory / "trail.db", tmp_path / "older.db")
    trail = make()
    append(trail, b"c")
    trail.signer.sign()
    trail.close()
    (directory / "trail.db").rename(tmp_path / "newer.db")
    shutil.copy(tmp_path / "older.db", directory / "trail.db")
    for _ in range(2):
        with pytest.raises(TrailMismatchError, match="holds 2 records, but a checkpoint of 3"):
            make()
    assert open_files(directory) == []
    for path in directory.glob("trail.db*"):
        path.unlink()
    shutil.copy(tmp_path / "newer.db", directory / "trail.db")
    assert append(make(), b"d") == 3


def test_a_file_put_in_the_place_of_an_open_one_takes_no_records(
    trail: Trail, directory: Path, tmp_path: Path
) -> None:
    append(trail, b"a")
    trail.store.wal.empty(reset=True)
    shutil.copy(directory / "trail.db", tmp_path / "copy.db")
    (tmp_path / "copy.db").replace(directory / "trail.db")
    with pytest.raises(TrailMismatchError, match="removed or replaced while this process"):
        append(trail, b"b")


def test_a_newer_version_that_comes_while_we_run_gets_no_records_of_ours(
    trail: Trail, directory: Path
) -> None:
    append(trail, b"a")
    other = apsw.Connection(str(directory / "trail.db"))
    other.pragma("user_version", 99)
    for attempt in (
        lambda: append(trail, b"b"),
        trail.signer.sign,
        trail.store.probe,
        lambda: Trail.open(directory),
    ):
        with pytest.raises(TrailVersionError, match="upgrade otel-audit"):
            attempt()
    assert trail.reader.tree().size == 1
    # It was a mistake: whoever put it back need not restart us.
    other.pragma("user_version", 1)
    other.close()
    assert append(trail, b"b") == 1


def test_a_checkpoint_is_signed_only_when_there_is_something_new(trail: Trail) -> None:
    assert trail.sign_if_grown() is None
    append(trail, b"a", b"b")
    note = trail.sign_if_grown()
    assert note is not None
    assert read_checkpoint(note).size == 2
    assert trail.sign_if_grown() is None
    append(trail, b"c")
    assert trail.sign_if_grown() is not None
    assert [one.size for one in trail.reader.checkpoints()] == [2, 3]


def test_a_record_is_proved_by_the_checkpoint_there_is(trail: Trail) -> None:
    records = [b"%d" % number for number in range(600)]
    append(trail, *records)
    note = trail.signer.sign()
    for sequence in (0, 255, 256, 599):
        text = trail.prove(sequence)
        assert note in text
        checked = proof.check(text, records[sequence], trail.keys.verifiers())
        assert checked.index == sequence
        with pytest.raises(ProofError):
            proof.check(text, records[sequence] + b" ", trail.keys.verifiers())
    assert len(list(trail.reader.checkpoints())) == 1


def test_a_record_that_no_checkpoint_covers_yet_is_signed_first(trail: Trail) -> None:
    append(trail, b"a")
    trail.signer.sign()
    append(trail, b"b")
    checked = proof.check(trail.prove(1), b"b", trail.keys.verifiers())
    assert checked.index == 1
    assert [one.size for one in trail.reader.checkpoints()] == [1, 2]


@pytest.mark.parametrize("sequence", [-1, 1, 10**15])
def test_a_record_that_does_not_exist_is_not_proved(trail: Trail, sequence: int) -> None:
    append(trail, b"a")
    with pytest.raises(TrailError, match=f"has no record {sequence}"):
        trail.prove(sequence)
    assert trail.reader.last_checkpoint() is None


def test_close_leaves_one_database_that_can_be_copied_alone(
    make: Callable[..., Trail], directory: Path, tmp_path: Path
) -> None:
    trail = make()
    append(trail, *(b'{"record_id":"%d"}' % number for number in range(300)))
    trail.signer.sign()
    trail.close()
    assert open_files(directory) == []
    (tmp_path / "copy").mkdir()
    for name in ("trail.db", "signing.key", "signed"):
        shutil.copy(directory / name, tmp_path / "copy" / name)
    copy = Trail.open(tmp_path / "copy")
    report = verify(copy.reader, verifiers=copy.keys.verifiers())
    copy.close()
    assert (report.ok, report.size, report.covered) == (True, 300, 300)
