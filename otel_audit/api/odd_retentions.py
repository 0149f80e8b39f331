"""Retentions in a policy that have no length: allowed, and often a slip.

Promises: only what a rule says literally is looked at; a template may become anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.record.retention import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.api.derived import RouteRule, SpanRule
    from otel_audit.api.policy import Policy


REMEDY: Final = "write for example 90d, 1y or 6y, unless it is a word of your own"


class OddRetention(NamedTuple):
    """A retention that nothing can derive a duration from, and the rule that says it."""

    origin: str
    retention: str

    @property
    def finding(self) -> str:
        """What is odd, and what comes of it."""
        return (
            f"{self.origin}: the retention {self.retention!r} is not a number and h, d, w or y, so "
            "that nothing derives a duration from it"
        )


def odd_retentions(policy: Policy) -> list[OddRetention]:
    """Return the retentions that have no length, in the order of the rules."""
    return [one for one in _said(policy) if seconds_of(one.retention) is None]


def _said(policy: Policy) -> Iterator[OddRetention]:
    for rule in policy.rules:
        if rule.retention is not None:
            yield OddRetention(rule.origin, rule.retention)
    derived_rules: tuple[RouteRule | SpanRule, ...] = (*policy.routes, *policy.spans)
    for derived in derived_rules:
        template = derived.saying.words.get("retention")
        if template is not None and not template.names:
            yield OddRetention(derived.origin, template.text)
