"""One WebSocket connection, with the commit barrier before everything it sends.

The same promise as for HTTP: nothing leaves before what was emitted until
then is durable. When that fails, a handshake is declined (503 where the server
can, else close 1013) and an open connection is closed with 1011; the
application then finds the client gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditUnavailableError
from otel_audit.web import problem
from otel_audit.web.exchange import Exchange, GoneError, logger, named

if TYPE_CHECKING:
    from otel_audit.api.context import RequestScope
    from otel_audit.web.activity import Activity
    from otel_audit.web.asgi import Message, Receive, Scope, Send

_ACCEPT: Final = "websocket.accept"
_CLOSE: Final = "websocket.close"
_DENIAL: Final = "websocket.http.response.start"
_GUARDED: Final = frozenset(
    {_ACCEPT, _CLOSE, _DENIAL, "websocket.send", "websocket.http.response.body"}
)
_ABNORMAL: Final = 1006
_FORBIDDEN: Final = 403  # what a server answers when a handshake is closed (ASGI, Close)


class WebSocketExchange(Exchange):
    """Carries one WebSocket connection through the application."""

    __slots__ = ("_accepted", "_client_code", "_ended")

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
        self._accepted = False
        self._ended = False
        self._client_code: int | None = None

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
            _swallow(kind)
            return
        if kind in _GUARDED:
            try:
                await self._prepare(kind, message)
            except AuditUnavailableError as error:
                await self._fail(error)
                _swallow(kind)
                return
            if kind in {_ACCEPT, _DENIAL}:
                message = self._with_request_id(message)
                self._accepted = self._accepted or kind == _ACCEPT
        await self._send(message)

    async def _prepare(self, kind: str, message: Message) -> None:
        """Record what the message means, and wait until everything is durable."""
        activity = self._activity
        if activity is not None and kind in {_ACCEPT, _CLOSE, _DENIAL}:
            if kind == _ACCEPT:
                activity.connect()
            elif kind == _DENIAL:
                activity.connect(message["status"])
            elif self._accepted:
                self._disconnect(message.get("code", 1000), "server")
            else:
                activity.connect(_FORBIDDEN)
        request = self._request
        if request.pending or request.failure:
            await request.barrier()

    def _disconnect(self, code: int, closed_by: str, error: str | None = None) -> None:
        """Record the end of the connection, once."""
        if self._activity is not None and self._accepted and not self._ended:
            self._ended = True
            self._activity.disconnect(code, closed_by, error)

    async def _fail(self, error: AuditUnavailableError) -> None:
        if not self._accepted:
            await self._decline(error, problem.not_confirmed(error, self._request.request_id))
            return
        self._failure = error
        self._log("closed with 1011", error)
        await self._send(
            {"type": _CLOSE, "code": problem.INTERNAL_ERROR, "reason": problem.CLOSE_REASON}
        )
        self._disconnect(problem.INTERNAL_ERROR, "server", problem.CLOSE_REASON)

    async def _decline(self, error: AuditUnavailableError, body: bytes) -> None:
        self._failure = error
        self._log("declined", error)
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            code = problem.TRY_AGAIN_LATER
            await self._send({"type": _CLOSE, "code": code, "reason": problem.CLOSE_REASON})
            return
        headers = [*problem.headers(error, body), self._id_value()]
        await self._send({"type": _DENIAL, "status": problem.STATUS, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": body})

    def _log(self, what: str, error: AuditUnavailableError) -> None:
        logger.error("WebSocket %s %s: %s", self._scope["path"], what, error)

    async def _finish(self) -> None:
        """Wait for what was emitted last; the application has returned."""
        if self._failure is not None:
            return
        try:
            self._end(None)
            await self._request.barrier()
        except AuditUnavailableError as error:
            if self._over():
                raise
            await self._fail(error)

    def _end(self, error: str | None) -> None:
        """Record how it ended, when no message of the application said so."""
        if self._client_code is not None:
            self._disconnect(self._client_code, "client", error)
        elif self._accepted:
            code = problem.INTERNAL_ERROR if error else _ABNORMAL
            self._disconnect(code, "server", error)
        if self._activity is not None and not self._accepted:
            self._activity.connect(500, error or "no answer")

    def _over(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._ended or self._client_code is not None

    def _answered(self) -> bool:
        return True  # after a failure the connection is declined or closed

    async def _settle(self, error: BaseException) -> None:
        if isinstance(error, AuditUnavailableError):
            if not self._over():
                await self._fail(error)
            return
        try:
            self._end(named(type(error)))
            await self._request.barrier()
        except AuditUnavailableError as unavailable:
            if self._accepted:
                logger.error("records of a failed connection are not confirmed: %s", unavailable)
            else:
                await self._fail(unavailable)


def _swallow(kind: str) -> None:
    """Let an answer go that nobody gets; stop whoever would send for ever."""
    if kind == "websocket.send":
        message = "the connection was closed: its audit records are not confirmed"
        raise GoneError(message)
