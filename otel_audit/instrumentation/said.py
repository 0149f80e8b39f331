"""From what loggers take, a name and fields, to an audit event.

Promises: whatever is said becomes an event; what is missing has a default that
invents nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_GRAVE: Final = frozenset({"error", "critical"})
_UNNAMED: Final = "log"


def audit_event(
    event: object,
    level: str,
    fields: MutableMapping[str, Any],
    error: BaseException | None = None,
) -> AuditEvent:
    """Make the event; ``fields`` loses what becomes the event's own.

    The action is the event's name where nobody says another, the status is
    ``failed`` from level error on and after an exception, else ``success``.
    """
    name = event if type(event) is str and event else str(event) or _UNNAMED
    take = fields.pop
    status = take("status", None)
    if status is None:
        status = "failed" if error is not None or level in _GRAVE else "success"
    return AuditEvent(
        name,
        str(take("action", None) or name),
        take("event_type", None),
        status,
        level,
        take("resource_type", None),
        take("resource_name", None),
        take("error", None) or error,
        take("retention", None),
        fields,
    )
