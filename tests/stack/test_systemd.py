"""systemd accepts the unit that we ship, and finds little that it could misuse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "packaging" / "systemd" / "otel-audit-agent.service"


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    text = SHIPPED.read_text()
    program = re.search(r"^ExecStart=(\S+) agent --wait$", text, re.MULTILINE)
    assert program is not None
    unit = tmp_path / SHIPPED.name
    unit.write_text(text.replace(program[1], sys.executable))
    assert "otel-audit-agent" not in analyze("verify", "--man=no", str(unit))


def test_the_unit_is_confined(tmp_path: Path) -> None:
    unit = tmp_path / SHIPPED.name
    unit.write_text(SHIPPED.read_text())
    found = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))
    assert re.search(r"exposure level .*: [01]\.\d ", found), found
