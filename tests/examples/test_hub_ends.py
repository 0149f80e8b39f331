"""However the hub ends, no server stays, and nothing that was answered is lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from io import StringIO
from typing import TYPE_CHECKING

import httpx
import pytest
from rich.console import Console

from examples.agenthub import driver
from otel_audit import TrailReader
from otel_audit.trail.verify import verify
from otel_audit.web.tokens import TokenFile
from tests.examples.hubs import PASSWORD, RunningHub, running_hub, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hub_that_is_told_to_end_stops_its_servers(tmp_path: Path, number: int) -> None:
    with running_hub(tmp_path / "data") as hub, hub.signed_in("olga") as olga:
        for name in ("clock", "text"):
            assert olga.post(f"/api/servers/{name}/start").status_code == 200
        servers = hub.servers()
        assert len(servers) == 2
        hub.stop(number)
        said = hub.process.stdout.read() if hub.process.stdout else ""
        # SIGTERM comes from a supervisor, to which nothing has to be explained.
        assert (f"otel-audit verify --dir {hub.trail}" in said) is (number == signal.SIGINT)
        assert not any(server.is_running() for server in servers)
        tokens = TokenFile(hub.trail / "tokens.json").tokens()
        assert [token.state(time.time()) for token in tokens] == ["revoked"]
        stopped = [record for record in hub.records() if record["event"] == "mcp_server_stop"]
        assert {record["resource_name"] for record in stopped} == {"clock", "text"}
        assert {record["actor_id"] for record in stopped} == {"agenthub"}
        with TrailReader(hub.trail) as reader:
            report = verify(reader)
        assert report.ok
        assert report.covered == report.size


def test_a_hub_that_is_killed_takes_its_servers_along(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data") as hub, hub.signed_in("olga") as olga:
        started = olga.post("/api/servers/text/start")
        (server,) = hub.servers()
        hub.stop(signal.SIGKILL)
        wait_until(lambda: not server.is_running(), seconds=5)
        assert started.headers["x-request-id"] in {
            record.get("request_id") for record in hub.records()
        }
    with running_hub(tmp_path / "data") as hub, hub.signed_in("olga") as olga:
        assert PASSWORD not in hub.banner
        crashed = [record for record in hub.records() if record["event"] == "mcp_server_crashed"]
        assert [record["resource_name"] for record in crashed] == ["text"]
        assert "killed" in crashed[0]["details"]["reason"]
        assert olga.post("/api/servers/text/start").status_code == 200
        assert olga.post("/api/servers/text/stop").status_code == 200


def driven(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.agenthub.driver", "--url", url, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@contextlib.contextmanager
def driver_of_a_killed_hub(hub: RunningHub, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Kill the hub as soon as it has answered enough."""
    before = len(hub.records())
    program = [sys.executable, "-m", "examples.agenthub.driver", "--url", hub.url]
    environment = {**os.environ, "AGENTHUB_PASSWORD": PASSWORD, "COLUMNS": "120"}
    with subprocess.Popen(
        [*program, "--rounds", "500", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as running:
        wait_until(lambda: len(hub.records()) > before + 60)
        hub.stop(signal.SIGKILL)
        yield running


def test_a_driver_whose_hub_is_killed_waits_and_checks_what_was_answered(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data") as hub:
        arguments = ("--wait", "60", "--check", str(hub.trail))
        # At the same address: the driver has to find it again.
        again = running_hub(tmp_path / "data", "--port", hub.url.rpartition(":")[2])
        with driver_of_a_killed_hub(hub, *arguments) as running, again:
            said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert re.search(r"The hub was lost in the middle \(\w+Error: ", said)
    answered = re.search(r"It is back\.\n(?s:.*)\n(\d+) requests were answered\.", said)
    assert answered, said
    assert int(answered[1]) > 10
    assert f"All {answered[1]} answered requests are in the trail." in said


def test_a_driver_whose_hub_stays_away_checks_all_the_same(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data") as hub:
        with driver_of_a_killed_hub(hub, "--check", str(hub.trail)) as running:
            said, _ = running.communicate(timeout=60)
        trail = hub.trail
    assert running.returncode == 2, said
    assert "It is not back." in said
    assert re.search(r"All \d+ answered requests are in the trail\.", said)
    lost = driver.HubLostError(driver.Played(), "it is gone")
    given = Namespace(url="http://127.0.0.1:9", wait=0.0, ids=False, check=None)
    printed = Console(file=StringIO(), width=120)
    assert driver._without_hub(lost, given, printed) == 2
    made_up = driver.Answered("no-such-request", "GET / was answered 200", 200, ("phi_access",))
    lost.played.answered.append(made_up)
    assert driver._without_hub(lost, Namespace(**{**vars(given), "check": trail}), printed) == 1


def test_a_driver_with_the_wrong_password_says_so_in_one_line(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data") as hub:
        done = driven(hub.url, AGENTHUB_PASSWORD="wrong")
    assert (done.returncode, done.stderr) == (2, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("the password in AGENTHUB_PASSWORD is not the hub's")
    assert "-m examples.agenthub --new-password makes another" in line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "nobody answers at http://127.0.0.1:9: is the hub running? ("),
        ("http//127.0.0.1", "http//127.0.0.1 cannot be asked: UnsupportedProtocol: "),
        ("http://127.0.0.1:no", "http://127.0.0.1:no cannot be asked: InvalidURL: "),
    ],
)
def test_a_driver_at_a_wrong_address_says_so_in_one_line(url: str, said: str) -> None:
    done = driven(url, AGENTHUB_PASSWORD=PASSWORD)
    assert (done.returncode, done.stderr) == (2, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(said)


def test_a_driver_that_nobody_can_tell_the_password_says_how_to() -> None:
    environment = {name: text for name, text in os.environ.items() if name != "AGENTHUB_PASSWORD"}
    done = subprocess.run(
        [sys.executable, "-m", "examples.agenthub.driver", "--url", "http://127.0.0.1:9"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # else it asks on the terminal of whoever runs the tests
        env=environment,
    )
    assert done.returncode == 2
    assert "set AGENTHUB_PASSWORD" in done.stdout
    assert "Traceback" not in done.stderr


def test_two_workers_are_one_hub(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data", "--workers", "2") as hub:
        played = driver.play(hub.url, PASSWORD, rounds=1, seed=11)
        assert driver.missing(played, hub.trail) == []
        with hub.signed_in("olga") as olga:
            assert olga.post("/api/servers/clock/start").status_code == 200
        (server,) = hub.servers()
        for _ in range(10):  # new connections, so that both workers get some
            with hub.signed_in("olga") as olga:
                answer = olga.post("/api/servers/clock/call", json={"tool": "now", "arguments": {}})
                assert answer.status_code == 200, answer.text
        owner = server.parent()
        assert owner is not None
        owner.kill()
        wait_until(lambda: not server.is_running(), seconds=5)

        def found_gone() -> bool:
            with hub.signed_in("olga") as olga:
                return olga.post("/api/servers/clock/stop").status_code == 409

        wait_until(found_gone)
        hub.stop()
        with TrailReader(hub.trail) as reader:
            assert verify(reader).ok


def operator_token(hub: RunningHub) -> str:
    match = re.search(r"Bearer (\S+)'", hub.banner)
    assert match
    return match[1]


def test_a_second_hub_beside_the_first_takes_nothing_from_it(tmp_path: Path) -> None:
    with running_hub(tmp_path / "data") as first:
        token = operator_token(first)
        with running_hub(tmp_path / "data") as second:
            assert second.url != first.url
            assert operator_token(second) != token
            said = "Note          another hub seems to run on the same data (process "
            assert f"{said}{first.process.pid} (python" in second.banner
            assert "Note" not in first.banner
        answer = httpx.get(
            f"{first.url}/audit/events?limit=1", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 200


def test_a_password_that_is_named_counts_on_a_later_start_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_hub(data):
        pass
    with running_hub(data, AGENTHUB_PASSWORD="quite-another-one") as hub:
        assert "the one in AGENTHUB_PASSWORD" in hub.banner
        login = {"name": "olga", "password": "quite-another-one"}
        assert httpx.post(f"{hub.url}/api/login", json=login).status_code == 200
