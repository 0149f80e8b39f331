"""A registry of agents, workers or tools: how many are there, and which do not work."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from otel_audit.health.probe import HealthStatus, ProbeResult, judged

_NAMED: Final = 5

Registry = Callable[[], Mapping[str, object] | Awaitable[Mapping[str, object]]]


def agents_probe(
    registry: Registry, *, at_least: int = 1
) -> Callable[[], Coroutine[None, None, ProbeResult]]:
    """Ask a registry for its agents: names, each with what a probe of it would return.

    Fewer than ``at_least`` that work (healthy or degraded) is unhealthy; one
    that does not work, or works badly, is degraded. ``registry`` is called in
    the event loop, so one that takes its time has to be a coroutine function.
    """

    async def probe() -> ProbeResult:
        found: Any = registry()
        if inspect.isawaitable(found):
            found = await found
        states = {str(name): judged(answer).status for name, answer in found.items()}
        broken = [name for name, status in states.items() if status is HealthStatus.UNHEALTHY]
        shaky = [name for name, status in states.items() if status is HealthStatus.DEGRADED]
        working = len(states) - len(broken)
        details = {"agents": len(states), "working": working}
        said = f"{working} of {len(states)} agents work"
        if broken or shaky:
            said += f"; not well: {_named(broken + shaky)}"
        if working < at_least:
            return ProbeResult.unhealthy(f"{said}; {at_least} are needed", **details)
        if broken or shaky:
            return ProbeResult.degraded(said, **details)
        return ProbeResult.healthy(said, **details)

    return probe


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
