"""Whether something accepts connections on a TCP port."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from otel_audit.health.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def tcp_probe(host: str, port: int) -> Callable[[], Coroutine[None, None, ProbeResult]]:
    """Connect and hang up.

    That the kernel accepts does not say that the program behind it works: where
    there is a probe for what it speaks, use that one.
    """

    async def probe() -> ProbeResult:
        begun = time.monotonic()
        _, writer = await asyncio.open_connection(host, port)
        connected = time.monotonic() - begun
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return ProbeResult.healthy(connect_ms=round(connected * 1_000, 3))

    return probe
