"""Every way to say what happened ends as a durable record with the documented fields."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import threading
import time
from inspect import getdoc, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import get_current

from otel_audit.api.context import RequestScope, get_audit_context, set_actor
from otel_audit.api.current import is_configured
from otel_audit.api.logger import AuditLogger, audit_event, get_audit_logger
from otel_audit.api.policy import Policy, Rule
from otel_audit.api.provider import AuditProvider
from otel_audit.api.receipt import AuditReceipt, PendingReceipt
from otel_audit.api.spans import audit_span
from otel_audit.errors import (
    AuditClosedError,
    AuditEventError,
    AuditTimeoutError,
    AuditUnavailableError,
    ProofError,
)
from otel_audit.record.event import AuditEvent
from otel_audit.settings import Settings
from otel_audit.trail import proof
from otel_audit.trail.merkle import leaf_hash
from tests.api.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = AuditEvent("login", "start")


def of_the_caller(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out what every record of these tests says."""
    always = {
        "schema", "timestamp", "record_id", "actor_id", "actor_type", "service_name", "resource",
        "retention",
    }  # fmt: skip
    return {name: value for name, value in record.items() if name not in always}


def unavailable(tmp_path: Path, on_failure: str, **rest: Any) -> AuditProvider:
    """Open a provider that gives up after a tenth of a second."""
    settings = Settings.from_env(
        log_dir=tmp_path, mirror=False, agent="off", on_failure=on_failure, timeout=0.1
    )
    return AuditProvider(settings, **rest)


# Receipts


def test_a_receipt_says_where_the_record_is_and_proves_it(desk: Desk) -> None:
    receipt = desk.audit.emit(EVENT)
    assert isinstance(receipt, AuditReceipt)
    assert receipt
    with desk.provider.reader() as reader:
        leaf = reader.leaf(receipt.sequence_number)
    assert leaf is not None
    assert json.loads(leaf.record)["record_id"] == receipt.record_id
    assert receipt.leaf_hash == leaf_hash(leaf.record) == leaf.hash
    assert receipt.committed_unix_nano == leaf.committed_unix_nano
    assert abs(receipt.committed_at.timestamp() - receipt.committed_unix_nano / 1e9) < 1e-5
    assert receipt.committed_at.utcoffset() is not None
    checked = proof.check(receipt.proof(), leaf.record, desk.provider.keys.verifiers())
    assert checked.index == receipt.sequence_number
    with pytest.raises(ProofError):
        proof.check(receipt.proof(), leaf.record + b" ", desk.provider.keys.verifiers())


def test_a_receipt_shows_what_identifies_the_record(desk: Desk) -> None:
    receipt = desk.audit.emit(EVENT)
    assert isinstance(receipt, AuditReceipt)
    shown = repr(receipt)
    assert receipt.record_id in shown
    assert receipt.leaf_hash.hex() in shown
    assert "sequence_number=0" in shown


def test_a_receipt_of_what_was_not_stored_says_so() -> None:
    assert repr(AuditReceipt("r-1", -1, b"", 0)) == "AuditReceipt(record_id='r-1', not stored)"


async def test_an_event_may_be_of_another_context_whose_request_waits_for_it(desk: Desk) -> None:
    scope = RequestScope("r-7", client_ip="192.0.2.7")
    token = scope.attach()
    there = get_current()
    scope.detach(token)
    pending = desk.audit.emit(EVENT, there)
    assert scope.pending == [pending]
    await scope.barrier()
    await desk.audit.aemit(EVENT, context=there)
    assert [record["request_id"] for record in desk.records()] == ["r-7", "r-7"]


async def test_in_an_event_loop_a_receipt_is_pending_until_the_disk_has_the_record(
    desk: Desk,
) -> None:
    with desk.held():
        pending = desk.audit.emit(EVENT)
        assert isinstance(pending, PendingReceipt)
        await asyncio.sleep(0.05)
        assert not pending.done()
        assert repr(pending) == f"<PendingReceipt {pending.record_id} pending>"
        assert desk.records() == []
    receipt = await pending
    assert isinstance(receipt, AuditReceipt)
    assert pending.done()
    assert repr(pending) == f"<PendingReceipt {pending.record_id} done>"
    assert desk.record()["record_id"] == receipt.record_id == pending.record_id
    assert await pending == receipt
    assert await receipt == receipt


async def test_who_blocks_the_loop_anyway_may_wait_for_the_disk(desk: Desk) -> None:
    receipt = desk.audit.emit(EVENT, wait=True)
    assert isinstance(receipt, AuditReceipt)
    assert desk.record()["record_id"] == receipt.record_id


async def test_aemit_returns_when_the_record_is_durable(desk: Desk) -> None:
    receipt = await desk.audit.aemit(EVENT)
    assert isinstance(receipt, AuditReceipt)
    assert desk.record()["record_id"] == receipt.record_id


async def test_a_thread_without_a_loop_blocks_until_the_record_is_durable(desk: Desk) -> None:
    receipts: list[Any] = []
    thread = threading.Thread(target=lambda: receipts.append(desk.audit.emit(EVENT)))
    with desk.held():
        thread.start()
        await asyncio.sleep(0.05)
        assert receipts == []
    await asyncio.to_thread(thread.join)
    assert isinstance(receipts[0], AuditReceipt)


async def test_pending_receipts_of_a_request_are_left_to_its_barrier(desk: Desk) -> None:
    scope = RequestScope("r1")
    token = scope.attach()
    with desk.held():
        pending = desk.audit.emit(EVENT)
        assert scope.pending == [pending]
    await scope.barrier()
    assert scope.pending == []
    assert isinstance(pending, PendingReceipt)
    assert pending.done()
    scope.detach(token)


# What cannot be recorded


@pytest.mark.parametrize("said", [("", "a"), ("e", ""), (None, "a"), ("e", None)])
def test_an_event_without_name_or_action_is_refused_at_the_call(desk: Desk, said: Any) -> None:
    calls: tuple[Callable[..., Any], ...] = (
        desk.audit.audit_event, desk.audit.log_event, desk.audit.info,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(AuditEventError, match="without it nobody can find the record later"):
            call(*said)
    assert desk.records() == []


@pytest.mark.parametrize("event", [{"event": "e", "action": "a"}, None, "login", ("e", "a")])
async def test_what_is_no_event_is_refused_at_the_call(desk: Desk, event: Any) -> None:
    with pytest.raises(
        AuditEventError, match=r"takes an AuditEvent.*audit_event\(event_type, action"
    ):
        desk.audit.emit(event)
    with pytest.raises(AuditEventError, match=f"not {type(event).__name__}"):
        await desk.audit.aemit(event)
    assert desk.records() == []


def test_another_attribute_that_is_missing_is_said_to_be(desk: Desk) -> None:
    with pytest.raises(AttributeError, match="'int' object has no attribute"):
        desk.audit.emit(AuditEvent("e", "a"), 5)  # type: ignore[arg-type]


def test_without_confirmation_the_policy_fail_raises_and_names_the_record(tmp_path: Path) -> None:
    provider = unavailable(tmp_path, "fail")
    provider.close()
    with pytest.raises(AuditClosedError) as caught:
        AuditLogger(provider=provider).emit(EVENT)
    assert caught.value.record_id
    assert "not confirmed" in str(caught.value)


def test_a_failure_that_is_swallowed_in_a_request_is_kept_for_its_barrier(tmp_path: Path) -> None:
    provider = unavailable(tmp_path, "fail")
    provider.close()
    scope = RequestScope("r1")
    token = scope.attach()
    with pytest.raises(AuditUnavailableError):
        AuditLogger(provider=provider).emit(EVENT)
    scope.detach(token)
    with pytest.raises(AuditClosedError):
        asyncio.run(scope.barrier())


def test_with_the_policy_continue_the_receipt_is_false_and_the_loss_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = unavailable(tmp_path, "continue")
    provider.close()
    receipt = AuditLogger(provider=provider).emit(EVENT)
    assert not receipt
    assert provider.statistics["not_recorded"] == 1
    assert receipt.record_id in caplog.text
    assert isinstance(receipt, AuditReceipt)
    with pytest.raises(ProofError, match="was not stored, so there is nothing to prove"):
        receipt.proof()


async def test_a_pending_receipt_gives_up_as_the_policy_of_its_event_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(rules=(Rule(event="page.*", on_failure="continue"),))
    provider = unavailable(tmp_path, "fail", policy=policy)
    audit = AuditLogger(provider=provider)
    desk = Desk(provider, audit)
    with desk.held():
        evidence, activity = audit.emit(EVENT), audit.emit(AuditEvent("page.seen", "get"))
        with pytest.raises(AuditTimeoutError, match="OTEL_AUDIT_TIMEOUT") as caught:
            await evidence
        assert caught.value.record_id == evidence.record_id
        receipt = await activity
    assert not receipt
    assert activity.record_id in caplog.text
    assert provider.statistics["not_recorded"] == 1


def test_an_event_that_the_policy_does_not_want_gives_a_false_receipt(tmp_path: Path) -> None:
    policy = Policy(rules=(Rule(event="noise", record=False),))
    provider = unavailable(tmp_path, "fail", policy=policy)
    audit = AuditLogger(provider=provider)
    assert not audit.emit(AuditEvent("noise", "hum"))
    assert audit.emit(EVENT)
    assert [record["event"] for record in Desk(provider, audit).records()] == ["login"]
    assert provider.statistics["not_recorded"] == 0


def test_nothing_is_recorded_when_all_is_disabled(tmp_path: Path) -> None:
    provider = AuditProvider(Settings.from_env(log_dir=tmp_path, disabled=True))
    audit = AuditLogger(provider=provider)
    assert not audit.emit(EVENT)
    assert audit.flush()

    async def in_a_loop() -> bool:
        return bool(await audit.aemit(EVENT))

    assert not asyncio.run(in_a_loop())
    assert not (tmp_path / "trail").exists()


# The calls


def test_audit_event_takes_its_facts_in_the_documented_order(desk: Desk) -> None:
    desk.audit.audit_event("deploy", "start", "server", "web-1", "failed", "no disk", zone="b")
    assert of_the_caller(desk.record()) == {
        "level": "error",
        "event": "deploy",
        "event_type": "deploy",
        "action": "start",
        "status": "failed",
        "outcome": "failure",
        "resource_type": "server",
        "resource_name": "web-1",
        "error": "no disk",
        "zone": "b",
    }


async def test_audit_event_is_a_function_too_that_uses_the_global_provider(desk: Desk) -> None:
    receipt = await audit_event(
        "admin_action", "restart", "server", "web-1", "failed", "no answer", reason="update"
    )
    assert receipt.sequence_number == 0
    assert of_the_caller(desk.record()) == {
        "level": "error",
        "event": "admin_action",
        "event_type": "admin_action",
        "action": "restart",
        "status": "failed",
        "outcome": "failure",
        "resource_type": "server",
        "resource_name": "web-1",
        "error": "no answer",
        "reason": "update",
    }
    assert signature(audit_event) == signature(desk.audit.audit_event)
    assert getdoc(audit_event) == getdoc(AuditLogger.audit_event)


def test_audit_event_takes_the_context_along_without_repeating_it(desk: Desk) -> None:
    scope = RequestScope("r1", client_id="c", client_ip="10.0.0.1", user_agent="curl")
    token = scope.attach()
    set_actor("ann")
    desk.audit.audit_event("login", "start", **get_audit_context())
    scope.detach(token)
    record = desk.record()
    assert not [name for name in record if name.startswith("field_")]
    assert record["request_id"] == "r1"
    assert record["client_ip"] == "10.0.0.1"
    assert (record["actor_id"], record["actor_type"], record["actor_verified"]) == (
        "ann", "user", True,
    )  # fmt: skip


def test_a_claimed_actor_is_kept_aside(desk: Desk) -> None:
    desk.audit.audit_event("login", "start", actor_id="mallory", actor_verified=True)
    record = desk.record()
    assert record["actor_id"] == "svc"
    assert record["field_actor_id"] == "mallory"
    assert "actor_verified" not in record
    assert record["field_actor_verified"] is True


def test_in_a_request_nobody_is_anonymous_and_outside_it_is_the_service(desk: Desk) -> None:
    scope = RequestScope("r1")
    token = scope.attach()
    desk.audit.info("login", "start")
    scope.detach(token)
    desk.audit.info("login", "start")
    inside, outside = desk.records()
    assert inside["actor_id"] == "anonymous"
    assert (inside["actor_type"], inside["actor_verified"]) == ("user", False)
    assert (inside["client_id"], inside["client_ip"]) == ("anonymous", "unknown")
    assert "session_id" not in inside
    assert (outside["actor_id"], outside["actor_type"]) == ("svc", "service")
    assert {"request_id", "client_id", "client_ip", "actor_verified"}.isdisjoint(outside)


@pytest.mark.parametrize(
    ("severity", "level"),
    [("low", "info"), ("medium", "warning"), ("high", "error"), ("critical", "critical")],
)
def test_severity_is_taken_by_every_call(desk: Desk, severity: str, level: str) -> None:
    desk.audit.audit_event("e", "a", severity=severity)
    desk.audit.log_event("e", "a", severity=severity)
    desk.audit.log_event("e", "a", level=severity)
    desk.audit.log_security_event("e", severity, "text")
    desk.audit.log_system_event("disk", "e", "ok", severity=severity)
    assert [record["level"] for record in desk.records()] == [level] * 5


@pytest.mark.parametrize(
    ("level", "status"),
    [
        ("debug", "success"),
        ("info", "success"),
        ("warning", "success"),
        ("error", "failed"),
        ("critical", "failed"),
    ],
)
def test_there_is_a_call_for_each_level(desk: Desk, level: str, status: str) -> None:
    call = getattr(desk.audit, level)
    call("login", "start", user="ann")
    call("login", "start", "denied", resource_type="door", resource_name="front", error="shut")
    first, second = desk.records()
    assert (first["level"], first["status"], first["user"]) == (level, status, "ann")
    assert (second["level"], second["status"], second["error"]) == (level, "denied", "shut")
    assert (second["resource_type"], second["resource_name"]) == ("door", "front")


@pytest.mark.parametrize("call", ["audit_event", "log_event", "debug", "info", "warning"])
def test_who_says_no_status_may_say_the_outcome(desk: Desk, call: str) -> None:
    getattr(desk.audit, call)("e", "a", outcome="failure")
    getattr(desk.audit, call)("e", "a", status="success", outcome="failure")
    failed, contradicting = desk.records()
    assert (failed["status"], failed["outcome"]) == ("failure", "failure")
    assert "field_outcome" not in failed
    assert (contradicting["status"], contradicting["outcome"]) == ("success", "success")
    assert contradicting["field_outcome"] == "failure"
    assert contradicting["coerced"] == ["outcome"]


def test_no_word_for_the_level_is_swallowed(desk: Desk) -> None:
    desk.audit.info("e", "a", level="loud")
    desk.audit.audit_event("e", "a", severity="info", level="loud")
    desk.audit.log_event("e", "a", severity="info", level="loud")
    with audit_span("e", "a", severity="info", level="loud"):
        pass
    assert {(one["level"], one["field_level"]) for one in desk.records()} == {("info", "loud")}
    with audit_span("e", "a", level="high"):
        pass
    assert desk.records()[-1]["level"] == "error"


def test_log_event(desk: Desk) -> None:
    desk.audit.log_event("deploy", "start", "initiated", zone="b", retention="3y")
    record = desk.record()
    assert record["retention"] == "3y"
    assert of_the_caller(record) == {
        "level": "info",
        "event": "deploy",
        "event_type": "deploy",
        "action": "start",
        "status": "initiated",
        "outcome": "unknown",
        "zone": "b",
    }


@pytest.mark.parametrize(("success", "status"), [(True, "success"), (False, "failed")])
def test_log_ai_provider_call(desk: Desk, *, success: bool, status: str) -> None:
    desk.audit.log_ai_provider_call("acme", "m-1", 120, 0.02, 33.5, success, purpose="chat")
    assert of_the_caller(desk.record()) == {
        "level": "info" if success else "error",
        "event": "ai_provider_call",
        "event_type": "ai_provider_call",
        "action": "call",
        "status": status,
        "outcome": "success" if success else "failure",
        "resource_type": "ai_model",
        "resource_name": "m-1",
        "provider": "acme",
        "model": "m-1",
        "tokens_used": 120,
        "cost_usd": 0.02,
        "latency_ms": 33.5,
        "purpose": "chat",
    }


@pytest.mark.parametrize("quality", [None, 0.9, "good"])
def test_log_task_execution(desk: Desk, quality: Any) -> None:
    desk.audit.log_task_execution("t-1", "planner", "completed", 12.5, quality)
    said = {} if quality is None else {"result_quality": quality}
    assert of_the_caller(desk.record()) == {
        "level": "info",
        "event": "task_execution",
        "event_type": "task_execution",
        "action": "execute",
        "status": "completed",
        "outcome": "success",
        "resource_type": "task",
        "resource_name": "t-1",
        "task_id": "t-1",
        "agent": "planner",
        "duration_ms": 12.5,
        **said,
    }


@pytest.mark.parametrize("about", [{}, {"user_id": "ann", "ip_address": "10.0.0.9"}])
def test_log_security_event(desk: Desk, about: dict[str, str]) -> None:
    desk.audit.log_security_event("brute_force", "high", "20 attempts", **about)
    assert of_the_caller(desk.record()) == {
        "level": "error",
        "event": "brute_force",
        "event_type": "brute_force",
        "action": "detect",
        "status": "detected",
        "outcome": "unknown",
        "description": "20 attempts",
        "severity": "high",
        **about,
    }
    assert desk.record()["actor_id"] == "svc"


def test_the_word_for_the_severity_of_a_security_event_stays_beside_the_level(desk: Desk) -> None:
    desk.audit.log_security_event("scan", "moderate", "ports")
    desk.audit.log_security_event("scan", "purple", "ports")
    desk.audit.log_security_event("scan", "high", "ports", level="debug")
    known, unknown, both = desk.records()
    assert (known["level"], known["severity"]) == ("warning", "moderate")
    assert (unknown["level"], unknown["severity"], unknown["coerced"]) == (
        "info", "purple", ["level"],
    )  # fmt: skip
    assert (both["level"], both["severity"]) == ("debug", "high")


@pytest.mark.parametrize("details", [None, {"free": 3}])
def test_log_system_event(desk: Desk, details: Any) -> None:
    desk.audit.log_system_event("disk", "almost_full", "ok", details)
    said = {} if details is None else {"details": details}
    assert of_the_caller(desk.record()) == {
        "level": "info",
        "event": "almost_full",
        "event_type": "system_event",
        "action": "almost_full",
        "status": "ok",
        "outcome": "success",
        "resource_type": "component",
        "resource_name": "disk",
        "component": "disk",
        **said,
    }


def test_a_missing_field_of_a_class_is_flagged_and_never_refused(desk: Desk) -> None:
    desk.audit.audit_event("data_access", "read", "table")
    desk.audit.audit_event("data_access", "read", "table", "people", purpose="support")
    flagged, complete = desk.records()
    assert flagged["missing_fields"] == ["resource_name", "purpose"]
    assert "missing_fields" not in complete


# Loggers


def test_the_name_of_a_logger_is_a_field_unless_the_caller_has_one(desk: Desk) -> None:
    get_audit_logger("app.orders").info("e", "a")
    get_audit_logger("app.orders").info("e", "a", logger="mine")
    get_audit_logger().info("e", "a")
    named, own, nameless = desk.records()
    assert named["logger"] == "app.orders"
    assert own["logger"] == "mine"
    assert "logger" not in nameless


def test_a_logger_uses_the_global_provider_also_one_that_comes_later(
    isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = get_audit_logger()
    assert not is_configured()
    monkeypatch.setenv("LOG_DIR", str(isolated / "later"))
    assert audit.emit(EVENT)
    assert is_configured()
    assert audit.provider.directory == isolated / "later" / "trail"
    audit.close()
    assert not audit.provider.closed


def file_of(audit: AuditLogger) -> Path:
    """Return the mirror, as code finds it that opens it after it has logged."""
    file = audit.audit_log_file
    assert file is not None
    return file


def test_existing_code_logs_and_then_opens_the_file(tmp_path: Path) -> None:
    audit = AuditLogger(log_dir=tmp_path / "logs", enable_local_file=True, enable_loki=False)
    file = audit.audit_log_file
    assert file == tmp_path / "logs" / "audit.log"
    assert file.exists()
    assert file.read_text() == ""
    for number in range(20):
        audit.audit_event("deploy", "start", number=number)
    assert audit.flush()
    lines = file.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(20))
    for number in range(20, 23):
        audit.audit_event("deploy", "start", number=number)
        lines = file_of(audit).read_text().splitlines()
        assert json.loads(lines[-1])["number"] == number
    with audit.provider.reader() as reader:
        assert [leaf.record.decode() for leaf in reader.leaves()] == lines
    again = AuditLogger(log_dir=tmp_path / "logs", enable_local_file=True, enable_loki=False)
    assert again.provider is audit.provider
    audit.close()
    assert audit.provider.closed


def test_existing_tests_remove_their_directory_without_closing_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a flush leaves behind is quiet, and nothing is made anew where a trail was."""
    directories, loggers = [], []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as name:
            directories.append(Path(name))
            loggers.append(AuditLogger(log_dir=name, enable_local_file=True, enable_loki=False))
            loggers[-1].log_event("login", "login")
            assert len(file_of(loggers[-1]).read_text().splitlines()) == 1
    time.sleep(1.5)  # longer than the mirror waits for a file that was renamed
    for audit in loggers:
        audit.close()
    assert [directory for directory in directories if directory.exists()] == []
    assert "Traceback" not in caplog.text
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2 * len(loggers)


def test_without_a_local_file_there_is_none(tmp_path: Path) -> None:
    audit = AuditLogger(log_dir=tmp_path, enable_local_file=False)
    assert audit.audit_log_file is None
    assert audit.emit(EVENT)
    assert audit.flush()
    assert not (tmp_path / "audit.log").exists()


def test_settings_for_loki_are_taken(tmp_path: Path) -> None:
    audit = AuditLogger(log_dir=tmp_path, enable_loki=False, loki_endpoint="http://loki:3100")
    assert audit.provider.settings.loki_endpoint == "http://loki:3100"
    assert audit.provider.settings.loki_enabled is False


async def test_flush_says_when_time_is_up(desk: Desk) -> None:
    with desk.held():
        pending = desk.audit.emit(EVENT)
        assert desk.audit.flush(0.05) is False
    assert desk.audit.flush(5) is True
    assert isinstance(pending, PendingReceipt)
    assert pending.done()
