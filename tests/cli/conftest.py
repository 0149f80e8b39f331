"""A trail made by the real API, and the command line in this process or in one of its own."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from otel_audit import AuditLogger, AuditProvider, Settings, acting_as
from otel_audit.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@pytest.fixture
def measures_programs() -> bool:
    """Say yes: pipes, terminals, signals and an agent of its own are programs' matters."""
    return True


@pytest.fixture(autouse=True)
def unlogged() -> Iterator[None]:
    """Take back how `otel-audit agent` logs, which is for a process of its own."""
    logger = logging.getLogger("otel_audit")
    handlers, propagate = list(logger.handlers), logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate


class Outcome(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands on one trail, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], directory: Path) -> None:
        self._capsys = capsys
        self.directory = directory

    def __call__(self, *arguments: str, code: int = 0) -> Outcome:
        """Run a command with --dir; fail unless it ends with ``code``."""
        return self.bare(*arguments, "--dir", str(self.directory), code=code)

    def bare(self, *arguments: str, code: int = 0) -> Outcome:
        """Run a command as it is given; fail unless it ends with ``code``."""
        self._capsys.readouterr()
        status = run(arguments)
        out, err = self._capsys.readouterr()
        assert status == code, f"{arguments}\n{out}{err}"
        return Outcome(status, out, err)


def process(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # options are Popen's
        [sys.executable, "-m", "otel_audit.cli", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        **options,
    )


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the user nobody, from a process of root."""
    program = (
        "import os, sys; from otel_audit.cli.app import run; kept = sys.stdout, sys.stderr; "
        # The first run imports what the other user may not be allowed to read.
        "sys.stdout = sys.stderr = open(os.devnull, 'w'); run(sys.argv[1:]); "
        "sys.stdout, sys.stderr = kept; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        # Without what runs at exit: coverage could not write its file any more.
        "code = run(sys.argv[1:]); sys.stdout.flush(); sys.stderr.flush(); os._exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def on_terminal(*arguments: str, columns: int) -> list[str]:
    """Return the lines that a command shows on a terminal of so many columns, without colours."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    # pytest's workers have COLUMNS, and it counts for more than the terminal; so does stdin.
    environment = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": ""}
    child = process(*arguments, stdout=terminal, stdin=subprocess.DEVNULL, environment=environment)
    child.communicate(timeout=30)
    os.close(terminal)
    shown = os.read(controller, 65_536).decode()
    os.close(controller)
    return re.sub("\x1b[^m]*m", "", shown).splitlines()


def record(directory: Path, count: int, service: str = "hub", *, keys: object = None) -> None:
    """Write ``count`` records into a trail by the API, sign, and close it."""
    settings = replace(
        Settings.from_env(directory=directory, service_name=service), agent="off", mirror=False
    )
    provider = AuditProvider(settings, keys=keys)  # type: ignore[arg-type]
    audit = AuditLogger(provider=provider)
    for number in range(count):
        failed = number % 4 == 3
        with acting_as(f"u-{number % 3}", verified=number % 3 != 1):
            audit.audit_event(
                "authentication" if number % 2 else "server.start",
                "login" if number % 2 else "start",
                "server",
                f"files-{number}",
                "failed" if failed else "success",
                error="wrong password" if failed else None,
                number=number,
            )
    provider.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the trail of a test is, or will be."""
    return tmp_path / "trail"


@pytest.fixture
def trail(directory: Path) -> Path:
    """Give a trail of twelve records that are covered by a checkpoint."""
    record(directory, 12)
    return directory


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Give a trail that other users can get at; pytest closes its own directories to them."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        record(Path(place) / "trail", 1)
        yield Path(place) / "trail"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], trail: Path) -> Cli:
    """Give the command line for the trail of twelve records."""
    return Cli(capsys, trail)


@pytest.fixture
def fresh(capsys: pytest.CaptureFixture[str], directory: Path) -> Cli:
    """Give the command line for a directory where there is no trail yet."""
    return Cli(capsys, directory)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands as processes; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
        started.append(process(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()
