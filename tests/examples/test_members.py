"""Personal data: whose, which fields, what for; never the data itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples.agenthub.members import MemberMissingError, Members

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.agenthub.store import Store
    from tests.examples.conftest import Records


@pytest.fixture
def members(records: Callable[[], Records], store: Store) -> Members:
    assert records() == []
    members = Members(store)
    members.add_demo_members()
    members.add_demo_members()
    return members


def test_reading_says_whose_which_fields_and_what_for(
    members: Members, records: Callable[[], Records]
) -> None:
    assert members.contact(1, "support").name == "Ada Byron"
    assert members.health(1, "first aid") == "Allergic to penicillin"
    contact, health = records()
    assert (contact["event"], contact["resource_name"], contact["purpose"]) == (
        "data_access",
        "1",
        "support",
    )
    assert contact["data_fields"] == ["name", "email", "phone"]
    assert (health["event"], health["subject_id"]) == ("phi_access", "member:1")
    assert "penicillin" not in str(records())


def test_an_export_leaves_out_who_did_not_consent(
    members: Members, records: Callable[[], Records]
) -> None:
    assert members.export("newsletter", "Print Ltd") == []
    members.set_consent(1, "newsletter", granted=True, notice_version="1")
    members.set_consent(2, "newsletter", granted=True, notice_version="1")
    members.set_consent(2, "newsletter", granted=False, notice_version="1")
    members.set_consent(3, "research", granted=True, notice_version="1")
    assert [member.id for member in members.export("newsletter", "Print Ltd")] == [1]
    exports = [record for record in records() if record["event"] == "data_export"]
    assert [record["record_count"] for record in exports] == [0, 1]
    assert exports[1]["recipient"] == "Print Ltd"
    decisions = [record["decision"] for record in records() if record["event"] == "consent_change"]
    assert decisions == ["given", "given", "withdrawn", "given"]


def test_deletion_takes_everything_along(members: Members, records: Callable[[], Records]) -> None:
    members.set_consent(4, "newsletter", granted=True, notice_version="1")
    members.delete(4, "asked for it")
    assert 4 not in members.ids()
    assert members.consents(4) == {}
    assert records()[-1]["reason"] == "asked for it"


def test_who_is_not_there_is_a_recorded_failure(
    members: Members, records: Callable[[], Records]
) -> None:
    for attempt in (
        lambda: members.contact(99, "support"),
        lambda: members.health(99, "support"),
        lambda: members.delete(99, "asked for it"),
        lambda: members.set_consent(99, "newsletter", granted=True, notice_version="1"),
    ):
        with pytest.raises(MemberMissingError, match="no member 99"):
            attempt()
        assert records()[-1]["status"] == "failed"
    assert len(records()) == 4


def test_a_new_member_is_recorded_by_number(
    members: Members, records: Callable[[], Records]
) -> None:
    member = members.add("Zoe Quill", "zoe@example.org", "123456", "None known")
    assert member.id in members.ids()
    (record,) = records()
    assert record["resource_name"] == str(member.id)
    assert "zoe" not in str(record).lower()
