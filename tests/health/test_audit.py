"""Every change of a state is an audit record, once there is a trail that takes it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from otel_audit.api.current import configure, set_audit_provider
from otel_audit.api.provider import AuditProvider
from otel_audit.health import announcer as announcing
from otel_audit.health.announcer import Announcer, Change
from otel_audit.health.checker import TRAIL, HealthChecker
from otel_audit.health.probe import HealthStatus
from tests.health.conftest import state, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.health.conftest import Records

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus
FAST: dict[str, Any] = {"interval": 0.05, "timeout": 1.0}


def of(records: Records, component: str) -> list[tuple[str, str]]:
    return [
        (record["from"], record["to"])
        for record in records()
        if record["event"] == "health.state_changed" and record["component"] == component
    ]


def test_each_change_is_a_record(provider: AuditProvider, records: Records) -> None:
    checker = HealthChecker(provider=provider, watch_trail=False)
    down = threading.Event()

    def database() -> None:
        if down.is_set():
            message = "connection refused by postgresql://shop:hunter2@db/shop"
            raise OSError(message)

    checker.register("db", database, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "db").status is HEALTHY)
    down.set()
    wait_until(lambda: state(checker, "db").status is UNHEALTHY)
    down.clear()
    wait_until(lambda: state(checker, "db").status is HEALTHY)
    assert checker.flush(10)
    checker.stop()
    assert of(records, "db") == [
        ("unknown", "healthy"),
        ("healthy", "unhealthy"),
        ("unhealthy", "healthy"),
    ]
    broken = records()[1]
    assert broken["reason"] == "OSError: connection refused by postgresql://***@db/shop"
    assert broken["level"] == "error"
    assert broken["event_type"] == "system_event"
    assert (broken["resource_type"], broken["resource_name"]) == ("component", "db")
    assert broken["actor_id"] == "shop"
    assert broken["checks"] >= 4
    assert broken["occurred_at"].endswith("+00:00")


def test_flapping_is_damped(provider: AuditProvider, records: Records) -> None:
    checker = HealthChecker(provider=provider, watch_trail=False)
    turns = iter(range(1_000_000))
    checker.register("flaps", lambda: next(turns) % 3 == 0, interval=0.01, timeout=1)
    checker.start()
    wait_until(lambda: state(checker, "flaps").checks >= 12)
    checker.stop()
    assert checker.flush(10)
    assert of(records, "flaps") == [("unknown", "healthy")]


def test_that_nothing_is_known_any_more_is_a_change(
    provider: AuditProvider, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_audit.health.component import Component

    monkeypatch.setattr(Component, "max_age", 0.3)
    checker = HealthChecker(provider=provider, watch_trail=False)
    checker.register("rare", lambda: None, interval=1.2, timeout=1)
    checker.start()
    wait_until(lambda: ("healthy", "unknown") in of(records, "rare"))
    checker.stop()
    assert of(records, "rare")[:2] == [("unknown", "healthy"), ("healthy", "unknown")]


def test_what_changed_before_there_was_a_trail_is_recorded_later(
    tmp_path: Path, records: Records
) -> None:
    checker = HealthChecker()
    checker.register("db", lambda: None, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "db").status is HEALTHY)
    assert not checker.flush(0.05)
    configure(directory=tmp_path / "trail", agent="off", service_name="shop")
    assert checker.flush(10)
    assert of(records, "db") == [("unknown", "healthy")]
    wait_until(lambda: any(one.name == TRAIL for one in checker.states))
    wait_until(lambda: state(checker, TRAIL).status is HEALTHY)
    set_audit_provider(None)
    wait_until(lambda: not any(one.name == TRAIL for one in checker.states))
    checker.stop()


def test_a_trail_that_takes_nothing_gets_the_records_when_it_can(
    provider: AuditProvider,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from otel_audit.errors import AuditUnavailableError

    refusing = threading.Event()
    refusing.set()
    monkeypatch.setattr(announcing, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(
        AuditProvider,
        "refusal",
        lambda _self: AuditUnavailableError("full") if refusing.is_set() else None,
    )
    checker = HealthChecker(provider=provider, watch_trail=False)
    checker.register("db", lambda: None, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "db").status is HEALTHY)
    assert not checker.flush(0.2)
    assert records() == []
    checker.stop()
    assert "1 changes of health are not in the audit trail" in caplog.text
    refusing.clear()
    assert checker.flush(10)
    assert of(records, "db") == [("unknown", "healthy")]


def test_a_record_that_is_not_confirmed_is_tried_again(
    provider: AuditProvider, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_audit.api.logger import AuditLogger
    from otel_audit.errors import AuditUnavailableError

    emit = AuditLogger.emit
    failures = iter([AuditUnavailableError("slow"), ValueError("a defect")])

    def fragile(self: AuditLogger, event: Any) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return emit(self, event)

    monkeypatch.setattr(announcing, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(AuditLogger, "emit", fragile)
    checker = HealthChecker(provider=provider, watch_trail=False)
    checker.register("db", lambda: None, **FAST)
    checker.start()
    wait_until(lambda: of(records, "db"))
    checker.stop()


def test_changes_wait_in_bounded_number_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(announcing, "_LIMIT", 2)
    announcer = Announcer(lambda: None)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            announcer.tell(Change("db", HEALTHY, DEGRADED, "slow", 1, 0.0))
    assert (announcer.waiting, announcer.dropped) == (2, 1)
    assert "will not be in the audit trail" in caplog.text


def test_changes_wait_where_no_thread_can_be_started(
    provider: AuditProvider, records: Records
) -> None:
    announcer = Announcer(lambda: provider)
    announcer.tell(Change("db", HEALTHY, UNHEALTHY, "gone", 3, 1.0))
    before = threading.stack_size(1 << 46)
    try:
        announcer.pursue()
    finally:
        threading.stack_size(before)
    assert announcer.waiting == 1
    announcer.pursue()
    assert announcer.flush(10)
    assert of(records, "db") == [("healthy", "unhealthy")]
