"""What an HTTP request and a WebSocket connection have in common here.

Promises: the application runs within its request's scope; when it has ended,
however it has, its last records are settled before the server hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from otel_audit.errors import AuditUnavailableError

if TYPE_CHECKING:
    from otel_audit.api.context import RequestScope
    from otel_audit.web.activity import Activity
    from otel_audit.web.asgi import ASGIApp, Header, Message, Receive, Scope, Send
    from otel_audit.web.identity import Identify

logger: Final = logging.getLogger("otel_audit.web")


class GoneError(ConnectionAbortedError):
    """Tells an application that sends on and on that nobody gets it any more.

    An `OSError`, as ASGI asks of a server whose client has gone: what the
    client got instead says that audit records are not confirmed.
    """


class Exchange(ABC):
    """Carries one request or connection through the application.

    MUST NOT pass on what the application sends before the records that were
    emitted until then are confirmed.
    """

    __slots__ = ("_activity", "_failure", "_id_header", "_receive", "_request", "_scope", "_send")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request: RequestScope,
        activity: Activity | None,
        id_header: bytes,
    ) -> None:
        """Stand between server and application; without ``activity``, record nothing."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request = request
        self._activity = activity
        self._id_header = id_header
        self._failure: AuditUnavailableError | None = None

    async def run(self, app: ASGIApp, identify: Identify | None) -> None:
        """Call the application; return when it and its background tasks are done."""
        request = self._request
        token = request.attach()
        try:
            if identify is not None:
                await identify(self._scope, request)
            await app(self._scope, self.receive, self.send)
            await self._finish()
        except (Exception, asyncio.CancelledError) as error:
            if not await self._replaces(error):
                raise
        finally:
            request.detach(token)
            request.close()

    @abstractmethod
    async def refuse(self, error: AuditUnavailableError) -> None:
        """Answer without calling the application."""

    @abstractmethod
    async def receive(self) -> Message:
        """Pass on what the server has for the application."""

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Pass the application's message on, once what it answers for is durable."""

    @abstractmethod
    async def _finish(self) -> None:
        """Settle what was emitted last, now that the application has returned."""

    @abstractmethod
    async def _settle(self, error: BaseException) -> None:
        """Settle what was emitted before the application raised ``error``."""

    @abstractmethod
    def _answered(self) -> bool:
        """Whether the client got a whole answer in place of the application's."""

    async def _replaces(self, error: BaseException) -> bool:
        """Settle the account of an application that raised; True if the error ends here."""
        if self._failure is None:
            await self._settle(error)
        if self._failure is None or isinstance(error, asyncio.CancelledError):
            return False
        if not _is_ours(error):
            logger.error("the application failed as well", exc_info=error)
        return self._answered()

    def _with_request_id(self, message: Message) -> Message:
        """Return a copy whose request id is ours; the application may send its own list again."""
        name = self._id_header
        headers: list[Header] = [
            header for header in message.get("headers") or () if header[0].lower() != name
        ]
        headers.append(self._id_value())
        return {**message, "headers": headers}

    def _id_value(self) -> Header:
        return self._id_header, self._request.request_id.encode("ascii")


def _is_ours(error: BaseException) -> bool:
    """Whether there is nothing in it but what we raised; task groups wrap it (PEP 654)."""
    if isinstance(error, (AuditUnavailableError, GoneError)):
        return True
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return bool(inner) and all(map(_is_ours, inner))
