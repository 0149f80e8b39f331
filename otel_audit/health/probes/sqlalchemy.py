"""A database behind a SQLAlchemy engine, sync or async: ``SELECT 1``, and how full its pool is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_audit.health.probe import Answer, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


def sqlalchemy_probe(engine: Engine | AsyncEngine) -> Callable[[], Answer | Awaitable[Answer]]:
    """Run ``SELECT 1`` on a connection of the engine's pool.

    Degraded while every connection of the pool and of its overflow is in use:
    the next request has to wait for one. A plain engine is used from a thread
    of the checker's, an async one in the application's event loop.
    """
    # Not AsyncEngine: who has none may not have greenlet either, which that needs.
    from sqlalchemy import Engine, text  # noqa: PLC0415 - optional, comes with the engine

    statement = text("SELECT 1")
    if not isinstance(engine, Engine):

        async def ask() -> ProbeResult:
            full = _full(engine.pool)
            if full is not None:
                return full
            async with engine.connect() as connection:
                await connection.execute(statement)
            return ProbeResult.healthy(**_facts(engine.pool))

        return ask

    def ask_sync() -> ProbeResult:
        full = _full(engine.pool)
        if full is not None:
            return full
        with engine.connect() as connection:
            connection.execute(statement)
        return ProbeResult.healthy(**_facts(engine.pool))

    return ask_sync


def _facts(pool: Any) -> dict[str, Any]:  # noqa: ANN401 - pools of different kinds have different methods
    """Return what the pool tells of itself."""
    facts = {"pool": pool.status()}
    if hasattr(pool, "checkedout"):
        facts["in_use"] = pool.checkedout()
    return facts


def _full(pool: Any) -> ProbeResult | None:  # noqa: ANN401 - the same
    """Return that no connection is left, if that is so: to ask for one would wait with the others."""
    most = getattr(pool, "_max_overflow", None)
    if not hasattr(pool, "checkedout") or most is None or most < 0:
        return None
    if pool.checkedout() < pool.size() + most:
        return None
    said = f"all {pool.size() + most} connections of the pool are in use"
    return ProbeResult.degraded(said, **_facts(pool))
