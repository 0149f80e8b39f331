"""What docs/operations.md says of a trail's files is what there is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

from otel_audit import AuditEvent, configure, get_audit_logger, reset
from otel_audit.health.probes.trail import trail_probe
from otel_audit.trail import layout
from otel_audit.web.tokens import TokenFile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
NAMES = {value for name, value in vars(layout).items() if name.isupper()}


def listed() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition("## Files")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([\w./-]+)`", row)]


def test_each_file_of_a_trail_is_listed_once_and_no_other(tmp_path: Path) -> None:
    directory = tmp_path / "trail"
    provider = configure(directory=directory, service_name="shop", console=True)
    trail_probe(provider)()
    TokenFile(directory / layout.TOKENS).create("ann", ["read"])
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
    named = {name.rstrip("/").removesuffix(".turn") for name in there}
    besides = {*layout.whole(layout.DATABASE), f"{layout.TOKENS}.lock"}
    assert named | {layout.NEXT} == NAMES | besides


def test_the_names_of_a_trails_files_are_in_one_place() -> None:
    """All but those that are words of their own: messages and checks have them, too."""
    names = {name for name in NAMES if not name.isalpha()}
    assert len(names) >= 9
    found = {
        path.name
        for path in (ROOT / "otel_audit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {"layout.py"}


def names(directory: Path) -> list[str]:
    """Name what is there, without what SQLite keeps beside a database that is no trail.

    Nor what is being written at the moment (trail/durable.py).
    """
    return [
        f"{path.name}/" if path.is_dir() else path.name
        for path in directory.iterdir()
        if not re.fullmatch(r"(?!trail).*\.db-(wal|shm)|\..+\.[0-9a-f]{16}", path.name)
    ]
