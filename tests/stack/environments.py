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
# Unpacks a package once for all environments, and links its files: what pip takes minutes and a
# gigabyte for is there in seconds.
UV = Path(sys.executable).with_name("uv")


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
def environment(*names: str) -> Path:
    """Return the ``bin`` of an environment with all that these lists name, made if it is not there."""
    lists = [LISTS / f"{name}.txt" for name in names]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    # Of OpenTelemetry one set of versions that belong together, which others do not always ask for;
    # everything else as others need it.
    constraints = "\n".join(pin for pin in pins if pin.startswith("opentelemetry-"))
    text = "".join(one.read_text() for one in lists)
    key = hashlib.sha256(f"{sys.version}{text}{constraints}".encode()).hexdigest()[:12]
    place = VENVS / f"{'+'.join(names)}-{key}"
    install = (UV, "pip", "install", "--quiet", "--python", place / "bin" / "python")
    if not (place / "complete").exists():
        run(UV, "venv", "--quiet", "--clear", "--python", sys.executable, place)
        limits = place / "constraints.txt"
        limits.write_text(constraints)
        wanted = [part for one in lists for part in ("-r", one)]
        run(*install, "-c", limits, f"{wheel()}[fastapi]", *wanted)
        if names[1:]:
            _share_bytecode(environment(names[0]).parent / "lib", place / "lib")
        (place / "complete").touch()
    else:
        run(*install, "--no-deps", "--reinstall-package", "otel-audit", wheel())
    return place / "bin"


def _share_bytecode(source: Path, target: Path) -> None:
    """Link what Python has compiled in another environment of the same files: it takes half a minute.

    Python looks at a source's time and size, and compiles what is not the same.
    """
    for compiled in source.rglob("__pycache__/*.pyc"):
        place = target / compiled.relative_to(source)
        if place.parent.parent.is_dir() and not place.exists():
            place.parent.mkdir(exist_ok=True)
            os.link(compiled, place)
