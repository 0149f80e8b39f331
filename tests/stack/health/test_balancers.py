"""The shipped configurations of HAProxy and nginx, run as they are but for the ports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from collector.stack.servers import free_port
from tests.stack.health.servers import ROOT, Server, accepts, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGING = ROOT / "packaging"

pytestmark = pytest.mark.timeout(200)


class Instance(Server):
    """A service that is healthy while its file is there."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.health = free_port()
        self.file = directory / "well"
        self.file.touch()

    def command(self) -> list[str]:
        app = "tests.stack.health.balanced_app:app"
        return [sys.executable, "-m", "uvicorn", app, "--port", str(self.port), "--no-access-log"]

    def options(self) -> dict[str, object]:
        environment = {
            "PYTHONPATH": str(ROOT),
            "INSTANCE": self.directory.name,
            "INSTANCE_FILE": str(self.file),
            "INSTANCE_HEALTH": str(self.health),
        }
        return {"env": {**os.environ, **environment}}

    def ready(self) -> bool:
        return self.status() == 200

    def status(self) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health").status_code
        except httpx.HTTPError:
            return 0


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[tuple[Instance, Instance]]:
    pair = Instance(tmp_path / "one"), Instance(tmp_path / "two")
    try:
        for instance in pair:
            instance.start()
        yield pair
    finally:
        for instance in pair:
            instance.stop()


def with_ports(text: str, front: int, pair: tuple[Instance, Instance]) -> str:
    """Put the test's ports in the place of the example's, each of which has to be there."""
    one, two = pair
    for old, new in (
        (":8080", f":{front}"),
        (":8001", f":{one.port}"),
        (":8002", f":{two.port}"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text.replace("port 9001", f"port {one.health}").replace(
        "port 9002", f"port {two.health}"
    )


@contextlib.contextmanager
def running(command: list[str], front: int) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: process.poll() is not None or accepts(front))
            assert process.poll() is None, process.stdout and process.stdout.read().decode()
            yield f"http://127.0.0.1:{front}"
        finally:
            process.terminate()
            process.wait(20)


def answering(url: str, count: int = 12) -> set[str]:
    """Ask several times and return who answered."""
    with httpx.Client() as client:
        return {client.get(f"{url}/who").raise_for_status().json()["who"] for _ in range(count)}


def test_haproxy_takes_an_unhealthy_instance_out_and_back(
    tmp_path: Path, instances: tuple[Instance, Instance]
) -> None:
    front = free_port()
    text = (PACKAGING / "haproxy" / "haproxy.cfg").read_text()
    path = tmp_path / "haproxy.cfg"
    path.write_text(with_ports(text, front, instances))
    checked = subprocess.run(
        [program("haproxy"), "-c", "-f", path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    with running([program("haproxy"), "-db", "-f", str(path)], front) as url:
        wait_until(lambda: answering(url) == {"one", "two"})
        instances[0].file.unlink()
        wait_until(lambda: answering(url) == {"two"})
        instances[0].file.touch()
        wait_until(lambda: answering(url) == {"one", "two"})
        instances[1].pause()
        wait_until(lambda: _only(url) == {"one"})
        instances[1].resume()
        wait_until(lambda: answering(url) == {"one", "two"})
        assert httpx.get(f"{url}/health").status_code == 403


def _only(url: str) -> set[str]:
    """Ask with patience: until it is noticed, a paused instance keeps a request waiting."""
    try:
        return {httpx.get(f"{url}/who", timeout=1).json()["who"] for _ in range(8)}
    except httpx.HTTPError:
        return set()


def test_nginx_passes_over_an_unhealthy_instance(
    tmp_path: Path, instances: tuple[Instance, Instance]
) -> None:
    front = free_port()
    shop = tmp_path / "shop.conf"
    shop.write_text(with_ports((PACKAGING / "nginx" / "shop.conf").read_text(), front, instances))
    here = tmp_path / "nginx"
    here.mkdir()
    config = tmp_path / "nginx.conf"
    paths = "".join(
        f"{name}_temp_path {here}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; error_log stderr; pid {here}/pid;\n"
        f"events {{}}\nhttp {{ access_log off; {paths} include {shop}; }}\n"
    )
    checked = subprocess.run(
        [program("nginx"), "-t", "-c", config], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    with running([program("nginx"), "-c", str(config)], front) as url:
        wait_until(lambda: answering(url) == {"one", "two"})
        assert httpx.get(f"{url}/health").json() == {"status": "healthy"}
        instances[0].file.unlink()
        wait_until(lambda: instances[0].status() == 503)
        for _ in range(10):
            assert httpx.get(f"{url}/health").json() == {"status": "healthy"}
        instances[1].file.unlink()
        wait_until(lambda: instances[1].status() == 503)
        assert httpx.get(f"{url}/health").status_code in {502, 503}
        assert httpx.get(f"{url}/health/detailed").status_code == 404
