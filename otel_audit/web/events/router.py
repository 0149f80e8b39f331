"""The router for FastAPI: the routes of `AuditEvents`, documented in OpenAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from otel_audit.readers.filters import FILTERS
from otel_audit.readers.query.model import PERSONAL, fields_named
from otel_audit.web.events.application import AuditEvents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.web.asgi import Receive, Scope, Send

_RECORD: Final = {
    "sequence": 17,
    "committed_at": "2026-01-31T08:00:00.004123456Z",
    "record": {
        "schema": "otel-audit/1",
        "timestamp": "2026-01-31T08:00:00.001234567Z",
        "level": "info",
        "event": "server_lifecycle_event",
        "record_id": "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11",
        "event_type": "server_lifecycle_event",
        "action": "start",
        "status": "success",
        "outcome": "success",
        "server_name": "obsidian",
    },
}
_PAGE: Final = {
    "records": [_RECORD],
    "next": "/audit/events?server_name=obsidian&limit=1&cursor=AAAA",
    "complete": True,
    "index": {"indexed": 10_000_000, "size": 10_000_017},
}
_STATS: Final = {
    "origin": "otel-audit.local/hub/0123456789ab",
    "index": {"indexed": 10_000_000, "size": 10_000_017, "full_text": True},
    "by": None,
    "per": "1h",
    "counts": [{"start": "2026-01-31T08:00:00Z", "value": None, "count": 12}],
}

_TIMES: Final = (
    (
        "start",
        "From then on: RFC 3339, a day, today, yesterday (UTC), or relative: -15m, -24h.",
        "today",
    ),
    ("end", "Until before then.", "2026-01-31T09:00:00Z"),
)
_FILTERS: Final = (
    *(
        (
            one.name,
            f"{one.meaning} Takes read:pii."
            if PERSONAL.intersection(fields_named(one.name))
            else one.meaning,
            one.example,
        )
        for one in FILTERS
    ),
    ("outcome!", "Any other outcome: `!` after a name asks for records without it.", "success"),
    ("field.NAME", "Your own field NAME.", "rotation"),
)
_PAGING: Final = (
    ("limit", "How many, 1 to 1000 (50).", "10"),
    ("order", "newest or oldest (first).", "newest"),
    ("cursor", "Where to go on: from `next`, with the same parameters.", ""),
)
_COUNTING: Final = (
    ("by", "Count by the values of this field.", "outcome"),
    ("per", "Count by time: 1h for each hour.", "1h"),
)
_STREAMING: Final = (
    ("queries", "true: also the records that queries leave; false without.", "true"),
)
_MORE: Final = (
    "A parameter may come several times: any of the values will do. Its name followed by `!` asks "
    "for records without it; in values `*` stands for any text. Fields of your own are "
    "`field.NAME`; `resource` means `resource_name`."
)
_PROBLEMS: Final = {
    400: "A parameter cannot be used; the problem document says which and why.",
    401: "No token, or one that does not hold.",
    403: "Nobody may query yet, or the token lacks the scope.",
    406: "Accept asks for a form that this route has not.",
    414: "The query string is too long.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "The trail, or the record of this query, is not available.",
}
_MISSING: Final = {
    "/events/{record_id}": "There is no such record.",
    "/events/{record_id}/proof": "There is no such record.",
    "/checkpoint": "There is no checkpoint yet.",
}
"""What 404 means, where it can be."""

_OTHER_METHODS: Final = ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


class _Delegated(Response):
    """Lets `AuditEvents` answer, at the time when the response is sent."""

    def __init__(self, events: AuditEvents, path: str) -> None:
        super().__init__()
        self._events = events
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._events.answer(self._path, scope, receive, send)


def make(options: Mapping[str, Any]) -> APIRouter:
    """Return the router; `events.audit_router` says what it takes."""
    hook = options.get("authorize")
    if hook is not None:
        options = {**options, "authorize": lambda scope: hook(_seen(hook, scope))}
    events = AuditEvents(**options)
    prefix = options.get("prefix", "/audit")
    token = HTTPBearer(auto_error=False, scheme_name="audit token")
    router = APIRouter(prefix=prefix, tags=["audit"], dependencies=[Depends(token)])
    for path in events.routes:
        _add(router, events, path, *_DOCUMENTED[path])
    return router


def _seen(hook: object, scope: Scope) -> object:
    """Give hooks of the application the request as Starlette shows it, and ours the scope."""
    ours = type(hook).__module__.startswith("otel_audit.")
    return scope if ours else HTTPConnection(scope)


def _add(
    router: APIRouter, events: AuditEvents, path: str, summary: str, documented: dict[str, Any]
) -> None:
    async def endpoint(request: Request) -> Response:
        named = path.replace("{record_id}", request.path_params.get("record_id", ""))
        return _Delegated(events, named)

    problems = {**_PROBLEMS, **({404: _MISSING[path]} if path in _MISSING else {})}
    described = {
        str(status): {"description": text, "content": {"application/problem+json": {}}}
        for status, text in sorted(problems.items())
    }
    extra = {
        **documented,
        "responses": {**documented.get("responses", {}), **described},
    }
    router.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        name=f"audit {path}",
        summary=summary,
        response_class=Response,
        openapi_extra=extra,
    )
    # Else FastAPI answers these by itself, and HEAD is refused.
    router.add_api_route(
        path,
        endpoint,
        methods=list(_OTHER_METHODS),
        name=f"audit {path} by other methods",
        response_class=Response,
        include_in_schema=False,
    )


def _parameters(*groups: tuple[tuple[str, str, str], ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": meaning,
            "schema": {"type": "string"},
            **({"example": example} if example else {}),
        }
        for group in groups
        for name, meaning, example in group
    ]


def _shown(media_type: str, example: object, *others: str) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"example": example}}
    content |= {other: {} for other in others}
    return {"200": {"description": "The answer.", "content": content}}


_BY_ID: Final = [
    {
        "name": "record_id",
        "in": "path",
        "required": True,
        "description": "The record's id, or its sequence number.",
        "schema": {"type": "string"},
    }
]
_DOCUMENTED: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "/events": (
        "Find records",
        {
            "description": f"{_MORE} Scope: read. With Accept: application/x-ndjson or text/csv and "
            "no limit, all records are sent.",
            "parameters": _parameters(_TIMES, _FILTERS, _PAGING),
            "responses": _shown("application/json", _PAGE, "application/x-ndjson", "text/csv"),
        },
    ),
    "/events/{record_id}": (
        "One record",
        {
            "description": "Scope: read.",
            "parameters": _BY_ID,
            "responses": _shown("application/json", _RECORD),
        },
    ),
    "/events/{record_id}/proof": (
        "Prove one record",
        {
            "description": "A proof (C2SP tlog-proof) for `otel-audit check-proof`. Scope: proof.",
            "parameters": _BY_ID,
            "responses": _shown("text/plain", "c2sp.org/tlog-proof@v1\n..."),
        },
    ),
    "/checkpoint": (
        "The newest checkpoint",
        {
            "description": "A signed note (C2SP tlog-checkpoint). Scope: read or proof.",
            "responses": _shown("text/plain", "otel-audit.local/hub/0123456789ab\n17\n..."),
        },
    ),
    "/stats": (
        "Count records, and see how far the index is",
        {
            "description": f"{_MORE} Scope: read.",
            "parameters": _parameters(_TIMES, _FILTERS, _COUNTING),
            "responses": _shown("application/json", _STATS),
        },
    ),
    "/stream": (
        "New records as they come",
        {
            "description": f"Server-Sent Events; Last-Event-ID resumes. {_MORE} Records of queries "
            "are left out, unless queries=true. Scope: read.",
            "parameters": _parameters(_FILTERS, _STREAMING),
            "responses": _shown("text/event-stream", "id: 17\nevent: record\ndata: {...}\n\n"),
        },
    ),
}
"""Of each of `AuditEvents.routes` its summary, and what OpenAPI says besides."""
