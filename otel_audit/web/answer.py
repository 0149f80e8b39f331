"""Answers over HTTP: problems, media types, entity tags, and bodies that come in parts.

Promises: an answer in parts ends when the client goes away, and waits while the
client is slow; what is negotiated follows RFC 9110. What the answers say is
left to `events`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from otel_audit.readers.query.export import as_line, csv_head, csv_line
from otel_audit.web import problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

    from otel_audit.readers.query.model import Entry, Query
    from otel_audit.web.asgi import Receive, Scope, Send

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
TEXT: Final = "text/plain; charset=utf-8"
EVENTS: Final = "text/event-stream"
LISTS: Final = (JSON, NDJSON, CSV)
"""What lists of records come as."""


@dataclass
class Answer:
    """What is sent back: a body, or the parts of one as they come."""

    status: int
    body: bytes | AsyncGenerator[bytes, None]
    media_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list)


class ProblemError(Exception):
    """Ends the handling of a request with a problem document."""

    def __init__(
        self, status: int, kind: str, detail: str, *headers: tuple[str, str], **members: object
    ) -> None:
        title = _TITLES[kind]
        body = problem.described(status, kind, title, detail, **members)
        self.answer = Answer(status, body, problem.MEDIA_TYPE, list(headers))
        super().__init__(detail)


_TITLES: Final = {
    "closed": "Queries are closed",
    "not-authenticated": "Not authenticated",
    "not-allowed": "Not allowed",
    "bad-query": "The query cannot be used",
    "not-found": "Not found",
    "method-not-allowed": "Method not allowed",
    "not-acceptable": "Not acceptable",
    "not-covered": "Not covered yet",
    "too-many": "Too many requests",
    "unavailable": "Not available",
}


def wanted_form(accept: str, *forms: str) -> str:
    """Return the one of ``forms`` that is wanted most (RFC 9110, section 12.5.1).

    Raises `ProblemError` when none is wanted.
    """
    if not accept:
        return forms[0]
    best: tuple[float, int, str] | None = None
    for number, item in enumerate(accept.split(",")[:32]):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        form = next((known for known in forms if _fits(name, known)), None)
        weight = _weight(parameters)
        if form is not None and weight > 0 and (best is None or weight > best[0]):
            best = (weight, number, form)
    if best is None:
        there = ", ".join(form.partition(";")[0] for form in forms)
        detail = f"Accept asks for what there is not; this route answers with {there}."
        raise ProblemError(406, "not-acceptable", detail)
    return best[2]


def _fits(name: str, form: str) -> bool:
    return name in ("*/*", form.partition(";")[0], f"{form.partition('/')[0]}/*")


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        if re.fullmatch(r"q=[01](\.\d{0,3})?", parameter):
            return float(parameter[2:])
    return 1.0


def written(
    entries: Iterable[Entry], query: Query, form: str, *, head: bool = True
) -> Iterator[bytes]:
    """Yield records as lines of JSON, or of CSV with its first line."""
    if form == NDJSON:
        yield from (as_line(entry, query) for entry in entries)
        return
    if head:
        yield csv_head().encode()
    yield from (csv_line(entry, query).encode(errors="replace") for entry in entries)


def tag_of(body: bytes) -> str:
    """Return the entity tag of a body."""
    return f'"{blake2b(body, digest_size=16).hexdigest()}"'


def is_known(given: str, tag: str) -> bool:
    """Whether the client has this answer already (RFC 9110, section 13.1.2)."""
    tags = [item.strip().removeprefix("W/") for item in given.split(",")]
    return tag.removeprefix("W/") in tags or tags == ["*"]


async def respond(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer."""
    headers = [
        ("content-type", answer.media_type),
        ("cache-control", "private, no-cache" if answer.status in (200, 304) else "no-store"),
        ("x-content-type-options", "nosniff"),
        *answer.headers,
    ]
    if isinstance(answer.body, bytes) and answer.status != 304:  # noqa: PLR2004 - RFC 9110, section 15.4.5
        headers.append(("content-length", str(len(answer.body))))
    start = {
        "type": "http.response.start",
        "status": answer.status,
        "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers],
    }
    await send(start)
    if isinstance(answer.body, bytes):
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})
        return
    await _send_parts(answer.body, scope, receive, send)


async def _send_parts(
    parts: AsyncGenerator[bytes, None], scope: Scope, receive: Receive, send: Send
) -> None:
    """Send what comes until it ends or the client goes away."""

    async def sending() -> None:
        if scope["method"] != "HEAD":
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(sending()), asyncio.create_task(leaving())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await parts.aclose()
    if isinstance(results[0], Exception):
        raise results[0]
