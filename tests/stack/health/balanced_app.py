"""One of two instances behind a balancer: healthy while a file is there, and it says who it is."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI

from otel_audit import HealthChecker, setup_health_check_routes

NAME = os.environ["INSTANCE"]
checker = HealthChecker(watch_trail=False)
checker.register(
    "file",
    Path(os.environ["INSTANCE_FILE"]).exists,
    interval=0.1,
    failure_threshold=2,
    success_threshold=2,
)
app = FastAPI()
setup_health_check_routes(app, checker=checker, port=int(os.environ["INSTANCE_HEALTH"]))


@app.get("/who")
async def who() -> dict[str, str]:
    """Tell which instance answers."""
    return {"who": NAME}
