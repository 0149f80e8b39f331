"""From events to records: the short way for ordinary ones, the stages for all others.

Most records differ from others in few places. What follows from an event's own
words (level, outcome, the policy's decision) is worked out once for all events
of those words; the request, the span and the service are written once each. So
an ordinary record costs little more than encoding the caller's fields.

Promises: `RecordWriter.write` returns what the stages and `encode` make of the
event, byte for byte, whichever way it goes (as long as texts that are equal are
the same, which a subclass of str may deny). Ordinary is an event that needs no
conversion, no redaction and no shortening. Nothing that has to be hidden
passes: names and texts are judged by the same `Redactor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import orjson
from opentelemetry.context import Context, get_current
from opentelemetry.trace import INVALID_SPAN, get_current_span, set_span_in_context

from otel_audit.api.context import actor_in, current_scope
from otel_audit.api.stages import Stages, ids_of, plain
from otel_audit.record.classes import CLASSES, missing
from otel_audit.record.encode import LIMIT, encode, members, timestamp_of
from otel_audit.record.event import RESERVED, SCHEMA, AuditEvent, Draft, level_of, outcome_of

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from otel_audit.api.context import Actor, RequestScope

Written: TypeAlias = "tuple[str, bytes | None, str, RequestScope | None]"
"""Record id, canonical bytes (None: the policy does not want it), what a failure means, request."""

_REMEMBERED: Final = 4_096
"""How many wordings and names: those made of user input must not fill the memory."""

_ROOM: Final = 2_048
"""Bytes of ordinary fields: too few for any limit of coerce.py, however they are distributed."""

_TEXT: Final = frozenset({str, type(None)})

(_SPAN,) = set_span_in_context(INVALID_SPAN, Context())
"""Under which key a Context has its span: to look there takes a fifth of `get_current_span`."""

_ANONYMOUS: Final = ',"actor_id":"anonymous","actor_type":"user","actor_verified":false'


class _Wording(NamedTuple):
    """What follows from an event's own words."""

    before_id: str
    after_id: str
    resource_type: str
    last: str
    service_acts: str
    on_failure: str
    event_class: str | None


_ODD: Final = _Wording("", "", "", "", "", "", None)
"""Stands for words that the stages have to look at each time."""


class RecordWriter:
    """Writes the records of one provider. Safe for threads."""

    def __init__(self, stages: Stages) -> None:
        """Take the long way; the short one uses its policy, rules, clock and names."""
        self._stages = stages
        self._passes = stages.redactor.passes
        self._wordings: dict[tuple[object, ...], _Wording] = {}
        self._names: set[str] = set()
        self._span: tuple[Any, SpanContext | None, str] = (None, None, "")

    def write(
        self, event: AuditEvent, logger: str | None = None, context: Context | None = None
    ) -> Written:
        """Return the event's record; ``logger`` is the logger's name. Raises `AuditEventError`.

        ``context`` says where it happened and who acted; default: the current one.
        """
        if context is None:
            context = get_current()
        try:
            written = self._ordinary(event, logger, context)
        except Exception:  # noqa: BLE001 - whatever is odd about the event, the stages know
            written = None
        if written is not None:
            return written
        draft = self._stages.prepare(event, logger, context)
        record = encode(draft) if draft.wanted else None
        return draft.record_id, record, draft.on_failure, draft.scope

    def _ordinary(self, event: AuditEvent, logger: str | None, context: Context) -> Written | None:
        """Put an ordinary record together; None, or any exception, for all others."""
        words = (
            event.event, event.action, event.event_type, event.status, event.level,
            event.resource_type, event.retention,
        )  # fmt: skip
        wording = self._wordings.get(words) or self._learned(words)
        if wording is _ODD or type(event.fields) is not dict:
            return None
        # A copy: what is judged has to be what is written, whatever other threads do to it.
        fields = event.fields.copy()
        name = event.resource_name
        error: Any = event.error
        if not (
            # What an exception says has to be found out, and what an Enum's member means.
            _TEXT.issuperset((type(name), type(error)))
            and (self._names.issuperset(fields) or self._learn(fields))
            and self._passes(fields, name or "", error or "")
        ):
            return None
        said = orjson.dumps(fields)
        if len(said) > _ROOM:
            return None
        scope = current_scope(context)
        actor = actor_in(scope, context)
        if actor is not None:
            acts = _acts(actor)
        else:
            acts = wording.service_acts if scope is None else _ANONYMOUS
        if wording.event_class is not None and _misses(
            wording.event_class, event, fields, scope, actor
        ):
            return None
        record_id = self._stages.new_id()
        record = (
            f'{{"schema":"{SCHEMA}","timestamp":"{timestamp_of(self._stages.clock())}{wording.before_id}'
            f"{record_id}{wording.after_id}{acts}{wording.resource_type}"
            f"{'' if name is None else _member('resource_name', name)}"
            f"{'' if scope is None else scope.members()}"
            f"{'' if error is None else _member('error', error)}"
            f"{self._trace(context)}{wording.last}"
        ).encode()
        if logger is not None and "logger" not in fields:
            said = said[:-1] + f'{"," if fields else ""}"logger":{_text(logger)}}}'.encode()
        record += b"}" if said == b"{}" else b"," + said[1:]
        return None if len(record) > LIMIT else (record_id, record, wording.on_failure, scope)

    def _learned(self, words: tuple[Any, ...]) -> _Wording:
        # Not remembered: what is no text, as 1 and True are the same key; and long ones.
        texts = [word for word in words if word is not None]
        if not all(isinstance(text, str) for text in texts) or sum(map(len, texts)) > _ROOM:
            return _ODD
        wording = self._judged(*words)
        if len(self._wordings) >= _REMEMBERED:
            self._wordings.clear()
        self._wordings[words] = wording
        return wording

    def _judged(
        self,
        event: str,
        action: str,
        event_type: str | None,
        status: str,
        level: str | None,
        resource_type: str | None,
        retention: str | None,
    ) -> _Wording:
        """Work out by the stages themselves what follows from these words."""
        if self._stages.policy.narrow:
            return _ODD  # more than words decides
        said = AuditEvent(
            event, action, event_type, status, level, resource_type, retention=retention
        )
        draft = Draft(said, "", "")
        plain(draft)
        decision = self._stages.policy(draft)
        if not draft.wanted or decision.redact or draft.coerced or draft.severity is not None:
            return _ODD
        level = draft.level or level_of(draft.status, draft.event_type)
        return _Wording(
            before_id=f'","level":"{level}"{_member("event", draft.event)},"record_id":"',
            after_id='"'
            + _member("event_type", draft.event_type)
            + _member("action", draft.action)
            + _member("status", draft.status)
            + _member("outcome", outcome_of(draft.status)),
            resource_type=_member("resource_type", draft.resource_type),
            last=_member("service_name", self._stages.service_name)
            + _member("resource", self._stages.resource)
            + _member("retention", draft.retention),
            service_acts=_member("actor_id", self._stages.service_name) + ',"actor_type":"service"',
            on_failure=draft.on_failure,
            event_class=draft.event_type if draft.event_type in CLASSES else None,
        )

    def _learn(self, fields: dict[str, object]) -> bool:
        """Remember the names if all are ordinary, neither the record's own nor possibly secrets'."""
        names = self._names
        if not (RESERVED.isdisjoint(fields) and self._stages.redactor.knows(fields)):
            return False
        if len(names) >= _REMEMBERED:
            names.clear()
        names.update(fields)
        return True

    def _trace(self, context: Context) -> str:
        """Write the ids of a span once: its records usually come in a row."""
        span: Any = context.get(_SPAN)
        known, there, trace = self._span
        if span is known and (span is None or span.get_span_context() is there):
            return trace
        here = get_current_span(context).get_span_context()
        trace = ""
        if here.is_valid:
            ids = zip(("trace_id", "span_id", "trace_flags"), ids_of(here), strict=True)
            trace = members(dict(ids))
        # One tuple, replaced whole, so that threads cannot mix it up.
        self._span = (span, here, trace)
        return trace


def _acts(actor: Actor) -> str:
    facts: dict[str, object] = {"actor_id": actor.id, "actor_type": actor.type}
    if actor.verified is not None:
        facts["actor_verified"] = actor.verified
    return members(facts)


def _misses(
    event_class: str,
    event: AuditEvent,
    fields: dict[str, object],
    scope: RequestScope | None,
    actor: Actor | None,
) -> bool:
    """Whether a field that the event's class expects may be missing, which the record has to say."""
    if type(event.resource_type) not in _TEXT:
        return True  # the stages know what it stands for
    own = {"resource_type": event.resource_type, "resource_name": event.resource_name}
    if actor is not None or scope is None:
        own["actor_id"] = "the service" if actor is None else actor.id
    if scope is not None:
        own["client_ip"] = scope.client_ip
    return bool(missing(event_class, own, fields))


def _member(name: str, text: str | None) -> str:
    return "" if text is None else f',"{name}":{_text(text)}'


def _text(text: str) -> str:
    """Write a text as JSON. Raises `TypeError` where JSON cannot hold it: a lone surrogate."""
    return orjson.dumps(text).decode()
