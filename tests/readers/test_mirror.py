"""The mirror holds each record once, in order, whoever rotates its file."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from otel_audit.errors import AuditSettingsError, TrailError, TrailLockedError
from otel_audit.readers.mirror import create, cursor_name, shift_backups

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.readers.bench import Bench


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def wide_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


# The file


@pytest.mark.usefixtures("wide_umask")
def test_the_file_is_made_at_once_with_its_directories(tmp_path: Path) -> None:
    path = tmp_path / "var" / "log" / "audit.log"
    create(path)
    assert path.read_bytes() == b""
    assert mode_of(path) == 0o640
    assert [mode_of(parent) for parent in path.parents[:2]] == [0o750, 0o750]


def test_the_umask_does_not_change_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        create(tmp_path / "audit.log", 0o644)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "audit.log") == 0o644


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"older\n")
    path.chmod(0o600)
    create(path)
    assert path.read_bytes() == b"older\n"
    assert mode_of(path) == 0o600


def test_a_place_that_can_never_work_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditSettingsError, match="AUDIT_LOG_LOCAL_FILE"):
        create(tmp_path / "file" / "audit.log")
    with pytest.raises(AuditSettingsError, match="cannot be written: Is a directory"):
        create(tmp_path)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AuditSettingsError, match="not a regular file"):
        create(tmp_path / "pipe")


# The lines


def test_lines_are_the_stored_bytes(bench: Bench) -> None:
    bench.append(5)
    mirror = bench.mirror()
    assert bench.catch_up(mirror) == 5
    assert bench.path.read_bytes() == b"".join(record + b"\n" for record in bench.expected())
    bench.append(3)
    assert mirror.step() == 3
    assert mirror.step() == 0
    assert mirror.position == 8
    bench.check()


def test_each_line_lies_whole_in_one_write_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.append(2_000)
    write, calls = os.write, []

    def seen(descriptor: int, data: bytes) -> int:
        calls.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", seen)
    bench.catch_up(bench.mirror())
    assert b"".join(calls) == b"".join(record + b"\n" for record in bench.expected())
    assert all(call.endswith(b"\n") for call in calls)
    assert all(len(call) <= 65_536 for call in calls)
    assert 1 < len(calls) < 50  # few, or other threads would wait for each


def test_a_step_is_bounded_by_lines_and_by_time(bench: Bench) -> None:
    bench.append(3_000, size=10)
    mirror = bench.mirror()
    assert mirror.step(max_lines=10) == 10
    assert mirror.step(max_seconds=0.0) == 1
    assert mirror.step(max_lines=1_000_000, max_seconds=60.0) == 2_000
    bench.catch_up(mirror)
    bench.check()


def test_the_cursor_counts_only_what_is_synced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = bench.mirror()
    mirror.step()
    bench.append(5)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk fails"):
            mirror.step()
    assert mirror._cursors.get(mirror.name) == 0
    bench.catch_up(mirror)
    bench.check()


def test_each_file_has_its_own_cursor(bench: Bench) -> None:
    bench.append(5)
    bench.catch_up(bench.mirror())
    bench.path = bench.root / "other" / "audit.log"
    bench.catch_up(bench.mirror())
    bench.check()


def test_the_cursor_is_named_by_the_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = (tmp_path / "audit.log").relative_to(tmp_path)
    assert cursor_name(relative) == cursor_name(tmp_path / "audit.log")


def test_two_writers_of_one_file_are_refused(bench: Bench) -> None:
    bench.append(5)
    first, second = bench.mirror(), bench.mirror()
    first.step()
    with pytest.raises(TrailLockedError, match="a file of its own"):
        second.step()
    first.close()
    bench.append(1)
    assert second.step() == 1
    bench.check()


def test_a_forked_child_does_not_keep_the_file_locked(bench: Bench) -> None:
    mirror = bench.mirror()
    mirror.step()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent is done
        os._exit(0)
    mirror.close()
    bench.append(1)
    assert bench.mirror().step() == 1
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


def test_records_that_retention_removed_are_passed_over(bench: Bench) -> None:
    bench.append(10)
    with bench.trail.store._handle.use() as connection:
        connection.execute("DELETE FROM leaf WHERE seq < 4 OR seq > 7")
    mirror = bench.mirror()
    assert bench.catch_up(mirror) == 4
    assert mirror.position == 10
    bench.append(1)
    bench.catch_up(mirror)
    bench.check()


# Rotation by others


def test_rename_and_create(bench: Bench) -> None:
    mirror = bench.mirror()
    for number in range(5, 0, -1):
        bench.append(10)
        bench.catch_up(mirror)
        bench.path.rename(bench.path.with_name(f"audit.log.{number}"))
        create(bench.path)
    bench.append(1)
    bench.catch_up(mirror)
    bench.check()
    assert len(bench.path.read_bytes().splitlines()) == 1


def test_rename_without_create(bench: Bench) -> None:
    mirror = bench.mirror(patience=0.1)
    bench.append(10)
    bench.catch_up(mirror)
    bench.path.rename(bench.path.with_name("audit.log.1"))
    bench.append(10)
    # logrotate may be about to create the file, and would move one of ours out of its way.
    assert mirror.step() == 0
    assert not bench.path.exists()
    while not mirror.step():
        pass
    assert len(bench.path.read_bytes().splitlines()) == 10
    assert mode_of(bench.path) == 0o640
    bench.check()


def test_a_deleted_file_is_made_again(bench: Bench) -> None:
    mirror = bench.mirror(patience=0.0)
    bench.append(10)
    bench.catch_up(mirror)
    bench.path.unlink()
    bench.append(5)
    bench.catch_up(mirror)
    assert bench.mirrored() == bench.expected()[10:]


def test_a_deleted_directory_is_made_again(bench: Bench) -> None:
    mirror = bench.mirror(patience=0.0)
    bench.append(10)
    bench.catch_up(mirror)
    bench.path.unlink()
    bench.path.parent.rmdir()
    bench.append(5)
    bench.catch_up(mirror)
    assert bench.mirrored() == bench.expected()[10:]


def test_lines_that_went_into_a_deleted_file_are_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = bench.mirror()
    bench.append(10)
    bench.catch_up(mirror)
    bench.append(5)
    write = os.write

    def delete(descriptor: int, data: bytes) -> int:
        bench.path.unlink(missing_ok=True)
        return write(descriptor, data)

    with monkeypatch.context() as deleting:
        deleting.setattr(os, "write", delete)
        assert mirror.step() == 0
    bench.catch_up(mirror)
    assert bench.mirrored() == bench.expected()[10:]


def test_a_foreign_file_at_the_place_is_continued(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = bench.mirror()
    bench.append(2)
    bench.catch_up(mirror)
    bench.path.rename(bench.path.with_name("audit.log.1"))
    bench.path.write_bytes(b"something else\nunfinished")
    bench.append(2)
    bench.catch_up(mirror)
    assert bench.path.read_bytes().split(b"\n") == [
        b"something else",
        b"unfinished",
        *bench.expected()[2:],
        b"",
    ]
    assert "unfinished line of another program" in caplog.text


def test_a_truncated_file_is_reported_and_continued(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = bench.mirror()
    bench.append(5)
    bench.catch_up(mirror)
    copy = bench.path.with_name("audit.log.1")
    copy.write_bytes(bench.path.read_bytes())
    os.truncate(bench.path, 0)
    bench.append(5)
    with caplog.at_level(logging.ERROR):
        bench.catch_up(mirror)
    assert "copytruncate" in caplog.text
    bench.check()


def test_an_unfinished_line_of_another_program_is_ended_while_it_runs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A record must not go on in the line that another program has begun."""
    mirror = bench.mirror()
    bench.append(2)
    bench.catch_up(mirror)
    with bench.path.open("ab") as file:
        file.write(b"unfinished")
    bench.append(2)
    bench.catch_up(mirror)
    first, second, *rest = bench.expected()
    assert bench.mirrored() == [first, second, b"unfinished", *rest]
    assert "unfinished line of another program" in caplog.text
    mirror.close()
    assert bench.catch_up(bench.mirror()) == 0


def test_another_program_may_take_its_time_for_a_line(bench: Bench) -> None:
    """A line is ended for it only when a record has to follow."""
    mirror = bench.mirror()
    bench.append(2)
    bench.catch_up(mirror)
    for part in (b"fini", b"shed\n"):
        with bench.path.open("ab") as file:
            file.write(part)
        assert mirror.step() == 0
    assert bench.mirrored() == [*bench.expected(), b"finished"]


def test_also_one_that_was_begun_while_lines_were_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = bench.mirror()
    fsync = os.fsync

    def begun_meanwhile(descriptor: int) -> None:
        with bench.path.open("ab") as file:
            file.write(b"unfinished")
        fsync(descriptor)

    bench.append(2)
    with monkeypatch.context() as busy:
        mirror.step(max_lines=1)
        busy.setattr(os, "fsync", begun_meanwhile)
        mirror.step(max_lines=1)
    bench.append(1)
    bench.catch_up(mirror)
    first, second, third = bench.expected()
    assert bench.mirrored() == [first, second, b"unfinished", third]


def test_lines_of_other_programs_do_not_move_the_mirror(bench: Bench) -> None:
    mirror = bench.mirror()
    for _ in range(3):
        bench.append(5)
        bench.catch_up(mirror)
        with bench.path.open("ab") as file:
            file.write(b"foreign\n")
    mirror.close()
    bench.catch_up(bench.mirror())
    assert [line for line in bench.mirrored() if line != b"foreign"] == bench.expected()


# Rotation by size


def test_rotation_by_size(bench: Bench) -> None:
    bench.append(200, size=100)
    bench.catch_up(bench.mirror(max_bytes=2_000))
    files = list(bench.path.parent.iterdir())
    assert len(files) > 5
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert {mode_of(file) for file in files} == {0o640}
    bench.check()


def test_rotation_by_size_keeps_so_many_files(bench: Bench) -> None:
    mirror = bench.mirror(max_bytes=1_000, backups=3)
    for _ in range(10):
        bench.append(20)
        bench.catch_up(mirror)
    assert sorted(file.name for file in bench.path.parent.iterdir()) == [
        "audit.log",
        "audit.log.1",
        "audit.log.2",
        "audit.log.3",
    ]
    kept = bench.mirrored()
    assert kept == bench.expected()[-len(kept) :]


def test_rotation_by_size_may_keep_no_other_file(bench: Bench) -> None:
    mirror = bench.mirror(max_bytes=1_000, backups=0)
    for _ in range(10):
        bench.append(20)
        bench.catch_up(mirror)
        assert bench.path.stat().st_size <= 1_000
    assert [file.name for file in bench.path.parent.iterdir()] == ["audit.log"]
    kept = bench.mirrored()
    assert kept == bench.expected()[-len(kept) :]
    mirror.close()
    assert bench.catch_up(bench.mirror(max_bytes=1_000, backups=0)) == 0


def test_a_record_larger_than_the_limit_has_a_file_of_its_own(bench: Bench) -> None:
    bench.append(5, size=100)
    bench.catch_up(bench.mirror(max_bytes=1))
    assert len(list(bench.path.parent.iterdir())) == 5
    bench.check()


def test_shifting_closes_the_gap_that_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for name in ("audit.log", "audit.log.1", "audit.log.3"):
        (tmp_path / name).write_text(name)
    shift_backups(path, 5)
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        "audit.log.1": "audit.log",
        "audit.log.2": "audit.log.1",
        "audit.log.3": "audit.log.3",
    }
    shift_backups(path, 5)
    assert {file.name for file in tmp_path.iterdir()} == set(found)


# Trouble with the disk


def test_a_full_disk_tears_no_line_for_good(bench: Bench) -> None:
    bench.append(40, size=20_000)
    mirror = bench.mirror()
    mirror.step(max_lines=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_001, hard))
    try:
        for _ in range(2):
            with pytest.raises((OSError, TrailError)):
                bench.catch_up(mirror)
        assert bench.path.stat().st_size == 300_001
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    bench.catch_up(mirror)
    bench.check()


def test_a_short_write_is_completed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.append(20)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    bench.catch_up(bench.mirror())
    bench.check()


def test_a_cursor_that_cannot_be_stored_stops_the_mirror(bench: Bench) -> None:
    bench.append(5)
    mirror = bench.mirror()
    mirror.step()
    bench.append(5)
    with mirror._cursors.connection() as connection:
        connection.pragma("query_only", 1)
    for _ in range(2):
        with pytest.raises(TrailError):
            mirror.step()
    with mirror._cursors.connection() as connection:
        connection.pragma("query_only", 0)
    bench.catch_up(mirror)
    bench.check()
