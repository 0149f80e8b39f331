"""Records that nobody emits: made by rules of the policy, of requests and of spans.

Promises: a rule never costs what it watches anything, and never a record: what
of it fails is left out, and ``rule_failed`` names it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from otel_audit.api.template import Placeholder, Template

_logger: Final = logging.getLogger("otel_audit")

Matches: TypeAlias = Callable[[str], "re.Match[str] | None"]

KINDS: Final = ("internal", "server", "client", "producer", "consumer")
SPAN_STATUSES: Final = ("unset", "ok", "error")
OUTCOMES: Final = ("success", "failure")
FAILED: Final = "rule_failed"


@dataclass(frozen=True)
class Saying:
    """What a rule says of an event: templates by the names of `AuditEvent`, and fields."""

    event: Template
    action: Template
    words: Mapping[str, Template] = field(default_factory=dict)
    fields: Mapping[str, Template] = field(default_factory=dict)

    def say(self, facts: Mapping[str, Any], status: str, error: str | None = None) -> AuditEvent:
        """Make the event; ``status`` and ``error`` are what holds when the rule says nothing."""
        try:
            event, action = self.event.render(facts), self.action.render(facts)
            words = _rendered(self.words, facts)
            fields = _rendered(self.fields, facts)
        except Exception:  # noqa: BLE001 - whatever a fact's own code does
            event, action, words, fields = self._said_carefully(facts)
        unknown = [name for name, said in (("event", event), ("action", action)) if not said]
        if unknown:
            # The record is not lost; it has the template for its name.
            fields = {**fields, FAILED: list(dict.fromkeys([*fields.get(FAILED, ()), *unknown]))}
        return AuditEvent(
            str(event or self.event.text),
            str(action or self.action.text),
            words.get("event_type"),
            words.get("status") or status,
            words.get("level"),
            words.get("resource_type"),
            words.get("resource_name"),
            words.get("error") or error,
            words.get("retention"),
            fields,
        )

    @property
    def subject(self) -> tuple[str | None, ...]:
        """What its event says was done, and on what: another subject is another record."""
        on = (self.words.get(name) for name in ("resource_type", "resource_name"))
        return (
            self.event.text,
            self.action.text,
            *(None if one is None else one.text for one in on),
        )

    def narrowed(self, names: Collection[str]) -> Saying:
        """Return what says the same of facts with no names but these, with fewer look-ups."""
        return Saying(
            self.event.narrowed(names) or self.event,
            self.action.narrowed(names) or self.action,
            _narrowed(self.words, names),
            _narrowed(self.fields, names),
        )

    def fields_that_are(self, name: str) -> tuple[str, ...] | None:
        """Return the fields that are just this fact; None if it is a part of anything else."""
        just = tuple(field for field, said in self.fields.items() if said.is_just(name))
        others = (said for field, said in self.fields.items() if field not in just)
        if any(
            name in said.names for said in (self.event, self.action, *self.words.values(), *others)
        ):
            return None
        return just

    def _said_carefully(
        self, facts: Mapping[str, Any]
    ) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
        """Leave out what fails, and name it."""
        failed: list[str] = []

        def value(name: str, template: Template) -> Any:  # noqa: ANN401 - the fact's own type
            try:
                return template.render(facts)
            except Exception:
                _logger.exception("the rule for %r fails at %s", self.event.text, name)
                failed.append(name)
                return None

        def rendered(templates: Mapping[str, Template]) -> dict[str, Any]:
            said = {name: value(name, template) for name, template in templates.items()}
            return {name: one for name, one in said.items() if one is not None}

        event, action = value("event", self.event), value("action", self.action)
        words, fields = rendered(self.words), rendered(self.fields)
        return event, action, words, {**fields, FAILED: failed}


def _narrowed(templates: Mapping[str, Template], names: Collection[str]) -> dict[str, Template]:
    narrow = {name: template.narrowed(names) for name, template in templates.items()}
    return {name: template for name, template in narrow.items() if template is not None}


def _rendered(templates: Mapping[str, Template], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known."""
    return {
        name: value
        for name, template in templates.items()
        if (value := template.render(facts)) is not None
    }


@dataclass(frozen=True)
class RouteRule:
    """Makes a record of each request to a route, beside the ``http.request`` of the activity log.

    ``routes`` are methods (``*`` for all) and a pattern for the route's template.
    """

    routes: tuple[tuple[tuple[str, ...], str], ...]
    saying: Saying
    outcome: str | None = None
    origin: str = ""

    def matches(self, method: str, route: str, outcome: str) -> bool:
        """Whether a request is meant; ``outcome`` is success below status 400."""
        return (self.outcome is None or self.outcome == outcome) and any(
            ("*" in methods or method in methods) and fnmatchcase(route, pattern)
            for methods, pattern in self.routes
        )

    def makes(self) -> list[object]:
        """Return what is the same for a rule that makes a record of the same requests again."""
        outcomes = OUTCOMES if self.outcome is None else (self.outcome,)
        return [
            (self.saying.subject, method, route, outcome)
            for methods, route in self.routes
            for method in methods
            for outcome in outcomes
        ]


@dataclass(frozen=True)
class SpanRule:
    """Makes a record of each span that matches in everything that is said.

    ``attributes`` are patterns (shell-style, whatever the case), of which one
    has to match, by what is looked up: of several names the first that is
    there counts, and a filter may change what is found, or find nothing.
    ``made_by`` are distributions of which one has to be installed for there to
    be such spans, as far as they are known.
    """

    saying: Saying
    name: str | None = None
    kinds: tuple[str, ...] = ()
    scope: str | None = None
    attributes: Mapping[Placeholder, tuple[str, ...]] = field(default_factory=dict)
    status: str | None = None
    origin: str = ""
    made_by: tuple[str, ...] = ()
    _name: Matches | None = field(default=None, init=False, repr=False, compare=False)
    _attributes: tuple[tuple[Placeholder, Matches | None], ...] = field(
        default=(), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Compile the patterns, of each attribute into one."""
        compiled = tuple(
            (attribute, None if patterns == ("*",) else _compiled(patterns))
            for attribute, patterns in self.attributes.items()
        )
        object.__setattr__(self, "_attributes", compiled)
        if self.name is not None:
            object.__setattr__(self, "_name", re.compile(translate(self.name)).match)

    def makes(self) -> list[object]:
        """Return what is the same for a rule that makes a record of the same spans again."""
        attributes = frozenset((of, frozenset(said)) for of, said in self.attributes.items())
        kinds = self.kinds or KINDS
        return [
            (self.saying.subject, self.name, kind, self.scope, attributes, self.status)
            for kind in kinds
        ]

    def could_match(self, scope: str, kind: str) -> bool:
        """Whether what is known of a tracer's spans before they end speaks against it."""
        return (not self.kinds or kind in self.kinds) and (
            self.scope is None or fnmatchcase(scope, self.scope)
        )

    def asks_for(self, names: Collection[str]) -> bool:
        """Whether a span with these attributes has all that the rule looks at."""
        return all(any(one in names for one in either.names) for either in self.attributes)

    def narrowed(self, attributes: Collection[str], facts: Collection[str]) -> SpanRule:
        """Return what does the same for spans with just these ``attributes``, in less time.

        ``facts`` are the other names that there may be beside the attributes.
        """
        narrow = copy(self)
        object.__setattr__(narrow, "saying", self.saying.narrowed({*attributes, *facts}))
        compiled = tuple(
            (attribute.among(attributes), matches) for attribute, matches in self._attributes
        )
        object.__setattr__(narrow, "_attributes", compiled)
        return narrow

    def matches(self, name: str, status: str, attributes: Mapping[str, Any]) -> bool:
        """Whether a span is meant of which `could_match` holds."""
        if self.status is not None and self.status != status:
            return False
        if self._name is not None and self._name(name) is None:
            return False
        for (names, change), matches in self._attributes:
            for one in names:
                value = attributes.get(one)
                if value is not None:
                    break
            else:
                return False
            if change is not None and (value := change(str(value))) is None:
                return False
            if matches is not None and matches(value if type(value) is str else str(value)) is None:
                return False
        return True


def _compiled(patterns: tuple[str, ...]) -> Matches:
    """Make one regular expression of patterns: whatever the case, after whatever space.

    None of those behind a ``!`` may match, and one of the others has to.
    """
    either = "|".join(translate(one) for one in patterns if not one.startswith("!")) or ".*"
    neither = "".join(rf"(?!\s*{translate(one[1:])})" for one in patterns if one.startswith("!"))
    return re.compile(rf"{neither}\s*(?:{either})", re.IGNORECASE | re.DOTALL).match
