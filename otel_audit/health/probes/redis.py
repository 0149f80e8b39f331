"""A Redis (or Valkey) server: PING."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from otel_audit.health.probe import Answer, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def redis_probe(client: Any) -> Callable[[], Answer | Awaitable[Answer]]:  # noqa: ANN401 - redis.Redis or redis.asyncio.Redis, which are not imported here
    """Ping with a client of redis-py, sync or async: the application's, and so its pool.

    An async client is used in the application's event loop. A server that
    still loads its data, or a replica that lost its master, answers PING with
    an error, and is unhealthy.
    """
    # redis-py's async commands are plain methods that return something to await; its classes tell.
    if hasattr(client, "aclose") or inspect.iscoroutinefunction(client.ping):

        async def ping() -> ProbeResult:
            return _result(await client.ping())

        return ping
    return lambda: _result(client.ping())


def _result(pong: object) -> ProbeResult:
    if pong in (True, b"PONG", "PONG"):
        return ProbeResult.healthy()
    return ProbeResult.unhealthy(f"PING was answered by {pong!r}")
