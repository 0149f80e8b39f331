"""What a caller may say, and what is derived from it."""

from __future__ import annotations

from typing import Any

import pytest

from otel_audit.errors import AuditEventError
from otel_audit.record.event import (
    KEYS,
    LEVELS,
    RESERVED,
    AuditEvent,
    Draft,
    level_named,
    level_of,
    outcome_of,
)


class Hostile:
    """Raises at whatever it is asked."""

    def __bool__(self) -> bool:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


def draft(**said: Any) -> Draft:
    return Draft(
        AuditEvent(**{"event": "login", "action": "start", **said}), "id", "2026-01-01T00:00:00Z"
    )


@pytest.mark.parametrize("name", ["event", "action"])
@pytest.mark.parametrize("value", [None, "", 5, b"login", ["login"], Hostile()], ids=type)
def test_a_missing_event_or_action_is_refused_with_what_why_and_what_to_do(
    name: str, value: Any
) -> None:
    with pytest.raises(AuditEventError) as caught:
        draft(**{name: value})
    message = str(caught.value)
    assert f"an audit event needs an {name}, but {name} is " in message
    assert "without it nobody can find the record later" in message
    assert "pass a non-empty string such as" in message
    assert isinstance(caught.value, ValueError)


def test_a_message_never_repeats_a_megabyte() -> None:
    with pytest.raises(AuditEventError) as caught:
        draft(event=["x" * 1_000_000])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("event_type", [None, ""])
def test_the_type_of_an_event_is_the_event_unless_said(event_type: str | None) -> None:
    assert draft(event_type=event_type).event_type == "login"
    assert draft(event_type="authentication").event_type == "authentication"


def test_whatever_stands_for_the_type_is_not_asked_whether_it_is_true() -> None:
    hostile = Hostile()
    assert draft(event_type=hostile).__getattribute__("event_type") is hostile


def test_a_status_that_is_not_known_is_unknown() -> None:
    assert draft(status=None).status == "unknown"
    assert draft().status == "success"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("success", "success"),
        ("Completed", "success"),
        ("granted", "success"),
        ("failed", "failure"),
        ("ERROR", "failure"),
        ("denied", "failure"),
        ("cancelled", "failure"),
        ("timeout", "failure"),
        ("initiated", "unknown"),
        ("detected", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_outcome_follows_the_status(status: str, outcome: str) -> None:
    assert outcome_of(status) == outcome


@pytest.mark.parametrize(
    ("status", "event_type", "level"),
    [
        ("failed", "login", "error"),
        ("Failed", "login", "error"),
        ("failure", "login", "error"),
        ("error", "login", "error"),
        ("denied", "login", "error"),
        ("denied", "credential_access", "error"),
        ("success", "credential_access", "warning"),
        ("success", "login", "info"),
        ("cancelled", "login", "info"),
        ("initiated", "login", "info"),
    ],
)
def test_the_level_follows_status_and_type(status: str, event_type: str, level: str) -> None:
    assert level_of(status, event_type) == level


@pytest.mark.parametrize(
    ("severity", "level"),
    [
        *((level, level) for level in LEVELS),
        ("WARN", "warning"),
        ("fatal", "critical"),
        (" Low ", "info"),
        ("medium", "warning"),
        ("moderate", "warning"),
        ("HIGH", "error"),
    ],
)
def test_a_severity_may_have_any_usual_spelling(severity: str, level: str) -> None:
    assert level_named(severity) == level


def test_an_unknown_severity_names_no_level() -> None:
    assert level_named("purple") is None


def test_every_key_of_the_record_is_reserved() -> None:
    assert {*KEYS, "missing_fields", "coerced"} == RESERVED
    assert len(KEYS) == len(set(KEYS))
    # The order that the design documents, and that jq and people see.
    assert KEYS[:9] == (
        "schema", "timestamp", "level", "event", "record_id", "event_type", "action", "status",
        "outcome",
    )  # fmt: skip


def test_events_do_not_share_their_fields() -> None:
    assert AuditEvent("a", "b").fields is not AuditEvent("a", "b").fields
