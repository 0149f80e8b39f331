"""The event classes: complete, documented, cheap, and never an obstacle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.record import classes
from otel_audit.record.classes import CLASSES, RETENTION_CLASSES, EventClass, missing

SHIPPED = (
    "data_access",
    "phi_access",
    "data_export",
    "data_deletion",
    "consent_change",
    "privilege_change",
    "authentication",
    "credential_access",
    "admin_action",
)
PAGE = Path(__file__).parents[2] / "docs" / "event-classes.md"


def test_the_shipped_classes_are_these() -> None:
    assert tuple(CLASSES) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_each_class_is_a_constant_of_its_name(name: str) -> None:
    assert getattr(classes, name.upper()) == name
    assert CLASSES[name].name == name


@pytest.mark.parametrize("one", CLASSES.values(), ids=lambda one: one.name)
def test_each_class_says_what_it_means_and_how_long_it_is_kept(one: EventClass) -> None:
    assert one.meaning
    assert one.regulations
    assert one.retention in RETENTION_CLASSES
    assert len(set(one.expected)) == len(one.expected) > 0


@pytest.mark.parametrize("one", CLASSES.values(), ids=lambda one: one.name)
def test_the_page_says_the_same_as_the_code(one: EventClass) -> None:
    text = PAGE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{one.name}` |"))
    _, _, meaning, expected, retention, regulations, _ = (cell.strip() for cell in row.split("|"))
    assert meaning == one.meaning
    assert tuple(re.findall(r"`([^`]+)`", expected)) == one.expected
    assert retention == f"`{one.retention}`"
    assert regulations == one.regulations


def test_the_classes_cannot_be_changed_at_run_time() -> None:
    with pytest.raises(TypeError):
        CLASSES["data_access"] = CLASSES["phi_access"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        CLASSES["data_access"].retention = "1d"  # type: ignore[misc]


@pytest.mark.parametrize("one", CLASSES.values(), ids=lambda one: one.name)
def test_every_expected_field_is_missed_when_nothing_is_said(one: EventClass) -> None:
    assert missing(one.name, {}) == list(one.expected)


@pytest.mark.parametrize("one", CLASSES.values(), ids=lambda one: one.name)
def test_nothing_is_missed_when_everything_is_said(one: EventClass) -> None:
    assert missing(one.name, dict.fromkeys(one.expected, "x")) == []


def test_only_what_is_missing_is_named_in_the_classes_order() -> None:
    assert missing("phi_access", {"purpose": "treatment", "resource_type": "chart"}) == [
        "actor_id",
        "resource_name",
        "subject_id",
    ]


def test_a_field_may_come_from_any_source() -> None:
    record = {"actor_id": "u1", "resource_type": "secret"}
    fields = {"resource_name": "db"}
    assert missing("credential_access", record, fields) == []
    assert missing("credential_access", fields, record) == []


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_field_that_is_there_but_empty_is_missing(nothing: object) -> None:
    said = {"actor_id": "u1", "resource_type": "secret", "resource_name": nothing}
    assert missing("credential_access", said) == ["resource_name"]


@pytest.mark.parametrize("value", [0, False, 0.0, [], {}])
def test_zero_false_and_empty_lists_are_values(value: object) -> None:
    said = dict.fromkeys(CLASSES["data_export"].expected, "x") | {"record_count": value}
    assert missing("data_export", said) == []


def test_an_anonymous_actor_and_an_unknown_address_identify_nobody() -> None:
    complete = {"actor_id": "u1", "resource_type": "t", "resource_name": "n", "purpose": "p"}
    assert missing("data_access", complete | {"actor_id": "anonymous"}) == ["actor_id"]
    login = {"user_id": "u1", "method": "password", "client_ip": "unknown"}
    assert missing("authentication", login) == ["client_ip"]


def test_a_placeholder_is_one_only_in_its_own_field() -> None:
    complete = {"actor_id": "u1", "resource_type": "t", "resource_name": "unknown", "purpose": "p"}
    assert missing("data_access", complete) == []


def test_a_failed_login_of_nobody_yet_is_complete() -> None:
    login = {"user_id": "eve", "method": "password", "client_ip": "192.0.2.7"}
    assert missing("authentication", login | {"actor_id": "anonymous"}) == []


@given(st.text(), st.dictionaries(st.text(), st.none() | st.text() | st.integers()))
def test_an_event_type_that_is_no_class_expects_nothing(
    event_type: str, said: dict[str, object]
) -> None:
    if event_type not in CLASSES:
        assert missing(event_type, said) == []


def test_whatever_the_values_are_nothing_is_raised() -> None:
    class Hostile:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    said = dict.fromkeys(CLASSES["data_access"].expected, Hostile())
    assert missing("data_access", said) == []
