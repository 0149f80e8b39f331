"""structlog: what ``structlog.get_logger("audit")`` says becomes audit records.

Add `AuditProcessor` to your processors, or let `setup_logging` configure
everything. Promises what `AuditLogger.emit` promises; ``await logger.ainfo()``
returns when the record is durable. Nothing of structlog is replaced or
configured unless `setup_logging` is called.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from otel_audit.api.current import configure, is_configured
from otel_audit.api.logger import get_audit_logger
from otel_audit.errors import AuditSettingsError
from otel_audit.instrumentation.logging import AuditHandler
from otel_audit.instrumentation.said import audit_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor, WrappedLogger

    from otel_audit.api.logger import AuditLogger

    Accepts = Callable[[WrappedLogger, EventDict], bool]

AUDIT: Final = "audit"
APP_LOG: Final = "app.log"
_HANDLER: Final = "otel-audit"
_MAX_BYTES: Final = 100 << 20
_BACKUPS: Final = 10

_LEVELS: Final = {
    "critical": "critical",
    "debug": "debug",
    "err": "error",
    "error": "error",
    "exception": "error",
    "fatal": "critical",
    "info": "info",
    "msg": "info",
    "warn": "warning",
    "warning": "warning",
}
_INTERNAL: Final = frozenset({"_record", "_from_structlog", "positional_args", "stack_info"})


class AuditProcessor:
    """Emits what the audit logger says, and passes everything else on.

    The audit logger is called ``audit``, or ``audit.`` and something. Where the
    logger factory forgets names (structlog's default does), an event that has
    an ``action`` is an audit event; ``accepts`` decides otherwise. What was
    emitted goes no further, unless ``keep`` says so. Its place is before
    filters by level and before whatever turns the event into text, and after
    ``merge_contextvars``.
    """

    def __init__(
        self,
        *,
        audit: AuditLogger | None = None,
        accepts: Accepts | None = None,
        keep: bool = False,
    ) -> None:
        """Emit to ``audit``, by default to the global provider."""
        self._audit = audit or get_audit_logger()
        self._accepts = accepts
        self._keep = keep

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        """Be a processor. Raises `AuditUnavailableError` as the policy says."""
        name = getattr(logger, "name", None)
        said_by = name if type(name) is str else None
        accepts = self._accepts
        if not (accepts(logger, event_dict) if accepts else _is_audit(said_by, event_dict)):
            return event_dict
        fields = dict(event_dict)
        event = fields.pop("event", None)
        said = fields.pop("level", None)
        level = _LEVELS.get(method) or str(said or "info")
        if not _INTERNAL.isdisjoint(fields):
            for name in _INTERNAL:
                fields.pop(name, None)
        error = None
        if method == "exception" or "exc_info" in fields:
            error = _exception(fields.pop("exc_info", None) or method == "exception")
        if said_by is not None:
            fields.setdefault("logger", said_by)
        self._audit.emit(audit_event("" if event is None else event, level, fields, error))
        if not self._keep:
            raise structlog.DropEvent
        return event_dict


def setup_logging(
    log_dir: str | Path,
    level: int | str = logging.INFO,
    *,
    force: bool = False,
) -> None:
    """Configure structlog and logging: the application's log and the audit trail, apart.

    ``app.log`` in ``log_dir`` gets one JSON line an event, from ``level`` on,
    rotated at 100 MB, with 10 older files. What the logger ``audit`` says,
    through structlog or logging, at whatever level, goes into the trail in the
    same directory, and its mirror ``audit.log``, only. Raises
    `AuditSettingsError` where structlog is configured already, unless
    ``force`` is set, and where the directory cannot be used.
    """
    if structlog.is_configured() and not force:
        message = (
            "structlog is configured already, and setup_logging() would replace that: add "
            "AuditProcessor() to its processors instead, or pass force=True"
        )
        raise AuditSettingsError(message)
    directory = Path(log_dir)
    if not is_configured():
        configure(log_dir=directory)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            AuditProcessor(),
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _configure_logging(directory / APP_LOG, level, shared)


def _configure_logging(path: Path, level: int | str, shared: list[Processor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(
            path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8", delay=False
        )
    except OSError as error:
        message = f"the application's log {path} cannot be written: {error}; choose another log_dir"
        raise AuditSettingsError(message) from error
    formatter: Any = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler.setFormatter(formatter)
    root, audit = logging.getLogger(), logging.getLogger(AUDIT)
    _replace(root, handler)
    root.setLevel(level)
    _replace(audit, AuditHandler())
    audit.setLevel(logging.DEBUG)
    audit.propagate = False


def _replace(logger: logging.Logger, handler: logging.Handler) -> None:
    """Put a handler where an earlier call of `setup_logging` put one."""
    for before in list(logger.handlers):
        if before.get_name() == _HANDLER:
            logger.removeHandler(before)
            before.close()
    handler.set_name(_HANDLER)
    logger.addHandler(handler)


def _is_audit(name: str | None, event_dict: EventDict) -> bool:
    """Whether an event is one for the trail, said by a logger of that name, if it has any."""
    if name is None:
        name = event_dict.get("logger")
        if name is None:
            return "action" in event_dict
    return name == AUDIT or str(name).startswith(f"{AUDIT}.")


def _exception(said: object) -> BaseException | None:
    """Return the exception that ``exc_info`` means: itself, a tuple, or the current one."""
    if isinstance(said, BaseException):
        return said
    if isinstance(said, tuple):
        return said[1] if isinstance(said[1], BaseException) else None
    return sys.exc_info()[1] if said else None
