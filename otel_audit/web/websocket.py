"""One WebSocket connection, with the commit barrier before everything it sends.

The same promise as for HTTP: nothing leaves before what was emitted until
then is durable. When that fails, a handshake is declined (503 where the server
can, else close 1013) and an open connection is closed with 1011; the
application then finds the client gone.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditUnavailableError
from otel_audit.web import problem
from otel_audit.web.activity import named
from otel_audit.web.exchange import Exchange, GoneError, logger

if TYPE_CHECKING:
    from otel_audit.api.context import RequestScope
    from otel_audit.web.activity import Activity
    from otel_audit.web.asgi import Message, Receive, Scope, Send

_ACCEPT: Final = "websocket.accept"
_CLOSE: Final = "websocket.close"
_DENIAL: Final = "websocket.http.response.start"
_DENIAL_BODY: Final = "websocket.http.response.body"
_GUARDED: Final = frozenset({_ACCEPT, _CLOSE, _DENIAL, _DENIAL_BODY, "websocket.send"})
_ANSWERS: Final = frozenset({_ACCEPT, _DENIAL})

_SWITCHING: Final = 101  # RFC 6455, section 4.2.2: how a handshake is accepted
_FORBIDDEN: Final = 403  # what a server answers when a handshake is closed (ASGI)
_NORMAL: Final = 1000
_ABNORMAL: Final = 1006


class _State(Enum):
    """How far the connection is, as its client sees it."""

    CONNECTING = auto()
    OPEN = auto()
    DENYING = auto()
    REPLACED = auto()
    """Declined or closed by us: nothing of the application's gets out any more."""
    OVER = auto()


_NEXT: Final = {_ACCEPT: _State.OPEN, _DENIAL: _State.DENYING, _CLOSE: _State.OVER}


class WebSocketExchange(Exchange):
    """Carries one WebSocket connection through the application."""

    __slots__ = ("_client_code", "_listed", "_state")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request: RequestScope,
        activity: Activity | None,
        id_header: bytes,
    ) -> None:
        super().__init__(scope, receive, send, request, activity, id_header)
        self._state = _State.CONNECTING
        self._client_code: int | None = None
        self._listed = False  # whether there is a record of the open connection without its end

    async def refuse(self, error: AuditUnavailableError) -> None:
        """Decline the handshake without calling the application."""
        await self._receive()
        await self._decline(error, problem.refused(error, self._request.request_id))

    async def receive(self) -> Message:
        """Pass on what the client sent; after a failure the client is gone."""
        if self._failure is not None:
            code = problem.INTERNAL_ERROR
            return {"type": "websocket.disconnect", "code": code, "reason": problem.CLOSE_REASON}
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._client_code = message.get("code") or _ABNORMAL
        return message

    async def send(self, message: Message) -> None:
        """Pass the application's message on, once what it answers for is durable."""
        kind = message["type"]
        if self._failure is not None:
            self._swallow(kind, self._failure)
        elif kind not in _GUARDED:
            await self._send(message)
        else:
            await self._guard(kind, message)

    async def _guard(self, kind: str, message: Message) -> None:
        request = self._request
        try:
            if self._activity is not None:
                self._record(self._activity, kind, message)
            if request.pending or request.failure:
                await request.barrier()
        except AuditUnavailableError as error:
            await self._fail(error)
            self._swallow(kind, error)
            return
        if kind == _DENIAL_BODY and not message.get("more_body", False):
            self._state = _State.OVER
        else:
            self._state = _NEXT.get(kind, self._state)
        await self._send(self._with_request_id(message) if kind in _ANSWERS else message)

    def _record(self, activity: Activity, kind: str, message: Message) -> None:
        if kind == _ACCEPT:
            activity.connect(_SWITCHING)
            self._listed = True
        elif kind == _DENIAL:
            activity.connect(message["status"])
        elif kind == _CLOSE:
            self._end(activity, message.get("code") or _NORMAL, "server")
            activity.connect(_FORBIDDEN)

    def _end(self, activity: Activity, code: int, by: str, error: str | None = None) -> None:
        """Record the end of an open connection, once."""
        if self._listed:
            self._listed = False
            activity.disconnect(code, by, error)

    async def _fail(self, error: AuditUnavailableError) -> None:
        """Decline or close the connection, once; when it is too late for that, raise."""
        if self._state is _State.REPLACED:
            return
        if self._state is _State.CONNECTING:
            await self._decline(error, problem.not_confirmed(error, self._request.request_id))
            if self._activity is not None:
                self._listed = False
                self._activity.unconfirmed(problem.STATUS, error)
            return
        self._failure = error
        if self._state is not _State.OPEN or self._client_code is not None:
            raise error
        self._replace("closed with 1011", error)
        code = problem.INTERNAL_ERROR
        await self._send({"type": _CLOSE, "code": code, "reason": problem.CLOSE_REASON})
        if self._activity is not None:
            with suppress(AuditUnavailableError):  # counted and logged; nobody waits for it
                self._end(self._activity, code, "server", problem.CLOSE_REASON)

    async def _decline(self, error: AuditUnavailableError, body: bytes) -> None:
        self._replace("declined", error)
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            code = problem.TRY_AGAIN_LATER
            await self._send({"type": _CLOSE, "code": code, "reason": problem.CLOSE_REASON})
            return
        headers = [*problem.headers(error, body), self._id_value()]
        await self._send({"type": _DENIAL, "status": problem.STATUS, "headers": headers})
        await self._send({"type": _DENIAL_BODY, "body": body})

    def _replace(self, what: str, error: AuditUnavailableError) -> None:
        self._failure = error
        self._state = _State.REPLACED
        logger.error("WebSocket %s is %s: %s", self._scope["path"], what, error)

    def _swallow(self, kind: str, failure: AuditUnavailableError) -> None:
        """Let an answer go that nobody gets; stop whoever would send for ever."""
        if self._state is not _State.REPLACED:
            raise failure
        if kind == "websocket.send":
            reason = "the connection was closed: its audit records are not confirmed"
            raise GoneError(reason)

    async def _finish(self) -> None:
        """Settle what was emitted last; the application has returned."""
        if self._failure is not None:
            if self._state is not _State.REPLACED:
                raise self._failure
            return
        request = self._request
        try:
            self._record_end(None)
            if request.pending or request.failure:
                await request.barrier()
        except AuditUnavailableError as error:
            await self._fail(error)

    def _record_end(self, error: str | None) -> None:
        """Record how it ended, when no message of the application has said so."""
        activity = self._activity
        if activity is None:
            return
        if self._client_code is not None:
            self._end(activity, self._client_code, "client", error)
            activity.connect(None, error or "the client disconnected before the answer")
        else:
            self._end(activity, problem.INTERNAL_ERROR if error else _ABNORMAL, "server", error)
            activity.connect(500, error or "no answer")

    async def _settle(self, error: BaseException) -> None:
        late = self._state is not _State.CONNECTING
        if isinstance(error, AuditUnavailableError):
            if not late or (self._state is _State.OPEN and self._client_code is None):
                await self._fail(error)
            return
        try:
            self._record_end(named(type(error)))
            await self._request.barrier()
        except AuditUnavailableError as unavailable:
            if late:
                logger.error("records of a failed connection are not confirmed: %s", unavailable)
            else:
                await self._fail(unavailable)

    def _answered(self) -> bool:
        return self._state is _State.REPLACED
