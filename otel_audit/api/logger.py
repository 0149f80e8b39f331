"""The logger: every way to say what happened ends in `AuditLogger.emit`.

Promises: `emit` MUST NOT give an `AuditReceipt` before the record is durable;
in a thread with a running event loop it never blocks, unless it is told to. Bad
input is an `AuditEventError` at the call, or altered and marked; it never
costs the record.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from otel_audit.api.context import current_scope
from otel_audit.api.current import get_audit_provider, provider_for
from otel_audit.api.receipt import PendingReceipt
from otel_audit.errors import AuditEventError, AuditUnavailableError, OtelAuditError
from otel_audit.record.event import UNSAID, AuditEvent
from otel_audit.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.context import Context

    from otel_audit.api.provider import AuditProvider
    from otel_audit.api.receipt import AuditReceipt, Receipt

_COMPLETE_SECONDS: Final = 2.0

_OF_THE_EVENT = ("resource_type", "resource_name", "error", "retention")


class AuditLogger:
    """Emits audit events to one provider.

    ``get_audit_logger(name)`` gives one that uses the global provider, also
    one that is configured later. Given ``provider``, or any of ``log_dir``,
    ``enable_local_file``, ``enable_loki`` and ``loki_endpoint``, it uses that
    one, or one made of these settings. ``name`` becomes the record's field
    ``logger``.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        provider: AuditProvider | None = None,
        enable_loki: bool | None = None,
        enable_local_file: bool | None = None,
        loki_endpoint: str | None = None,
        log_dir: str | Path | None = None,
    ) -> None:
        """Choose the provider. Raises `AuditSettingsError` and `TrailError`."""
        self.name = name
        overrides = {
            "loki_enabled": enable_loki,
            "mirror": enable_local_file,
            "loki_endpoint": loki_endpoint,
            "log_dir": log_dir,
        }
        if provider is None and any(value is not None for value in overrides.values()):
            provider = provider_for(Settings.from_env(**overrides))
        self._provider = provider

    @property
    def provider(self) -> AuditProvider:
        """The provider that this logger emits to."""
        return self._provider or get_audit_provider()

    @property
    def audit_log_file(self) -> Path | None:
        """The mirror: one JSON line a record, None without a mirror.

        So that what was logged can be read from it at once, it waits until the
        file has it, for at most two seconds; `flush` waits for longer, and says
        whether it has.
        """
        provider = self.provider
        path = provider.settings.mirror_file
        if path is not None:
            with suppress(OtelAuditError):  # said by those whose business it is
                provider.flush(_COMPLETE_SECONDS)
        return path

    def emit(
        self, event: AuditEvent, context: Context | None = None, *, wait: bool = False
    ) -> Receipt:
        """Record the event.

        ``context`` says in which span and request it happened, and who acted;
        default: the current one, as in OpenTelemetry's own loggers.

        Without a running event loop in this thread: blocks until the record is
        durable and returns its `AuditReceipt`. With one: returns a
        `PendingReceipt` at once; inside a request the middleware awaits it
        before the response starts. ``wait=True`` blocks there as well: for code
        that blocks the loop anyway, and must not go on before. Raises
        `AuditEventError`, and `AuditUnavailableError` when the record is not
        confirmed and the policy says fail.
        """
        provider = self._provider or get_audit_provider()
        try:
            record_id, record, on_failure, scope = provider.records.write(event, self.name, context)
        except AttributeError:
            _check(event)
            raise
        if scope is None and context is not None:
            scope = current_scope()  # who said it waits for it, wherever it happened
        if record is None:
            return provider.unrecorded(record_id)
        try:
            waits = wait or _get_running_loop() is None
            put = provider.commit if waits else provider.submit
            receipt = put(record_id, record, on_failure)
        except AuditUnavailableError as error:
            # Whoever swallows this error must still not get a 200 sent.
            if scope is not None:
                scope.failure = error
            raise
        if scope is not None and type(receipt) is PendingReceipt:
            scope.pending.append(receipt)
        return receipt

    async def aemit(self, event: AuditEvent, context: Context | None = None) -> AuditReceipt:
        """Record the event and return when it is durable. Raises as `emit`."""
        return await self.emit(event, context)

    def audit_event(
        self,
        event_type: str,
        action: str,
        resource_type: str | None = None,
        resource_name: str | None = None,
        status: str = UNSAID,
        error: str | BaseException | None = None,
        *,
        severity: str | None = None,
        **fields: Any,
    ) -> Receipt:
        """Record that ``action`` was done to a resource; the event's name is its type.

        ``severity`` is the level, in any usual spelling; ``level=`` and
        ``retention=`` are taken as in `log_event`. Where no status is given, an
        ``outcome=`` among the fields is the status.
        """
        if severity is None:
            severity = fields.pop("level", None)
        return self.emit(
            AuditEvent(
                event_type,
                action,
                None,
                status,
                severity,
                resource_type,
                resource_name,
                error,
                fields.pop("retention", None),
                fields,
            )
        )

    def log_event(
        self, event_type: str, action: str, status: str = UNSAID, **fields: Any
    ) -> Receipt:
        """Record an event that needs no resource; ``resource_type=`` and so on are taken too."""
        return self._named(event_type, action, status, fields)

    def debug(self, event: str, action: str, status: str = UNSAID, **fields: Any) -> Receipt:
        """Record at level debug."""
        return self._at("debug", event, action, status, fields)

    def info(self, event: str, action: str, status: str = UNSAID, **fields: Any) -> Receipt:
        """Record at level info."""
        return self._at("info", event, action, status, fields)

    def warning(self, event: str, action: str, status: str = UNSAID, **fields: Any) -> Receipt:
        """Record at level warning."""
        return self._at("warning", event, action, status, fields)

    def error(self, event: str, action: str, status: str = "failed", **fields: Any) -> Receipt:
        """Record at level error."""
        return self._at("error", event, action, status, fields)

    def critical(self, event: str, action: str, status: str = "failed", **fields: Any) -> Receipt:
        """Record at level critical."""
        return self._at("critical", event, action, status, fields)

    def log_ai_provider_call(
        self,
        provider: str,
        model: str,
        tokens_used: int,
        cost_usd: float,
        latency_ms: float,
        success: bool,  # noqa: FBT001 - the signature that existing code calls
        **fields: Any,
    ) -> Receipt:
        """Record a call of an AI provider (event ``ai_provider_call``)."""
        facts = {
            "provider": provider,
            "model": model,
            "tokens_used": tokens_used,
            "cost_usd": cost_usd,
            "latency_ms": latency_ms,
            "resource_type": "ai_model",
            "resource_name": model,
        }
        return self._named(
            "ai_provider_call", "call", "success" if success else "failed", {**facts, **fields}
        )

    def log_task_execution(
        self,
        task_id: str,
        agent: str,
        status: str,
        duration_ms: float,
        result_quality: float | str | None = None,
        **fields: Any,
    ) -> Receipt:
        """Record that an agent ran a task (event ``task_execution``)."""
        facts = {
            "task_id": task_id,
            "agent": agent,
            "duration_ms": duration_ms,
            "resource_type": "task",
            "resource_name": task_id,
            **_given(result_quality=result_quality),
        }
        return self._named("task_execution", "execute", status, {**facts, **fields})

    def log_security_event(
        self,
        event_type: str,
        severity: str,
        description: str,
        user_id: str | None = None,
        ip_address: str | None = None,
        **fields: Any,
    ) -> Receipt:
        """Record something that security people should see (status ``detected``).

        ``severity`` is a level, or low, medium, high, and stays a field as well.
        ``user_id`` and ``ip_address`` are what the event is about; they do not
        become the actor.
        """
        facts = {
            "description": description,
            **_given(severity=severity, user_id=user_id, ip_address=ip_address),
        }
        level = fields.pop("level", severity)
        return self._named(event_type, "detect", "detected", {**facts, **fields}, level=level)

    def log_system_event(
        self,
        component: str,
        event: str,
        status: str,
        details: Any = None,  # noqa: ANN401 - whatever describes the event
        **fields: Any,
    ) -> Receipt:
        """Record what happened to a part of the system (type ``system_event``)."""
        facts = {
            "component": component,
            "resource_type": "component",
            "resource_name": component,
            **_given(details=details),
        }
        return self._named(event, event, status, {**facts, **fields}, event_type="system_event")

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all records are durable and in the mirror; False when time is up."""
        return self.provider.flush(timeout)

    def close(self) -> None:
        """Close this logger's own provider; the global one stays open."""
        if self._provider is not None:
            self._provider.close()

    def _at(
        self, level: str, event: str, action: str, status: str, fields: dict[str, Any]
    ) -> Receipt:
        severity = fields.pop("severity", None)
        level = level if severity is None else severity
        return self._named(event, action, status, fields, level=level)

    def _named(
        self,
        event: str,
        action: str,
        status: str,
        fields: dict[str, Any],
        *,
        event_type: str | None = None,
        level: str | None = None,
    ) -> Receipt:
        said = {name: fields.pop(name) for name in _OF_THE_EVENT if name in fields}
        # Only the first is taken: a level that says something else stays a field, and in the record.
        if level is None:
            level = fields.pop("severity", None)
            if level is None:
                level = fields.pop("level", None)
        return self.emit(
            AuditEvent(event, action, event_type, status, level, fields=fields, **said)
        )


def _check(event: object) -> None:
    """Say what to pass instead of what is no event. Raises `AuditEventError`."""
    if not isinstance(event, AuditEvent):
        message = (
            f"emit() takes an AuditEvent, not {type(event).__name__}: pass "
            "AuditEvent(event, action, ...), or call audit_event(event_type, action, ...)"
        )
        raise AuditEventError(message) from None


def _given(**facts: Any) -> dict[str, Any]:
    """Leave out what the caller did not say."""
    return {name: value for name, value in facts.items() if value is not None}


def get_audit_logger(name: str | None = None) -> AuditLogger:
    """Return a logger of the global provider, which is opened when it first emits."""
    return AuditLogger(name)


audit_event: Final = AuditLogger().audit_event
"""The method, as a function of the module: emits to whichever provider is the global one."""
