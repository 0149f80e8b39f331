"""Servers that tests start for themselves, and end."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.stack.servers import free_port
from tests.stack.environments import run

if TYPE_CHECKING:
    from collections.abc import Iterator


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def served(port: int, *command: str, **options: Any) -> Iterator[None]:
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def postgres() -> Iterator[int]:
    """Run a PostgreSQL of our own, with a user ``audit``, and give its port; it refuses to be root."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        user = {"user": "postgres"} if os.geteuid() == 0 else {}
        if user:
            os.chown(place, pwd.getpwnam("postgres").pw_uid, -1)
        prefix = ("runuser", "-u", "postgres", "--") if user else ()
        data = f"{place}/data"
        run(*prefix, binaries / "initdb", "-D", data, "-A", "trust", "-U", "audit", cwd=Path("/"))
        command = (str(binaries / "postgres"), "-D", data, "-p", str(port), "-k", place)
        with served(port, *command, "-h", "127.0.0.1", **user):
            yield port
