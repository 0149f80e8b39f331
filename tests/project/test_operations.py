"""What docs/operations.md says of a trail's files is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from otel_audit import AuditEvent, configure, get_audit_logger, reset
from otel_audit.health.probes.trail import trail_probe
from otel_audit.web.tokens import FILE, TokenFile

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def listed() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition("## Files")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([\w./-]+)`", row)]


def test_each_file_of_a_trail_is_listed_once_and_no_other(tmp_path: Path) -> None:
    directory = tmp_path / "trail"
    provider = configure(directory=directory, service_name="shop", console=True)
    trail_probe(provider)()
    TokenFile(directory / FILE).create("ann", ["read"])
    assert provider.session_salt
    logger = get_audit_logger("test")
    for _ in range(1_100):
        logger.emit(AuditEvent("tick", "tick"))
    until = time.monotonic() + 30
    while not (directory / "index.db").exists() and time.monotonic() < until:
        time.sleep(0.1)
    there = set(names(directory))
    reset()
    command = [
        sys.executable,
        "-m",
        "otel_audit.cli",
        "new-origin",
        "--dir",
        str(directory),
        "--yes",
        "--reason",
        "a test",
    ]
    subprocess.run(command, check=True, capture_output=True)
    there |= set(names(directory))
    assert sorted(listed()) == sorted(there)


def names(directory: Path) -> list[str]:
    """Name what is there, without what SQLite keeps beside a database that is no trail."""
    return [
        f"{path.name}/" if path.is_dir() else path.name
        for path in directory.iterdir()
        if not re.fullmatch(r"(?!trail).*\.db-(wal|shm)", path.name)
    ]
