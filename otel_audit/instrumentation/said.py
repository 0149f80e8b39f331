"""From what loggers take, a name and fields, to an audit event.

Promises: whatever is said becomes an event, and all of it is in there; what is
missing has a default that invents nothing. Nothing here raises, whatever the
code of a value does: the standard library's loggers never raise for it either.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from otel_audit.record.event import UNSAID, AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_GRAVE: Final = frozenset({"error", "critical"})
_UNNAMED: Final = "log"
_PLAIN: Final = frozenset({str, int, float, bool})

MESSAGE: Final = "message"
ARGUMENTS: Final = "arguments"


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
    name = text_of(event) or _UNNAMED
    take = fields.pop
    status = take("status", None)
    if status is None:
        status = "failed" if error is not None or level in _GRAVE else UNSAID
    action, said = take("action", None), take("error", None)
    return AuditEvent(
        name,
        name if unsaid(action) else text_of(action) or name,
        take("event_type", None),
        status,
        level,
        take("resource_type", None),
        take("resource_name", None),
        error if unsaid(said) else said,
        take("retention", None),
        fields,
    )


def say_in_full(
    fields: MutableMapping[str, Any], text: Callable[[], object], template: str, arguments: object
) -> None:
    """Add the whole ``text``; where it cannot be made, what it would have been made of."""
    if MESSAGE not in fields:
        try:
            fields[MESSAGE] = text()
        except Exception:  # noqa: BLE001 - a format that does not fit, or the code of an argument
            fields[MESSAGE] = template
        else:
            return
    fields[ARGUMENTS if ARGUMENTS not in fields else f"{ARGUMENTS}~2"] = arguments


def text_of(value: object) -> str:
    """Return what a value says of itself, or that it cannot be read."""
    if type(value) is str:
        return value
    try:
        return str.__str__(str(value))
    except Exception as error:  # noqa: BLE001 - a value's text is code of its author
        return f"[unreadable {type(value).__name__}: {type(error).__name__}]"


def unsaid(value: object) -> bool:
    """Whether it stands for nothing; asking any value whether it is true could run its code."""
    return value is None or (type(value) in _PLAIN and not value)


def exception_of(exc_info: object) -> BaseException | None:
    """Return the exception that ``exc_info`` means: itself, one of a tuple, or the current one."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return next((one for one in exc_info if isinstance(one, BaseException)), None)
    return None if unsaid(exc_info) else sys.exc_info()[1]
