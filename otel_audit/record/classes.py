"""The event classes that come with the package, and what each is expected to say.

A class is an `event_type` with a documented meaning, the fields that the
regulations behind it ask for, and a default retention class. This module
promises that `missing` never raises and costs one dictionary look-up for an
event type that is no class. It never refuses an event: an incomplete record
is evidence too, and is better flagged than lost. Whether a class is recorded
at all, and how long copies are kept, is the policy's to decide; nothing is
removed from the trail.

docs/event-classes.md gives the rules behind each field and each retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA_ACCESS: Final = "data_access"
PHI_ACCESS: Final = "phi_access"
DATA_EXPORT: Final = "data_export"
DATA_DELETION: Final = "data_deletion"
CONSENT_CHANGE: Final = "consent_change"
PRIVILEGE_CHANGE: Final = "privilege_change"
AUTHENTICATION: Final = "authentication"
CREDENTIAL_ACCESS: Final = "credential_access"
ADMIN_ACTION: Final = "admin_action"

# The values of audit.retention that the bundled Loki configuration knows.
RETENTION_CLASSES: Final = ("90d", "1y", "3y")

# What a request's record holds when nobody could be named: present in the
# record, and yet not what a regulation means by "user identification".
_PLACEHOLDERS: Final = MappingProxyType({"actor_id": "anonymous", "client_ip": "unknown"})


@dataclass(frozen=True, slots=True)
class EventClass:
    """One event class.

    ``expected`` names record keys and caller's fields, in the order in which
    a reader would ask for them. ``retention`` is the default retention class
    (`RETENTION_CLASSES`); a policy overrides it. ``regulations`` says which
    rules the fields mirror.
    """

    name: str
    meaning: str
    expected: tuple[str, ...]
    retention: str
    regulations: str


_WHAT: Final = ("actor_id", "resource_type", "resource_name")

_ALL: Final = (
    EventClass(
        name=DATA_ACCESS,
        meaning="personal or otherwise protected data was read or searched",
        expected=(*_WHAT, "purpose"),
        retention="1y",
        regulations="GDPR Art. 5(1)(b), 5(2), 32; PCI DSS 10.2.1.1; SOC 2 CC6.1",
    ),
    EventClass(
        name=PHI_ACCESS,
        meaning="a patient's health information was read, searched or changed",
        expected=(*_WHAT, "subject_id", "purpose"),
        retention="3y",
        regulations="HIPAA 164.312(a)(2)(i), 164.312(b), 164.308(a)(1)(ii)(D); GDPR Art. 9",
    ),
    EventClass(
        name=DATA_EXPORT,
        meaning="data left the system: a download, a report, a transfer, a disclosure",
        expected=(*_WHAT, "recipient", "purpose", "record_count"),
        retention="3y",
        regulations="GDPR Art. 30(1)(b), (d), (e); HIPAA 164.528(b)(2); SOC 2 CC6.7",
    ),
    EventClass(
        name=DATA_DELETION,
        meaning="data was erased, made anonymous, or destroyed with its medium",
        expected=(*_WHAT, "reason", "record_count"),
        retention="3y",
        regulations=(
            "GDPR Art. 5(1)(e), 5(2), 17; HIPAA 164.310(d)(2)(i); PCI DSS 10.2.1.7; SOC 2 C1.2"
        ),
    ),
    EventClass(
        name=CONSENT_CHANGE,
        meaning="a person gave, changed, refused or withdrew consent",
        expected=("actor_id", "subject_id", "purpose", "decision", "notice_version"),
        retention="3y",
        regulations="GDPR Art. 4(11), 7(1), 7(3); SOC 2 P2.1, P3.2",
    ),
    EventClass(
        name=PRIVILEGE_CHANGE,
        meaning="an account, a role or a permission was created, changed or taken away",
        expected=(*_WHAT, "privilege", "reason"),
        retention="3y",
        regulations="PCI DSS 10.2.1.5; SOC 2 CC6.2, CC6.3; HIPAA 164.308(a)(4)(ii)(C)",
    ),
    EventClass(
        name=AUTHENTICATION,
        meaning="somebody logged in or out, or tried to",
        expected=("user_id", "method", "client_ip"),
        retention="1y",
        regulations="PCI DSS 10.2.1.4, 10.2.2; HIPAA 164.308(a)(5)(ii)(C); SOC 2 CC6.1, CC7.2",
    ),
    EventClass(
        name=CREDENTIAL_ACCESS,
        meaning="a secret was read, created, rotated or deleted; never the secret itself",
        expected=_WHAT,
        retention="1y",
        regulations="PCI DSS 10.2.1.5; SOC 2 CC6.1",
    ),
    EventClass(
        name=ADMIN_ACTION,
        meaning="somebody with administrative rights used them: configuration, start, stop",
        expected=(*_WHAT, "reason"),
        retention="1y",
        regulations=("PCI DSS 10.2.1.2, 10.2.1.6; HIPAA 164.308(a)(1)(ii)(D); SOC 2 CC7.2, CC8.1"),
    ),
)

CLASSES: Final[Mapping[str, EventClass]] = MappingProxyType({one.name: one for one in _ALL})


def missing(event_type: str, *sources: Mapping[str, object]) -> list[str]:
    """Name the expected fields of ``event_type`` that no source has a value for.

    The sources are looked through in order, for example the record's own keys
    and then the caller's fields. None, the empty string and the placeholders
    of an unauthenticated request (``anonymous``, ``unknown``) count as
    missing; zero, False and empty lists are values. An event type that is no
    class expects nothing. The result goes into the record as
    ``missing_fields``.
    """
    event_class = CLASSES.get(event_type)
    if event_class is None:
        return []
    return [
        name
        for name in event_class.expected
        if not any(_says_something(name, source.get(name)) for source in sources)
    ]


def _says_something(name: str, value: object) -> bool:
    if type(value) is not str:  # comparing a value of unknown type could run code of its own
        return value is not None
    return value not in {"", _PLACEHOLDERS.get(name)}
