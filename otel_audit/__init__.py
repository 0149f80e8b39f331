"""Audit trail for Python services: durable before it answers, provable afterwards.

The names below are the public surface; each is loaded on first use, so that
importing the package costs next to nothing. This module is also where the
parts meet: it gives every provider its agent, and looks at spans for one that has rules for them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from otel_audit._version import __version__
from otel_audit.api import companions

if TYPE_CHECKING:
    from otel_audit.api.companions import Companion
    from otel_audit.api.context import (
        Actor,
        acting_as,
        get_audit_context,
        set_actor,
    )
    from otel_audit.api.current import configure, get_audit_provider, is_configured, reset
    from otel_audit.api.logger import AuditLogger, audit_event, get_audit_logger
    from otel_audit.api.policy import Policy, Rule
    from otel_audit.api.provider import AuditProvider
    from otel_audit.api.receipt import AuditReceipt, PendingReceipt
    from otel_audit.api.spans import AuditSpan, audit_span, audited
    from otel_audit.errors import (
        AuditBackpressureError,
        AuditClosedError,
        AuditEventError,
        AuditSettingsError,
        AuditTimeoutError,
        AuditUnavailableError,
        OtelAuditError,
        ProofError,
        QueryError,
        TrailError,
    )
    from otel_audit.health.checker import HealthChecker, get_health_checker
    from otel_audit.health.probe import HealthStatus, ProbeResult
    from otel_audit.instrumentation.keyring import AuditedKeyring
    from otel_audit.instrumentation.logging import AuditHandler
    from otel_audit.instrumentation.structlog import AuditProcessor, setup_logging
    from otel_audit.readers.agent import Attendant
    from otel_audit.readers.query.model import Query
    from otel_audit.readers.search.recent import RecentRequest, aget_recent, get_recent
    from otel_audit.readers.search.trail import TrailSearch
    from otel_audit.record import classes as events
    from otel_audit.record.event import AuditEvent
    from otel_audit.record.redact import Redactor
    from otel_audit.settings import Settings
    from otel_audit.trail.keys import TrailKeys
    from otel_audit.trail.reader import TrailReader
    from otel_audit.web.fastapi import instrument_app, uninstrument_app
    from otel_audit.web.health.routes import setup_health_check_routes
    from otel_audit.web.middleware import AuditMiddleware
    from otel_audit.web.wsgi import AuditWSGIMiddleware

_WHERE = {
    "Actor": "api.context",
    "AuditBackpressureError": "errors",
    "AuditClosedError": "errors",
    "AuditEvent": "record.event",
    "AuditEventError": "errors",
    "AuditHandler": "instrumentation.logging",
    "AuditLogger": "api.logger",
    "AuditMiddleware": "web.middleware",
    "AuditProcessor": "instrumentation.structlog",
    "AuditProvider": "api.provider",
    "AuditReceipt": "api.receipt",
    "AuditSettingsError": "errors",
    "AuditSpan": "api.spans",
    "AuditTimeoutError": "errors",
    "AuditUnavailableError": "errors",
    "AuditWSGIMiddleware": "web.wsgi",
    "AuditedKeyring": "instrumentation.keyring",
    "HealthChecker": "health.checker",
    "HealthStatus": "health.probe",
    "OtelAuditError": "errors",
    "PendingReceipt": "api.receipt",
    "Policy": "api.policy",
    "ProbeResult": "health.probe",
    "ProofError": "errors",
    "Query": "readers.query.model",
    "QueryError": "errors",
    "RecentRequest": "readers.search.recent",
    "Redactor": "record.redact",
    "Rule": "api.policy",
    "Settings": "settings",
    "TrailError": "errors",
    "TrailKeys": "trail.keys",
    "TrailReader": "trail.reader",
    "TrailSearch": "readers.search.trail",
    "acting_as": "api.context",
    "aget_recent": "readers.search.recent",
    "audit_event": "api.logger",
    "audit_span": "api.spans",
    "audited": "api.spans",
    "configure": "api.current",
    "events": "record.classes",
    "get_audit_context": "api.context",
    "get_audit_logger": "api.logger",
    "get_audit_provider": "api.current",
    "get_health_checker": "health.checker",
    "get_recent": "readers.search.recent",
    "instrument_app": "web.fastapi",
    "is_configured": "api.current",
    "reset": "api.current",
    "set_actor": "api.context",
    "setup_logging": "instrumentation.structlog",
    "setup_health_check_routes": "web.health.routes",
    "uninstrument_app": "web.fastapi",
}

__all__ = [
    "Actor",
    "AuditBackpressureError",
    "AuditClosedError",
    "AuditEvent",
    "AuditEventError",
    "AuditHandler",
    "AuditLogger",
    "AuditMiddleware",
    "AuditProcessor",
    "AuditProvider",
    "AuditReceipt",
    "AuditSettingsError",
    "AuditSpan",
    "AuditTimeoutError",
    "AuditUnavailableError",
    "AuditWSGIMiddleware",
    "AuditedKeyring",
    "HealthChecker",
    "HealthStatus",
    "OtelAuditError",
    "PendingReceipt",
    "Policy",
    "ProbeResult",
    "ProofError",
    "Query",
    "QueryError",
    "RecentRequest",
    "Redactor",
    "Rule",
    "Settings",
    "TrailError",
    "TrailKeys",
    "TrailReader",
    "TrailSearch",
    "__version__",
    "acting_as",
    "aget_recent",
    "audit_event",
    "audit_span",
    "audited",
    "configure",
    "events",
    "get_audit_context",
    "get_audit_logger",
    "get_audit_provider",
    "get_health_checker",
    "get_recent",
    "instrument_app",
    "is_configured",
    "reset",
    "set_actor",
    "setup_health_check_routes",
    "setup_logging",
    "uninstrument_app",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Load a public name on first use (PEP 562)."""
    where = _WHERE.get(name)
    if where is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module = import_module(f"{__name__}.{where}")
    value = module if name == "events" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public surface."""
    return __all__


def _agent(provider: AuditProvider) -> Companion | None:
    """Give a provider the agent that signs its checkpoints and writes its mirror."""
    from otel_audit.readers.agent import Agent
    from otel_audit.readers.elsewhere import AgentElsewhere
    from otel_audit.readers.mirror import create

    settings = provider.settings
    mirror = settings.mirror_file
    if mirror is not None:
        create(mirror)
    store = provider.trail.store
    agent = Agent(
        provider.directory,
        reader_factory=provider.reader,
        sign_checkpoint=provider.checkpoint,
        empty_wal=lambda: store.wal.empty(above=_WAL_LIMIT),
        mirror_path=mirror,
        mirror_max_bytes=settings.mirror_max_bytes,
        mirror_backups=settings.mirror_backups,
        attendants=_attendants(provider),
    )
    if settings.agent == "off":
        return AgentElsewhere(agent) if mirror else None
    return agent


def _attendants(provider: AuditProvider) -> list[Attendant]:
    """Give a provider its index, and what ships its records and reconciles them, as configured."""
    settings = provider.settings
    if not (settings.index or settings.destinations or settings.reconcile_with):
        return []
    from otel_audit.api.logger import AuditLogger
    from otel_audit.readers.attendants import attendants

    tell = AuditLogger(provider=provider).emit
    return attendants(settings, provider.reader, tell)


_WAL_LIMIT = 4 << 20
"""Bytes of write-ahead log that wait before the agent copies them into the database."""

companions.factories.append(_agent)


def _console(provider: AuditProvider) -> Companion | None:
    """Print records where OTEL_AUDIT_CONSOLE asks for it."""
    if not provider.settings.console:
        return None
    from otel_audit.readers.console import Console

    return Console(provider.directory, provider.reader)


companions.factories.append(_console)


def _attend(provider: AuditProvider | None) -> None:
    """Have the span rules of the global provider looked at: no launcher is needed for them."""
    from otel_audit.api.current import span_rules_of

    rules = span_rules_of(provider)
    # Whoever has no such rules does not pay for the SDK of OpenTelemetry.
    if rules or _SPANS in sys.modules:
        from otel_audit.instrumentation.spans import SpanInstrumentor

        SpanInstrumentor().attend(rules)


_SPANS = f"{__name__}.instrumentation.spans"
companions.changed.append(_attend)
