"""Handles of SQLite: one thread at a time, opened when needed, and safe across forks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import TrailError
from otel_audit.trail import database
from otel_audit.trail.database import Handle, fetch, make_file
from otel_audit.trail.occupants import holders
from tests.small_disk import mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE number (value)")
    connection.close()
    return path


@pytest.fixture
def handle(path: Path) -> Iterator[Handle]:
    def connect() -> apsw.Connection:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(10_000)
        return connection

    opened = Handle(connect)
    yield opened
    opened.close()


def descriptors(path: Path) -> int:
    """How many descriptors of this process are of the database, its log or its shared memory."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith(str(path))
    return count


def in_child(action: Callable[[], None]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            signal.alarm(20)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def add(handle: Handle, value: int) -> None:
    with handle.use() as connection:
        connection.execute("INSERT INTO number VALUES (?)", (value,))


def count(handle: Handle) -> int:
    with handle.use() as connection:
        return int(fetch(connection, "SELECT count(*) FROM number")[0][0])


def test_it_opens_on_first_use_and_again_after_close(handle: Handle, path: Path) -> None:
    assert descriptors(path) == 0
    add(handle, 1)
    assert descriptors(path) > 0
    handle.close()
    assert descriptors(path) == 0
    handle.close()
    assert count(handle) == 1


def test_one_thread_at_a_time_uses_it(handle: Handle) -> None:
    using: list[int] = []
    most: list[int] = []

    def body() -> None:
        for _ in range(50):
            with handle.use():
                using.append(1)
                most.append(len(using))
                time.sleep(1e-5)
                using.pop()

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_what_fails_inside_leaves_it_usable(handle: Handle) -> None:
    with pytest.raises(apsw.SQLError), handle.use() as connection:
        connection.execute("SELECT nonsense FROM nowhere")
    add(handle, 1)


def test_a_connection_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    handle = Handle(lambda: apsw.Connection(str(tmp_path / "later" / "some.db")))
    with pytest.raises(apsw.CantOpenError), handle.use():
        pass
    (tmp_path / "later").mkdir()
    with handle.use() as connection:
        assert fetch(connection, "SELECT 1") == [(1,)]
    handle.close()


def test_who_handles_an_exception_may_close_what_it_interrupted(handle: Handle) -> None:
    with handle.use() as connection:
        handle.close()
        with pytest.raises(apsw.ConnectionClosedError):
            connection.execute("SELECT 1")


def test_close_gives_up_on_a_thread_that_hangs(
    handle: Handle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.1)
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with handle.use():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(5)
    handle.close()
    assert thread.is_alive()
    assert "does not end; its database is left open" in caplog.text
    leave.set()
    thread.join()


def test_a_child_inherits_no_open_database(handle: Handle, path: Path) -> None:
    add(handle, 1)

    def child() -> None:
        assert descriptors(path) == 0
        add(handle, 2)
        assert count(handle) == 2

    assert in_child(child) == 0
    assert count(handle) == 2


def test_a_fork_waits_for_a_transaction_of_another_thread(handle: Handle) -> None:
    inside, done = threading.Event(), threading.Event()

    def slow() -> None:
        with handle.use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            inside.set()
            time.sleep(0.2)
            connection.execute("INSERT INTO number VALUES (1)")
            connection.execute("COMMIT")
            done.set()

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(5)

    def child() -> None:
        assert done.is_set()
        add(handle, 2)

    assert in_child(child) == 0
    thread.join()
    assert count(handle) == 2


def test_a_child_forked_inside_a_transaction_refuses_and_its_parent_goes_on(
    handle: Handle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's lock table is inherited as well, and a close in the child would harm the parent."""
    monkeypatch.setattr(database, "_PATIENCE", 0.1)
    inside, leave = threading.Event(), threading.Event()
    other = Handle(handle._connect)

    def hang() -> None:
        with handle.use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            inside.set()
            leave.wait(10)
            connection.execute("INSERT INTO number VALUES (1)")
            connection.execute("COMMIT")

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(5)

    def child() -> None:
        for one in (handle, other, Handle(handle._connect)):
            with pytest.raises(TrailError, match="start the process by spawn instead of fork"):
                count(one)
        handle.close()

    assert in_child(child) == 0
    assert "a fork happens inside a transaction" in caplog.text
    leave.set()
    thread.join()
    add(handle, 2)
    assert count(handle) == 2


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Python 3.13 itself crashes in a child of such a fork"
)
def test_a_child_of_a_fork_that_python_did_not_make_refuses(handle: Handle) -> None:
    """Such as uWSGI's: nothing runs before it, so the database is open on both sides."""
    add(handle, 1)
    other = Handle(handle._connect)
    process = ctypes.PyDLL(None).fork()
    if process == 0:
        code = 1
        try:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            for one in (handle, other):
                with pytest.raises(TrailError, match="or fork before the first use"):
                    count(one)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    add(handle, 2)
    assert count(other) == 2
    other.close()


class Worker:
    """A thread that uses handles, and drops some without closing them, until it is stopped."""

    def __init__(self, handles: list[Handle]) -> None:
        self._handles = handles
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            for handle in (*self._handles, Handle(self._handles[0]._connect)):
                count(handle)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "a mutex was never let go"


def test_threads_that_fork_at_the_same_time_do_not_disturb_each_other(handle: Handle) -> None:
    others = [Handle(handle._connect) for _ in range(4)]
    codes: list[int] = []

    def child() -> None:
        for other in others:
            assert count(other) >= 0
        add(handle, 1)

    def fork() -> None:
        codes.extend(in_child(child) for _ in range(5))

    worker = Worker(others)
    threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a fork hangs"
    worker.stop()
    assert codes == [0] * 20
    assert count(handle) == 20
    for other in others:
        other.close()


def test_what_was_dropped_while_a_fork_waited_is_closed_before_it(
    handle: Handle, path: Path
) -> None:
    add(handle, 1)
    connection = handle._connect()
    assert connection.execute("SELECT count(*) FROM number").get == 1
    database._dropped.append(connection)

    def child() -> None:
        assert descriptors(path) == 0
        add(handle, 2)

    assert in_child(child) == 0
    assert database._dropped == []


def test_a_handle_that_was_dropped_is_closed(handle: Handle, path: Path) -> None:
    dropped = Handle(handle._connect)
    count(dropped)
    assert descriptors(path) > 0
    del dropped
    assert descriptors(path) == 0


def test_a_file_is_made_private_and_its_side_files_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    before = os.umask(0)
    try:
        make_file(path)
        connection = apsw.Connection(str(path))
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE number (value)")
    finally:
        os.umask(before)
    modes = {name.name: name.stat().st_mode & 0o777 for name in tmp_path.iterdir()}
    assert modes == {"new.db": 0o600, "new.db-wal": 0o600, "new.db-shm": 0o600}
    connection.close()


def test_a_file_that_is_there_is_not_opened_to_be_made(path: Path) -> None:
    """MUST: to close it would let go of the locks of this process's connections."""
    connection = apsw.Connection(str(path))
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO number VALUES (1)")
    held = holders(path.with_name("some.db-shm")), holders(path)
    make_file(path)
    assert (holders(path.with_name("some.db-shm")), holders(path)) == held == ((os.getpid(),),) * 2
    connection.execute("COMMIT")
    connection.close()


def test_a_file_that_is_there_need_not_be_writable(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m") as disk:
        (disk / "some.db").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        make_file(disk / "some.db")
        with pytest.raises(OSError, match="Read-only file system"):
            make_file(disk / "other.db")
