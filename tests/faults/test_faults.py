"""Faults of the machine: a full or read-only disk, kill -9, forks, many processes, much time.

The programs below run as processes of their own. What they print was acknowledged.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.api.receipt import AuditReceipt, PendingReceipt
from otel_audit.errors import (
    AuditBackpressureError,
    AuditUnavailableError,
    TrailError,
    TrailFileSystemError,
)
from otel_audit.record.event import AuditEvent
from otel_audit.settings import Settings
from otel_audit.trail import filesystem
from otel_audit.trail.findings import record_id_in
from otel_audit.trail.lock import FileLock
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify
from tests.small_disk import mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="ONLY ROOT CAN MOUNT: the disk was neither filled nor made read-only"
)

EVENT = AuditEvent("order", "create")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


def open_provider(directory: Path, **settings: Any) -> AuditProvider:
    settings = {"directory": directory, "agent": "off", "timeout": 5.0, **settings}
    return AuditProvider(Settings.from_env(**settings))


def emit(provider: AuditProvider, **fields: Any) -> AuditReceipt:
    receipt = AuditLogger(provider=provider).emit(AuditEvent("order", "create", fields=fields))
    assert isinstance(receipt, AuditReceipt)
    return receipt


def assert_whole(directory: Path, *, signed: bool = True) -> list[str]:
    """Verify the trail, all of it covered by a checkpoint; return the ids of its records."""
    with TrailReader(directory) as reader:
        report = verify(reader)
        assert report.ok, report.findings
        assert not signed or report.covered == report.size
        return [str(record_id_in(leaf.record)) for leaf in reader.leaves()]


def sign(directory: Path) -> None:
    """Open and close the trail, as the next start of the application does."""
    open_provider(directory).close()


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    """Wait for a process that has to end well; return the words that it printed."""
    try:
        said, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0
    return said.split()


def emit_until_refused(provider: AuditProvider, confirmed: list[str]) -> None:
    while True:
        confirmed.append(emit(provider, text="x" * 30_000).record_id)


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as place:
        yield place


def remount(place: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", place], check=True)


def fill(place: Path) -> Path:
    """Take all space that is left."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(place).free < 4096
    return ballast


@needs_root
def test_a_full_disk_refuses_and_goes_on_when_there_is_space_again(disk: Path) -> None:
    directory = disk / "trail"
    provider = open_provider(directory)
    confirmed = [emit(provider).record_id for _ in range(10)]
    ballast = fill(disk)
    with pytest.raises(AuditUnavailableError, match="free space on the disk") as caught:
        emit_until_refused(provider, confirmed)
    for _ in range(3):
        with pytest.raises(AuditUnavailableError):
            emit(provider, text="x" * 30_000)
    assert provider.refusal() is not None
    ballast.unlink()
    confirmed += [emit(provider, text="x" * 30_000).record_id for _ in range(10)]
    assert provider.refusal() is None
    provider.close()
    assert assert_whole(directory) == confirmed
    assert caught.value.record_id not in confirmed


@needs_root
def test_a_full_disk_only_delays_the_emptying_of_the_log(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the log would fill the disk again, as soon as there is space, until a restart."""
    provider = open_provider(disk / "trail")
    store = provider.trail.store
    ballast = fill(disk)
    confirmed = [emit(provider, text="x" * 30_000).record_id for _ in range(20)]
    for _ in range(3):
        store.wal.empty()
    assert [line.levelname for line in caplog.records if "the disk is full" in line.message] == [
        "ERROR"
    ]
    assert store.path.stat().st_size < 20 * 30_000
    ballast.unlink()
    store.wal.empty()
    assert not store.wal.stuck
    assert "log is copied again" in caplog.text
    assert store.path.stat().st_size > 20 * 30_000
    provider.close()
    assert assert_whole(disk / "trail") == confirmed


@needs_root
def test_on_a_disk_that_is_full_from_the_start_nothing_is_pretended(disk: Path) -> None:
    ballast = fill(disk)
    with pytest.raises(TrailError):
        open_provider(disk / "trail")
    ballast.unlink()
    provider = open_provider(disk / "trail")
    assert emit(provider)
    provider.close()
    assert len(assert_whole(disk / "trail")) == 1


@needs_root
def test_a_full_disk_at_the_end_costs_the_checkpoint_and_no_record(disk: Path) -> None:
    directory = disk / "trail"
    provider = open_provider(directory)
    confirmed = [emit(provider, text="x" * 30_000).record_id for _ in range(20)]
    ballast = fill(disk)
    provider.close()
    ballast.unlink()
    sign(directory)
    assert assert_whole(directory) == confirmed


@needs_root
def test_a_disk_that_becomes_read_only_is_an_error_that_heals(disk: Path, tmp_path: Path) -> None:
    directory = disk / "trail"
    provider = open_provider(directory)
    emit(provider)
    provider.close()
    remount(disk, "ro")
    with pytest.raises(TrailError, match=r"Read-only.*mount its file system for writing|writable"):
        open_provider(directory)
    with pytest.raises(TrailFileSystemError, match="cannot be made: Read-only file system"):
        open_provider(disk / "another")
    remount(disk, "rw")
    again = open_provider(directory)
    assert emit(again).sequence_number == 1
    again.close()
    assert len(assert_whole(directory)) == 2
    assert not list(tmp_path.glob("*.db"))


@needs_root
@pytest.mark.parametrize("ended", ["closed", "killed"])
def test_a_read_only_file_system_can_be_read_with_and_without_a_log(disk: Path, ended: str) -> None:
    directory = disk / "trail"
    program = (
        "import os, sys\n"
        "from otel_audit import configure, get_audit_logger\n"
        "provider = configure(directory=sys.argv[1], agent='off')\n"
        "for _ in range(300): get_audit_logger().info('order', 'create')\n"
        "provider.checkpoint()\n"
        "if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)\n"
        "provider.close()\n"
    )
    start(program, directory, ended).communicate(timeout=60)
    log = directory / "trail.db-wal"
    (directory / "trail.db-shm").unlink(missing_ok=True)
    if ended == "closed":
        log.unlink(missing_ok=True)
    else:
        assert any(log.read_bytes())
    before = sorted(path.name for path in directory.iterdir())
    remount(disk, "ro")
    assert len(assert_whole(directory)) == 300
    assert sorted(path.name for path in directory.iterdir()) == before


def test_a_copied_directory_can_be_read(directory: Path, tmp_path: Path) -> None:
    provider = open_provider(directory)
    ids = [emit(provider).record_id for _ in range(5)]
    provider.checkpoint()
    shutil.copytree(directory, tmp_path / "copy")
    provider.close()
    shutil.rmtree(directory)
    assert assert_whole(tmp_path / "copy") == ids


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(directory: Path, kind: str) -> None:
    mounts = f"36 35 0:33 / {directory.parent} rw,noatime master:1 - {kind} host:/export rw\n"
    with pytest.raises(TrailFileSystemError, match=f"is on {kind}.*local disk"):
        filesystem.check(directory, mounts)


@needs_root
def test_a_file_system_that_forgets_is_warned_about(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_provider(disk / "trail").close()
    assert "is on tmpfs: its contents are gone after a restart" in caplog.text


# Many writers, some of them killed

_WRITERS = """
import os, sys, threading
from otel_audit import configure, get_audit_logger
directory, threads, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
configure(directory=directory, agent=sys.argv[4])
audit = get_audit_logger()
def write():
    for number in range(each):
        receipt = audit.info("order", "create", number=number)
        os.write(1, f"{receipt.record_id} {receipt.sequence_number}\\n".encode())
started = [threading.Thread(target=write) for _ in range(threads)]
for thread in started: thread.start()
for thread in started: thread.join()
audit.provider.close()
"""


def test_kill_9_amid_32_writers_loses_nothing_that_was_acknowledged(directory: Path) -> None:
    acknowledged: dict[str, int] = {}
    for count in (1, 400, 1_500):
        with start(_WRITERS, directory, 32, 10**9, "thread") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith("\n"):
                    record_id, _, sequence = line.partition(" ")
                    acknowledged[record_id] = int(sequence)
                if len(acknowledged) >= count:
                    process.kill()
        assert process.returncode == -signal.SIGKILL
        assert_whole(directory, signed=False)
    sign(directory)
    ids = assert_whole(directory)
    assert len(acknowledged) >= 1_500
    assert {record_id: ids.index(record_id) for record_id in acknowledged} == acknowledged
    assert len(set(ids)) == len(ids)


def test_four_processes_of_eight_threads_write_one_trail(directory: Path) -> None:
    processes = [start(_WRITERS, directory, 8, 25, "thread") for _ in range(4)]
    said = [word for process in processes for word in finish(process)]
    acknowledged = dict(zip(said[1::2], said[::2], strict=True))
    ids = assert_whole(directory)
    assert len(ids) == 800
    assert [acknowledged[str(sequence)] for sequence in range(800)] == ids


def test_one_of_four_processes_that_is_killed_holds_up_nobody(directory: Path) -> None:
    victim = start(_WRITERS, directory, 8, 10**9, "off")
    others = [start(_WRITERS, directory, 8, 20, "off") for _ in range(2)]
    assert victim.stdout is not None
    seen = [victim.stdout.readline().split()[0] for _ in range(50)]
    victim.kill()
    victim.communicate()
    seen += [word for process in others for word in finish(process)[::2]]
    sign(directory)
    assert set(seen) <= set(assert_whole(directory))


# Forks

_FORK = """
import os, sys, threading, time
from otel_audit import configure, get_audit_logger
provider = configure(directory=sys.argv[1], agent="thread")
audit = get_audit_logger()
def emit(who):
    os.write(1, f"{audit.info('order', 'create', who=who).record_id}\\n".encode())
def agents():
    return [t.name for t in threading.enumerate() if t.name == "otel-audit-agent"]
emit("parent")
assert len(agents()) == 1
child = os.fork()
if child == 0:
    try:
        assert not agents()
        assert provider.statistics["committed"] == 0
        emit("child")
        assert len(agents()) == 1
        deadline = time.monotonic() + 10
        # The parent has closed: the child's agent takes over and signs.
        while time.monotonic() < deadline:
            emit("child")
            last = provider.trail.reader.last_checkpoint()
            if os.path.exists(sys.argv[1] + "/closed") and last and last.size > 10:
                os._exit(0)
            time.sleep(0.1)
    finally:
        os._exit(1)
emit("parent")
provider.close()
open(sys.argv[1] + "/closed", "w").close()
closed_at = provider.reader().last_checkpoint().size
_, status = os.waitpid(child, 0)
assert status == 0, status
with provider.reader() as reader:
    assert reader.last_checkpoint().size > closed_at
"""


def test_after_a_fork_both_go_on_and_the_childs_agent_takes_over(directory: Path) -> None:
    said = finish(start(_FORK, directory))
    sign(directory)
    assert sorted(assert_whole(directory)) == sorted(said)


_FORKS = """
import os, sys, threading
from otel_audit import configure, get_audit_logger
provider = configure(directory=sys.argv[1], agent="thread")
audit = get_audit_logger()
stop = threading.Event()
def emit(): os.write(1, f"{audit.info('order', 'create').record_id}\\n".encode())
def traffic():
    while not stop.is_set(): emit()
threads = [threading.Thread(target=traffic) for _ in range(6)]
for thread in threads: thread.start()
children = []
for _ in range(12):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in range(5): emit()
            provider.close()
            code = 0
        finally:
            os._exit(code)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for thread in threads: thread.join()
provider.close()
assert codes == [0] * 12, codes
"""


def test_forks_in_the_middle_of_traffic_lose_and_repeat_nothing(directory: Path) -> None:
    said = finish(start(_FORKS, directory))
    assert len(said) > 60
    assert sorted(assert_whole(directory)) == sorted(said)


# Event loops


def test_a_loop_that_is_closed_with_pending_receipts_costs_no_record(directory: Path) -> None:
    provider = open_provider(directory)
    audit = AuditLogger(provider=provider)
    lock = FileLock(directory / "lock")
    pending: list[AuditReceipt | PendingReceipt] = []

    async def leave() -> None:
        lock.acquire(5.0)
        pending.extend(audit.emit(EVENT) for _ in range(20))
        waiting = asyncio.ensure_future(_wait(audit))
        await asyncio.sleep(0.01)
        waiting.cancel()

    asyncio.run(leave())
    assert not any(
        bool(receipt.done()) for receipt in pending if isinstance(receipt, PendingReceipt)
    )
    lock.close()
    assert provider.flush(5.0)
    assert emit(provider)
    provider.close()
    ids = assert_whole(directory)
    assert len(ids) == 22
    assert {receipt.record_id for receipt in pending} < set(ids)


async def _wait(audit: AuditLogger) -> None:
    await audit.emit(EVENT)


async def test_emitting_faster_than_a_stopped_disk_is_refused_with_bounded_memory(
    directory: Path,
) -> None:
    provider = open_provider(directory, queue_size=100)
    audit = AuditLogger(provider=provider)
    lock = FileLock(directory / "lock")
    lock.acquire(5.0)
    receipts = []
    for _ in range(1_000):
        with suppress(AuditBackpressureError):
            receipts.append(audit.emit(EVENT))
    # One group may be on its way to the disk already.
    assert 100 <= len(receipts) <= 612
    lock.close()
    assert all([await receipt for receipt in receipts])
    assert provider.statistics["refused"] == 1_000 - len(receipts)
    provider.close()
    assert len(assert_whole(directory)) == len(receipts)


@pytest.mark.usefixtures("unmeasured")
def test_20_000_records_do_not_make_the_process_grow(directory: Path) -> None:
    provider = open_provider(directory)
    audit = AuditLogger(provider=provider)

    async def emit_many(count: int) -> None:
        for _ in range(count // 500):
            receipts = [audit.info("order", "create", number=number) for number in range(500)]
            for receipt in receipts:
                await receipt

    tracemalloc.start()
    try:
        asyncio.run(emit_many(1_000))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        asyncio.run(emit_many(20_000))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    provider.close()
    # A reference kept for each would be over a megabyte.
    assert after - before < 200_000


def test_asking_for_the_refusal_never_waits_for_a_commit_that_hangs(directory: Path) -> None:
    provider = open_provider(directory, timeout=2.0)
    lock = FileLock(directory / "lock")
    lock.acquire(5.0)
    failed: list[Exception] = []

    def blocked() -> None:
        try:
            emit(provider)
        except AuditUnavailableError as error:
            failed.append(error)

    thread = threading.Thread(target=blocked)
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        began = time.perf_counter()
        provider.refusal()
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.005)
    thread.join()
    lock.close()
    assert len(failed) == 1
    # Who waits for the commit waits for all of its two seconds.
    assert slowest < 1.5
    provider.close()
