"""The applications that benchmarks/web.py serves: the same route, bare and audited.

The environment variable BENCH_AUDIT says which: unset is bare FastAPI, "record"
has one record of about 20 keys a request, "activity" an http.request record besides.
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from benchmarks.sample import FIELDS

KIND = os.environ.get("BENCH_AUDIT", "")

app = FastAPI()

if KIND:
    from otel_audit import get_audit_logger, instrument_app

    instrument_app(app, http_activity="all" if KIND == "activity" else "off")
    audit = get_audit_logger()

    @app.post("/users/{user_id}")
    async def update_audited(user_id: str) -> dict[str, str]:
        """Answer with one record."""
        audit.audit_event("user_update", "update", "user", user_id, "success", **FIELDS)
        return {"updated": user_id}

else:

    @app.post("/users/{user_id}")
    async def update(user_id: str) -> dict[str, str]:
        """Answer with nothing recorded."""
        return {"updated": user_id}
