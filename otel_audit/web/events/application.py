"""The audit trail over HTTP: a plain ASGI application, and a router for FastAPI.

`AuditEvents` promises: nobody gets an answer who was not recognised and may
have it; what a caller may not see takes part in nothing that the caller asks;
each query, and each stream that is opened, is a record of its own, durable
before the answer begins; every error is a problem document (RFC 9457); emits
are never held up. Who is let in is left to `admission.py`, what a request asks
for to `asked.py`, what a query means to `readers/query`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode

import apsw
import orjson

from otel_audit.api.context import acting_as
from otel_audit.api.current import get_audit_provider
from otel_audit.api.logger import AuditLogger
from otel_audit.errors import (
    AuditUnavailableError,
    OtelAuditError,
    ProofError,
    QueryError,
    TrailError,
)
from otel_audit.readers.query.export import as_json
from otel_audit.readers.query.model import OWN_QUERIES, PERSONAL, Query, filled
from otel_audit.readers.query.page_cursor import CursorSigner
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import duration, stamp_of_bucket
from otel_audit.record.event import AuditEvent
from otel_audit.trail.proof import prove
from otel_audit.web import problem
from otel_audit.web.access import PROOF, READ
from otel_audit.web.answer import (
    EVENTS,
    JSON,
    LISTS,
    TEXT,
    Answer,
    ProblemError,
    is_known,
    respond,
    tag_of,
    written,
)
from otel_audit.web.events.admission import Admission
from otel_audit.web.events.asked import Asked
from otel_audit.web.events.desk import Desk
from otel_audit.web.events.stream import HEARTBEAT, Follower, as_beginning, as_event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from otel_audit.api.provider import AuditProvider
    from otel_audit.readers.query.model import Entry, Page
    from otel_audit.readers.search.trail import TrailSearch
    from otel_audit.trail.reader import Leaf
    from otel_audit.web.access import Authorize
    from otel_audit.web.asgi import Receive, Scope, Send

_SECONDS: Final = 5.0
"""What one request may look for; then it answers with what it has, and where it goes on."""

_AT_A_TIME: Final = 200
_RECORD: Final = "{record_id}"
_VARY: Final = ("vary", "authorization, accept")
_ID: Final = "([A-Za-z0-9-]{1,64})"

_logger = logging.getLogger("otel_audit.web")


class AuditEvents:
    """Answers queries about one trail; mount it where you like, for example at ``/audit``."""

    def __init__(
        self,
        *,
        provider: AuditProvider | None = None,
        authorize: Authorize | None = None,
        prefix: str = "/audit",
        personal: Iterable[str] = PERSONAL,
        per_minute: int = 120,
        max_streams: int = 200,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        """Check nothing and open nothing yet.

        ``provider``: default is the global one. ``prefix`` is what paths may begin with.

        ``authorize``: who may ask (`access.py`); default is the token file that
        OTEL_AUDIT_READ_TOKEN_FILE names, or ``tokens.json`` in its directory.
        ``personal``: fields for whoever has the scope ``read:pii`` only.
        ``per_minute``: requests of one caller, 0 for any number. ``max_streams``:
        open at a time in one process. ``heartbeat``: seconds between signs of
        life in a stream, at which its owner's rights are looked at again.
        """
        self._provider = provider
        self._prefix = prefix
        self._personal = frozenset(map(str.casefold, personal))
        self._max_streams = max_streams
        self._heartbeat = heartbeat
        self._door = Admission(authorize, per_minute, lambda: self.provider)
        self._desk = Desk(lambda: self.provider)
        self._follower: tuple[asyncio.AbstractEventLoop, Follower] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3.0)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"].removeprefix(scope.get("root_path") or "")
        await self.answer(path.removeprefix(self._prefix), scope, receive, send)

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for ``path`` below the prefix."""
        try:
            answer = await self._answered(path, scope)
        except ProblemError as refused:
            answer = refused.answer
        except AuditUnavailableError as error:
            body = problem.not_confirmed(error, None)
            answer = Answer(503, body, problem.MEDIA_TYPE, [("retry-after", "5")])
        except QueryError as error:
            answer = ProblemError(400, "bad-query", str(error), parameter=error.parameter).answer
        except (OtelAuditError, apsw.Error, OSError):
            _logger.exception("a query could not be answered")
            detail = "The trail cannot be read at present; the server's log says why."
            answer = ProblemError(503, "unavailable", detail, ("retry-after", "5")).answer
        await respond(answer, scope, receive, send)

    @property
    def provider(self) -> AuditProvider:
        """The provider whose trail is asked."""
        return self._provider or get_audit_provider()

    async def _answered(self, path: str, scope: Scope) -> Answer:
        if scope["method"] not in ("GET", "HEAD"):
            detail = "Only GET and HEAD: nothing can be changed here."
            raise ProblemError(405, "method-not-allowed", detail, ("allow", "GET, HEAD"))
        access = await self._door.admit(scope)
        request = Asked.of(scope, access, self._personal)
        for pattern, answered in _PATTERNS:
            match = pattern.fullmatch(path.strip("/"))
            if match is not None:
                return await answered(self, request, *match.groups())
        raise ProblemError(404, "not-found", f"There are {_NAMES}.")

    async def _events(self, request: Asked) -> Answer:
        request.need(READ)
        form = request.form(*LISTS)
        query, cursor = parse(request.parameters, hidden=request.hidden)
        position = None
        if cursor is not None:
            query, position = self._signer().open(query, cursor)
        if form != JSON and not any(name == "limit" for name, _ in request.parameters):
            return await self._export(request, query, position, form)
        page = await self._desk.ask_anywhere(
            lambda search: search.page(query, position, seconds=_SECONDS)
        )
        await self._record(request, "audit.query", len(page.entries))
        link = None
        if page.next_position is not None:
            link = self._link(request, self._signer().sign(query, page.next_position))
        return await self._page(request, query, page, form, link)

    async def _page(
        self, request: Asked, query: Query, page: Page, form: str, link: str | None
    ) -> Answer:
        headers = [_VARY]
        if link is not None:
            headers.append(("link", f'<{link}>; rel="next"'))
        if form == JSON:
            progress = await self._desk.ask_anywhere(lambda search: search.progress())
            content = {
                "records": [as_json(entry, query) for entry in page.entries],
                "next": link,
                "complete": page.complete,
            }
            # A weak one: how far the index is may differ where the records are the same.
            tag = f"W/{tag_of(orjson.dumps(content))}"
            index = {"indexed": progress.indexed, "size": progress.size}
            body = orjson.dumps(content | {"index": index})
        else:
            body = b"".join(written(page.entries, query, form))
            tag = tag_of(body)
        headers.append(("etag", tag))
        if is_known(request.header(b"if-none-match"), tag):
            return Answer(304, b"", form, headers)
        return Answer(200, body, form, headers)

    async def _export(
        self, request: Asked, query: Query, position: int | None, form: str
    ) -> Answer:
        """Send all records, some at a time; they are counted before, for the record of it."""
        number: int | None
        try:
            counts = await self._desk.ask_anywhere(
                lambda search: search.count(query, seconds=_SECONDS)
            )
            number = sum(counts.values())
        except QueryError:
            number = None
        await self._record(request, "audit.export", number)
        return Answer(200, self._exported(query, position, form), form, [_VARY])

    async def _exported(
        self, query: Query, position: int | None, form: str
    ) -> AsyncGenerator[bytes, None]:
        search = await self._desk.open()
        entries = search.stream(query, position)
        first = True
        try:
            while True:
                part = await self._desk.in_thread(lambda: list(islice(entries, _AT_A_TIME)))
                if part or first:
                    yield b"".join(written(part, query, form, head=first))
                first = False
                if not part:
                    return
        finally:
            search.close()

    async def _event(self, request: Asked, name: str) -> Answer:
        request.need(READ)
        request.form(JSON)
        request.no_parameters()
        leaf, entry = await self._desk.ask(lambda search: _found(search, name))
        await self._record(request, "audit.query", 1, record=name)
        content = as_json(entry, Query(hidden=request.hidden))
        if not request.hidden:
            # The hash would confirm a guess of what is hidden.
            content["leaf_hash"] = leaf.hash.hex()
            content["bytes"] = leaf.record.decode(errors="backslashreplace")
        body = orjson.dumps(content)
        tag = tag_of(body)
        headers = [("etag", tag), ("vary", "authorization")]
        if is_known(request.header(b"if-none-match"), tag):
            return Answer(304, b"", JSON, headers)
        return Answer(200, body, JSON, headers)

    async def _proof(self, request: Asked, name: str) -> Answer:
        request.need(PROOF)
        request.form(TEXT)
        request.no_parameters()

        def proved(search: TrailSearch) -> str | ProofError | None:
            leaf, _ = _found(search, name)
            reader = search.reader
            checkpoint = reader.last_checkpoint()
            if checkpoint is None or checkpoint.size <= leaf.sequence:
                return None
            try:
                proof = prove(leaf.sequence, leaf.record, checkpoint.note, reader.hash_at)
            except ProofError as error:
                return error
            return (replace(proof, extra=None) if request.hidden else proof).text()

        text = await self._desk.ask(proved)
        await self._record(request, "audit.proof", 1, record=name)
        if isinstance(text, ProofError):
            raise TrailError(str(text)) from text
        if text is None:
            detail = "No checkpoint covers this record yet; one does within about a second."
            raise ProblemError(503, "not-covered", detail, ("retry-after", "1"))
        return Answer(200, text.encode(), TEXT)

    async def _checkpoint(self, request: Asked) -> Answer:
        request.need(PROOF, READ)
        request.form(TEXT)
        request.no_parameters()
        note = await self._desk.ask(lambda search: search.reader.last_checkpoint())
        if note is None:
            detail = "There is no checkpoint yet; the first one is signed after the first record."
            raise ProblemError(404, "not-covered", detail)
        return Answer(200, note.note.encode(), TEXT)

    async def _stats(self, request: Asked) -> Answer:
        request.need(READ)
        request.form(JSON)
        query, by, said = request.counting()
        per = None if said is None else duration("per", said)
        counts = await self._desk.ask_anywhere(
            lambda search: search.count(query, by=by, per=per, seconds=_SECONDS)
        )
        await self._record(request, "audit.count", sum(counts.values()))
        progress = await self._desk.ask_anywhere(lambda search: search.progress())
        if by is None and per is not None:
            counts = filled(counts, query, per)
        rows = sorted(
            counts.items(), key=lambda item: (item[0][0] or 0, -item[1], item[0][1] or "")
        )
        content = {
            "origin": self.provider.trail.store.origin,
            "index": {
                "indexed": progress.indexed,
                "size": progress.size,
                "full_text": progress.full_text,
            },
            "by": by,
            "per": said,
            "counts": [
                {
                    "start": None if start is None else stamp_of_bucket(start),
                    "value": value,
                    "count": number,
                }
                for (start, value), number in rows
            ],
        }
        return Answer(200, orjson.dumps(content), JSON, [("vary", "authorization")])

    async def _stream(self, request: Asked) -> Answer:
        request.need(READ)
        request.form(EVENTS)
        follower = self._following()
        if follower.clients >= self._max_streams:
            detail = f"{follower.clients} streams are open already; try again later."
            raise ProblemError(503, "too-many", detail, ("retry-after", "10"))
        query, position = request.streaming()
        await self._record(request, "audit.stream", None)
        events = self._events_of(request, follower, query, position)
        headers = [("x-accel-buffering", "no")]
        return Answer(200, events, EVENTS, headers)

    async def _events_of(
        self, request: Asked, follower: Follower, query: Query, position: int | None
    ) -> AsyncGenerator[bytes, None]:
        stream = follower.stream(query, position, self._heartbeat)
        begun = False
        try:
            async for place, entries in stream:
                if not begun:
                    begun = True
                    yield as_beginning(place)
                if entries is None:
                    # Rights that were taken away end the stream as well.
                    if not await self._still(request):
                        return
                    yield b": still here\n\n"
                elif entries:
                    yield b"".join(as_event(entry, query) for entry in entries)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def _still(self, request: Asked) -> bool:
        try:
            return await self._door.recognise(request.scope) == request.access
        except (ProblemError, OtelAuditError, OSError):
            return False

    def _following(self) -> Follower:
        loop = asyncio.get_running_loop()
        if self._follower is None or self._follower[0] is not loop:
            self._follower = (loop, Follower(self._desk.ask))
        return self._follower[1]

    def _signer(self) -> CursorSigner:
        return CursorSigner(self.provider.session_salt)

    def _link(self, request: Asked, cursor: str) -> str:
        kept = [pair for pair in request.parameters if pair[0] != "cursor"]
        path = request.scope.get("root_path") or ""
        path += request.scope["path"].removeprefix(path)
        return f"{path}?{urlencode([*kept, ('cursor', cursor)])}"

    async def _record(
        self, request: Asked, event: str, number: int | None, record: str | None = None
    ) -> None:
        """Leave the record of a query: who asked, for what, and how much there was."""
        asked: dict[str, list[str]] = {}
        for name, value in request.parameters:
            if name != "cursor":
                asked.setdefault(name, []).append(value)
        fields: dict[str, Any] = {"query_filter": orjson.dumps(asked).decode()}
        fields["personal_data"] = not request.hidden
        if number is not None:
            fields["returned"] = number
        told = AuditEvent(
            event,
            "read",
            event_type=OWN_QUERIES,
            resource_type="record" if record else "audit_trail",
            resource_name=record or "audit_trail",
            fields=fields,
        )
        with acting_as(request.access.name):
            await AuditLogger(provider=self.provider).aemit(told)

    routes: ClassVar[Mapping[str, Callable[..., Awaitable[Answer]]]] = {
        "/events": _events,
        f"/events/{_RECORD}": _event,
        f"/events/{_RECORD}/proof": _proof,
        "/checkpoint": _checkpoint,
        "/stats": _stats,
        "/stream": _stream,
    }
    """What there is below the prefix, and who answers; the router documents each."""


_PATTERNS: Final = [
    (re.compile(path.strip("/").replace(_RECORD, _ID)), answered)
    for path, answered in AuditEvents.routes.items()
]
_NAMES: Final = ", ".join(path.strip("/").replace(_RECORD, "ID") for path in AuditEvents.routes)


def _found(search: TrailSearch, name: str) -> tuple[Leaf, Entry]:
    found = search.find(name)
    if found is None:
        raise ProblemError(404, "not-found", f"There is no record {name}.")
    return found


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def audit_router(**options: Any) -> Any:  # noqa: ANN401 - an APIRouter, which is not imported here
    """Return a router for ``app.include_router``, with everything documented in OpenAPI.

    Takes what `AuditEvents` takes; ``authorize`` gets a
    `starlette.requests.HTTPConnection`.
    """
    from otel_audit.web.events.router import make  # noqa: PLC0415 - only FastAPI's users need it

    return make(options)
