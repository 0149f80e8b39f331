"""After a crash, whenever it came, the mirror neither misses nor repeats a line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.trail.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.readers.mirror import Mirror
    from tests.readers.bench import Bench


class Crash(BaseException):
    """Stands for kill -9: nothing of ours runs behind it."""


def crash_at(
    number: int, patch: pytest.MonkeyPatch, *, torn: bool, names: tuple[str, ...]
) -> Callable[[], bool]:
    """Make the call with this number of any of the functions the last one.

    A write then writes a part of its lines when ``torn``. Returns whether it came to that.
    """
    calls = itertools.count()

    def crashing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            current = next(calls)
            if current > number:
                raise Crash
            if current == number:
                if name == "write" and torn:
                    real(arguments[0], arguments[1][: number * 7_919 % len(arguments[1])])
                raise Crash
            return real(*arguments, **options)

        return call

    for name in names:
        patch.setattr(os, name, crashing(name, getattr(os, name)))
    return lambda: next(calls) > number


def abandon(mirror: Mirror) -> None:
    mirror.close()
    mirror._reader.close()
    mirror._cursors.close()


@pytest.mark.parametrize("max_bytes", [0, 700])
@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_any_call(bench: Bench, max_bytes: int, *, torn: bool) -> None:
    names = ("write", "fsync", "ftruncate", "replace", "fchmod")
    bench.append(25, size=50)
    for number in itertools.count():
        bench.path = bench.root / f"log{number}" / "audit.log"
        crashed = []
        # The second life crashes too, two calls later in its work of repair.
        for life in (number, number // 2):
            mirror = bench.mirror(max_bytes=max_bytes)
            with pytest.MonkeyPatch.context() as patch:
                came = crash_at(life, patch, torn=torn, names=names)
                with contextlib.suppress(Crash):
                    while mirror.step(max_lines=2):
                        pass
                crashed.append(came())
            abandon(mirror)
        mirror = bench.mirror(max_bytes=max_bytes)
        bench.catch_up(mirror)
        abandon(mirror)
        bench.check()
        if not crashed[0]:
            break
    assert number > 20


def test_lines_that_were_torn_at_any_byte_are_completed(bench: Bench) -> None:
    """Lines that are written together may end anywhere: in one, between two, behind the last."""
    bench.append(4, size=20)
    together = b"".join(record + b"\n" for record in bench.expected())
    write = os.write
    for end in range(len(together) + 1):
        bench.path = bench.root / f"log{end}" / "audit.log"
        mirror = bench.mirror()

        def tear(descriptor: int, data: bytes, end: int = end) -> int:
            assert bytes(data) == together
            write(descriptor, data[:end])
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", tear)
            with pytest.raises(Crash):
                mirror.step()
        abandon(mirror)
        mirror = bench.mirror()
        bench.catch_up(mirror)
        abandon(mirror)
        bench.check()


def test_a_crash_after_which_logrotate_ran(bench: Bench) -> None:
    bench.append(25, size=50)
    for number in itertools.count():
        bench.path = bench.root / f"log{number}" / "audit.log"
        mirror = bench.mirror()
        with pytest.MonkeyPatch.context() as patch:
            came = crash_at(number, patch, torn=True, names=("write", "fsync"))
            with contextlib.suppress(Crash):
                mirror.step()
            crashed = came()
        abandon(mirror)
        if bench.path.exists():
            bench.path.rename(bench.path.with_name("audit.log.1"))
        mirror = bench.mirror()
        bench.catch_up(mirror)
        abandon(mirror)
        bench.check()
        if not crashed:
            break


def lose_count(bench: Bench, mirror: Mirror, lines: int) -> None:
    """Write lines that the cursor does not count, as a crash leaves them."""
    bench.append(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_count", lambda: True)
        assert mirror.step() == lines
    abandon(mirror)


COMPRESSED: list[tuple[str, Callable[[bytes], bytes]]] = [
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSED)
def test_a_crash_after_which_logrotate_compressed(
    bench: Bench, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    lose_count(bench, mirror, 10)
    packed = bench.path.with_name("audit.log.1" + suffix)
    packed.write_bytes(compress(bench.path.read_bytes()))
    bench.path.unlink()
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1


def test_a_damaged_archive_is_passed_over(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    abandon(mirror)
    bench.path.rename(bench.path.with_name("audit.log.1"))
    bench.path.with_name("audit.log.0.gz").write_bytes(b"\x1f\x8b not really")
    (bench.directory / "cursors.db").unlink()
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1
    assert "passed over" in caplog.text


@pytest.mark.parametrize("name", ["audit.log.1", "audit.log-20260131", "audit-20260131.log"])
def test_the_marked_file_is_known_by_its_inode(bench: Bench, name: str) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    lose_count(bench, mirror, 10)
    bench.path.rename(bench.path.with_name(name))
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1


def test_many_foreign_lines_behind_the_crash_hide_nothing(bench: Bench) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    lose_count(bench, mirror, 10)
    with bench.path.open("ab") as file:
        file.write(b"foreign\n" * 70_000)
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1


def test_a_number_given_to_another_file_is_not_trusted(bench: Bench) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    lose_count(bench, mirror, 10)
    # The marked file was compressed, and its inode's number went to a new file.
    packed = bench.path.with_name("audit.log.1.gz")
    packed.write_bytes(gzip.compress(bench.path.read_bytes()))
    bench.path.write_bytes(b"foreign\n" * 1_000)
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1


# An older copy of the file


def older_copy(bench: Bench, *, in_place: bool) -> None:
    """Write 20 records, keep a copy, write 3,000 more, and put the copy back while nobody looks."""
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    copy = bench.path.read_bytes()
    bench.append(3_000, size=10)
    bench.catch_up(mirror)
    abandon(mirror)
    if not in_place:
        bench.path.rename(bench.root / "put away")
    bench.path.write_bytes(copy)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("torn", [b"", b'{"n":20,"pa', b"foreign\n"])
def test_what_an_older_copy_of_the_file_lacks_is_written_again(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    in_place: bool,  # noqa: FBT001 - parametrized
    torn: bytes,
) -> None:
    older_copy(bench, in_place=in_place)
    with bench.path.open("ab") as file:
        file.write(torn)
    bench.append(1)
    mirror = bench.mirror()
    assert bench.catch_up(mirror) == 3_001
    abandon(mirror)
    assert [line for line in bench.mirrored() if line != b"foreign"] == bench.expected()
    assert (
        "older copy of itself: it ends with record 19, and had come to record 3019" in caplog.text
    )
    assert bench.catch_up(bench.mirror()) == 0


def test_an_older_copy_repeats_nothing_that_a_rotated_file_has(bench: Bench) -> None:
    older_copy(bench, in_place=False)
    bench.path.with_name("audit.log.1.gz").write_bytes(
        gzip.compress((bench.root / "put away").read_bytes())
    )
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1


def test_files_that_were_moved_away_are_not_written_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """By logrotate's olddir: an older file beside an empty or a foreign one is no older copy of it."""
    for content in (b"", b"foreign\n"):
        mirror = bench.mirror()
        bench.append(20)
        bench.catch_up(mirror)
        bench.path.with_name("audit.log.1").write_bytes(bench.path.read_bytes())
        bench.append(10)
        bench.catch_up(mirror)
        abandon(mirror)
        bench.path.rename(bench.root / "old")
        bench.path.write_bytes(content)
        bench.append(1)
        mirror = bench.mirror()
        assert bench.catch_up(mirror) == 1
        abandon(mirror)
    assert "older copy" not in caplog.text


def test_what_retention_removed_makes_no_older_copy(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    abandon(mirror)
    with bench.trail.store._handle.use() as connection:
        connection.execute("DELETE FROM leaf WHERE seq > 17")
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1
    assert "older copy" not in caplog.text


# Without a cursor


@pytest.fixture
def forgotten(bench: Bench) -> Bench:
    """Make a mirror of 20 records and lose its cursors.db."""
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    abandon(mirror)
    for file in bench.directory.glob("cursors.db*"):
        file.unlink()
    return bench


def test_lost_cursors_are_found_in_the_file(forgotten: Bench) -> None:
    forgotten.append(3)
    assert forgotten.catch_up(forgotten.mirror()) == 3
    forgotten.check()


@pytest.mark.parametrize("torn", [b"{", b'{"n":20,', b"\0" * 100, b'{"n":2\0\0\0'])
def test_a_torn_line_is_taken_away(forgotten: Bench, torn: bytes) -> None:
    with forgotten.path.open("ab") as file:
        file.write(torn)
    forgotten.append(3)
    assert forgotten.catch_up(forgotten.mirror()) == 3
    forgotten.check()


@pytest.mark.parametrize("name", ["audit.log.1", "audit.log-20260131", "audit-20260131.log"])
def test_lost_cursors_are_found_in_the_rotated_file(forgotten: Bench, name: str) -> None:
    forgotten.path.rename(forgotten.path.with_name(name))
    forgotten.append(3)
    assert forgotten.catch_up(forgotten.mirror()) == 3


def test_lost_cursors_are_found_in_the_compressed_file(forgotten: Bench) -> None:
    packed = forgotten.path.with_name("audit.log.1.gz")
    packed.write_bytes(gzip.compress(forgotten.path.read_bytes()))
    forgotten.path.write_bytes(b"")
    forgotten.append(3)
    assert forgotten.catch_up(forgotten.mirror()) == 3


def test_lost_cursors_are_found_before_foreign_lines(forgotten: Bench) -> None:
    with forgotten.path.open("ab") as file:
        file.write(b"foreign\n" * 100)
    forgotten.append(3)
    assert forgotten.catch_up(forgotten.mirror()) == 3


def test_an_older_program_s_file_gets_the_whole_trail(bench: Bench) -> None:
    bench.path.parent.mkdir()
    bench.path.write_bytes(b"older line\n")
    (bench.path.parent / "audit.log.d").mkdir()
    bench.append(20)
    mirror = bench.mirror()
    assert bench.catch_up(mirror) == 20
    abandon(mirror)
    assert bench.path.read_bytes().startswith(b"older line\n")
    assert bench.catch_up(bench.mirror()) == 0


def test_a_link_to_the_file_works_too(bench: Bench) -> None:
    bench.path.parent.mkdir()
    (bench.root / "elsewhere").touch()
    bench.path.symlink_to(bench.root / "elsewhere")
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    lose_count(bench, mirror, 10)
    bench.append(1)
    assert bench.catch_up(bench.mirror()) == 1
    bench.check()


# Another trail


def test_a_new_origin_begins_from_its_first_record(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.append(20)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    abandon(mirror)
    bench.trail.close()
    for file in bench.directory.iterdir():
        if not file.name.startswith("cursors"):
            file.unlink()
    bench.trail = Trail.open(bench.directory)
    bench.append(21, size=300)
    second = bench.expected()
    assert bench.catch_up(bench.mirror()) == 21
    assert bench.mirrored()[-21:] == second
    assert "another one than before" in caplog.text
    bench.trail.close()


def test_an_older_copy_of_the_trail_is_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.append(20)
    bench.trail.close()
    copy = bench.root / "copy"
    shutil.copytree(bench.directory, copy)
    bench.append(10)
    mirror = bench.mirror()
    bench.catch_up(mirror)
    abandon(mirror)
    bench.trail.close()
    for file in bench.directory.glob("trail.db*"):
        file.unlink()
    for file in copy.glob("trail.db*"):
        shutil.copy(file, bench.directory)
    bench.trail = Trail.open(bench.directory)
    bench.append(2, size=300)
    assert bench.catch_up(bench.mirror()) == 2
    assert "rolled back" in caplog.text
    bench.trail.close()
