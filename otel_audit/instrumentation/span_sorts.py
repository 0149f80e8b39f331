"""What the policy's rules say of spans of one sort, asked once for spans that are alike.

Promises: `SpanSort.events_of` returns what the rules say of the span, whether
they are asked or it is remembered. Statements with parameters are few, and come
again and again; of one that differs each time, nothing is gained.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from opentelemetry.trace import StatusCode

from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from otel_audit.api.derived import SpanRule

_NAMES: Final = 4_096
"""Of attributes, for which it is kept which rules ask for them."""

_REMEMBERED: Final = 256
"""Spans of one sort of which it is remembered what the rules say; without parameters all differ."""

_LONGEST: Final = 1_000
"""Characters of an attribute of a span that is remembered."""

_PLAIN: Final = frozenset({str, bool, int, float})

_DURATION: Final = "duration_ms"
"""The one fact that differs between spans that are alike otherwise."""

_FACTS: Final = ("name", "kind", "scope", "status", "error", _DURATION, "total_tokens")
"""What a rule can name of a span beside its attributes."""

_EXCEPTION: Final = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:Error|Exception)")
"""A class's name that nobody would write as a message."""

_NUMBERS: Final = frozenset({int, float})
_INPUT: Final = "gen_ai.usage.input_tokens"
_OUTPUT: Final = "gen_ai.usage.output_tokens"

_Alike: TypeAlias = tuple[object, ...]
"""What spans have in common of which the rules say the same: all but the duration."""


class _Asking(NamedTuple):
    """A rule made for spans with certain attributes.

    ``durations`` are the fields that are just how long a span took; None where
    that is a part of something else the rule says.
    """

    rule: SpanRule
    durations: tuple[str, ...] | None


class _Said(NamedTuple):
    """What a rule says of a span, and which of the fields are how long it took."""

    event: AuditEvent
    with_fields: Callable[[dict[str, Any]], AuditEvent]
    durations: tuple[str, ...]

    @classmethod
    def of(cls, event: AuditEvent, durations: tuple[str, ...]) -> _Said:
        """Keep how to make the event again, with other fields."""
        with_fields = functools.partial(
            AuditEvent, event.event, event.action, event.event_type, event.status, event.level,
            event.resource_type, event.resource_name, event.error, event.retention,
        )  # fmt: skip
        return cls(event, with_fields, durations)

    def after(self, duration: float) -> AuditEvent:
        """Return the event of a span that is alike but for its duration."""
        event, with_fields, durations = self
        if not durations:
            return event
        fields = {**event.fields}
        for name in durations:
            fields[name] = duration
        return with_fields(fields)


class SpanSort:
    """Spans of one tracer and kind: their rules, and what these made of spans before.

    Statements with parameters are few, and come again and again: what the
    rules say of a span depends on its name, its status and its attributes, and
    of what else there is only a failure's description and the duration differ.
    """

    __slots__ = ("_by_names", "_kind", "_said", "_tracer", "rules")

    def __init__(self, tracer: str, kind: str, rules: tuple[SpanRule, ...]) -> None:
        self.rules = rules
        self._tracer = tracer
        self._kind = kind
        self._by_names: dict[tuple[str, ...], tuple[_Asking, ...]] = {}
        self._said: dict[_Alike, tuple[_Said, ...]] = {}

    def events_of(self, span: ReadableSpan, attributes: dict[str, Any]) -> list[AuditEvent]:
        """Return what the rules say of a span."""
        status, duration = _status(span), _duration(span)
        values = attributes.values()
        # The types as well: 1 and True are equal.
        alike: _Alike = (span.name, status, *attributes, *values, *map(type, values))
        try:
            before = self._said.get(alike)
        except TypeError:  # a value that is no key is not remembered either
            before = None
        if before is not None and duration is not None:
            return [said.after(duration) for said in before]
        said, lasting = self._judged(span, attributes, status, duration)
        if lasting:
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said[alike] = tuple(said)
        return [one.event for one in said]

    def _judged(
        self,
        span: ReadableSpan,
        attributes: dict[str, Any],
        status: str,
        duration: float | None,
    ) -> tuple[list[_Said], bool]:
        """Ask the rules; the flag says whether they would say the same of spans that are alike."""
        names = (*attributes,)
        asking = self._by_names.get(names)
        if asking is None:
            asking = self._asking_for(names)
        if not asking:
            return [], False  # found as quickly again
        facts = _facts(span, status, self._kind, self._tracer, attributes, duration)
        how, error = ("failed", facts["error"]) if status == "error" else ("success", None)
        said = []
        lasting = (
            status != "error" and duration is not None and all(map(_lasts, attributes.values()))
        )
        for rule, durations in asking:
            if rule.matches(span.name, status, attributes):
                lasting = lasting and durations is not None
                said.append(_Said.of(rule.saying.say(facts, how, error), durations or ()))
        return said, lasting

    def _asking_for(self, names: tuple[str, ...]) -> tuple[_Asking, ...]:
        """Return the rules that a span with these attributes could match, made for those."""
        rules = [rule.narrowed(names, _FACTS) for rule in self.rules if rule.asks_for(names)]
        found = tuple(_Asking(rule, rule.saying.fields_that_are(_DURATION)) for rule in rules)
        if len(self._by_names) >= _NAMES:
            self._by_names.clear()
        self._by_names[names] = found
        return found


def _status(span: ReadableSpan) -> str:
    code = span.status.status_code
    if code is StatusCode.UNSET:
        return "unset"
    return "error" if code is StatusCode.ERROR else "ok"


def _lasts(value: object) -> bool:
    """Whether a span with this attribute is remembered: it is plain, and takes little room."""
    return type(value) in _PLAIN and (type(value) is not str or len(value) <= _LONGEST)


def _duration(span: ReadableSpan) -> float | None:
    started, ended = span.start_time, span.end_time
    if started is None or ended is None:
        return None
    # To the microsecond, in whole numbers: round() costs three times as much.
    return (ended - started + 500) // 1_000 / 1_000


def _facts(
    span: ReadableSpan,
    status: str,
    kind: str,
    scope: str,
    attributes: dict[str, Any],
    duration: float | None,
) -> dict[str, Any]:
    """Return what a rule's templates can name: the attributes, and what is in none."""
    facts = {**attributes, "name": span.name, "kind": kind, "scope": scope, "status": status}
    if status == "error":
        facts["error"] = _kind_of_failure(span, facts.get("error.type"))
    if duration is not None:
        facts[_DURATION] = duration
    tokens = [facts[name] for name in (_INPUT, _OUTPUT) if type(facts.get(name)) in _NUMBERS]
    if tokens:
        facts["total_tokens"] = sum(tokens)
    return facts


def _kind_of_failure(span: ReadableSpan, said: object) -> str:
    """Return the type of what went wrong, never its text, which may quote what users typed."""
    if said:
        return str(said)
    for event in reversed(span.events):
        kind = (event.attributes or {}).get("exception.type")
        if kind:
            return str(kind)
    # The SDK writes "ValueError: text", other people the text alone.
    kind, colon, _ = (span.status.description or "").partition(": ")
    return kind if colon and _EXCEPTION.fullmatch(kind) else "error"
