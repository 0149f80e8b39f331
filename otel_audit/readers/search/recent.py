"""The persistent activity log: the newest requests, of all workers, kept over restarts.

It is nothing of its own, but a view of the ``http.request`` records of the
trail: `get_recent` promises to show each request as soon as its record is
durable, whichever process handled it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_audit.api.current import get_audit_provider
from otel_audit.api.policy import HTTP_REQUEST
from otel_audit.readers.query.model import Query, where
from otel_audit.readers.search.trail import TrailSearch

if TYPE_CHECKING:
    from otel_audit.api.provider import AuditProvider


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """One request and how it was answered; None where that is not known.

    ``status`` is the HTTP status, ``duration_ms`` the time until the response
    began, ``client`` what the client called itself.
    """

    timestamp: str
    method: str | None
    path: str | None
    status: int | None
    duration_ms: float | None
    client: str | None
    client_ip: str | None
    request_id: str | None
    actor: str | None
    outcome: str | None
    record_id: str


def get_recent(limit: int = 50, *, provider: AuditProvider | None = None) -> list[RecentRequest]:
    """Return the newest requests, newest first, at most 1,000.

    ``provider``: default is the global one. Blocks for some milliseconds: in a
    coroutine use `aget_recent`. Raises `QueryError` for an absurd ``limit``,
    and `TrailError`.
    """
    query = Query(where({"event_type": HTTP_REQUEST, "event": HTTP_REQUEST}), limit=limit)
    provider = provider or get_audit_provider()
    if provider.disabled:
        return []
    search = TrailSearch(provider.reader())
    try:
        return [_request(entry.fields) for entry in search.page(query).entries]
    finally:
        search.close()


async def aget_recent(
    limit: int = 50, *, provider: AuditProvider | None = None
) -> list[RecentRequest]:
    """Do the same as `get_recent` without blocking the event loop."""
    return await asyncio.to_thread(get_recent, limit, provider=provider)


def _request(fields: dict[str, Any]) -> RecentRequest:
    return RecentRequest(
        timestamp=fields.get("timestamp", ""),
        method=fields.get("method"),
        path=fields.get("path"),
        status=fields.get("status_code"),
        duration_ms=fields.get("duration_ms"),
        client=fields.get("client_id"),
        client_ip=fields.get("client_ip"),
        request_id=fields.get("request_id"),
        actor=fields.get("actor_id"),
        outcome=fields.get("outcome"),
        record_id=fields.get("record_id", ""),
    )
