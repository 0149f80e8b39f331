"""A provider whose agent is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from otel_audit import AuditLogger, AuditProvider, Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def provider(tmp_path: Path) -> AuditProvider:
    return AuditProvider(Settings.from_env({"LOG_DIR": str(tmp_path)}, agent="off"))


def test_flush_says_at_once_that_nobody_writes_the_mirror(
    provider: AuditProvider, caplog: pytest.LogCaptureFixture
) -> None:
    AuditLogger(provider=provider).log_event("a", "b")
    started = time.monotonic()
    assert not provider.flush(20)
    assert time.monotonic() - started < 10
    assert "no `otel-audit agent` serves" in caplog.text


def test_flush_waits_for_the_agent_of_another_process(
    provider: AuditProvider, tmp_path: Path
) -> None:
    logger = AuditLogger(provider=provider)
    command = [sys.executable, "-m", "otel_audit.cli", "agent", "--dir", str(tmp_path / "trail")]
    environ = {"LOG_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as agent:
        try:
            for _ in range(10):
                logger.log_event("a", "b")
            deadline = time.monotonic() + 20
            while not provider.flush(10):
                assert time.monotonic() < deadline, "the agent did not come up"
                time.sleep(0.1)
            assert logger.audit_log_file is not None
            assert len(logger.audit_log_file.read_bytes().splitlines()) == 10
        finally:
            agent.terminate()
            agent.wait(20)
