"""One HTTP request and its response, with the commit barrier in between.

No byte of a response leaves before everything that the request has emitted
until then is durable. When that fails, a response that has not begun becomes
a 503, and one that has begun is cut off, so that nobody can take it for
complete. What the 503 says is worded in `problem`.

An answer that comes in one piece is held back rather than the application that
sent it: while the disk works, nothing is left of a request but its answer. A
hundred suspended applications with their frames would cost each of them its
place in the processor's cache, and the garbage collector a walk through all.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditTimeoutError, AuditUnavailableError
from otel_audit.web import problem
from otel_audit.web.activity import named
from otel_audit.web.exchange import Exchange, GoneError, logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.api.context import RequestScope
    from otel_audit.api.receipt import PendingReceipt
    from otel_audit.web.activity import Activity
    from otel_audit.web.asgi import Header, Message, Receive, Scope, Send

_START: Final = "http.response.start"
_BODY: Final = "http.response.body"
_GUARDED: Final = frozenset(
    {_BODY, "http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)
"""Messages that carry what the client reads as the answer, once it has begun.

The barrier stands before each, not only before the last one: a client that
counts bytes (Content-Length) or reads events (SSE) is done before the last
one. All others (debug, early hints, unknown extensions) pass untouched.
"""

_CLIENT_LEFT: Final = "the client disconnected before the response"


class HttpExchange(Exchange):
    """Carries one HTTP request through the application."""

    __slots__ = ("_disconnected", "_held", "_releasing", "_returned", "_started")

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
        self._started = False
        self._disconnected = False
        self._returned = False
        self._held: list[Message] = []
        """The answer's beginning, or all of it, until its records are durable."""
        self._releasing: asyncio.Task[None] | None = None

    async def refuse(self, error: AuditUnavailableError) -> None:
        """Answer with a 503 that says that nothing has happened."""
        await self._answer(error, problem.refused(error, self._request.request_id))

    async def receive(self) -> Message:
        """Pass on what the server has, and notice when the client leaves."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass the application's message on, once what it answers for is durable."""
        if self._holds and self._completes(message):
            self._held.append(dict(message))
            asyncio.get_running_loop().call_soon(self._go_on)
            return
        await self._let_go()
        if self._failure is not None:
            self._swallow(message, self._failure)
            return
        kind = message["type"]
        if kind == _START:
            await self._start(message)
            return
        request = self._request
        if (request.pending or request.failure) and kind in _GUARDED:
            try:
                await request.barrier()
            except AuditUnavailableError as error:
                await self._fail(error)
                return
        await self._send(message)

    async def _start(self, message: Message) -> None:
        request = self._request
        try:
            if self._activity is not None:
                status_code: int = message["status"]
                self._activity.request(status_code, self._cause(status_code))
        except AuditUnavailableError as error:
            await self._fail(error, message.get("headers") or ())
            return
        answer = self._with_request_id(message)
        if request.pending or request.failure:
            # ASGI: a response does not begin before the first part of its body comes.
            self._held.append(answer)
            return
        self._started = True
        await self._send(answer)

    def _completes(self, message: Message) -> bool:
        """Whether this is all that was missing of the answer that is held."""
        return (
            message["type"] == _BODY
            and not message.get("more_body", False)
            and len(self._held) == 1
            and not self._held[0].get("trailers", False)
            # What is no bytes may be a buffer that is used again.
            and type(message.get("body", b"")) is bytes
        )

    def _go_on(self) -> None:
        """Answer while the application goes on: its background tasks may take long."""
        if self._holds and not self._returned:
            self._releasing = self._begin_release()

    def _begin_release(self) -> asyncio.Task[None]:
        """Let a task of its own send what is held: no cancellation of a sender reaches it."""
        release = self._release(self._request.newest)
        return asyncio.get_running_loop().create_task(release)

    async def _release(
        self, last: PendingReceipt | None, expired: AuditTimeoutError | None = None
    ) -> None:
        """Send what is held when all until ``last`` is durable, or a 503 in its place.

        ``expired``: see `RequestScope.barrier`.
        """
        held, self._held = self._held, []
        try:
            await self._request.barrier(last, expired)
        except AuditUnavailableError as error:
            await self._fail(error, held[0].get("headers") or ())
            return
        self._started = True
        for message in held:
            await self._send(message)

    def _cause(self, status_code: int) -> str | None:
        """Name what went wrong: the client left, or an exception is being answered."""
        if self._disconnected:
            return _CLIENT_LEFT
        if status_code < 500:  # noqa: PLR2004 - RFC 9110, section 15.6: the server's errors
            return None
        handled = sys.exc_info()[0]  # error handlers send while they handle
        return None if handled is None else named(handled)

    def _swallow(self, message: Message, failure: AuditUnavailableError) -> None:
        """Let what comes after a failure go; stop an application that would never end."""
        if self._started:
            raise failure
        if message["type"] == _BODY and message.get("more_body", False):
            reason = "the response was replaced by a 503: its audit records are not confirmed"
            raise GoneError(reason)

    @property
    def _holds(self) -> bool:
        """Whether there is something to send that nobody has begun to."""
        return bool(self._held) and self._releasing is None

    async def _let_go(self) -> None:
        """See to it that nothing is held any more, and that what was held goes first."""
        releasing = self._releasing
        if releasing is None:
            if not self._held:
                return
            releasing = self._releasing = self._begin_release()
        try:
            # Who gives up waiting loses what it sends itself, never what it stands behind.
            await asyncio.shield(releasing)
        finally:
            if releasing.done():
                self._releasing = None

    async def _fail(self, error: AuditUnavailableError, swallowed: Iterable[Header] = ()) -> None:
        """Replace the response, or cut it off when it has begun; once, whoever hears of it."""
        if self._started:
            self._failure = error
            raise error
        if self._failure is not None:
            return
        await self._answer(error, problem.not_confirmed(error, self._request.request_id), swallowed)
        if self._activity is not None:
            self._activity.unconfirmed(problem.STATUS, error)

    async def _answer(
        self, error: AuditUnavailableError, body: bytes, swallowed: Iterable[Header] = ()
    ) -> None:
        self._failure = error
        scope = self._scope
        logger.error("%s %s is answered with 503: %s", scope["method"], scope["path"], error)
        headers = [*problem.headers(error, body, swallowed), self._id_value()]
        await self._send({"type": _START, "status": problem.STATUS, "headers": headers})
        await self._send({"type": _BODY, "body": body, "more_body": False})

    async def _finish(self) -> None:
        """Settle what background tasks emitted, and responses that never began."""
        self._returned = True
        request = self._request
        last, expired = request.newest, None
        if last is not None and self._holds and (settling := last.settling()) is not None:
            # Here, with as few frames of ours suspended as can be.
            try:
                await settling
            except AuditTimeoutError as error:
                expired = error
        # A task of the application may have sent something meanwhile.
        await (self._release(last, expired) if self._holds else self._let_go())
        if self._failure is not None:
            if self._started:
                raise self._failure
            return
        try:
            if self._activity is not None and not self._started:
                self._activity.request(None, _CLIENT_LEFT if self._disconnected else "no response")
            if request.pending or request.failure:
                await request.barrier()
        except AuditUnavailableError as error:
            await self._fail(error)

    async def _settle(self, error: BaseException) -> None:
        if self._returned:  # and cancelled since: nobody waits for the answer any more
            self._held.clear()
        self._returned = True
        await self._let_go()
        if self._failure is not None:
            return
        if isinstance(error, AuditUnavailableError):
            if not self._started:
                await self._fail(error)
            return
        try:
            if self._activity is not None and not self._started:
                left = self._disconnected or isinstance(error, asyncio.CancelledError)
                self._activity.request(None if left else 500, named(type(error)))
            await self._request.barrier()
        except AuditUnavailableError as unavailable:
            if self._started:
                logger.error("records of a failed request are not confirmed: %s", unavailable)
            else:
                await self._fail(unavailable)

    def _answered(self) -> bool:
        return not self._started
