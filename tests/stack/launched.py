"""A server under ``opentelemetry-instrument``, from an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import closing
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import orjson

from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

QUIET = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}


class Launched:
    """One command under the launcher, with its trail in ``directory/logs``."""

    def __init__(
        self,
        binaries: Path,
        directory: Path,
        *command: str,
        port: int = 0,
        typed: str = "",
        **environment: str,
    ) -> None:
        """Start it; ``command`` begins with a program of the environment, ``typed`` is its input."""
        self.port = port
        self.trail = directory / "logs" / "trail"
        self.log = directory / "server.log"
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        with self.log.open("ab") as log, TemporaryFile() as entered:
            entered.write(typed.encode())
            entered.seek(0)
            self.process = subprocess.Popen(
                [binaries / "opentelemetry-instrument", binaries / command[0], *command[1:]],
                cwd=directory,
                env={
                    **inherited,
                    **QUIET,
                    "LOG_DIR": str(directory / "logs"),
                    "OTEL_SERVICE_NAME": "test",
                    "OTEL_BSP_SCHEDULE_DELAY": "100",
                    **environment,
                },
                stdin=entered,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Launched:  # noqa: PYI034 - typing.Self comes with Python 3.11
        if self.port:
            self.wait_until_it_listens()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self.terminate()

    def wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + 90
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def wait_until_it_says(self, text: str, times: int) -> None:
        deadline = time.monotonic() + 90
        while self.said().count(text) < times:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ask(
        self,
        path: str,
        method: str = "GET",
        data: bytes | None = None,
        **headers: str,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; return status, body and headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, method=method, headers=named
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - see above
                return answer.status, answer.read(), dict(answer.headers)
        except HTTPError as refused:
            return refused.code, refused.read(), dict(refused.headers)

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the durable records whose keys have these values."""
        with TrailReader(self.trail) as reader:
            records = [orjson.loads(leaf.record) for leaf in reader.leaves()]
        return [one for one in records if wanted.items() <= one.items()]

    def verify(self) -> None:
        """Check the whole trail."""
        with TrailReader(self.trail) as reader:
            report = verify(reader)
        assert report.ok, [finding.message for finding in report.findings]
