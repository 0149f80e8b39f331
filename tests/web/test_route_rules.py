"""Rules of the policy that make records of requests: durable before the answer, like any other."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from otel_audit import get_audit_logger, instrument_app
from otel_audit.testing import audit_trail
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, START, http, request

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from otel_audit.testing import AuditTrail
    from otel_audit.web.asgi import Receive, Scope, Send

POLICY = """
http_activity: off
rules:
  - match: {event: opened, route: "/patients/*"}
    level: warning
routes:
  - match: "GET /patients/{patient}"
    event: phi_access
    action: read
    resource_type: patient
    resource_name: "{patient}"
    fields: {purpose: "{query.purpose}", subject_id: "{patient}", code: "{status_code}"}
  - match: "DELETE /users/{id}"
    outcome: success
    event: data_deletion
    resource_name: "{id}"
"""


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/patients/{patient}")
    async def read(patient: str) -> str:
        get_audit_logger().audit_event("opened", "open", chart=patient)
        if patient == "0":
            raise HTTPException(404)
        return patient

    app.add_api_route("/users/{id}", read_user, methods=["DELETE"])
    instrument_app(app)
    return app


async def read_user(id: str) -> str:  # noqa: A002 - FastAPI takes the parameter's name
    if id == "me":
        raise HTTPException(403)
    return id


def trail_of(tmp_path: Path, **settings: Any) -> AbstractContextManager[AuditTrail]:
    (tmp_path / "p.yaml").write_text(POLICY)
    return audit_trail(policy_file=tmp_path / "p.yaml", **settings)


def test_a_route_becomes_an_event_class_without_activity(tmp_path: Path) -> None:
    with trail_of(tmp_path) as trail, TestClient(application()) as client:
        client.get("/patients/7?purpose=care")
        client.get("/patients/0")
        client.delete("/users/8")
        client.delete("/users/me")
        records = trail.records()
    assert [record["event"] for record in records] == [
        "opened", "phi_access", "opened", "phi_access", "data_deletion",
    ]  # fmt: skip
    assert [record["level"] for record in records[::2]] == ["warning", "warning", "info"]
    read, denied, deleted = records[1], records[3], records[4]
    assert (read["resource_name"], read["purpose"], read["code"]) == ("7", "care", 200)
    assert (read["outcome"], denied["outcome"]) == ("success", "failure")
    assert read["request_id"]
    assert (deleted["action"], deleted["resource_name"]) == ("DELETE", "8")


def test_such_a_record_holds_the_answer_back(tmp_path: Path) -> None:
    """Unlike activity, it is evidence: without it there is no answer."""
    with (
        trail_of(tmp_path, timeout=0.2) as trail,
        TestClient(application()) as client,
        (trail.directory / "lock").open("r+b") as file,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = client.delete("/users/8")
        assert answer.status_code == 503
        assert answer.json()["record_id"]


@pytest.mark.parametrize(("path", "status", "found"), [("/login", 200, 1), ("/login", 404, 0)])
async def test_where_no_route_is_known_the_path_counts(path: str, status: int, found: int) -> None:
    async def plain(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({**START, "status": status})
        await send(BODY)

    with audit_trail(rule_sets="logins") as trail:
        await request(AuditMiddleware(plain), http(path, "POST"))
        assert len(trail.records(event="authentication")) == found


@pytest.mark.parametrize(("rules", "found"), [("", ["route", "account"]), (
    "rules: [{match: {event: authentication, resource_type: route, resource_name: '/login'}, record: false}]",
    ["account"],
)])  # fmt: skip
def test_a_rule_of_events_leaves_out_what_the_application_records_better(
    tmp_path: Path, rules: str, found: list[str]
) -> None:
    """The set `logins` beside an application's own record; docs/policy.md tells what to write."""
    (tmp_path / "p.yaml").write_text(f"rule_sets: [logins]\n{rules}")
    app = FastAPI()

    @app.post("/login")
    async def log_in() -> None:
        get_audit_logger().audit_event("authentication", "login", "account", "ann")

    app.add_api_route("/logout", lambda: None, methods=["POST"])
    instrument_app(app)
    with audit_trail(policy_file=tmp_path / "p.yaml") as trail, TestClient(app) as client:
        client.post("/login")
        client.post("/logout")
        records = trail.records(event="authentication")
    of_logins = [one["resource_type"] for one in records if one["action"] == "login"]
    assert sorted(of_logins, reverse=True) == found
    assert len(records) == len(found) + 1
