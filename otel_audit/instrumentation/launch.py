"""What ``opentelemetry-instrument`` starts, whichever distribution it loads.

Promises: an audit trail that cannot be used ends the process with code 78
(EX_CONFIG of sysexits.h) before the application has started, because the
launcher would swallow the exception and run it unaudited; with
OTEL_AUDIT_ON_FAILURE=continue it runs unaudited, and the log says so. Neither
OTEL_SDK_DISABLED nor OTEL_PYTHON_DISABLED_INSTRUMENTATIONS keeps it from
starting. What is wrong with the rules is said once, not by each worker.

Importing this module needs nothing but Python and the settings: what else is
ours is imported where a failure counts as one of the trail.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Final

from otel_audit.errors import OtelAuditError
from otel_audit.settings import Settings, first_to_say

EX_CONFIG: Final = 78

_logger: Final = logging.getLogger("otel_audit.instrumentation")

INSTRUMENTORS: Final = {
    "starlette": "starlette:StarletteInstrumentor",
    "uvicorn": "asgi:UvicornInstrumentor",
    "flask": "flask:FlaskInstrumentor",
    "django": "django:DjangoInstrumentor",
    "keyring": "keyring:KeyringInstrumentor",
    "spans": "spans:SpanInstrumentor",
}
"""The libraries that are audited without a word in the application, and who does it."""

left_out: Final[set[str]] = set()
"""Instrumentors that OpenTelemetry's launcher must not use: disabled, or nothing is audited."""

_started = False

_TRACKER: Final = "from multiprocessing.resource_tracker import "
"""How the command of multiprocessing's helper begins, which runs nothing of the application."""


def start() -> None:
    """Open the trail and instrument what is there, once a process.

    MUST NOT return, but end the process, when the audit configuration cannot be
    used and the policy is not to continue.
    """
    global _started  # noqa: PLW0603 - the hooks and the distribution all come here
    if _started:
        return
    _started = True
    if any(word.startswith(_TRACKER) for word in sys.orig_argv):
        left_out.update(INSTRUMENTORS)
        return
    try:
        _start()
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher would swallow it
        _refuse(error)


def pre_instrument() -> None:
    """Be the hook that the launcher calls before it instruments anything."""
    start()


def post_instrument() -> None:
    """Be the hook that the launcher calls at the end: the last occasion to start."""
    start()


def _start() -> None:
    """Open the trail, and instrument every library that is not disabled by name."""
    from otel_audit.api.current import get_audit_provider  # noqa: PLC0415 - see the module

    provider = get_audit_provider()
    if provider.disabled:
        left_out.update(INSTRUMENTORS)
        return
    off = provider.settings.disabled_instrumentations
    left_out.update(off)
    unknown = sorted(set(off) - set(INSTRUMENTORS))
    if unknown:
        _warn(
            f"OTEL_AUDIT_DISABLED_INSTRUMENTATIONS names {unknown[0]!r}; known are "
            f"{', '.join(INSTRUMENTORS)}"
        )
    for name, where in INSTRUMENTORS.items():
        if name not in off:
            module, _, kind = where.partition(":")
            getattr(import_module(f"otel_audit.instrumentation.{module}"), kind)().instrument()


def _warn(text: str) -> None:
    """Log a warning, unless the process that started this one has."""
    if first_to_say(text):
        _logger.warning("%s", text)


def _refuse(error: Exception) -> None:
    """End the process, or go on without an audit trail where that is what was asked for."""
    settings, _ = Settings.salvage()
    if settings.on_failure == "continue":
        left_out.update(INSTRUMENTORS)
        _logger.error(
            "the audit trail cannot be used, and OTEL_AUDIT_ON_FAILURE=continue: NOTHING is "
            "audited in process %d: %s",
            os.getpid(),
            error,
        )
        return
    known = isinstance(error, (OtelAuditError, OSError))
    what = str(error) if known else f"{type(error).__name__}: {error}"
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(
            f"otel-audit: the audit trail cannot be used, so the application is not started: {what}\n"
            "otel-audit: correct it (`otel-audit doctor --all` shows all settings), or set "
            "OTEL_AUDIT_ON_FAILURE=continue to run unaudited\n"
        )
        sys.stderr.flush()
    # Not sys.exit(): this runs while Python imports its site module, where SystemExit ends in a
    # fatal error with code 1.
    os._exit(EX_CONFIG)
