"""Rules of the policy that turn spans of other people's instrumentations into records.

Promises: a span that no rule can match costs a dictionary look-up; one that
matches is recorded under its own trace and span id, whether or not it is
sampled for export. Inside a request the answer waits for the record like for
any other, if the span ends before the answer; a span that ends later, such as
the server span itself, is recorded after it. What goes wrong here never
reaches the library whose span it was: a record that is not confirmed makes the
request fail, elsewhere it is logged.

Two things are added to a provider of OpenTelemetry, its own or anybody's: a
span processor, and a sampler around its sampler that records what a rule could
match and the sampler drops, without having it exported. Both are added when
the provider is made, because tracers copy the sampler.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from otel_audit.api.current import get_audit_provider
from otel_audit.api.logger import get_audit_logger
from otel_audit.errors import OtelAuditError
from otel_audit.instrumentation.given import GivenAttributes
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSet, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

    from otel_audit.api.derived import SpanRule
    from otel_audit.api.logger import AuditLogger

_logger: Final = logging.getLogger("otel_audit.instrumentation")

_OURS: Final = "otel_audit"
_KINDS: Final = {kind: kind.name.lower() for kind in trace.SpanKind}
_CACHED: Final = 4_096
_REMEMBERED: Final = 256
"""Spans of one sort of which it is remembered what the rules say; without parameters all differ."""

_LONGEST: Final = 1_000
"""Characters of an attribute of a span that is remembered."""

_PLAIN: Final = frozenset({str, bool, int, float})

_DURATION: Final = "duration_ms"
"""The one fact that differs between spans that are alike otherwise."""

_FACTS: Final = ("name", "kind", "scope", "status", "error", _DURATION, "total_tokens")
"""What a rule can name of a span beside its attributes."""
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
    durations: tuple[str, ...]

    def after(self, duration: float | None) -> AuditEvent:
        """Return the event of a span that is alike but for its duration."""
        event, durations = self
        if not durations:
            return event
        fields = dict(event.fields)
        for name in durations:
            fields[name] = duration
        return AuditEvent(
            event.event, event.action, event.event_type, event.status, event.level,
            event.resource_type, event.resource_name, event.error, event.retention, fields,
        )  # fmt: skip


class _Sort:
    """Spans of one tracer and kind: their rules, and what these made of spans before.

    Statements with parameters are few, and come again and again: what the
    rules say of a span depends on its name, its status and its attributes, and
    of what else there is only a failure's description and the duration differ.
    """

    __slots__ = ("by_names", "kind", "rules", "said")

    def __init__(self, kind: str, rules: tuple[SpanRule, ...]) -> None:
        self.kind = kind
        self.rules = rules
        self.by_names: dict[tuple[str, ...], tuple[_Asking, ...]] = {}
        self.said: dict[_Alike, tuple[_Said, ...]] = {}

    def remember(self, alike: _Alike, attributes: dict[str, Any], said: list[_Said]) -> None:
        """Keep what the rules say of spans that are alike, unless it would take much room."""
        if any(isinstance(value, str) and len(value) > _LONGEST for value in attributes.values()):
            return
        if len(self.said) >= _REMEMBERED:
            self.said.clear()
        self.said[alike] = tuple(said)

    def asking_for(self, names: tuple[str, ...]) -> tuple[_Asking, ...]:
        """Return the rules that a span with these attributes could match, made for those."""
        rules = [rule.narrowed(names, _FACTS) for rule in self.rules if rule.asks_for(names)]
        found = tuple(_Asking(rule, rule.saying.fields_that_are(_DURATION)) for rule in rules)
        if len(self.by_names) >= _CACHED:
            self.by_names.clear()
        self.by_names[names] = found
        return found


class RuleProcessor(SpanProcessor):
    """Makes records of the spans that match."""

    def __init__(self, rules: tuple[SpanRule, ...], audit: AuditLogger) -> None:
        self.given = GivenAttributes()
        self._rules = rules
        self._audit = audit
        self._sorts: dict[tuple[str, int], _Sort] = {}

    @property
    def kinds(self) -> frozenset[SpanKind]:
        """The kinds of spans that a rule could match."""
        named = {name for rule in self._rules for name in rule.kinds}
        if any(not rule.kinds for rule in self._rules):
            return frozenset(_KINDS)
        return frozenset(kind for kind, name in _KINDS.items() if name in named)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Wait for the end: what a span is, is known then."""
        self.given.take(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Record the span if a rule says so. MUST NOT raise."""
        given = self.given.of(span)
        scope = span.instrumentation_scope
        tracer = "" if scope is None else scope.name
        kind = span.kind
        # By identity: to hash a member of an enumeration is a call of Python's.
        sort = self._sorts.get((tracer, id(kind))) or self._sort(tracer, kind)
        if not sort.rules:
            return
        attributes = _copied(span.attributes)
        if given:
            attributes = {**given, **attributes}
        names = (*attributes,)
        rules = sort.by_names.get(names)
        if rules is None:
            rules = sort.asking_for(names)
        if not rules:
            return
        for event in _events(span, sort, tracer, names, attributes, rules):
            self._record(span, event)

    def stop(self) -> None:
        """Match nothing any more."""
        self._rules = ()
        self._sorts.clear()

    def _sort(self, tracer: str, kind: SpanKind) -> _Sort:
        name = _KINDS[kind]
        # Our own spans have their records already.
        rules = () if tracer == _OURS else self._rules
        sort = _Sort(name, tuple(rule for rule in rules if rule.could_match(tracer, name)))
        if len(self._sorts) >= _CACHED:
            self._sorts.clear()
        self._sorts[tracer, id(kind)] = sort
        return sort

    def _record(self, span: ReadableSpan, event: AuditEvent) -> None:
        try:
            here = trace.set_span_in_context(trace.NonRecordingSpan(span.context))
            self._audit.emit(event, here)
        except OtelAuditError as error:
            # In a request, `emit` has left it for the barrier, so that the answer fails.
            _logger.error("the record of the span %r is not confirmed: %s", span.name, error)  # noqa: TRY400 - where it happened says nothing
        except Exception:
            _logger.exception("the span %r could not be recorded", span.name)


class RuleSampler(Sampler):
    """Has spans of some kinds recorded, but not exported, which ``inner`` would drop."""

    def __init__(self, inner: Sampler, kinds: frozenset[SpanKind], given: GivenAttributes) -> None:
        self.inner = inner
        self._kinds = kinds
        self._given = given

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide as the inner sampler, but record what a rule could match."""
        result = self.inner.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is Decision.DROP:
            if kind in self._kinds:
                return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        # Fewer than were given: comparing the names would cost each span more than it is worth.
        elif attributes and len(result.attributes) < len(attributes) and kind in self._kinds:
            self._given.hand(trace_id, name, attributes)
        return result

    def get_description(self) -> str:
        """Name the inner sampler, which decides what is exported."""
        return self.inner.get_description()


class SpanInstrumentor(AuditInstrumentor):
    """Has the policy's span rules looked at; without any it changes nothing."""

    name = "spans"
    requires = "opentelemetry-sdk >= 1.37"

    def _instrument(self, **options: Any) -> None:
        provider = get_audit_provider()
        rules: tuple[SpanRule, ...] = options.get("rules", provider.policy.spans)
        self._processor = RuleProcessor(rules, options.get("audit") or get_audit_logger())
        self._providers: MutableSet[Any] = WeakSet()
        self._patch: Patch | None = None
        if not rules or provider.disabled:
            return

        def make(original: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(original)
            def init(tracers: Any, *arguments: Any, **keywords: Any) -> None:
                original(tracers, *arguments, **keywords)
                self.equip(tracers)

            return init

        self._patch = Patch("opentelemetry.sdk.trace", "TracerProvider", "__init__", make)
        self._patch.apply()
        self.equip(trace.get_tracer_provider())

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        if self._patch is not None:
            self._patch.restore()
        self._processor.stop()
        for provider in list(self._providers):
            _set_sampler(provider, lambda sampler: getattr(sampler, "inner", sampler))
            processors = provider._active_span_processor  # noqa: SLF001 - there is no way to remove one
            rest = tuple(one for one in processors._span_processors if one is not self._processor)  # noqa: SLF001 - see above
            processors._span_processors = rest  # noqa: SLF001 - see above

    def equip(self, provider: Any) -> None:
        """Add processor and sampler to a provider, once; one that is none of the SDK's is left."""
        # Logfire's provider stands for one of the SDK's.
        provider = getattr(provider, "provider", provider)
        if provider in self._providers or not hasattr(provider, "_active_span_processor"):
            return
        self._providers.add(provider)
        kinds, given = self._processor.kinds, self._processor.given
        _set_sampler(provider, lambda sampler: RuleSampler(sampler, kinds, given))
        provider.add_span_processor(self._processor)


def _set_sampler(provider: Any, change: Callable[[Any], Any]) -> None:
    """Change a provider's sampler, and the copies that its tracers have."""
    provider.sampler = change(provider.sampler)
    tracers = getattr(provider, "_tracers", {})
    for tracer in list(tracers.values() if isinstance(tracers, dict) else tracers):
        tracer.sampler = provider.sampler


def _copied(attributes: Attributes) -> dict[str, Any]:
    """Copy a span's attributes: in one step where the SDK's own mapping can."""
    copy: Callable[[], dict[str, Any]] | None = getattr(attributes, "copy", None)
    return dict(attributes or {}) if copy is None else copy()


def _status(span: ReadableSpan) -> str:
    code = span.status.status_code
    if code is trace.StatusCode.UNSET:
        return "unset"
    return "error" if code is trace.StatusCode.ERROR else "ok"


def _events(
    span: ReadableSpan,
    sort: _Sort,
    tracer: str,
    names: tuple[str, ...],
    attributes: dict[str, Any],
    rules: Sequence[_Asking],
) -> list[AuditEvent]:
    """Return what the rules say of a span."""
    status, duration = _status(span), _duration(span)
    values = (*attributes.values(),)
    kinds = (*map(type, values),)
    # The types as well: 1 and True are equal, and so are sequences of them.
    alike: _Alike = (span.name, status, names, values, kinds)
    lasting = status != "error" and duration is not None and _PLAIN.issuperset(kinds)
    before = sort.said.get(alike) if lasting else None
    if before is not None:
        return [said.after(duration) for said in before]
    facts = _facts(span, status, sort.kind, tracer, attributes, duration)
    how, error = ("failed", facts["error"]) if status == "error" else ("success", None)
    said = []
    for rule, durations in rules:
        if rule.matches(span.name, status, attributes):
            lasting = lasting and durations is not None
            said.append(_Said(rule.saying.say(facts, how, error), durations or ()))
    if lasting:
        sort.remember(alike, attributes, said)
    return [one.event for one in said]


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
        facts["error"] = facts.get("error.type") or _kind_of(span.status.description)
    if duration is not None:
        facts[_DURATION] = duration
    if _INPUT in facts or _OUTPUT in facts:
        facts["total_tokens"] = facts.get(_INPUT, 0) + facts.get(_OUTPUT, 0)
    return facts


def _kind_of(description: str | None) -> str:
    """Return the type of an exception from a status, whose text may quote what users typed."""
    kind = (description or "").partition(":")[0]
    return kind if kind.isidentifier() or kind.replace(".", "").isidentifier() else "error"
