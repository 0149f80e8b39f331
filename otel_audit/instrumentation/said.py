"""From what loggers take, a name and fields, to an audit event.

Promises: whatever is said becomes an event; what is missing has a default that
invents nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_WORDS: Final = (
    "event_type", "resource_type", "resource_name", "retention",
)  # fmt: skip
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
    name = str(event) or _UNNAMED
    failed = error is not None or level in _GRAVE
    said = {word: fields.pop(word) for word in _WORDS if word in fields}
    status = fields.pop("status", None)
    return AuditEvent(
        name,
        str(fields.pop("action", None) or name),
        level=level,
        status=("failed" if failed else "success") if status is None else status,
        error=fields.pop("error", None) or error,
        fields=fields,
        **said,
    )
