"""Members' personal data, their health notes and their consents.

Promises: nobody's data is read, exported, changed or deleted without a
record that says whose, which fields, how many and why; no record holds the
data itself; an export leaves out who did not consent to its purpose.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from examples.agenthub.store import Store
from otel_audit import audit_span, audited, events, get_audit_logger

audit = get_audit_logger(__name__)

DEMO_MEMBERS: Final = (
    ("Ada Byron", "ada@example.org", "+44 20 7946 0001", "Allergic to penicillin"),
    ("Blaise Morel", "blaise@example.org", "+33 1 99 00 00 02", "Type 1 diabetes"),
    ("Carla Neri", "carla@example.org", "+39 06 5550 003", "None known"),
    ("Dmitri Sokol", "dmitri@example.org", "+420 555 000 004", "Asthma, carries an inhaler"),
    ("Emmy Vogel", "emmy@example.org", "+49 30 23125 005", "Pacemaker since 2021"),
)
CONTACT_FIELDS: Final = ["name", "email", "phone"]


class MemberMissingError(LookupError):
    """There is no such member."""

    def __init__(self, member_id: int) -> None:
        super().__init__(f"there is no member {member_id}")


@dataclass(frozen=True)
class Member:
    """How to reach somebody."""

    id: int
    name: str
    email: str
    phone: str


class Members:
    """The tables members and consents."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_demo_members(self) -> None:
        """Fill an empty table."""
        with self._store.write() as connection:
            if connection.execute("SELECT 1 FROM members").fetchone() is None:
                connection.executemany(
                    "INSERT INTO members (name, email, phone, health) VALUES (?, ?, ?, ?)",
                    DEMO_MEMBERS,
                )

    def ids(self) -> list[int]:
        """Return who there is, and nothing about them."""
        with self._store.read() as connection:
            rows = connection.execute("SELECT id FROM members ORDER BY id").fetchall()
        return [row["id"] for row in rows]

    def add(self, name: str, email: str, phone: str, health: str) -> Member:
        """Add a member."""
        with self._store.write() as connection:
            cursor = connection.execute(
                "INSERT INTO members (name, email, phone, health) VALUES (?, ?, ?, ?)",
                (name, email, phone, health),
            )
        member = Member(cursor.lastrowid or 0, name, email, phone)
        audit.audit_event(
            events.DATA_ACCESS,
            "create",
            "member",
            str(member.id),
            "success",
            purpose="membership",
            data_fields=[*CONTACT_FIELDS, "health"],
        )
        return member

    @audited(
        events.DATA_ACCESS,
        "read",
        resource_type="member",
        resource_name="{member_id}",
        capture=("purpose",),
        data_fields=CONTACT_FIELDS,
    )
    def contact(self, member_id: int, purpose: str) -> Member:  # noqa: ARG002 - the purpose is for the record
        """Return contact data; raises `MemberMissingError`."""
        row = self._row(member_id)
        return Member(row["id"], row["name"], row["email"], row["phone"])

    def health(self, member_id: int, purpose: str) -> str:
        """Return the health note; raises `MemberMissingError`."""
        with audit_span(
            events.PHI_ACCESS,
            "read",
            resource_type="member",
            resource_name=str(member_id),
            subject_id=f"member:{member_id}",
            purpose=purpose,
            data_fields=["health"],
        ):
            return str(self._row(member_id)["health"])

    def export(self, purpose: str, recipient: str) -> list[Member]:
        """Return the contact data of everybody who consented to the purpose."""
        with self._store.read() as connection:
            rows = connection.execute(
                "SELECT members.* FROM members JOIN consents ON consents.member_id = members.id"
                " WHERE purpose = ? AND granted ORDER BY id",
                (purpose,),
            ).fetchall()
        audit.audit_event(
            events.DATA_EXPORT,
            "export",
            "members",
            "contact data",
            "success",
            purpose=purpose,
            recipient=recipient,
            record_count=len(rows),
            data_fields=CONTACT_FIELDS,
        )
        return [Member(row["id"], row["name"], row["email"], row["phone"]) for row in rows]

    def delete(self, member_id: int, reason: str) -> None:
        """Delete a member with everything that is known; raises `MemberMissingError`."""
        with (
            audit_span(
                events.DATA_DELETION,
                "delete",
                resource_type="member",
                resource_name=str(member_id),
                reason=reason,
                record_count=1,
            ),
            self._store.write() as connection,
        ):
            cursor = connection.execute("DELETE FROM members WHERE id = ?", (member_id,))
            if not cursor.rowcount:
                raise MemberMissingError(member_id)

    def consents(self, member_id: int) -> dict[str, bool]:
        """Return what the member said to which purpose."""
        with self._store.read() as connection:
            rows = connection.execute(
                "SELECT purpose, granted FROM consents WHERE member_id = ? ORDER BY purpose",
                (member_id,),
            ).fetchall()
        return {row["purpose"]: bool(row["granted"]) for row in rows}

    def set_consent(
        self, member_id: int, purpose: str, *, granted: bool, notice_version: str
    ) -> None:
        """Note down what the member said, having read which notice; raises `MemberMissingError`."""
        with audit_span(
            events.CONSENT_CHANGE,
            "give" if granted else "withdraw",
            resource_type="member",
            resource_name=str(member_id),
            subject_id=f"member:{member_id}",
            purpose=purpose,
            decision="given" if granted else "withdrawn",
            notice_version=notice_version,
        ):
            self._row(member_id)
            with self._store.write() as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO consents (member_id, purpose, granted) VALUES (?, ?, ?)",
                    (member_id, purpose, granted),
                )

    def _row(self, member_id: int) -> sqlite3.Row:
        with self._store.read() as connection:
            row: sqlite3.Row | None = connection.execute(
                "SELECT * FROM members WHERE id = ?", (member_id,)
            ).fetchone()
        if row is None:
            raise MemberMissingError(member_id)
        return row
