"""The audited service as a process of its own, its clients, and what has to be true afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from collector.stack.servers import free_port
from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from collector.stack.servers import Loki

ROOT = Path(__file__).parents[2]
HEADERS = "OTEL_EXPORTER_OTLP_AUDIT_HEADERS"
ENDPOINT = "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT"


def wait_for(condition: Callable[[], object], seconds: float = 60.0, what: str = "it") -> None:
    """Poll until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.1)


class Shop:
    """One service on one trail; ``environment`` says where it ships to."""

    def __init__(self, directory: Path, **environment: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory / "trail"
        self.log = directory / "shop.log"
        self.environment = {
            "OTEL_AUDIT_DIR": str(self.directory),
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_AUDIT_HTTP_ACTIVITY": "off",
            "OTEL_METRICS_EXPORTER": "none",
            **environment,
        }
        self.port = free_port()
        self.answered: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "uvicorn", "tests.stack.shop_app:app"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--log-level", "warning"],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        wait_for(self._ready, what="the start of the shop")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", trust_env=False).is_success
        return False

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it as an operator does, or by another signal."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def order(self, count: int) -> None:
        """Place orders, and keep the ids of those that are answered."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=30) as client:
            for number in range(count):
                try:
                    answer = client.post(f"/orders/{number}")
                except httpx.TransportError:
                    return  # it was killed: nothing was answered
                if answer.is_success:
                    self.answered.append(answer.json()["id"])

    def records(self) -> list[bytes]:
        """All records of the trail."""
        with TrailReader(self.directory) as reader:
            return [leaf.record for leaf in reader.leaves()]

    @property
    def origin(self) -> str:
        """The trail's name."""
        with TrailReader(self.directory) as reader:
            return reader.origin

    def command(self, *arguments: str, code: int | None = 0) -> Any:
        """Run `otel-audit ... --json` on its trail; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "otel_audit.cli", *arguments, "--json"],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def standing(self) -> dict[str, Any]:
        """Return what `otel-audit ship status` says of the only destination."""
        [row] = self.command("ship", "status")["destinations"]
        return dict(row)

    @property
    def _query(self) -> str:
        return f'{{service_name=~".+"}} | audit_sequence_stream_id={json.dumps(self.origin)}'

    def in_loki(self, loki: Loki) -> list[bytes]:
        """Return the bodies of the trail's records that Loki shows."""
        return [
            entry.line.encode()
            for entry in loki.entries(self._query)
            if entry.labels.get("event_name") != "audit.checkpoint"
        ]

    def check(self, loki: Loki, seconds: float = 90.0, *, all_answered: bool = True) -> None:
        """Assert: N answered = N in the trail = N in Loki, byte for byte, and reconciled.

        With ``all_answered`` false the trail may have records whose answer
        never reached the client.
        """
        expected = sorted(self.records())
        ids = {json.loads(record)["record_id"] for record in expected}
        assert self.answered
        assert len(set(self.answered)) == len(self.answered)
        assert set(self.answered) <= ids
        assert len(ids) == len(expected)
        if all_answered:
            assert len(expected) == len(self.answered)
        wait_for(lambda: len(self.in_loki(loki)) >= len(expected), seconds, "delivery to Loki")
        time.sleep(1.0)  # whatever comes twice would be there by then
        found = sorted(self.in_loki(loki))
        if found != expected:
            self._explain(loki, Counter(found) - Counter(expected))
        assert found == expected
        report = self.command("reconcile", "--loki", loki.url)
        assert report["ok"]
        assert report["found"] == len(expected)

    def _explain(self, loki: Loki, surplus: Counter[bytes]) -> None:
        """Print by which labels the entries differ of a line that Loki shows too often."""
        line = next(iter(surplus), b"").decode()
        entries = [set(one.labels.items()) for one in loki.entries(self._query) if one.line == line]
        common = set.intersection(*entries) if entries else set()
        print(f"{surplus.total()} too often, such as {line}; its entries differ by")  # noqa: T201 - pytest shows it where the test failed
        print(*[sorted(labels - common) for labels in entries], sep="\n")  # noqa: T201 - pytest shows it where the test failed


class Forgetful:
    """A proxy that passes requests on and loses the first answers."""

    def __init__(self, port: int, losses: int) -> None:
        self._target = port
        self._losses = losses
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _run(self) -> None:
        for client in self._clients():
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _clients(self) -> Iterator[socket.socket]:
        with suppress(OSError):  # closed at the end
            while True:
                yield self._listener.accept()[0]

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            with suppress(OSError):
                while answer := server.recv(65_536):
                    if self.lost < self._losses:
                        # It has stored the records and says so; nobody will hear it.
                        self.lost += 1
                        return
                    client.sendall(answer)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
