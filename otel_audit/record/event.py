"""What a caller says, and what becomes of it on the way to a record.

`AuditEvent` is the caller's side: who calls says what happened. `Draft` is
ours: stages (plain callables) fill it in, and `encode` turns it into the
canonical bytes, which nothing changes any more. A draft is mutable because a
frozen copy for each stage costs more than all stages together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from otel_audit.errors import AuditEventError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = "otel-audit/1"

KEYS: Final = (
    "schema", "timestamp", "level", "event", "record_id", "event_type", "action", "status",
    "outcome", "actor_id", "actor_type", "actor_verified", "resource_type", "resource_name",
    "request_id", "client_id", "client_ip", "session_id", "user_agent", "error", "trace_id",
    "span_id", "trace_flags", "service_name", "resource", "retention",
)  # fmt: skip
"""The record's own keys, in their order; caller's fields follow."""

RESERVED: Final = frozenset({*KEYS, "missing_fields", "coerced"})
"""Names that a caller's field cannot have."""

LEVELS: Final = ("debug", "info", "warning", "error", "critical")

UNSAID: Final = b"success".decode()
"""The status of an event whose caller said none: a text of its own, told from "success" by `is`.

So a field of the caller's that says how it went is believed where nobody said otherwise.
"""

_SHOWN: Final = 80
"""Characters of a value in an error message."""

_SEVERITIES: Final = {
    **{level: level for level in LEVELS},
    "warn": "warning",
    "fatal": "critical",
    "low": "info",
    "medium": "warning",
    "moderate": "warning",
    "high": "error",
}

_SUCCESS: Final = frozenset(
    {"success", "succeeded", "successful", "ok", "completed", "complete", "allowed", "granted",
     "passed", "accepted", "approved"}
)  # fmt: skip
_FAILURE: Final = frozenset(
    {"failed", "failure", "fail", "error", "denied", "rejected", "refused", "forbidden",
     "unauthorized", "timeout", "aborted", "cancelled", "canceled", "blocked"}
)  # fmt: skip
_ERRORS: Final = frozenset({"failed", "failure", "error", "denied"})


@dataclass(slots=True)
class AuditEvent:
    """What happened, in the caller's words.

    ``event`` names it and ``action`` says what was done; both are required.
    ``event_type`` is its class (default: the event), ``status`` how it went,
    ``level`` how grave it is (default: derived), ``error`` why it failed (text
    or the exception), ``retention`` for how long copies are kept (default: the
    policy's). Everything else goes into ``fields``. Who did it is not said
    here: only a verified identity becomes the actor (`set_actor`).
    """

    event: str
    action: str
    event_type: str | None = None
    status: str = UNSAID
    level: str | None = None
    resource_type: str | None = None
    resource_name: str | None = None
    error: str | BaseException | None = None
    retention: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class Draft:
    """One record in the making; see `KEYS` for the meaning of what it holds."""

    __slots__ = (
        "action", "actor_id", "actor_type", "actor_verified", "client_id", "client_ip", "coerced", "context",
        "error", "error_type", "event", "event_type", "fields", "level", "missing_fields",
        "on_failure", "record_id", "request_id", "resource", "resource_name", "resource_type",
        "retention", "scope", "service_name", "session_id", "severity", "source", "span_id", "status", "timestamp",
        "trace_flags", "trace_id", "user_agent", "wanted",
    )  # fmt: skip

    def __init__(self, source: AuditEvent, record_id: str, timestamp: str) -> None:
        """Take over what the caller said. Raises `AuditEventError`."""
        event: object = source.event
        action: object = source.action
        if not (isinstance(event, str) and event):
            event = _named("event", event, "login")
        if not (isinstance(action, str) and action):
            action = _named("action", action, "start")
        self.source = source
        self.record_id = record_id
        self.timestamp = timestamp
        self.event = event
        self.action = action
        event_type: object = source.event_type
        # Not `or`: whatever stands here, asking it whether it is true could run its code.
        unsaid = event_type is None or (type(event_type) is str and not event_type)
        self.event_type: str = event if unsaid else cast("str", event_type)
        status: object = source.status
        self.status: str = "unknown" if status is None else cast("str", status)
        self.level: str | None = source.level
        self.resource_type: str | None = source.resource_type
        self.resource_name: str | None = source.resource_name
        self.retention: str | None = source.retention
        self.severity: str | None = None
        """What the caller said of the level, where that is no level."""
        self.error: str | None = None
        self.error_type: str | None = None
        self.actor_id: str | None = None
        self.actor_type: str | None = None
        self.actor_verified: bool | None = None
        self.request_id: str | None = None
        self.client_id: str | None = None
        self.client_ip: str | None = None
        self.session_id: str | None = None
        self.user_agent: str | None = None
        self.trace_id: str | None = None
        self.span_id: str | None = None
        self.trace_flags: str | None = None
        self.service_name: str | None = None
        self.resource: str | None = None
        self.fields: dict[str, Any] = {}
        self.missing_fields: list[str] | None = None
        self.coerced: list[str] = []
        self.context: Any = None
        """The OTel Context of the caller; None for whichever is current."""
        self.scope: Any = None
        """Where a pending receipt belongs: the request, if there is one."""
        self.on_failure = "fail"
        self.wanted = True


Stage: TypeAlias = Callable[[Draft], object]
"""One step on the way from an event to a record; it fills the draft in."""


def outcome_of(status: str) -> str:
    """Derive success, failure or unknown from the caller's status."""
    lowered = status.lower()
    if lowered in _SUCCESS:
        return "success"
    return "failure" if lowered in _FAILURE else "unknown"


def level_of(status: str, event_type: str) -> str:
    """Derive the level: failed, error, denied are errors; credential access warns."""
    if status.lower() in _ERRORS:
        return "error"
    return "warning" if event_type == "credential_access" else "info"


def level_named(severity: str) -> str | None:
    """Return the level for a severity in any usual spelling, None for an unknown one."""
    return _SEVERITIES.get(severity.strip().lower())


def _named(name: str, value: object, example: str) -> str:
    """Return the name that a member of an enum stands for. Raises `AuditEventError` for all else."""
    if isinstance(value, Enum) and isinstance(value.value, str) and value.value:
        return value.value
    message = (
        f"an audit event needs {'an' if name[0] in 'ae' else 'a'} {name}, but {name} is "
        f"{_shown(value)}: without it nobody can find the record later; pass a non-empty string such "
        f"as {example!r}"
    )
    raise AuditEventError(message)


def _shown(value: object) -> str:
    """Show a value in a message: not a megabyte of it, and whatever its own code does."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a value's repr is code of its author
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
