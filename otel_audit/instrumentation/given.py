"""Attributes that a span was started with, and that its sampler has not passed on.

The SDK makes a span from the attributes that the sampler returns, not from
those that the instrumentation gave. A sampler that returns none leaves the
span without any; OpenTelemetry's composite sampler is one, which Elastic's
distribution uses. What the span then has, and what is exported, is their
business; whether a rule matches is ours. So the attributes are kept beside the
span until it ends.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan, Span

_KEPT: Final = 10_000
"""Spans at a time; those that never end would fill the memory."""

_NOTHING: Final[Mapping[str, Any]] = {}


class _Handed(threading.local):
    """What the sampler of this thread has seen for the span that is being made."""

    by: tuple[int, str, Mapping[str, Any]] | None = None


class GivenAttributes:
    """Passes attributes from sampler to processor: `hand` and `take` follow each other at once."""

    __slots__ = ("_handed", "_kept", "_used")

    def __init__(self) -> None:
        self._used = False  # by hardly any sampler, and every span asks
        self._handed = _Handed()
        self._kept: dict[int, Mapping[str, Any]] = {}

    def hand(self, trace_id: int, name: str, attributes: Mapping[str, Any]) -> None:
        """Give what was asked for; `take` is called in the same thread, when the span is made."""
        self._used = True
        self._handed.by = (trace_id, name, attributes)

    def take(self, span: Span) -> None:
        """Keep what was handed for this span, if that was it."""
        handed = self._handed.by if self._used else None
        if handed is None:
            return
        self._handed.by = None
        trace_id, name, attributes = handed
        context = span.get_span_context()
        if (context.trace_id, span.name) != (trace_id, name):
            return
        if len(self._kept) >= _KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[context.span_id] = attributes

    def of(self, span: ReadableSpan) -> Mapping[str, Any]:
        """Return what is kept for a span that has ended, and forget it."""
        if not self._kept or span.context is None:
            return _NOTHING
        return self._kept.pop(span.context.span_id, _NOTHING)
