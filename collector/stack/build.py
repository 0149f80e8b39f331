"""Build Collector, Loki and Prometheus from source, once a version.

What is built stands in ``collector/tools/``, one Go module a server, and in
``collector/builder.yaml``. A binary's name carries a hash of all that goes
into it, so that another version is built anew and the same one never. The
binaries are kept outside of the checkout, for other clones to use:
``${XDG_CACHE_HOME:-~/.cache}/otel-audit/stack``.

Needs Go (1.26.7 or newer; from 1.21 on, Go fetches that by itself) and
somewhere to get Go modules from. Says what it does and why one has to wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLLECTOR: Final = Path(__file__).parents[1]
TOOLS: Final = COLLECTOR / "tools"
MANIFEST: Final = COLLECTOR / "builder.yaml"
FLAGS: Final = ("-trimpath", "-ldflags=-s -w")
CACHE: Final = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-audit" / "stack"
)
"""Where the binaries are kept."""
REPORT_SECONDS: Final = 10.0


class BuildError(RuntimeError):
    """A server could not be built; says which, and what Go said."""


@dataclass(frozen=True)
class Program:
    """One binary: the Go module and package that it comes from.

    ``wait`` is how long a first build takes on two cores.
    """

    title: str
    module: str
    package: str
    wait: str
    tags: str = ""


PROGRAMS: Final = {
    "otelcol-audit": Program("the Collector", "otelcol-audit", ".", "3 minutes"),
    "loki": Program("Loki", "loki", "github.com/grafana/loki/v3/cmd/loki", "5 minutes"),
    "prometheus": Program(
        "Prometheus 3",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        "3 minutes",
        tags="remove_all_sd",
    ),
    "promtool": Program(
        "promtool",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/promtool",
        "1 minute",
        tags="remove_all_sd",
    ),
    "compose": Program(
        "the reader of compose files",
        "compose",
        "github.com/compose-spec/compose-go/v2/cmd",
        "half a minute",
    ),
}


def binary(name: str) -> Path:
    """Return the path of a program in `PROGRAMS`, building it if it is not there yet.

    Raises BuildError when it cannot be built.
    """
    program = PROGRAMS[name]
    path = CACHE / f"{name}-{_stamp(program)}"
    if path.exists():
        return path
    with _one_at_a_time(CACHE):
        if not path.exists():  # another process may have built it meanwhile
            _build(program, path)
    return path


def _stamp(program: Program) -> str:
    """Hash all that a binary depends on."""
    digest = hashlib.sha256(repr((program, FLAGS, platform.system(), platform.machine())).encode())
    sources = [TOOLS / program.module / name for name in ("go.mod", "go.sum")]
    if program.package == ".":
        sources += [MANIFEST, TOOLS / "builder" / "go.mod", TOOLS / "builder" / "go.sum"]
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another process is building servers; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program, path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        message = (
            f"cannot build {program.title}: Go is not installed; install Go 1.26.7 or newer, or "
            "run the servers in containers: docker compose --file collector/compose.yaml up"
        )
        raise BuildError(message)
    _say(
        f"Building {program.title} from source: about {program.wait} on two cores, once. "
        f"The binary is kept in {path.parent}."
    )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as temporary:
        work = Path(temporary)
        module = TOOLS / program.module
        if program.package == ".":
            module = _generate(go, program, work)
        tags = [f"-tags={program.tags}"] if program.tags else []
        listed = _run(
            [go, "list", "-deps", *tags, program.package],
            module,
            program,
            lambda line: line.startswith("go: downloading"),
            "modules downloaded",
        )
        total = len(listed.splitlines())
        target = work / "binary"
        _run(
            [go, "build", "-v", *FLAGS, *tags, "-o", str(target), program.package],
            module,
            program,
            lambda line: not line.startswith("go: "),
            f"of {total} packages compiled",
        )
        target.replace(path)


def _generate(go: str, program: Program, work: Path) -> Path:
    """Let the Collector's own builder write the program's source.

    The versions are those of go.mod in collector/tools, not whatever the
    builder would resolve today.
    """
    builder = work / "builder"
    package = "go.opentelemetry.io/collector/cmd/builder"
    _run([go, "build", "-o", str(builder), package], TOOLS / "builder", program)
    module = work / "otelcol-audit"
    shutil.copytree(TOOLS / program.module, module)
    _run(
        [str(builder), "--config", str(MANIFEST), "--skip-get-modules", "--skip-compilation"],
        work,
        program,
    )
    return module


def _run(
    command: list[str],
    directory: Path,
    program: Program,
    counts: Callable[[str], bool] = lambda _: False,
    what: str = "",
) -> str:
    """Run one step, report how far it is, and return what it printed."""
    # Nothing but the committed versions, and no C compiler.
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    start = reported = time.monotonic()
    said: list[str] = []
    done = 0
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            done += counts(line)
            now = time.monotonic()
            if what and now - reported > REPORT_SECONDS:
                reported = now
                _say(f"  {program.title}: {done} {what}, {now - start:.0f} s")
        process.wait()
        if process.returncode:
            message = f"cannot build {program.title}: {' '.join(command)} in {directory} said:\n{''.join(said[-20:])}"
            raise BuildError(message)
        output.seek(0)
        return output.read()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Build what is named, or everything; print the paths."""
    for name in sys.argv[1:] or PROGRAMS:
        print(binary(name))


if __name__ == "__main__":
    main()
