"""PostgreSQL and Redis really stopped, paused and back under load, and everybody who looks on.

/health answers in time throughout; states change as the thresholds say; Prometheus sees the same;
each change is in the trail.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from collector.stack.servers import free_port
from otel_audit import TrailReader
from otel_audit.health.checker import TRAIL
from otel_audit.trail.verify import verify
from tests.stack.health.servers import (
    ROOT,
    Postgres,
    Redis,
    Server,
    program,
    started,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)


class Prometheus(Server):
    """Prometheus, which scrapes one address each second."""

    target = 0

    def command(self) -> list[str]:
        here = self.directory
        (here / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms}\nscrape_configs:\n- job_name: scene\n"
            f"  static_configs: [{{targets: ['127.0.0.1:{self.target}']}}]\n"
        )
        return [
            program("prometheus"),
            f"--config.file={here}/prometheus.yml",
            f"--storage.tsdb.path={here}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def state_of(self, component: str) -> str:
        """Return the state whose gauge is 1, by a query as a dashboard makes it."""
        query = f'otel_audit_health_status{{component="{component}"}} == 1'
        url = f"http://127.0.0.1:{self.port}/api/v1/query?query={urllib.parse.quote(query)}"
        result = httpx.get(url, timeout=5).json()["data"]["result"]
        return ",".join(series["metric"]["state"] for series in result)


class Load:
    """Asks /health all the time, and /orders beside it; keeps every answer's time and status."""

    def __init__(self, url: str) -> None:
        self.health: list[tuple[float, int, str]] = []
        self.orders = {True: 0, False: 0}
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_health) for _ in range(2)]
        self._threads += [threading.Thread(target=self._ask_orders) for _ in range(4)]

    def __enter__(self) -> Load:  # noqa: PYI034 - nobody inherits from it
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_health(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._stop.is_set():
                begun = time.perf_counter()
                response = client.get(f"{self._url}/health")
                seconds = time.perf_counter() - begun
                self.health.append((seconds, response.status_code, response.json()["status"]))
                time.sleep(0.005)

    def _ask_orders(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._stop.is_set():
                try:
                    answered = client.get(f"{self._url}/orders").status_code == 200
                except httpx.HTTPError:
                    # uvicorn closes the connection of a request that failed.
                    answered = False
                self.orders[answered] += 1
                time.sleep(0.02)


class Scene:
    def __init__(self, directory: Path, postgres: Postgres, redis: Redis) -> None:
        self.trail = directory / "trail"
        self.metrics, self.port, health = (free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{self.port}"
        self.own = f"http://127.0.0.1:{health}"
        environment = {
            **os.environ,
            "OTEL_AUDIT_DIR": str(self.trail),
            "OTEL_SERVICE_NAME": "scene",
            "SCENE_POSTGRES": postgres.address,
            "SCENE_REDIS": str(redis.port),
            "SCENE_METRICS": str(self.metrics),
            "SCENE_PORT": str(health),
        }
        command = ["-m", "uvicorn", "tests.stack.health.scene_app:app", "--port", str(self.port)]
        self.log = directory / "app.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--no-access-log"],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def states(self) -> dict[str, str]:
        shown = httpx.get(f"{self.url}/health/detailed", timeout=5).json()
        return {name: facts["status"] for name, facts in shown["components"].items()}

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4_000:]
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def changes(self, component: str) -> list[tuple[str, str]]:
        with TrailReader(self.trail) as reader:
            records: list[dict[str, Any]] = [json.loads(leaf.record) for leaf in reader.leaves()]
        return [
            (record["from"], record["to"])
            for record in records
            if record["event"] == "health.state_changed" and record["component"] == component
        ]


@contextlib.contextmanager
def playing(directory: Path, postgres: Postgres, redis: Redis) -> Iterator[Scene]:
    scene = Scene(directory, postgres, redis)
    try:
        wait_until(scene.answers, 40, "the application's start")
        yield scene
    finally:
        scene.process.terminate()
        try:
            scene.process.wait(20)
        except subprocess.TimeoutExpired:
            scene.process.kill()
            scene.process.wait()


def test_the_whole_scene(tmp_path: Path) -> None:
    with (
        started(Postgres) as postgres,
        started(Redis) as redis,
        playing(tmp_path, postgres, redis) as scene,
        started(Prometheus, start=False) as prometheus,
    ):
        prometheus.target = scene.metrics
        prometheus.start()

        def see(**wanted: str) -> None:
            """Wait until detail, gauge and trail all say the same."""
            wait_until(lambda: wanted.items() <= scene.states().items(), 30, f"{wanted}")
            wait_until(lambda: {n: prometheus.state_of(n) for n in wanted} == wanted, 15, "gauges")
            wait_until(
                lambda: {n: scene.changes(n)[-1][1] for n in wanted} == wanted, 15, "records"
            )

        with Load(scene.url) as load:
            see(database="healthy", pool="healthy", cache="healthy", **{TRAIL: "healthy"})

            redis.stop()
            see(cache="unhealthy", database="healthy")
            assert httpx.get(f"{scene.url}/health").json() == {"status": "degraded"}
            redis.start()
            see(cache="healthy")

            postgres.stop()
            see(database="unhealthy", pool="unhealthy")
            response = httpx.get(f"{scene.url}/health")
            assert (response.status_code, response.json()) == (503, {"status": "unhealthy"})
            assert httpx.get(f"{scene.url}/health/live").status_code == 200
            assert httpx.get(f"{scene.own}/health").status_code == 503
            assert httpx.get(f"{scene.own}/health/live").status_code == 200
            postgres.start()
            see(database="healthy", pool="healthy")

            postgres.pause()
            redis.pause()
            see(database="unhealthy", pool="unhealthy", cache="unhealthy")
            postgres.resume()
            redis.resume()
            see(database="healthy", pool="healthy", cache="healthy")
            assert httpx.get(f"{scene.url}/health").json() == {"status": "healthy"}

        seconds = sorted(one for one, _, _ in load.health)
        assert len(seconds) > 200
        assert seconds[-1] < 1.0
        assert {status for _, _, status in load.health} == {"healthy", "degraded", "unhealthy"}
        assert all((code == 200) is (status != "unhealthy") for _, code, status in load.health)
        assert load.orders[True] > 0
        assert load.orders[False] > 0

        down, up, first = ("healthy", "unhealthy"), ("unhealthy", "healthy"), ("unknown", "healthy")
        assert scene.changes("cache") == [first, down, up, down, up]
        assert scene.changes("database") == [first, down, up, down, up]
        assert scene.changes("pool") == [first, down, up, down, up]
        assert scene.changes(TRAIL) == [first]
    with TrailReader(scene.trail) as reader:
        assert verify(reader).ok


def test_a_stopped_process_answers_nobody_and_is_back_at_once(tmp_path: Path) -> None:
    """What SIGSTOP does to the service itself: results are too old, unknown until checked anew."""
    with (
        started(Postgres) as postgres,
        started(Redis) as redis,
        playing(tmp_path, postgres, redis) as scene,
    ):
        process = psutil.Process(scene.process.pid)
        process.suspend()
        with pytest.raises(httpx.TimeoutException):
            httpx.get(f"{scene.url}/health", timeout=0.5)
        time.sleep(3.5)
        process.resume()
        seen: list[str] = []

        def healthy() -> bool:
            seen.append(httpx.get(f"{scene.url}/health", timeout=5).json()["status"])
            return seen[-1] == "healthy"

        wait_until(healthy, 20, "healthy again")
        assert "unhealthy" not in seen
