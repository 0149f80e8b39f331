"""Virtual environments with the wheel of this project and what others publish beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
# Outside of the checkout, like what collector/stack/build.py builds: the next one finds them there.
VENVS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-audit" / "venvs"
LISTS = Path(__file__).parent / "environments"


def run(*command: object, cwd: Path = ROOT) -> None:
    """Run a command; fail with all that it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=1_200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"


@cache
def wheel() -> Path:
    """Build the project's wheel, once a run."""
    place = CACHE / "wheel"
    for old in place.glob("*.whl"):
        old.unlink()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place)
    (built,) = place.glob("*.whl")
    return built


@cache
def environment(name: str) -> Path:
    """Return the ``bin`` of an environment, made if it is not there as its list says."""
    text = (LISTS / f"{name}.txt").read_text()
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    # Of OpenTelemetry one set of versions that belong together, which pip does not always find;
    # everything else as others need it.
    constraints = "\n".join(pin for pin in pins if pin.startswith("opentelemetry-"))
    key = hashlib.sha256(f"{sys.version}{text}{constraints}".encode()).hexdigest()[:12]
    place = VENVS / f"{name}-{key}"
    pip = place / "bin" / "pip"
    install = [pip, "--quiet", "--disable-pip-version-check", "install"]
    if not (place / "complete").exists():
        run(sys.executable, "-m", "venv", "--clear", place)
        limits = place / "constraints.txt"
        limits.write_text(constraints)
        run(*install, "-c", limits, f"{wheel()}[fastapi]", "-r", LISTS / f"{name}.txt")
        (place / "complete").touch()
    else:
        run(*install, "--no-deps", "--force-reinstall", wheel())
    return place / "bin"
