"""The answers that stand in for a response whose audit records are not confirmed.

RFC 9457 problem details for HTTP, close codes for WebSocket. The words promise
no more than is known: a record is *not confirmed*, which never means that it
was not recorded. The reason stays in the server's log, since it may name
directories and devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.errors import AuditBackpressureError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.errors import AuditUnavailableError
    from otel_audit.web.asgi import Header

STATUS: Final = 503
MEDIA_TYPE: Final = "application/problem+json"

_DOCUMENT: Final = "https://github.com/otel-audit/otel-audit/blob/main/docs/fastapi.md"
_QUERIES: Final = "https://github.com/otel-audit/otel-audit/blob/main/docs/query.md"
NOT_CONFIRMED: Final = f"{_DOCUMENT}#not-confirmed"
REFUSED: Final = f"{_DOCUMENT}#refused"

TRY_AGAIN_LATER: Final = 1013
"""WebSocket close code before the connection is accepted (IANA registry, RFC 6455 section 11.7)."""
INTERNAL_ERROR: Final = 1011
"""WebSocket close code of an open connection (RFC 6455, section 7.4.1)."""
CLOSE_REASON: Final = "audit record not confirmed"

_RETRY_SOON: Final = b"1"  # a queue drains within a second or not at all
_RETRY_LATER: Final = b"5"


def not_confirmed(error: AuditUnavailableError, request_id: str | None) -> bytes:
    """Return the body for a request that was handled, but whose record is not confirmed."""
    found = "Look the record up by its id" if error.record_id else "Check the audit trail"
    return _body(
        error,
        request_id,
        type=NOT_CONFIRMED,
        title="Audit record not confirmed",
        detail=(
            "The audit record of this request is not confirmed. The request may have taken "
            f"effect. {found} before you repeat the request."
        ),
    )


def refused(error: AuditUnavailableError, request_id: str | None) -> bytes:
    """Return the body for a request that was turned away before anything handled it."""
    return _body(
        error,
        request_id,
        type=REFUSED,
        title="Audit trail unavailable",
        detail=(
            "The audit trail cannot confirm records at the moment, so this request was refused "
            "before it was handled. It had no effect; repeat it later."
        ),
    )


def described(status: int, kind: str, title: str, detail: str, **members: Any) -> bytes:
    """Return the body that tells a problem with a query; ``kind`` is a heading of docs/query.md."""
    problem = {"type": f"{_QUERIES}#{kind}", "title": title, "status": status, "detail": detail}
    return orjson.dumps(problem | members)


def headers(
    error: AuditUnavailableError, body: bytes, swallowed: Iterable[Header] = ()
) -> list[Header]:
    """Return the headers that go with ``body``.

    Of the response that is ``swallowed`` they keep what belongs to CORS (the
    ``access-control-`` family and ``vary``), without which a browser would hide
    the answer from the page that asked.
    """
    soon = isinstance(error, AuditBackpressureError)
    return [
        (b"content-type", MEDIA_TYPE.encode("ascii")),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"retry-after", _RETRY_SOON if soon else _RETRY_LATER),
        *(header for header in swallowed if _belongs_to_cors(header[0].lower())),
    ]


def _belongs_to_cors(name: bytes) -> bool:
    return name == b"vary" or name.startswith(b"access-control-")


def _body(error: AuditUnavailableError, request_id: str | None, **members: str) -> bytes:
    problem: dict[str, Any] = {**members, "status": STATUS}
    if error.record_id:
        problem["instance"] = f"urn:uuid:{error.record_id}"
        problem["record_id"] = error.record_id
    if request_id:
        problem["request_id"] = request_id
    return orjson.dumps(problem)
