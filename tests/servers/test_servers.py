"""Every way to serve, stopped the gentle and the hard way under load, loses nothing answered."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import psutil
import pytest

from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
UVICORN = (sys.executable, "-m", "uvicorn", "application:app", "--host", "127.0.0.1",
           "--log-level", "warning", "--port")  # fmt: skip
GUNICORN = (sys.executable, "-m", "gunicorn", "application:app", "--workers", "2",
            "--worker-class", "uvicorn.workers.UvicornWorker", "--log-level", "warning",
            "--graceful-timeout", "5", "--bind")  # fmt: skip

SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn --workers 2": (*UVICORN[:4], "--workers", "2", *UVICORN[4:]),
    "uvicorn --reload": (*UVICORN[:4], "--reload", "--reload-dir", ".", *UVICORN[4:]),
    "gunicorn": GUNICORN,
    "gunicorn --preload": (*GUNICORN[:4], "--preload", *GUNICORN[4:]),
}


class Served:
    """One server in a process of its own, with a trail of its own."""

    def __init__(self, command: tuple[str, ...], directory: Path) -> None:
        self.trail = directory / "logs" / "trail"
        shutil.copy(HERE / "application.py", directory)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        address = f"127.0.0.1:{self.port}" if "gunicorn" in command else str(self.port)
        root = str(HERE.parent.parent)
        self.log = directory / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, address],
                cwd=directory,
                env=os.environ
                | {"LOG_DIR": str(directory / "logs"), "PYTHONPATH": f"{root}:{directory}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def answers(self) -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                return post(connection, "first")
            except OSError:
                return False

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill_all(self) -> None:
        """End all processes at the same moment, as a power cut would."""
        family = self.family()
        for member in family:
            member.suspend()
        for member in family:
            member.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.kill_all()


def post(connection: http.client.HTTPConnection, marker: str, kind: str = "async") -> bool:
    """Send one request; True when it was answered completely with 200."""
    connection.request("POST", f"/{kind}/{marker}")
    response = connection.getresponse()
    return response.status == 200 and marker.encode() in response.read()


class Load:
    """Clients that ask without pause and remember what was answered."""

    def __init__(self, port: int, clients: int = 8) -> None:
        self.port = port
        self.answered: list[str] = []
        self.refused = 0
        self.stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.answered) < count:
            assert time.monotonic() < deadline, f"{len(self.answered)} answers only"
            time.sleep(0.01)

    def stop(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(15)

    def _ask(self, client: int) -> None:
        kind = "sync" if client % 4 == 0 else "async"
        number = 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self.stopped.is_set():
            number += 1
            marker = f"c{client}n{number}"
            try:
                if post(connection, marker, kind):
                    self.answered.append(marker)
            except (OSError, http.client.HTTPException):
                self.refused += 1
                connection.close()
                self.stopped.wait(0.02)
        connection.close()


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    server = Served(SERVERS[request.param], tmp_path)
    yield server
    server.clean_up()


def check(trail: Path, answered: list[str]) -> None:
    """Everything answered is in the trail, once, and all of the trail verifies."""
    with TrailReader(trail) as reader:
        markers = [
            record["resource_name"]
            for leaf in reader.leaves()
            if (record := orjson.loads(leaf.record))["event"] == "marked"
        ]
        report = verify(reader)
    assert set(answered) <= set(markers)
    assert len(markers) == len(set(markers)) + markers.count("first") - 1
    assert report.ok, report.findings


def test_sigterm_under_load_loses_nothing(served: Served) -> None:
    load = Load(served.port)
    load.wait_for(300)
    served.terminate()
    load.stop()
    check(served.trail, load.answered)
    with TrailReader(served.trail) as reader:
        last = reader.last_checkpoint()
        assert last is not None
        assert last.size == reader.tree().size, "the end of the application signs a checkpoint"


def test_sigkill_under_load_loses_nothing(served: Served) -> None:
    load = Load(served.port)
    load.wait_for(300)
    served.kill_all()
    load.stop()
    check(served.trail, load.answered)
    trail = Trail.open(served.trail)
    assert trail.store.append([b"{}"], {}).first == trail.reader.tree().size - 1
    trail.close()


def test_one_worker_killed_under_load_leaves_the_other_and_its_trail(tmp_path: Path) -> None:
    server = Served(SERVERS["gunicorn --preload"], tmp_path)
    try:
        load = Load(server.port)
        load.wait_for(200)
        server.family()[-1].kill()
        load.wait_for(len(load.answered) + 300)
        server.terminate()
        load.stop()
        check(server.trail, load.answered)
    finally:
        server.clean_up()


def test_a_reload_under_load_loses_nothing(tmp_path: Path) -> None:
    server = Served(SERVERS["uvicorn --reload"], tmp_path)
    try:
        load = Load(server.port)
        load.wait_for(200)
        application = tmp_path / "application.py"
        before = {member.pid for member in server.family()}
        application.write_text(application.read_text() + "\n# changed\n")
        deadline = time.monotonic() + 20
        while {member.pid for member in server.family()} == before:
            assert time.monotonic() < deadline, "no reload happened"
            time.sleep(0.05)
        load.wait_for(len(load.answered) + 200)
        server.terminate()
        load.stop()
        check(server.trail, load.answered)
    finally:
        server.clean_up()
