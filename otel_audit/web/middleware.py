"""The ASGI middleware: context for each request, and the commit barrier before each answer.

Promises what `HttpExchange`, `WebSocketExchange` and `LifespanExchange` do for
their protocols, for any ASGI 3.0 application. It leaves messages, extensions
and protocols that it does not know as they are. Who uses FastAPI or Starlette
takes `otel_audit.web.fastapi.instrument_app`, which finds the right place for
it.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import get_audit_provider
from otel_audit.errors import AuditUnavailableError, OtelAuditError
from otel_audit.web.activity import ACTIVITY_KEY, SAFE_METHODS, Activity
from otel_audit.web.caller import CallerReader
from otel_audit.web.http import HttpExchange
from otel_audit.web.identity import Identify
from otel_audit.web.lifespan import LifespanExchange, fail_start
from otel_audit.web.paths import checked_activity, checked_paths
from otel_audit.web.proxies import FORWARDED_HEADERS, TrustedProxies
from otel_audit.web.routes import route_template
from otel_audit.web.websocket import WebSocketExchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from otel_audit.web.exchange import Exchange
    from otel_audit.web.identity import IdentityHook

SCOPE_KEY: Final = "otel_audit"
"""Where the ASGI scope holds the `RequestScope`; who finds one there is nested in another."""

_PROTOCOLS: Final = frozenset({"http", "websocket", "lifespan"})


class AuditMiddleware:
    """Gives each request its audit context, and lets nothing out before it is durable.

    A message of a response MUST NOT reach the server before every record that
    was emitted in the request until then is committed and synced.
    """

    def __init__(  # noqa: PLR0913 - each has a default, and all are checked here, once
        self,
        app: ASGIApp,
        *,
        provider: AuditProvider | None = None,
        identify: IdentityHook | None = None,
        trusted_proxies: Iterable[str] | None = None,
        proxy_header: str = FORWARDED_HEADERS[0],
        session_cookie: str | None = "session",
        http_activity: str | None = None,
        exclude: Iterable[str] = (),
        request_id_header: str = "x-request-id",
        client_id_header: str | None = "x-client-id",
    ) -> None:
        """Wrap ``app``.

        ``provider``: default is the global one. ``identify``: see
        `otel_audit.web.identity`. ``trusted_proxies``: addresses and networks
        whose ``proxy_header`` is believed (default: OTEL_AUDIT_TRUSTED_PROXIES).
        ``session_cookie``: whose value is stored as a salted hash; None for
        none. ``http_activity``: all, mutating or off (default: the policy's).
        ``exclude``: paths, each with everything below it, that get no activity
        records and are never refused. Raises `AuditSettingsError`.
        """
        self.app = app
        self._provider = provider
        self._identify = None if identify is None else Identify(identify)
        self._http_activity = checked_activity(http_activity)
        self._excluded = checked_paths(exclude)
        self._below_excluded = tuple(f"{path}/" for path in self._excluded)
        self._caller = partial(
            CallerReader,
            session_cookie=session_cookie,
            request_id_header=request_id_header,
            client_id_header=client_id_header,
        )
        self._proxies = TrustedProxies(trusted_proxies or (), header=proxy_header)
        self._proxies_from_settings = trusted_proxies is None
        self._unbound = self._caller(proxies=self._proxies)
        self._bound: _Bound | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3.0)."""
        kind = scope["type"]
        if SCOPE_KEY in scope or kind not in _PROTOCOLS:
            await self._nested(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            exchange, refusal = self._begin(kind, scope, receive, send)
            if refusal is None:
                await exchange.run(self.app, self._identify)
            else:
                await exchange.refuse(refusal)

    def _begin(
        self, kind: str, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Exchange, AuditUnavailableError | None]:
        """Return who carries the request, and why it has to be refused, if it has to."""
        exchange = _EXCHANGES[kind]
        try:
            bound = self._bind()
        except (OtelAuditError, OSError) as error:
            # Without lifespan this is the first that anybody hears of it.
            caller = self._unbound
            request = caller.read(scope, secrets.token_bytes(32))
            refusal = AuditUnavailableError(f"the audit trail cannot be used: {error}")
            return exchange(scope, receive, send, request, None, caller.request_id_header), refusal
        caller = bound.caller
        request = scope[SCOPE_KEY] = caller.read(scope, bound.salt)
        refused = bound.provider.refusal() if bound.refuses else None
        activity = None
        if self._excluded and self._excludes(scope):
            refused = None
        elif bound.audit is not None:
            listed = bound.listed and not (
                kind == "http" and scope["method"] in bound.silent_methods
            )
            if listed or bound.rules:
                activity = Activity(bound.audit, scope, bound.rules, listed=listed)
                scope[ACTIVITY_KEY] = activity
        if bound.asks_for_routes:
            request.route = partial(route_template, scope, scope.get("root_path") or "")
        return exchange(scope, receive, send, request, activity, caller.request_id_header), refused

    async def _nested(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stay out of the way: an instance around us does it all; only who it is may be new."""
        request = scope.get(SCOPE_KEY)
        if self._identify is not None and request is not None:
            await self._identify(scope, request)
        await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Opening a trail reads and syncs: not in the event loop.
            bound = await asyncio.to_thread(self._bind)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server has to hear it
            await fail_start(receive, send, error)
            return
        scope[SCOPE_KEY] = None
        await LifespanExchange(bound.provider, receive, send).run(self.app, scope)

    def _bind(self) -> _Bound:
        """Return what the provider, which may be a new one, means for this middleware."""
        provider = self._provider or get_audit_provider()
        bound = self._bound
        if bound is None or bound.provider is not provider:
            caller = self._unbound
            if self._proxies_from_settings and provider.settings.trusted_proxies:
                header = self._proxies.header.decode("ascii")
                proxies = TrustedProxies(provider.settings.trusted_proxies, header=header)
                caller = self._caller(proxies=proxies)
            activity = self._http_activity or provider.policy.http_activity
            bound = self._bound = _Bound(provider, caller, activity)
        return bound

    def _excludes(self, scope: Scope) -> bool:
        path: str = scope["path"]
        root_path: str = scope.get("root_path") or ""
        if root_path:
            path = path.removeprefix(root_path)
        return path in self._excluded or path.startswith(self._below_excluded)


class _Bound:
    """What a provider means for a middleware, worked out once."""

    __slots__ = (
        "asks_for_routes", "audit", "caller", "listed", "provider", "refuses", "rules", "salt",
        "silent_methods",
    )  # fmt: skip

    def __init__(self, provider: AuditProvider, caller: CallerReader, http_activity: str) -> None:
        self.provider = provider
        self.caller = caller
        self.listed = http_activity != "off"
        self.rules = provider.policy.routes
        self.asks_for_routes = provider.policy.asks_for_routes
        recorded = not provider.disabled and (self.listed or self.rules)
        self.audit = AuditLogger(provider=provider) if recorded else None
        self.silent_methods = SAFE_METHODS if http_activity == "mutating" else frozenset[str]()
        self.refuses = provider.policy.on_failure != "continue"
        self.salt = secrets.token_bytes(32) if provider.disabled else provider.session_salt


_EXCHANGES: Final[dict[str, type[Exchange]]] = {
    "http": HttpExchange,
    "websocket": WebSocketExchange,
}
