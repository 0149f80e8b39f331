"""Records that nobody emits: made by rules of the policy, of requests and of spans.

Promises: a rule never costs what it watches anything, and never a record: what
of it fails is left out, and ``rule_failed`` names it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.api.template import Template

_logger: Final = logging.getLogger("otel_audit")

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
        failed: list[str] = []

        def value(name: str, template: Template) -> Any:  # noqa: ANN401 - the fact's own type
            try:
                return template.render(facts)
            except Exception:
                _logger.exception("the rule for %r fails at %s", self.event.text, name)
                failed.append(name)
                return None

        words = {name: value(name, template) for name, template in self.words.items()}
        words = {name: said for name, said in words.items() if said is not None}
        fields = {name: value(name, template) for name, template in self.fields.items()}
        fields = {name: said for name, said in fields.items() if said is not None}
        event = value("event", self.event)
        action = value("action", self.action)
        if failed:
            fields[FAILED] = failed
        return AuditEvent(
            str(event or self.event.text),
            str(action or self.action.text),
            **{"status": status, "error": error, **words},
            fields=fields,
        )


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


@dataclass(frozen=True)
class SpanRule:
    """Makes a record of each span that matches in everything that is said.

    ``attributes`` are patterns (shell-style, whatever the case) by name, of
    which one has to match; a name may be several, ``db.query.text|db.statement``,
    of which the first that is there counts.
    """

    saying: Saying
    name: str | None = None
    kinds: tuple[str, ...] = ()
    scope: str | None = None
    attributes: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    status: str | None = None
    origin: str = ""

    def could_match(self, scope: str, kind: str) -> bool:
        """Whether what is known of a tracer's spans before they end speaks against it."""
        return (not self.kinds or kind in self.kinds) and (
            self.scope is None or fnmatchcase(scope, self.scope)
        )

    def matches(self, name: str, status: str, attributes: Mapping[str, Any]) -> bool:
        """Whether a span is meant of which `could_match` holds."""
        return (
            (self.status is None or self.status == status)
            and (self.name is None or fnmatchcase(name, self.name))
            and all(
                _has(attributes, names, patterns) for names, patterns in self.attributes.items()
            )
        )


def _has(attributes: Mapping[str, Any], names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    for name in names:
        value = attributes.get(name)
        if value is not None:
            text = str(value).lstrip().lower()
            return any(fnmatchcase(text, pattern) for pattern in patterns)
    return False
