"""The helpers that users' tests are written with."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit import AuditSettingsError, Policy, Redactor, Rule, get_audit_logger, set_actor
from otel_audit.api.context import current_actor
from otel_audit.api.current import get_audit_provider, is_configured
from otel_audit.settings import Settings
from otel_audit.testing import AuditRecords, FixedClock, FixedIds, assert_audited, audit_trail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_test_reads_what_the_application_recorded() -> None:
    audit = get_audit_logger()
    with audit_trail() as trail:
        audit.audit_event("login", "log in", "user", "ann", status="failed", error="wrong password")
        audit.audit_event("order", "create", "order", "7")
        assert trail.record(event="login")["outcome"] == "failure"
        assert [record["event"] for record in trail.records()] == ["login", "order"]
        assert trail.records(event="order", outcome="failure") == []
        assert trail.records(nothing=None) == []
        trail.verify()


def test_every_run_gives_the_same_bytes() -> None:
    def run() -> list[bytes]:
        with audit_trail() as trail:
            for number in range(3):
                trail.logger.audit_event("order", "create", number=number)
            with trail.provider.reader() as reader:
                return [leaf.record for leaf in reader.leaves()]

    first = run()
    assert first == run()
    assert b'"timestamp":"2026-01-01T00:00:00.0' in first[0]
    assert b'"record_id":"00000001-0000-4000-8000-000000000000"' in first[0]
    assert b'"service_name":"test"' in first[0]


async def test_records_wait_for_what_nobody_awaited() -> None:
    with audit_trail() as trail:
        for _ in range(50):
            get_audit_logger().audit_event("order", "create")
        assert len(trail.records()) == 50


def test_the_provider_of_before_is_back_afterwards(tmp_path: Path) -> None:
    from otel_audit import configure

    assert not is_configured()
    with audit_trail() as outer:
        with audit_trail() as inner:
            assert get_audit_provider() is inner.provider
        assert inner.provider.closed
        assert get_audit_provider() is outer.provider
        assert not outer.provider.closed
    assert not is_configured()
    mine = configure(directory=tmp_path / "trail", agent="off")
    with pytest.raises(KeyError), audit_trail():
        raise KeyError
    assert get_audit_provider() is mine


def test_who_acted_in_the_block_does_not_act_afterwards() -> None:
    with audit_trail() as trail:
        set_actor("ann")
        trail.logger.audit_event("order", "create")
        assert trail.record()["actor_id"] == "ann"
    assert current_actor() is None


def test_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with caplog.at_level(logging.INFO), audit_trail() as trail:
        trail.logger.audit_event("order", "create")
    assert not trail.directory.parent.exists()
    assert {thread.name for thread in threading.enumerate()} == before
    assert "gone after a restart" not in caplog.text
    assert logging.getLogger("otel_audit.trail").filters == []


def test_the_environment_of_who_runs_the_test_does_not_reach_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "production"))
    monkeypatch.setenv("OTEL_AUDIT_DISABLED", "true")
    monkeypatch.setenv("OTEL_AUDIT_ON_FAILURE", "nonsense")
    with audit_trail() as trail:
        trail.logger.audit_event("order", "create")
        assert len(trail.records()) == 1
    assert not (tmp_path / "production").exists()


def test_policy_redactor_clock_ids_and_settings_can_be_given() -> None:
    with audit_trail(
        policy=Policy(rules=(Rule(event="noise", record=False), Rule(level="debug"))),
        redactor=Redactor(keys=("badge",)),
        clock=FixedClock(datetime(2030, 5, 6, 7, 8, 9, 10, tzinfo=timezone.utc), step=0),
        new_id=lambda: "mine",
        service_name="shop",
        timeout=1,
    ) as trail:
        trail.logger.audit_event("noise", "make")
        trail.logger.audit_event("order", "create", badge="12")
        record = trail.record()
        assert trail.provider.settings.timeout == 1
    assert record["timestamp"] == "2030-05-06T07:08:09.000010000Z"
    assert (record["record_id"], record["service_name"], record["level"]) == (
        "mine",
        "shop",
        "debug",
    )
    assert record["badge"] == "[REDACTED]"


def test_the_agent_and_its_mirror_run_when_they_are_wanted(tmp_path: Path) -> None:
    with audit_trail(agent="thread", log_dir=tmp_path) as trail:
        trail.logger.audit_event("order", "create")
        assert trail.provider.flush()
        assert (tmp_path / "audit.log").read_text("utf-8").count("\n") == 1


def test_the_path_of_a_policy_is_refused_and_its_argument_named() -> None:
    wrong: Any = "policy.yaml"
    with (
        pytest.raises(AuditSettingsError, match=r"^policy= cannot be used: .* policy_file="),
        audit_trail(policy=wrong),
    ):
        pass  # pragma: no cover - it must not come here


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with (
        pytest.raises(AuditSettingsError, match="unknown setting 'nonsense'"),
        audit_trail(nonsense=1),
    ):
        pass
    assert not is_configured()


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((), "0 records, not one, have event='login'; recorded was:\nnothing"),
        (("order",), "0 records, not one, have event='login'; recorded was:\n{\"schema\""),
        (("login", "login"), "2 records, not one, have event='login'; these:\n{\"schema\""),
    ],
)
def test_who_looks_for_one_record_is_told_what_there_is_instead(
    events: tuple[str, ...], said: str
) -> None:
    with audit_trail() as trail:
        for event in events:
            trail.logger.audit_event(event, "do")
        with pytest.raises(AssertionError) as caught:
            trail.record(event="login")
    assert str(caught.value).startswith(said)


async def test_what_cannot_become_durable_is_said_and_not_waited_for_for_ever() -> None:
    with audit_trail(timeout=1.0) as trail, (trail.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        trail.logger.audit_event("order", "create")
        with pytest.raises(TimeoutError, match="did not become durable"):
            trail.records()


def test_a_trail_that_was_changed_fails_its_verification() -> None:
    with audit_trail() as trail:
        trail.logger.audit_event("order", "create")
        trail.verify()
        with trail.provider.trail.store._handle.use() as connection:
            connection.execute("UPDATE leaf SET record = replace(record, 'order', 'ORDER')")
        with pytest.raises(AssertionError, match="record 0"):
            trail.verify()


def test_a_clock_goes_on_by_its_step_and_as_it_is_told() -> None:
    start = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=1)))
    clock = FixedClock(start, step=0.5)
    first = clock()
    assert first == int(start.timestamp()) * 1_000_000_000 + 6_000
    assert clock() - first == 500_000_000
    clock.advance(60)
    assert clock() - first == 61_000_000_000
    clock.advance(-3_600)
    assert clock() < first
    with pytest.raises(TypeError, match="offset-naive"):
        FixedClock(datetime(2026, 1, 1))  # noqa: DTZ001 - this is what is refused


def test_ids_are_uuids_and_numbered() -> None:
    import uuid

    ids = FixedIds()
    first, second = ids(), ids()
    assert (first[:8], second[:8]) == ("00000001", "00000002")
    assert uuid.UUID(first).version == 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_ids_of_its_own(audit_records: AuditRecords) -> None:
    audit = get_audit_logger()
    audit.audit_event("before", "do")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            audit.audit_event("in the child", "do")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    audit.audit_event("in the parent", "do")
    assert [record["record_id"] for record in audit_records] == [
        "00000001-0000-4000-8000-000000000000",
        f"00000002-0000-4000-8000-{child:012x}",
        "00000002-0000-4000-8000-000000000000",
    ]


def test_the_settings_of_a_test_are_complete() -> None:
    with audit_trail() as trail:
        assert isinstance(trail.provider.settings, Settings)
        assert trail.provider.settings.mirror_file is None
        assert trail.directory == trail.provider.directory


def test_the_plugin_gives_records_as_a_sequence(audit_records: AuditRecords) -> None:
    audit = get_audit_logger()
    audit.audit_event("first", "do")
    audit.audit_event("second", "do", size=3)
    assert [record["event"] for record in audit_records] == ["first", "second"]
    assert (len(audit_records), audit_records[-1]["size"]) == (2, 3)
    assert len(audit_records[:1]) == 1
    assert repr(audit_records) == "<AuditRecords ['first', 'second']>"
    audit_records.trail.verify()


def test_records_are_equal_to_a_list_of_them(audit_records: AuditRecords) -> None:
    assert audit_records == []
    get_audit_logger().audit_event("first", "do")
    assert audit_records != []
    assert audit_records == [audit_records[0]] == AuditRecords(audit_records.trail)
    assert audit_records != 1


def test_assert_audited_takes_the_records_to_look_into(audit_records: AuditRecords) -> None:
    get_audit_logger().audit_event("first", "do", size=1)
    with audit_trail():
        assert assert_audited(audit_records, "first", size=1, times=1)["size"] == 1
        with pytest.raises(AssertionError, match="'second' should be in the trail"):
            assert_audited(audit_records, "second")


def test_assert_audited_makes_no_trail(isolated: Path) -> None:
    with pytest.raises(AssertionError, match=r"'first' could be: .* the fixture `audit_records`"):
        assert_audited("first")
    assert not is_configured()
    assert list(isolated.iterdir()) == []


@pytest.mark.parametrize(
    "fails", [lambda _: assert_audited("login"), lambda one: one.trail.record(event="login")]
)
def test_who_reads_of_a_failure_does_not_read_our_code(
    audit_records: AuditRecords, fails: Callable[[AuditRecords], object]
) -> None:
    with pytest.raises(AssertionError) as caught:
        fails(audit_records)
    shown = [entry.path for entry in caught.traceback.filter(caught)]
    assert {str(path) for path in shown} == {__file__}


def test_assert_audited(audit_records: AuditRecords) -> None:
    with pytest.raises(AssertionError, match="recorded was:\nnothing"):
        assert_audited("first")
    audit = audit_records.trail.logger
    audit.audit_event("first", "do", size=1)
    audit.audit_event("first", "do", size=2)
    assert assert_audited("first")["size"] == 2
    assert assert_audited("first", size=1)["size"] == 1
    assert_audited("first", times=2)
    assert assert_audited("second", times=0) == {}
    with pytest.raises(AssertionError, match=r"1 of 'first' should be .* and 2 are"):
        assert_audited("first", times=1)
    with pytest.raises(AssertionError, match=r"0 of 'first', size=1 should be .* and 1 are"):
        assert_audited("first", times=0, size=1)
