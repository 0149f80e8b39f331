"""Start and end of the application (ASGI lifespan), with the trail open in between.

Promises: an unusable configuration fails the start, with its message; what is
emitted while the application starts or stops is durable before the server
hears that it is complete; at the end the trail is drained, the mirror has
caught up and a checkpoint is signed. An application that does not speak the
protocol gets the same.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from otel_audit.api.context import Actor, RequestScope
from otel_audit.errors import AuditUnavailableError

if TYPE_CHECKING:
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Message, Receive, Scope, Send

_logger: Final = logging.getLogger("otel_audit.web")

_STARTED: Final = "lifespan.startup.complete"
_NOT_STARTED: Final = "lifespan.startup.failed"
_STOPPED: Final = "lifespan.shutdown.complete"
_NOT_STOPPED: Final = "lifespan.shutdown.failed"


def service_scope(service: str) -> RequestScope:
    """Make the scope that collects what is emitted while an application starts or stops.

    That belongs to no request, so the facts of one are absent, and who acts is
    the service, as everywhere outside a request.
    """
    absent: Any = None
    scope = RequestScope(absent, client_id=absent, client_ip=absent)
    scope.actor = Actor(service, "service", verified=absent)
    return scope


class LifespanExchange:
    """Carries the lifespan protocol through the application, around an open provider."""

    __slots__ = (
        "_asked", "_drained", "_failure", "_provider", "_receive", "_reported", "_request", "_send",
    )  # fmt: skip

    def __init__(self, provider: AuditProvider, receive: Receive, send: Send) -> None:
        self._provider = provider
        self._receive = receive
        self._send = send
        self._request = service_scope(provider.service_name)
        self._failure: AuditUnavailableError | None = None
        self._asked = False
        self._reported = False
        self._drained = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Call the application, and drain when it is over, however it ended."""
        token = self._request.attach()
        try:
            await self._call(app, scope)
        finally:
            self._request.detach(token)
            self._request.close()
            await self._drain()

    async def receive(self) -> Message:
        """Pass on what the server says."""
        self._asked = True
        message = await self._receive()
        if message["type"] == "lifespan.shutdown":
            self._request.closed = False
        return message

    async def send(self, message: Message) -> None:
        """Pass the application's word on, once what it emitted is durable."""
        kind = message["type"]
        if kind == _STARTED:
            await self._start(message)
        elif kind == _STOPPED:
            await self._stop(message)
        elif kind == _NOT_STARTED and self._failure is not None:
            await self._report(self._failure)
        else:
            await self._send(message)

    async def _call(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self._failure is not None:
                await self._report(self._failure)
            elif not self._asked:
                _logger.debug("the application has no lifespan (%r); the trail has one", error)
                await self._stand_in()
                return
            raise
        if not self._asked:
            await self._stand_in()

    async def _stand_in(self) -> None:
        """Speak the protocol for an application that does not."""
        await self.receive()
        await self.send({"type": _STARTED})
        await self.receive()
        await self.send({"type": _STOPPED})

    async def _start(self, message: Message) -> None:
        try:
            await self._request.barrier()
        except AuditUnavailableError as error:
            # Raised into the application, so that it gives back what it has opened.
            self._failure = error
            raise
        # Tasks that were started now and go on are not part of the start.
        self._request.close()
        await self._send(message)

    async def _stop(self, message: Message) -> None:
        try:
            await self._request.barrier()
        except AuditUnavailableError as error:
            text = f"records of the shutdown are not confirmed: {error}"
            message = {"type": _NOT_STOPPED, "message": text}
        await self._drain()
        await self._send(message)

    async def _report(self, error: AuditUnavailableError) -> None:
        if not self._reported:
            self._reported = True
            text = f"records of the application's start are not confirmed: {error}"
            await self._send({"type": _NOT_STARTED, "message": text})

    async def _drain(self) -> None:
        """Leave nothing behind in memory: queue, mirror, last checkpoint."""
        if not self._drained:
            self._drained = True
            await asyncio.to_thread(self._provider.settle_down)


async def fail_start(receive: Receive, send: Send, error: Exception) -> None:
    """Tell the server that there can be no start, because of ``error``."""
    await receive()
    message = f"the audit trail cannot be used, so the application is not started: {error}"
    await send({"type": _NOT_STARTED, "message": message})
