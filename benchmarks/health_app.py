"""The applications that benchmarks/health.py serves; BENCH_HEALTH says which.

"bare": a FastAPI route that returns a constant JSONResponse. "healthy": /health
with 20 components that answer, half of them coroutines. "hanging": with 20
whose probes never return, half of which swallow their cancellation.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from otel_audit import HealthChecker, setup_health_check_routes

COMPONENTS = 20
KIND = os.environ.get("BENCH_HEALTH", "bare")

app = FastAPI()


async def works() -> None:
    """Answer at once."""


async def hangs() -> None:
    """Never answer, and do not let go."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)


def hangs_too() -> None:
    """Never answer."""
    threading.Event().wait()


if KIND == "bare":

    @app.get("/health")
    async def health() -> JSONResponse:
        """Answer with a constant."""
        return JSONResponse({"status": "healthy"})

else:
    checker = HealthChecker(watch_trail=False)
    probes = (works, lambda: None) if KIND == "healthy" else (hangs, hangs_too)
    for number in range(COMPONENTS):
        checker.register(f"component-{number}", probes[number % 2], interval=1.0, timeout=0.5)
    setup_health_check_routes(app, checker=checker)
