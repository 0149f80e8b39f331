"""A graph database behind a neo4j driver. Experimental.

Experimental, because no server could be had to test against: tested is the
driver's real refusal of a port where nothing answers, and of one where
something else does.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from otel_audit.health.probe import Answer, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def neo4j_probe(driver: Any) -> Callable[[], Answer | Awaitable[Answer]]:  # noqa: ANN401 - neo4j.Driver or AsyncDriver, which are not imported here
    """Have a driver, sync or async, verify its connectivity. Experimental."""
    if inspect.iscoroutinefunction(driver.verify_connectivity):

        async def verify() -> ProbeResult:
            await driver.verify_connectivity()
            return ProbeResult.healthy()

        return verify

    def verify_sync() -> ProbeResult:
        driver.verify_connectivity()
        return ProbeResult.healthy()

    return verify_sync
