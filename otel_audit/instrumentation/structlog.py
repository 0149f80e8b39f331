"""structlog: what ``structlog.get_logger("audit")`` says becomes audit records.

Add `AuditProcessor` to your processors, or let `setup_logging` configure
everything. Promises what `AuditLogger.emit` promises; ``await logger.ainfo()``
returns when the record is durable. Nothing of structlog is replaced or
configured unless `setup_logging` is called.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from otel_audit.api.current import configure, get_audit_provider, is_configured
from otel_audit.api.logger import get_audit_logger
from otel_audit.errors import AuditSettingsError
from otel_audit.instrumentation.logging import AuditHandler
from otel_audit.instrumentation.said import (
    audit_event,
    exception_of,
    say_in_full,
    text_of,
    unsaid,
)
from otel_audit.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor, WrappedLogger

    from otel_audit.api.logger import AuditLogger

    Accepts = Callable[[WrappedLogger, EventDict], bool]

AUDIT: Final = "audit"
APP_LOG: Final = "app.log"
_HANDLER: Final = "otel-audit"
_logger: Final = logging.getLogger("otel_audit.instrumentation")
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
_ARGUMENTS: Final = "positional_args"
_INTERNAL: Final = frozenset({"_record", "_from_structlog", "stack_info"})


class AuditProcessor:
    """Emits what the audit logger says, and passes everything else on.

    The audit logger is called ``audit``, or ``audit.`` and something. Where the
    logger factory forgets names (structlog's default does), an event that has
    an ``action``, or such a name in its field ``logger``, is an audit event;
    ``accepts`` decides otherwise. What was
    emitted goes no further, unless ``keep`` says so. Its place is before
    filters by level and before whatever turns the event into text, and after
    ``merge_contextvars``. Positional arguments become the field ``message``, the
    whole text, and the event stays as it stands in the code; if they make no
    text, they are the field ``arguments``.
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
        level = _LEVELS.get(method) or ("info" if unsaid(said) else text_of(said))
        if not _INTERNAL.isdisjoint(fields):
            for name in _INTERNAL:
                fields.pop(name, None)
        if type(fields.get(_ARGUMENTS)) is tuple:
            arguments = fields.pop(_ARGUMENTS)
            say_in_full(fields, lambda: _formatted(event, arguments), text_of(event), arguments)
        error = None
        if method == "exception" or "exc_info" in fields:
            exc_info = fields.pop("exc_info", None)
            error = exception_of(method == "exception" if unsaid(exc_info) else exc_info)
        if said_by is not None:
            fields.setdefault("logger", said_by)
        self._audit.emit(audit_event("" if event is None else event, level, fields, error))
        if not self._keep:
            raise structlog.DropEvent
        return event_dict


def _with_arguments(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
    """Be structlog's PositionalArgumentsFormatter, which raises for arguments that do not fit."""
    arguments = event_dict.get(_ARGUMENTS)
    if type(arguments) is tuple:
        with suppress(Exception):
            event_dict["event"] = _formatted(event_dict["event"], arguments)
            del event_dict[_ARGUMENTS]
    return event_dict


def _formatted(event: Any, arguments: tuple[Any, ...]) -> Any:
    """Put positional arguments into an event as logging does: one that is a mapping by its names."""
    only = arguments[0] if len(arguments) == 1 else None
    return event % (only if isinstance(only, dict) and only else arguments)


def setup_logging(
    log_dir: str | Path,
    level: int | str = logging.INFO,
    *,
    force: bool = False,
) -> None:
    """Configure structlog and logging: the application's log and the audit trail, apart.

    ``app.log`` in ``log_dir`` gets one JSON line an event, from ``level`` on,
    rotated at 100 MB, with 10 older files. Variables in ``log_dir`` are expanded. What the logger ``audit`` says,
    through structlog or logging, at whatever level, goes into the trail only,
    and its mirror: that of the provider that is configured already, else one in
    the same directory, with ``audit.log``. Raises `AuditSettingsError` where
    structlog is configured already, unless ``force`` is set, and where level or
    directory cannot be used; then nothing is configured.
    """
    if structlog.is_configured() and not force:
        message = (
            "structlog is configured already, and setup_logging() would replace that: add "
            "AuditProcessor() to its processors instead, or pass force=True"
        )
        raise AuditSettingsError(message)
    directory = _expanded(log_dir)
    level = _checked(level)
    handler = _app_log(directory / APP_LOG)
    try:
        provider = get_audit_provider() if is_configured() else configure(log_dir=directory)
    except BaseException:
        handler.close()
        raise
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
            _with_arguments,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _configure_logging(handler, level, shared)
    if directory.resolve() not in provider.directory.resolve().parents:
        _logger.info("the audit trail is in %s, as configured before", provider.directory)


def _expanded(log_dir: str | Path) -> Path:
    """Return the directory that LOG_DIR would mean. Raises `AuditSettingsError`."""
    return Settings.from_env({}, log_dir=log_dir).log_dir or Path()


def _checked(level: int | str) -> int:
    try:
        return logging.NullHandler(level).level
    except (ValueError, TypeError) as error:
        message = f"level={level!r} is none of logging's: pass one such as logging.INFO or 'INFO'"
        raise AuditSettingsError(message) from error


def _app_log(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RotatingFileHandler(
            path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8", delay=False
        )
    except OSError as error:
        message = f"the application's log {path} cannot be written: {error}; choose another log_dir"
        raise AuditSettingsError(message) from error


def _configure_logging(handler: logging.Handler, level: int, shared: list[Processor]) -> None:
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
    """Whether an event is one for the trail, said by a logger of that name, if it has any.

    Where it has none, a field ``logger`` may name it, and be a field of the caller's as well: it
    MUST NOT keep an event with an action from the trail.
    """
    if name is None:
        if "action" in event_dict:
            return True
        name = event_dict.get("logger")
        if type(name) is not str:
            return False
    return name == AUDIT or name.startswith(f"{AUDIT}.")
