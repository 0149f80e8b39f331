"""The way of an event to its bytes: context, policy, redaction, encoding.

Each stage is a plain callable over one draft and is tested by calling it.
`Stages.prepare` runs them in order and promises: it raises only
`AuditEventError`, whatever the event holds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from opentelemetry.context import get_current
from opentelemetry.trace import get_current_span

from otel_audit.api.context import actor_in, current_scope
from otel_audit.record import coerce
from otel_audit.record.classes import CLASSES, missing
from otel_audit.record.encode import free_name, merge_fields, timestamp_of
from otel_audit.record.event import LEVELS, Draft, level_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext

    from otel_audit.api.policy import Policy
    from otel_audit.record.event import AuditEvent, Stage
    from otel_audit.record.redact import Redactor

_TEXTS: Final = (
    "event", "action", "event_type", "status", "resource_type", "resource_name", "retention",
)  # fmt: skip


class Stages:
    """The stages of one provider, bound to its policy, rules and clock."""

    def __init__(
        self,
        *,
        policy: Policy,
        redactor: Redactor,
        service_name: str,
        resource: str,
        clock: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        """Bind what the stages need; ``clock`` gives Unix nanoseconds."""
        self.policy = policy
        self.redactor = redactor
        self.service_name = service_name
        self.resource = resource
        self.clock = clock
        self.new_id = new_id
        self._stages: tuple[Stage, ...] = (
            partial(plain, redactor=redactor),
            in_trace,
            self.in_context,
            policy,
            flag_missing,
            self.redacted,
        )

    def prepare(
        self, event: AuditEvent, logger: str | None = None, context: Context | None = None
    ) -> Draft:
        """Run all stages; see `RecordWriter.write`. Raises `AuditEventError`."""
        draft = Draft(event, self.new_id(), timestamp_of(self.clock()))
        draft.context = get_current() if context is None else context
        for stage in self._stages:
            stage(draft)
        if logger is not None:
            draft.fields.setdefault("logger", logger)
        return draft

    def in_context(self, draft: Draft) -> None:
        """Say who wrote the record and, from the OTel Context, who asked."""
        draft.service_name = self.service_name
        draft.resource = self.resource
        context = draft.context
        scope = draft.scope = current_scope(context)
        actor = actor_in(scope, context)
        if scope is not None:
            draft.request_id = scope.request_id
            draft.client_id = scope.client_id
            draft.client_ip = scope.client_ip
            draft.session_id = scope.session_id
            draft.user_agent = scope.user_agent
        if actor is not None:
            draft.actor_id, draft.actor_type, draft.actor_verified = actor
        elif scope is not None:
            draft.actor_id, draft.actor_type, draft.actor_verified = "anonymous", "user", False
        else:
            draft.actor_id, draft.actor_type = self.service_name, "service"
        fields, altered = coerce.plain(draft.source.fields, self.redactor)
        renamed = merge_fields(draft, fields)
        draft.coerced += [renamed.get(name, name) for name in altered]
        if draft.severity is not None:
            if fields.get("severity") != draft.severity:
                fields[free_name("severity", fields)] = draft.severity
            draft.coerced.append("level")

    def redacted(self, draft: Draft) -> None:
        """Take secrets out of what the caller said, and out of what says that it was altered."""
        name, error = draft.resource_name, draft.error
        said = list(draft.fields) if draft.coerced else []
        name, error = self.redactor.fields(draft.fields, name or "", error or "")
        if said:
            # A name may hold a secret itself; each keeps its place, whatever it is called now.
            called = dict(zip(said, draft.fields, strict=True))
            draft.coerced = [called.get(name, name) for name in draft.coerced]
        draft.resource_name = name if draft.resource_name is not None else None
        draft.error = error if draft.error is not None else None


def plain(draft: Draft, redactor: Redactor | None = None) -> None:
    """Make plain text of the record's own words; where one is cut, ``redactor`` looks first."""
    for name in _TEXTS:
        value: object = getattr(draft, name)
        if value is not None and not (type(value) is str and value.isascii()):
            setattr(draft, name, _text_of(draft, name, value, redactor))
    level: object = draft.level
    if level is not None and not (type(level) is str and level in LEVELS):
        severity = _text_of(draft, "level", level, redactor)
        draft.level = level_named(severity)
        if draft.level is None:
            # An odd word for the level must not cost the record: it is kept as a field.
            draft.severity = severity
    error = draft.source.error
    if error is not None:
        _explain(draft, error, redactor)


def in_trace(draft: Draft) -> None:
    """Tie the record to the current span."""
    context = get_current_span(draft.context).get_span_context()
    cached, formatted = _last_span
    if context is cached:
        draft.trace_id, draft.span_id, draft.trace_flags = formatted
    elif context.is_valid:
        draft.trace_id, draft.span_id, draft.trace_flags = ids_of(context)


def flag_missing(draft: Draft) -> None:
    """Name the fields that the event's class expects and that nobody gave."""
    if draft.event_type in CLASSES:
        own = {name: getattr(draft, name) for name in ("actor_id", "client_ip", *_TEXTS)}
        draft.missing_fields = missing(draft.event_type, own, draft.fields) or None


_last_span: tuple[SpanContext | None, tuple[str, str, str]] = (None, ("", "", ""))


def ids_of(context: SpanContext) -> tuple[str, str, str]:
    """Format trace id, span id and flags, of a span once: its records usually come in a row."""
    global _last_span  # noqa: PLW0603 - one tuple, replaced whole, so threads cannot mix it up
    formatted = (
        format(context.trace_id, "032x"),
        format(context.span_id, "016x"),
        format(context.trace_flags, "02x"),
    )
    _last_span = (context, formatted)
    return formatted


def _text_of(draft: Draft, name: str, value: object, redactor: Redactor | None) -> str:
    converted, altered = coerce.plain({name: value}, redactor)
    text = converted.get(name)
    if type(text) is not str:
        text = str(text)
    draft.coerced += altered
    return text


def _explain(draft: Draft, error: str | BaseException, redactor: Redactor | None) -> None:
    if isinstance(error, BaseException):
        draft.error_type = type(error).__name__
        try:
            error = str(error) or type(error).__name__
        except Exception:  # noqa: BLE001 - an exception's text is code of its author
            error = type(error).__name__
            draft.coerced.append("error")
    converted, altered = coerce.plain({"error": error}, redactor)
    draft.error = str(converted.get("error"))
    draft.coerced += altered
