"""A disk that does not answer: who waits, for how long, and that the process can end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.api import provider as provider_module
from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.errors import AuditTimeoutError, AuditUnavailableError
from otel_audit.record.event import AuditEvent
from otel_audit.settings import Settings
from otel_audit.trail import database
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENT = AuditEvent("order", "create")


class Disk(apsw.VFS):
    """A VFS whose syncs wait while it hangs."""

    def __init__(self, name: str) -> None:
        self.label = name
        self.answers = threading.Event()
        self.answers.set()
        self.hanging = threading.Event()
        super().__init__(name, "")

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return DiskFile(self, name, flags)


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: object, flags: list[int]) -> None:
        self.disk = disk
        super().__init__("", name, flags)  # type: ignore[arg-type] # apsw's own URI type

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        if not self.disk.answers.is_set():
            self.disk.hanging.set()
            self.disk.answers.wait(30)
        super().xSync(flags)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(f"hanging-{tmp_path.name}")
    yield made
    made.answers.set()


@pytest.fixture
def provider(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> AuditProvider:
    monkeypatch.setattr(provider_module, "_CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    settings = Settings.from_env({}, directory=tmp_path / "trail", agent="off", timeout=0.3)
    return AuditProvider(settings, vfs=disk.label)


@pytest.fixture
def hung(provider: AuditProvider, disk: Disk) -> Iterator[threading.Thread]:
    """Give a thread whose commit hangs."""
    audit = AuditLogger(provider=provider)
    audit.emit(EVENT)
    disk.answers.clear()
    thread = threading.Thread(target=audit.emit, args=(EVENT,), daemon=True)
    thread.start()
    assert disk.hanging.wait(5)
    yield thread
    disk.answers.set()
    thread.join(5)


def test_others_are_told_in_time_and_later_ones_at_once(
    provider: AuditProvider, hung: threading.Thread
) -> None:
    with pytest.raises(AuditTimeoutError) as caught:
        AuditLogger(provider=provider).emit(EVENT)
    assert caught.value.record_id is not None
    time.sleep(0.1)
    refusal = provider.refusal()
    assert isinstance(refusal, AuditUnavailableError)
    assert "the disk may hang" in str(refusal)
    # Nobody waited for the commit: it goes on.
    assert hung.is_alive()


def test_what_waited_is_committed_when_the_disk_answers_again(
    provider: AuditProvider, disk: Disk, hung: threading.Thread
) -> None:
    with pytest.raises(AuditTimeoutError):
        AuditLogger(provider=provider).emit(EVENT)
    disk.answers.set()
    hung.join(5)
    assert provider.flush(5)
    assert provider.refusal() is None
    provider.close()
    with TrailReader(provider.directory) as reader:
        report = verify(reader)
        assert report.ok, report.findings
        assert report.size == 3


def test_close_and_the_end_of_an_application_do_not_wait_for_ever(
    provider: AuditProvider, hung: threading.Thread, caplog: pytest.LogCaptureFixture
) -> None:
    provider.settle_down()
    assert hung.is_alive()
    assert "the last checkpoint is not signed" in caplog.text
    provider.close()
    assert hung.is_alive()
    assert "not confirmed at close" in caplog.text
