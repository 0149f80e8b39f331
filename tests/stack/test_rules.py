"""promtool, of both versions, on rules and configurations: each alert fires when it has to."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from collector.stack.build import COLLECTOR, binary

if TYPE_CHECKING:
    from pathlib import Path

PROMETHEUS = COLLECTOR / "prometheus"
VERSIONS = ("3", "2")
CONFIGURATIONS = {"3": "prometheus.yml", "2": "prometheus2.yml"}


def promtool(version: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = str(binary("promtool")) if version == "3" else shutil.which("promtool")
    assert program, "Debian's package prometheus is missing: run tests/stack/setup"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_alert_fires_when_it_has_to_and_only_then(version: str) -> None:
    done = promtool(version, "test", "rules", PROMETHEUS / "tests" / "otel-audit.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_an_alert_that_is_changed_is_found(version: str, tmp_path: Path) -> None:
    """Without this, a test file that nobody reads would pass."""
    for folder in ("rules", "tests"):
        shutil.copytree(PROMETHEUS / folder, tmp_path / folder)
    rules = tmp_path / "rules" / "otel-audit.yml"
    changed = rules.read_text().replace("otel_audit_quarantine_size) > 0", "x) > 0")
    assert changed != rules.read_text()
    rules.write_text(changed)
    done = promtool(version, "test", "rules", tmp_path / "tests" / "otel-audit.yml")
    assert done.returncode != 0
    assert "AuditRecordsSetAside" in done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_the_configuration_is_accepted(version: str, tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS / "rules", tmp_path / "rules")
    shutil.copytree(COLLECTOR / "compose" / "prometheus-targets", tmp_path / "targets")
    (tmp_path / "targets" / "applications.json").write_text('[{"targets": ["collector:8889"]}]')
    configuration = tmp_path / CONFIGURATIONS[version]
    shutil.copy(PROMETHEUS / configuration.name, configuration)
    done = promtool(version, "check", "config", configuration)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
