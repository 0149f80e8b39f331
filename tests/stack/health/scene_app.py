"""The application of test_scene.py: a database, a cache, an audit trail, metrics for Prometheus."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import redis.asyncio
from fastapi import FastAPI, Request
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.ext.asyncio import create_async_engine

from otel_audit import get_health_checker, instrument_app, setup_health_check_routes
from otel_audit.health.probes.postgres import asyncpg_probe
from otel_audit.health.probes.redis import redis_probe
from otel_audit.health.probes.sqlalchemy import sqlalchemy_probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POSTGRES = os.environ["SCENE_POSTGRES"]
REDIS = int(os.environ["SCENE_REDIS"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the clients, and watch them; the checker starts by itself after this."""
    engine = create_async_engine(f"postgresql+asyncpg://{POSTGRES}", pool_size=2)
    pool = await asyncpg.create_pool(f"postgresql://{POSTGRES}", min_size=1, max_size=4)
    cache = redis.asyncio.Redis(port=REDIS, retry=Retry(NoBackoff(), 0))
    app.state.pool = pool
    checker = get_health_checker()
    each: dict[str, Any] = {"interval": 0.5, "timeout": 1.0}
    checker.register("database", sqlalchemy_probe(engine), **each)
    checker.register("pool", asyncpg_probe(pool), **each)
    checker.register("cache", redis_probe(cache), critical=False, **each)
    yield
    pool.terminate()
    await cache.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
instrument_app(app)
setup_health_check_routes(app, details="open", port=int(os.environ["SCENE_PORT"]))


@app.get("/orders")
async def orders(request: Request) -> dict[str, int]:
    """Use the database, as the load does that runs beside."""
    async with request.app.state.pool.acquire(timeout=0.5) as connection:
        return {"orders": await connection.fetchval("SELECT 42", timeout=0.5)}


# Set after everything else: the gauges are there all the same.
start_http_server(int(os.environ["SCENE_METRICS"]), addr="127.0.0.1")
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
