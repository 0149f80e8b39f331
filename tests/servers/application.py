"""What the servers of these tests serve: each answered POST has one record behind it."""

from __future__ import annotations

from fastapi import FastAPI

from otel_audit import get_audit_logger, instrument_app

app = FastAPI()
instrument_app(app)
audit = get_audit_logger()


@app.post("/async/{marker}")
async def from_a_coroutine(marker: str) -> dict[str, str]:
    """Emit without waiting: the middleware does."""
    audit.audit_event("marked", "mark", "marker", marker, "success")
    return {"marker": marker}


@app.post("/sync/{marker}")
def from_a_thread(marker: str) -> dict[str, str]:
    """Emit in a thread of the server's pool, which blocks until it is durable."""
    audit.audit_event("marked", "mark", "marker", marker, "success")
    return {"marker": marker}
