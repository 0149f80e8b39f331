"""Write constraints.txt: what a clean environment gets today, on each Python that is given.

Usage: python tests/project/constraints.py python3.10 python3.11 ...

A package whose newest version differs between Pythons has one line for each, with a marker.
Names and versions only: where packages come from is the business of the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
# otel-audit is what is constrained; setuptools comes with some Pythons and is not used.
LEFT_OUT = frozenset({"otel-audit", "setuptools", "wheel"})
HEADER = """\
# Every package of the development environment, in the version that the tests ran with.
# Used by the Makefile for all that it installs, and of use to whoever wants the same:
#   pip install -c constraints.txt otel-audit
# Do not edit: `make constraints` writes it, from a clean environment of each Python.
"""


def frozen(python: str, work: Path) -> tuple[str, dict[str, str]]:
    """Give the Python's version ("3.11") and what a clean environment of it gets."""
    environment = work / Path(python).name
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    minor = subprocess.check_output([python, "-c", version], text=True).strip()
    subprocess.run([python, "-m", "venv", environment], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
    wanted = [".[fastapi,health,example]", "--group", "dev", "--group", "stack"]
    subprocess.run([*pip, "install", "--quiet", *wanted], check=True, cwd=work / "source")
    lines = subprocess.check_output([*pip, "freeze", "--all"], text=True).splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return minor, {name: pin for name, pin in pairs if name.lower() not in LEFT_OUT}


def merged(pins: dict[str, dict[str, str]]) -> list[str]:
    """One line a package, or one for each run of Pythons that agree on a version."""
    minors = sorted(pins, key=lambda minor: int(minor.split(".")[1]))
    by_name: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for minor in minors:
        for name, pin in pins[minor].items():
            by_name[name][minor] = pin
    lines = []
    for name in sorted(by_name, key=str.lower):
        versions = by_name[name]
        if len(set(versions.values())) == 1 and len(versions) == len(minors):
            lines.append(f"{name}=={next(iter(versions.values()))}")
            continue
        distinct = dict.fromkeys(versions.values())
        lines += [f"{name}=={pin} ; {marker(pin, versions, minors)}" for pin in distinct]
    return lines


def marker(pin: str, versions: dict[str, str], minors: list[str]) -> str:
    """Say which Pythons a version is for; the newest tried speaks for those to come."""
    mine = [minor for minor in minors if versions.get(minor) == pin]
    parts = []
    if mine[0] != minors[0]:
        parts.append(f'python_version >= "{mine[0]}"')
    if mine[-1] != minors[-1]:
        parts.append(f'python_version < "3.{int(mine[-1].split(".")[1]) + 1}"')
    return " and ".join(parts)


def main(pythons: list[str]) -> None:
    """Make the environments one after the other and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "source").mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, work / "source")
        shutil.copytree(ROOT / "otel_audit", work / "source" / "otel_audit")
        pins = dict(frozen(python, work) for python in pythons)
    text = HEADER + "\n".join(merged(pins)) + "\n"
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
