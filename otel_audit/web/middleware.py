"""The ASGI middleware: context for each request, and the commit barrier before each answer.

Promises what `HttpExchange`, `WebSocketExchange` and `LifespanExchange` do for
their protocols, for any ASGI 3.0 application. It leaves messages, extensions
and protocols that it does not know as they are. Who uses FastAPI or Starlette
takes `otel_audit.web.fastapi.instrument_app`, which finds the right place for
it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from otel_audit.web.asgi import REQUEST_KEY
from otel_audit.web.binding import Binding, refusing_unknown_options
from otel_audit.web.bridges import ASGI, around
from otel_audit.web.http import HttpExchange
from otel_audit.web.identity import Identify
from otel_audit.web.lifespan import LifespanExchange, fail_start
from otel_audit.web.websocket import WebSocketExchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from otel_audit.web.exchange import Exchange
    from otel_audit.web.identity import IdentityHook

_PROTOCOLS: Final = frozenset({"http", "websocket", "lifespan"})


class AuditMiddleware:
    """Gives each request its audit context, and lets nothing out before it is durable.

    A message of a response MUST NOT reach the server before every record that
    was emitted in the request until then is committed and synced.
    """

    @refusing_unknown_options
    def __init__(  # noqa: PLR0913 - each has a default, and all are checked here, once
        self,
        app: ASGIApp,
        *,
        provider: AuditProvider | None = None,
        identify: IdentityHook | None = None,
        trusted_proxies: Iterable[str] | None = None,
        proxy_header: str | None = None,
        session_cookie: str | None = "session",
        http_activity: str | None = None,
        exclude: Iterable[str] = (),
        request_id_header: str = "x-request-id",
        client_id_header: str | None = "x-client-id",
    ) -> None:
        """Wrap ``app``.

        ``provider``: default is the global one. ``identify``: see
        `otel_audit.web.identity`. ``trusted_proxies``: addresses and networks
        whose ``proxy_header`` is believed (default: OTEL_AUDIT_TRUSTED_PROXIES
        and OTEL_AUDIT_PROXY_HEADER).
        ``session_cookie``: whose value is stored as a salted hash; None for
        none. ``http_activity``: all, mutating or off (default: the policy's).
        ``exclude``: paths, each with everything below it, that get no activity
        records and are never refused. Raises `AuditSettingsError`.
        """
        self.app = app
        self._identify = None if identify is None else Identify(identify)
        self._binding = Binding(
            provider=provider,
            trusted_proxies=trusted_proxies,
            proxy_header=proxy_header,
            session_cookie=session_cookie,
            http_activity=http_activity,
            exclude=exclude,
            request_id_header=request_id_header,
            client_id_header=client_id_header,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3.0)."""
        kind = scope["type"]
        if REQUEST_KEY in scope or kind not in _PROTOCOLS:
            await self._nested(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif (outer := around(ASGI, scope)) is not None:
            scope[REQUEST_KEY] = outer
            outer.inside = scope
            await self._nested(scope, receive, send)
        else:
            request, activity, id_header, refusal = self._binding.begin(ASGI, scope)
            exchange = _EXCHANGES[kind](scope, receive, send, request, activity, id_header)
            if refusal is None:
                await exchange.run(self.app, self._identify)
            else:
                await exchange.refuse(refusal)

    async def _nested(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stay out of the way: an instance around us does it all; only who it is may be new."""
        request = scope.get(REQUEST_KEY)
        if self._identify is not None and request is not None:
            await self._identify(scope, request)
        await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Opening a trail reads and syncs: not in the event loop.
            bound = await asyncio.to_thread(self._binding.bind)
        except Exception as error:
            await fail_start(receive, send, error)
            # As Starlette does; its TestClient takes a lifespan that just ends for one that runs.
            raise
        scope[REQUEST_KEY] = None
        await LifespanExchange(bound.provider, receive, send).run(self.app, scope)


_EXCHANGES: Final[dict[str, type[Exchange]]] = {
    "http": HttpExchange,
    "websocket": WebSocketExchange,
}
