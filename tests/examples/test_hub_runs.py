"""The example under real traffic: what was answered is in the trail, and secrets are not."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from examples.agenthub import driver
from examples.agenthub.members import DEMO_MEMBERS
from otel_audit import TrailReader, events
from otel_audit.record.classes import CLASSES
from otel_audit.trail.verify import verify
from tests.examples.hubs import PASSWORD, ROOT, RunningHub, all_bytes, running_hub, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("hub") / "data") as hub:
        yield hub


@pytest.fixture(scope="module")
def played(hub: RunningHub) -> driver.Played:
    return driver.play(hub.url, PASSWORD, rounds=1, seed=7)


def test_every_answered_request_is_in_the_trail(hub: RunningHub, played: driver.Played) -> None:
    assert len(played.answered) > 50
    assert driver.missing(played, hub.trail) == []
    by_request = Counter(record.get("request_id") for record in hub.records())
    for one in played.answered:
        # the http.request record beside the example's own
        assert by_request[one.request_id] >= len({*one.events, driver.REQUEST})


def test_the_trail_verifies(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    with TrailReader(hub.trail) as reader:
        report = verify(reader)
    assert report.ok, report.findings
    assert report.size > len(played.answered)


def test_every_event_class_is_played_and_lacks_nothing(
    hub: RunningHub, played: driver.Played
) -> None:
    assert played.answered
    records = [record for record in hub.records() if record["event_type"] in CLASSES]
    assert {record["event_type"] for record in records} == set(CLASSES)
    lacking = [record for record in records if "missing_fields" in record]
    # Who fails to sign in is nobody yet, and that is all that may be missing.
    assert lacking == []


def test_no_record_had_to_be_altered(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    assert [record for record in hub.records() if "coerced" in record] == []


def test_no_secret_and_no_personal_data_is_in_trail_or_mirror(
    hub: RunningHub, played: driver.Played
) -> None:
    content = all_bytes(hub.data / "logs")
    assert b"mcp_server_start" in content
    personal = {text for member in DEMO_MEMBERS for text in member[1:]}
    assert len(played.secrets) > 15
    for secret in played.secrets | personal | {"Asthma", "to be or not to be"}:
        assert secret.encode() not in content, secret


def test_no_password_and_no_credential_is_at_rest_in_clear(
    hub: RunningHub, played: driver.Played
) -> None:
    content = all_bytes(hub.data)
    for secret in played.secrets:
        assert secret.encode() not in content, secret


def test_the_actor_is_who_signed_in_and_nobody_else(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    for record in hub.records():
        if record["event"] == "mcp_server_registered":
            assert record["actor_id"].startswith(("olga", "clerk"))
            assert record["actor_verified"] is True
        if record["event"] == "authentication" and record["status"] == "failed":
            assert record["actor_id"] == "anonymous"
            assert record["actor_verified"] is False
        if record["event"] == "mcp_server_crashed":
            assert record["actor_id"] == "agenthub"
            assert not {"request_id", "trace_id"} & record.keys()


def test_a_start_is_announced_before_it_happens(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    announced: set[str] = set()
    starts = [record for record in hub.records() if record["event"] == "mcp_server_start"]
    assert {record["status"] for record in starts} == {"initiated", "success", "failed"}
    for record in starts:
        if record["status"] == "initiated":
            announced.add(record["record_id"])
        else:
            assert record["initiated_record_id"] in announced


def test_records_of_one_request_share_its_trace(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    traces: dict[str, set[str]] = {}
    for record in hub.records():
        if "request_id" in record and record["event"] != driver.REQUEST:
            traces.setdefault(record["request_id"], set()).add(record.get("trace_id", ""))
    assert all(len(trace) == 1 and "" not in trace for trace in traces.values())


def test_a_server_is_a_real_process_and_gone_after_stop(hub: RunningHub) -> None:
    with hub.signed_in("olga") as olga:
        assert olga.post("/api/servers/clock/start").status_code == 200
        (server,) = hub.servers()
        shown = {one["name"]: one for one in olga.get("/api/servers").json()}
        assert shown["clock"]["state"] == "running"
        assert shown["clock"]["pid"] == server.pid
        answer = olga.post("/api/servers/clock/call", json={"tool": "now", "arguments": {}})
        assert answer.json()["text"].endswith("+00:00")
        assert olga.post("/api/servers/clock/stop").status_code == 200
        assert not server.is_running()
        assert hub.servers() == []
    started = next(
        record
        for record in hub.records()
        if record["event"] == "mcp_server_start" and record.get("pid") == server.pid
    )
    assert started["resource_name"] == "clock"
    assert started["actor_id"] == "olga"


def test_a_server_that_is_killed_is_noticed(hub: RunningHub) -> None:
    def crashes() -> int:
        return sum(
            record["event"] == "mcp_server_crashed" and record["details"]["exit_code"] == -9
            for record in hub.records()
        )

    with hub.signed_in("olga") as olga:
        olga.post("/api/servers/numbers/start")
        before = crashes()
        (server,) = hub.servers()
        server.kill()
        wait_until(lambda: crashes() == before + 1)
        shown = {one["name"]: one for one in olga.get("/api/servers").json()}
        assert shown["numbers"]["state"] == "crashed"
        assert olga.post("/api/servers/numbers/start").status_code == 200
        assert olga.post("/api/servers/numbers/stop").status_code == 200


def test_the_driver_leaves_no_members_no_credentials_and_nothing_crashed(
    hub: RunningHub, played: driver.Played
) -> None:
    """The hub would be degraded for good, and its page full of people that nobody knows."""
    assert any("numbers-" in one.what and "/stop" in one.what for one in played.answered)
    with hub.signed_in("olga") as olga:
        servers = olga.get("/api/servers").json()
    assert not any(server["has_credential"] for server in servers)
    own = [server for server in servers if "-" in server["name"]]
    assert {server["state"] for server in own} == {"stopped"}
    with closing(sqlite3.connect(hub.data / "hub.db")) as connection:
        members = connection.execute("SELECT name FROM members").fetchall()
    assert {name for (name,) in members} == {member[0] for member in DEMO_MEMBERS}


def test_the_page_needs_nothing_from_elsewhere(hub: RunningHub) -> None:
    with hub.signed_in("aurel") as aurel:
        for path in ("/", "/?requests=true", "/verify"):
            page = aurel.get(path)
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "http://" not in page.text
            assert "https://" not in page.text


def test_the_page_shows_the_trail_to_those_who_may_see_it(
    hub: RunningHub, played: driver.Played
) -> None:
    assert played.answered
    nobody = httpx.get(hub.url)
    assert "password" in nobody.text
    assert "privilege_change" not in nobody.text
    with hub.signed_in("aurel") as aurel, hub.signed_in("olga") as olga:
        everybodys, own = aurel.get("/").text, olga.get("/").text
        newest = len(hub.records()) - 1
        with_requests = aurel.get("/?requests=true").text
        verified = aurel.get("/verify").text
    assert f">{newest}<" in with_requests
    assert '"actor_id": "stef"' in everybodys.replace("&quot;", '"')
    assert '"actor_id": "stef"' not in own.replace("&quot;", '"')
    assert "http.request" in with_requests.replace("with http.request", "")
    assert "The trail verifies" in verified
    assert httpx.get(f"{hub.url}/verify").status_code == 401


def test_the_interface_is_described(hub: RunningHub) -> None:
    paths = httpx.get(f"{hub.url}/openapi.json").json()["paths"]
    assert "/api/servers/{name}/start" in paths
    assert httpx.get(f"{hub.url}/docs").status_code == 404


def test_what_the_hub_says_at_its_start(hub: RunningHub) -> None:
    assert "Password      the one in AGENTHUB_PASSWORD" in hub.banner
    assert PASSWORD not in hub.banner
    for line in (
        f"otel-audit tail -f --dir {hub.trail}",
        f"tail -f {hub.data}/logs/audit.log",
        f"otel-audit verify --dir {hub.trail}",
        f"/python -m examples.agenthub.driver --url {hub.url} --check {hub.trail}",
    ):
        assert line in hub.banner


def test_the_driver_as_a_program_plays_and_checks(hub: RunningHub) -> None:
    command = [sys.executable, "-m", "examples.agenthub.driver", "--url", hub.url, "--rounds", "1"]
    environment = {**os.environ, "AGENTHUB_PASSWORD": PASSWORD, "COLUMNS": "120"}
    done = subprocess.run(
        [*command, "--check", str(hub.trail), "--ids"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests were answered" in done.stdout
    assert "are in the trail" in done.stdout
    assert events.PHI_ACCESS in done.stdout


def test_the_check_finds_what_is_missing(hub: RunningHub, played: driver.Played) -> None:
    made_up = driver.Answered(
        "no-such-request", "GET /nowhere was answered 200", 200, ("phi_access",)
    )
    lost = driver.missing(driver.Played([*played.answered, made_up]), hub.trail)
    assert lost == ["GET /nowhere was answered 200 (no-such-request): no phi_access"]


def test_the_mirror_has_the_same_records(hub: RunningHub, played: driver.Played) -> None:
    assert played.answered
    mirror = hub.data / "logs" / "audit.log"
    stored = [record["record_id"] for record in hub.records()]

    def mirrored() -> list[str]:
        return [json.loads(line)["record_id"] for line in mirror.read_text().splitlines()]

    wait_until(lambda: mirrored()[: len(stored)] == stored)
