"""A handler for the standard library's logging: what one logger says becomes audit records.

    logging.getLogger("audit").addHandler(AuditHandler())
    logging.getLogger("audit").info("server_lifecycle_event", extra={"action": "start"})

Promises what `AuditLogger.emit` promises: the call returns after the record is
durable, in an event loop at once with the request's barrier behind it, and
raises when it cannot be confirmed and the policy says fail, for no other
reason: arguments that do not fit are recorded as they are. Whoever logged in
another thread or process (behind a QueueHandler) cannot be told by an
exception: there it is logged, and the listener goes on. What this package
logs itself, what anything logs while a record is being made, and what is logged
in the threads of ours that follow the trail, is never a record: there are no
loops.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from otel_audit.api.logger import get_audit_logger
from otel_audit.errors import OtelAuditError
from otel_audit.instrumentation.said import (
    MESSAGE,
    audit_event,
    exception_of,
    say_in_full,
    text_of,
    unsaid,
)

if TYPE_CHECKING:
    from otel_audit.api.logger import AuditLogger
    from otel_audit.record.event import AuditEvent

_OURS: Final = "otel_audit"
_OUR_THREADS: Final = "otel-audit-"
"""They print, ship and index records: a record of what is logged there would be the next to do."""
_OF_PROBES: Final = "otel-audit-health"
"""These run code of the application."""

_logger: Final = logging.getLogger("otel_audit.instrumentation")
_ORDINARY: Final = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""What every log record has; everything else was said by `extra=`."""


class AuditHandler(logging.Handler):
    """Emits each log record as an audit record.

    The event is the message as it stands in the code, or the first line of it; with arguments, the text
    that they make is the field ``message`` (so is a text of several lines); if they
    make none, they are the field ``arguments``. `extra=` gives ``action`` (default:
    the event), ``status``, ``resource_type`` and so on, and all other fields.
    """

    def __init__(
        self, level: int | str = logging.NOTSET, *, audit: AuditLogger | None = None
    ) -> None:
        """Emit to ``audit``, by default to the global provider."""
        super().__init__(level)
        self._audit = audit or get_audit_logger()
        self._busy = threading.local()

    def filter(self, record: logging.LogRecord) -> Any:
        """Turn away what is our own, and what is said while we emit."""
        thread = record.threadName or ""
        ours = (
            record.name == _OURS
            or record.name.startswith(f"{_OURS}.")
            or (thread.startswith(_OUR_THREADS) and not thread.startswith(_OF_PROBES))
        )
        if ours or getattr(self._busy, "emitting", False):
            return False
        return super().filter(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit without the handler's lock: records of several threads share one sync."""
        found = self.filter(record)
        if not found:
            return False
        self.emit(found if isinstance(found, logging.LogRecord) else record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Emit the record. Raises `AuditUnavailableError` as the policy says."""
        self._busy.emitting = True
        try:
            self._audit.emit(_event(record))
        except OtelAuditError as error:
            if _said_here(record):
                raise
            _logger.error("what %r logged is not confirmed: %s", record.name, error)  # noqa: TRY400 - where it happened says nothing
        finally:
            self._busy.emitting = False


def _said_here(record: logging.LogRecord) -> bool:
    """Whether the call that logged it waits for us; logging can be told not to say by whom it was."""
    return record.thread in (None, threading.get_ident()) and record.process in (None, os.getpid())


def _event(record: logging.LogRecord) -> AuditEvent:
    fields = {name: value for name, value in vars(record).items() if name not in _ORDINARY}
    event = fields.pop("event", None)
    template = text_of(record.msg)
    if record.args:
        say_in_full(fields, record.getMessage, template, record.args)
    elif event is not None or "\n" in template:
        fields[MESSAGE] = template
    fields.setdefault("logger", record.name)
    # A QueueHandler has put the traceback behind the text.
    name = template.strip().partition("\n")[0] if unsaid(event) else event
    return audit_event(name, _level(record.levelno), fields, exception_of(record.exc_info))


def _level(number: int) -> str:
    if number >= logging.CRITICAL:
        return "critical"
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"
