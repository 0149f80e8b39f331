"""The hub is asked as `make run` says, and the questions of an incident have answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.examples.hubs import RunningHub, running_hub

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """Start the hub; somebody fails to log in, and somebody reads a credential."""
    with running_hub(tmp_path_factory.mktemp("asked") / "data") as hub:
        for _ in range(2):
            httpx.post(f"{hub.url}/api/login", json={"name": "stef", "password": "wrong"})
        with hub.signed_in("olga") as olga:
            path = "/api/servers/text/credential"
            assert olga.put(path, json={"value": "s3cret"}).status_code == 200
            assert olga.get(path, params={"purpose": "rotation"}).status_code == 200
        with hub.signed_in("aurel") as aurel:
            assert aurel.get(path, params={"purpose": "curiosity"}).status_code == 403
        yield hub


def curls(banner: str) -> list[tuple[str, dict[str, str]]]:
    """Make of each curl line what curl would: an address, and headers."""
    found = []
    for line in re.findall(r"curl -s.*", banner):
        _, _, header, url = shlex.split(line)
        name, _, value = header.partition(": ")
        found.append((url, {name: value}))
    return found


def told(hub: RunningHub, *arguments: str) -> list[dict[str, Any]]:
    """Ask on the command line; what comes are records, one a line."""
    command = [
        sys.executable,
        "-m",
        "otel_audit.cli",
        *arguments,
        "--json",
        "--dir",
        str(hub.trail),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_printed_curl_lines_are_answered(hub: RunningHub) -> None:
    (events, token), (stream, same) = curls(hub.banner)
    assert token == same
    answer = httpx.get(events, headers=token, timeout=20)
    assert answer.status_code == 200, answer.text
    assert [item["record"]["actor_id"] for item in answer.json()["records"]][:2]
    assert httpx.get(events, timeout=20).status_code == 401
    with httpx.stream("GET", stream, headers=token, timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        httpx.post(f"{hub.url}/api/login", json={"name": "stef", "password": "wrong"})
        data = next(line for line in lines if line.startswith("data: "))
    assert json.loads(data[6:])["record"]["outcome"] == "failure"


def test_one_question_finds_who_had_a_credential_and_who_did_not_get_it(hub: RunningHub) -> None:
    asked = ("query", "--event-type", "credential_access", "--resource", "text", "--oldest")
    found = [
        (record["actor_id"], record["action"], record["outcome"]) for record in told(hub, *asked)
    ]
    assert found == [
        ("olga", "store", "success"),
        ("olga", "read", "success"),
        ("aurel", "GET", "failure"),
    ]
    assert [record["actor_id"] for record in told(hub, *asked, "--outcome", "failure")] == ["aurel"]


def test_the_questions_of_an_incident_have_answers(hub: RunningHub) -> None:
    week = ("--start", "-7d")
    read = told(
        hub,
        "query",
        "--event-type",
        "credential_access",
        "--resource",
        "text",
        "--action",
        "read",
        *week,
    )
    assert {record["actor_id"] for record in read} == {"olga"}
    everything = told(hub, "timeline", "--request-id", read[0]["request_id"])
    assert {record["event"] for record in everything} >= {"credential_access", "http.request"}
    _, token = curls(hub.banner)[0]
    query = {"request_id": read[0]["request_id"], "order": "oldest"}
    answer = httpx.get(f"{hub.url}/audit/events", params=query, headers=token).json()
    assert [item["record"]["record_id"] for item in answer["records"]] == [
        record["record_id"] for record in everything
    ]
    failed = {"event": "authentication", "outcome": "failure", "start": "-24h", "per": "1h"}
    counts = httpx.get(f"{hub.url}/audit/stats", params=failed, headers=token).json()["counts"]
    assert sum(row["count"] for row in counts) >= 2
