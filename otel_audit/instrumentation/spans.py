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
the provider is made, because tracers copy the sampler, or when it is set.
"""

from __future__ import annotations

import functools
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from otel_audit.api.companions import changed
from otel_audit.api.current import get_audit_provider
from otel_audit.api.logger import get_audit_logger
from otel_audit.api.silent import silent_rules
from otel_audit.errors import OtelAuditError
from otel_audit.instrumentation.given import GivenAttributes
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.instrumentation.span_sorts import SpanSort
from otel_audit.record.coerce import plain
from otel_audit.settings import first_to_say

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSet, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

    from otel_audit.api.derived import SpanRule
    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.record.event import AuditEvent

_logger: Final = logging.getLogger("otel_audit.instrumentation")

_OURS: Final = "otel_audit"
_KINDS: Final = {kind: kind.name.lower() for kind in trace.SpanKind}
_SORTS: Final = 4_096
"""Tracers and kinds of spans; who makes up tracers' names must not fill the memory."""


_OWN: Final = frozenset({"rules", "audit"})
"""Options by which somebody has other spans or another logger than the global provider's."""


class RuleProcessor(SpanProcessor):
    """Makes records of the spans that match."""

    kinds: frozenset[SpanKind]
    """The kinds of spans that a rule could match."""

    def __init__(self, rules: tuple[SpanRule, ...], audit: AuditLogger) -> None:
        self.given = GivenAttributes()
        self._audit = audit
        self.use(rules)

    def use(self, rules: tuple[SpanRule, ...]) -> None:
        """Look at these rules from now on."""
        self.kinds = _kinds(rules)
        # In this order: what is sorted by earlier rules must not get among the new sorts.
        self._rules = rules
        self._sorts: dict[tuple[str, int], SpanSort] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Wait for the end: what a span is, is known then."""
        self.given.take(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Record the span if a rule says so. MUST NOT raise."""
        try:
            self._look_at(span)
        except Exception:
            _logger.exception("the span %r could not be recorded", span.name)

    def _look_at(self, span: ReadableSpan) -> None:
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
            # They are as they came from the library: anything, with code of its own.
            attributes = {**plain(given)[0], **attributes}
        for event in sort.events_of(span, attributes):
            self._record(span, event)

    def _sort(self, tracer: str, kind: SpanKind) -> SpanSort:
        name, sorts = _KINDS[kind], self._sorts
        # Our own spans have their records already.
        rules = () if tracer == _OURS else self._rules
        sort = SpanSort(
            tracer, name, tuple(rule for rule in rules if rule.could_match(tracer, name))
        )
        if len(sorts) >= _SORTS:
            sorts.clear()
        sorts[tracer, id(kind)] = sort
        return sort

    def _record(self, span: ReadableSpan, event: AuditEvent) -> None:
        try:
            here = trace.set_span_in_context(trace.NonRecordingSpan(span.context))
            self._audit.emit(event, here)
        except OtelAuditError as error:
            # In a request, `emit` has left it for the barrier, so that the answer fails.
            _logger.error("the record of the span %r is not confirmed: %s", span.name, error)  # noqa: TRY400 - where it happened says nothing


class RuleSampler(Sampler):
    """Has spans recorded, but not exported, which ``inner`` would drop and a rule could match."""

    def __init__(self, inner: Sampler, processor: RuleProcessor) -> None:
        self.inner = inner
        self.processor = processor

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
            if kind in self.processor.kinds:
                return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        # Fewer than were given: comparing the names would cost each span more than it is worth.
        elif (
            attributes and len(result.attributes) < len(attributes) and kind in self.processor.kinds
        ):
            self.processor.given.hand(trace_id, name, attributes)
        return result

    def get_description(self) -> str:
        """Name the inner sampler, which decides what is exported."""
        return self.inner.get_description()


class SpanInstrumentor(AuditInstrumentor):
    """Has the policy's span rules looked at; as long as there are none it changes nothing.

    The rules are those of the global provider, also of one that is configured later,
    unless ``rules=`` says others. A global provider that has some starts it by itself.
    """

    name = "spans"
    requires = "opentelemetry-sdk >= 1.37"
    _attending = False

    def instrument(self, **options: Any) -> None:
        """Instrument the SDK; who asks for it gets what is asked for, whatever runs by itself."""
        if self._attending and _OWN.isdisjoint(options):
            self._attending = False
            changed.append(self._follow)
            return
        if self._attending:
            self.uninstrument()
        super().instrument(**options)

    def attend(self, rules: tuple[SpanRule, ...]) -> None:
        """Look at these rules from now on, as long as there are some and nobody has asked for others.

        For whoever has set up a provider and no instrumentor: rules MUST NOT be dead for that.
        """
        if self._attending and rules:
            self._use(rules)
        elif self._attending:
            self.uninstrument()
        elif rules and not self.is_instrumented_by_opentelemetry:
            super().instrument(rules=rules)
            self._attending = self.is_instrumented_by_opentelemetry
        if self._attending:
            _warn_of_silent(rules)

    def _instrument(self, **options: Any) -> None:
        rules: tuple[SpanRule, ...] | None = options.get("rules")
        self._processor = RuleProcessor((), options.get("audit") or get_audit_logger())
        self._providers: MutableSet[Any] = WeakSet()
        self._patches: tuple[Patch, ...] = ()
        if rules is not None:
            self._use(rules)
            return
        self._follow(get_audit_provider())
        changed.append(self._follow)

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        self._attending = False
        with suppress(ValueError):
            changed.remove(self._follow)
        for patch in self._patches:
            patch.restore()
        # Somebody may have put a sampler of their own around ours: what stays matches nothing.
        self._processor.use(())
        for provider in list(self._providers):
            _set_sampler(provider, self._without_ours)
            processors = provider._active_span_processor  # noqa: SLF001 - there is no way to remove one
            if isinstance(processors, ConcurrentMultiSpanProcessor):
                _no_longer_ahead(processors)
            rest = tuple(one for one in processors._span_processors if one is not self._processor)  # noqa: SLF001 - see above
            processors._span_processors = rest  # noqa: SLF001 - see above

    def equip(self, provider: Any) -> None:
        """Add processor and sampler to a provider, once; one that is none of the SDK's is left."""
        # Logfire's provider stands for one of the SDK's.
        provider = getattr(provider, "provider", provider)
        if provider in self._providers or not hasattr(provider, "_active_span_processor"):
            return
        self._providers.add(provider)
        _set_sampler(provider, lambda sampler: RuleSampler(sampler, self._processor))
        processors = provider._active_span_processor  # noqa: SLF001 - nobody else says which kind it is
        if isinstance(processors, ConcurrentMultiSpanProcessor):
            _go_ahead(processors, self._processor)
        else:
            provider.add_span_processor(self._processor)

    def _follow(self, provider: AuditProvider | None) -> None:
        rules = () if provider is None or provider.disabled else provider.policy.spans
        self._use(rules)
        _warn_of_silent(rules)

    def _use(self, rules: tuple[SpanRule, ...]) -> None:
        self._processor.use(rules)
        if not rules:
            return
        if not self._patches:
            self._patches = (
                Patch("opentelemetry.sdk.trace", "TracerProvider", "__init__", self._init),
                # Not the public one, of which many have a copy in their own module.
                Patch("opentelemetry.trace", "", "_set_tracer_provider", self._set, needed=False),
            )
            for patch in self._patches:
                patch.apply()
        self._equip_global()

    def _equip_global(self) -> None:
        try:
            self.equip(trace.get_tracer_provider())
        except Exception:
            _logger.exception("span rules see no spans, as the TracerProvider cannot be used")

    def _init(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def init(tracers: Any, *arguments: Any, **keywords: Any) -> None:
            original(tracers, *arguments, **keywords)
            self.equip(tracers)

        return init

    def _set(self, original: Callable[..., None]) -> Callable[..., None]:
        """Reach a provider that was made before us, and is set after us."""

        @functools.wraps(original)
        def set_tracer_provider(*arguments: Any, **keywords: Any) -> None:
            original(*arguments, **keywords)
            # The one that is set, which is another one where it cannot be overridden.
            self._equip_global()

        return set_tracer_provider

    def _without_ours(self, sampler: Sampler) -> Sampler:
        if isinstance(sampler, RuleSampler) and sampler.processor is self._processor:
            return sampler.inner
        return sampler


def _warn_of_silent(rules: tuple[SpanRule, ...]) -> None:
    """Log which rules can make no record here, unless the process that started this one has."""
    for silent in silent_rules(rules):
        text = f"{silent.finding}, so records may be missing: {silent.remedy}"
        if first_to_say(text):
            _logger.warning("%s", text)


def _go_ahead(processors: Any, ours: RuleProcessor) -> None:
    """Look at spans in the thread that they end in, before others do in threads of a pool.

    There, nobody knows the request any more: not who acts, and not whose answer waits.
    """
    start, end = processors.on_start, processors.on_end

    def on_start(span: Span, parent_context: Context | None = None) -> None:
        ours.on_start(span, parent_context)
        start(span, parent_context=parent_context)

    def on_end(span: ReadableSpan) -> None:
        ours.on_end(span)
        end(span)

    # The methods of this one object: provider, tracers and spans all have it already.
    processors.on_start, processors.on_end = on_start, on_end


def _no_longer_ahead(processors: Any) -> None:
    del processors.on_start, processors.on_end


def _set_sampler(provider: Any, change: Callable[[Any], Any]) -> None:
    """Change a provider's sampler, and the copies that its tracers have."""
    provider.sampler = change(provider.sampler)
    tracers = getattr(provider, "_tracers", {})
    for tracer in list(tracers.values() if isinstance(tracers, dict) else tracers):
        tracer.sampler = provider.sampler


def _kinds(rules: tuple[SpanRule, ...]) -> frozenset[SpanKind]:
    if any(not rule.kinds for rule in rules):
        return frozenset(_KINDS)
    named = {name for rule in rules for name in rule.kinds}
    return frozenset(kind for kind, name in _KINDS.items() if name in named)


def _copied(attributes: Attributes) -> dict[str, Any]:
    """Copy a span's attributes: in one step where the SDK's own mapping can."""
    copy: Callable[[], dict[str, Any]] | None = getattr(attributes, "copy", None)
    return dict(attributes or {}) if copy is None else copy()
