"""PostgreSQL by asyncpg or psycopg, without SQLAlchemy: ``SELECT 1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_audit.health.probe import Answer, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

_ASK: Final = "SELECT 1"


def asyncpg_probe(pool: Any) -> Callable[[], Coroutine[None, None, ProbeResult]]:  # noqa: ANN401 - an asyncpg.Pool, which is not imported here
    """Ask over a connection of an ``asyncpg.Pool``."""

    async def probe() -> ProbeResult:
        async with pool.acquire() as connection:
            await connection.fetchval(_ASK)
        return ProbeResult.healthy(size=pool.get_size(), idle=pool.get_idle_size())

    return probe


def psycopg_probe(source: Any) -> Callable[[], Answer | Awaitable[Answer]]:  # noqa: ANN401 - a pool of psycopg's, which is not imported here
    """Ask over a connection of a ``psycopg_pool`` pool, sync or async.

    ``source`` may also be a connection string; then each check opens and
    closes a connection of its own, on a thread of the checker's.
    """
    if isinstance(source, str):
        return _by_connecting(source)
    if hasattr(source, "__aenter__"):

        async def ask() -> ProbeResult:
            async with source.connection() as connection:
                await connection.execute(_ASK)
            return ProbeResult.healthy(**_facts(source))

        return ask

    def ask_sync() -> ProbeResult:
        with source.connection() as connection:
            connection.execute(_ASK)
        return ProbeResult.healthy(**_facts(source))

    return ask_sync


def _by_connecting(conninfo: str) -> Callable[[], ProbeResult]:
    import psycopg  # noqa: PLC0415 - optional

    def ask() -> ProbeResult:
        try:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute(_ASK)
        except psycopg.Error as error:
            # Its text names host, user and database, never the password.
            return ProbeResult.unhealthy(f"{type(error).__name__}: {error}")
        return ProbeResult.healthy()

    return ask


def _facts(pool: Any) -> dict[str, Any]:  # noqa: ANN401 - a pool of psycopg's
    stats = pool.get_stats()
    return {
        "size": stats.get("pool_size", 0),
        "idle": stats.get("pool_available", 0),
        "waiting": stats.get("requests_waiting", 0),
    }
