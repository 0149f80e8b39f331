"""The built wheel works in an environment that has nothing else, and holds what it should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from otel_audit import __version__

ROOT = Path(__file__).parents[2]
SMOKE = Path(__file__).with_name("smoke.py")

pytestmark = pytest.mark.timeout(400)


def output(*command: str | Path, cwd: Path) -> str:
    """Run a program and give what it printed; show everything if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it, as a release does."""
    folder = tmp_path_factory.mktemp("dist")
    output(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that has the wheel and what it brings; gives its bin directory."""
    folder = tmp_path_factory.mktemp("clean")
    output(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    output(*pip, "--constraint", constraints, wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"otel_audit-{__version__}.dist-info/"
    assert [name for name in names if not name.startswith(("otel_audit/", info))] == []
    assert "otel_audit/py.typed" in names
    assert f"{info}licenses/LICENSE" in names


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    listed = output("git", "ls-files", "-z", "otel_audit", cwd=ROOT).split("\0")
    committed = {name for name in listed if name and (ROOT / name).is_file()}
    assert committed - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_source_distribution_has_what_an_operator_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    prefix = f"otel_audit-{__version__}/"
    for name in ("LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml", "otel_audit/py.typed"):
        assert prefix + name in names
    assert [name for name in names if re.search(r"\.(db|key|pem|log)$", name)] == []


def test_what_is_installed_agrees_with_itself(clean: Path, tmp_path: Path) -> None:
    output(clean / "python", "-m", "pip", "check", cwd=tmp_path)


def test_the_first_program_of_a_new_user(clean: Path, tmp_path: Path) -> None:
    record_id = output(clean / "python", "-I", SMOKE, tmp_path / "trail", cwd=tmp_path).strip()

    command = clean / "otel-audit"
    assert __version__ in output(command, "--version", cwd=tmp_path)
    verified = json.loads(output(command, "verify", "--json", "--dir", "trail", cwd=tmp_path))
    assert verified["ok"] is True
    shown = output(command, "show", record_id, "--json", "--dir", "trail", cwd=tmp_path)
    assert record_id in shown
    assert "Usage" in output(command, "--help", cwd=tmp_path)


def test_the_asgi_middleware_needs_no_web_framework(clean: Path, tmp_path: Path) -> None:
    output(clean / "python", "-I", "-c", "from otel_audit import AuditMiddleware", cwd=tmp_path)


def test_the_types_of_the_wheel_reach_those_who_use_it(clean: Path, tmp_path: Path) -> None:
    # A copy, because beside the original mypy would find the checkout instead of the wheel.
    (tmp_path / "program.py").write_text(SMOKE.read_text(encoding="utf-8"), encoding="utf-8")
    output(
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache"),
        *("--python-executable", clean / "python", "program.py"),
        cwd=tmp_path,
    )
