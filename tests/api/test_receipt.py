"""Receipts on their travels, and calls that must agree with each other."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from otel_audit.api.receipt import AuditReceipt
from otel_audit.api.spans import audit_span, audited
from otel_audit.errors import AuditEventError, ProofError
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from tests.api.desk import Desk


@pytest.mark.parametrize("travel", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])  # noqa: S301 - our own bytes
def test_a_receipt_travels_but_its_trail_stays_behind(desk: Desk, travel: object) -> None:
    """As the result of a worker process, or in a dataclass that is copied."""
    receipt = desk.audit.emit(AuditEvent("order", "create"))
    assert isinstance(receipt, AuditReceipt)
    arrived = travel(receipt)  # type: ignore[operator] # each is a function of one argument
    assert arrived[:4] == receipt[:4]
    assert repr(arrived) == repr(receipt)
    assert arrived
    with pytest.raises(ProofError, match="came from another process: run `otel-audit prove`"):
        arrived.proof()


@pytest.mark.parametrize("call", ["audit_event", "log_event", "info"])
def test_level_and_retention_mean_the_same_in_every_call(desk: Desk, call: str) -> None:
    getattr(desk.audit, call)("order", "create", severity="warn", retention="3y")
    record = desk.record()
    assert (record["level"], record["retention"]) == ("warning", "3y")


def test_level_is_another_word_for_severity(desk: Desk) -> None:
    desk.audit.audit_event("order", "create", level="error")
    desk.audit.audit_event("order", "create", level="error", severity="debug")
    assert [record["level"] for record in desk.records()] == ["error", "debug"]
    assert [record.get("field_level") for record in desk.records()] == [None, "error"]


def test_a_block_that_could_not_be_recorded_does_not_run(desk: Desk) -> None:
    ran = []

    def enter() -> None:
        with audit_span("", "start"):
            ran.append(1)

    with pytest.raises(AuditEventError, match="needs an event"):
        enter()
    assert not ran
    assert desk.records() == []


def test_a_function_whose_calls_could_not_be_recorded_is_refused_when_it_is_defined() -> None:
    with pytest.raises(AuditEventError, match="needs an action"):
        audited("order", "")(len)


def test_the_callers_own_duration_stays(desk: Desk) -> None:
    with audit_span("order", "create", duration_ms=7):
        pass
    assert desk.record()["duration_ms"] == 7
