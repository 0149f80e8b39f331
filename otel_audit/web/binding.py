"""What a middleware was told, and what that means for the provider of the moment.

Both middlewares, ASGI's and WSGI's, bind themselves to the global provider when
the first request comes, and anew when it is exchanged. `Binding` promises that
what follows from options, settings and policy is worked out once for each
provider, that options are checked when it is made, and that a request begins
alike in both.
"""

from __future__ import annotations

import secrets
from difflib import get_close_matches
from functools import partial, wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from otel_audit.api.arguments import check
from otel_audit.api.context import stay_in_requests
from otel_audit.api.current import get_audit_provider, span_rules_ahead
from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.errors import AuditSettingsError, AuditUnavailableError, OtelAuditError
from otel_audit.settings import Settings
from otel_audit.web.activity import ACTIVITY_KEY, SAFE_METHODS, Activity
from otel_audit.web.asgi import REQUEST_KEY
from otel_audit.web.caller import CallerReader
from otel_audit.web.paths import checked_activity, checked_paths
from otel_audit.web.proxies import TrustedProxies
from otel_audit.web.routes import route_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from otel_audit.api.context import RequestScope
    from otel_audit.api.derived import SpanRule
    from otel_audit.web.asgi import Scope

_WRAPPED: Final = "app"
"""What a middleware takes besides its options."""

_Taken = ParamSpec("_Taken")


def refusing_unknown_options(init: Callable[_Taken, None]) -> Callable[_Taken, None]:
    """Let a middleware's ``__init__`` raise `AuditSettingsError` for an option that it has not.

    It names the nearest. Type checkers see the same signature as before.
    """
    middleware = init.__qualname__.partition(".")[0]
    parameters = signature(init).parameters.values()
    known = [one.name for one in parameters if one.kind is Parameter.KEYWORD_ONLY]

    @wraps(init)
    def checked(*arguments: _Taken.args, **options: _Taken.kwargs) -> None:
        for name in options:
            if name not in known and name != _WRAPPED:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}? There are" if near else "there are"
                message = f"{name!r} is no option of {middleware}; {hint} {', '.join(known)}"
                raise AuditSettingsError(message)
        init(*arguments, **options)

    return checked


def _attend(rules: tuple[SpanRule, ...]) -> None:
    """Have spans looked at that end before the first request makes the provider, as at the start."""
    if rules:
        from otel_audit.instrumentation.spans import (  # noqa: PLC0415 - the SDK is for those who have rules
            SpanInstrumentor,
        )

        SpanInstrumentor().attend(rules)


class Bound:
    """What a provider means for a middleware."""

    __slots__ = (
        "_audit", "_listed", "_rules", "_silent", "asks_for_routes", "caller", "provider",
        "refuses", "salt",
    )  # fmt: skip

    def __init__(self, provider: AuditProvider, caller: CallerReader, http_activity: str) -> None:
        self.provider = provider
        self.caller = caller
        self.asks_for_routes = provider.policy.asks_for_routes
        self.refuses = provider.policy.on_failure != "continue"
        self.salt = secrets.token_bytes(32) if provider.disabled else provider.session_salt
        self._rules = provider.policy.routes
        self._listed = http_activity != "off"
        self._silent = SAFE_METHODS if http_activity == "mutating" else frozenset[str]()
        recorded = not provider.disabled and (self._listed or self._rules)
        self._audit = AuditLogger(provider=provider) if recorded else None

    def activity(self, scope: Mapping[str, Any]) -> Activity | None:
        """Return who records what becomes of a request or connection, if anybody does."""
        if self._audit is None:
            return None
        # A WebSocket has no method, and is never a mere look.
        listed = self._listed and scope.get("method") not in self._silent
        if not (listed or self._rules):
            return None
        return Activity(self._audit, scope, self._rules, listed=listed)


class Binding:
    """The options of one middleware, and the provider that they are bound to."""

    def __init__(
        self,
        *,
        provider: AuditProvider | None,
        trusted_proxies: Iterable[str] | None,
        proxy_header: str | None,
        session_cookie: str | None,
        http_activity: str | None,
        exclude: Iterable[str],
        request_id_header: str,
        client_id_header: str | None,
    ) -> None:
        """Check the options once. Raises `AuditSettingsError`."""
        check("provider", provider, AuditProvider, "leave it out for the one of configure()")
        stay_in_requests()
        self._provider = provider
        self._http_activity = checked_activity(http_activity)
        self._excluded = checked_paths(exclude)
        self._below_excluded = tuple(f"{path}/" for path in self._excluded)
        self._caller = partial(
            CallerReader,
            session_cookie=session_cookie,
            request_id_header=request_id_header,
            client_id_header=client_id_header,
        )
        if trusted_proxies is not None and not isinstance(trusted_proxies, str):
            trusted_proxies = tuple(trusted_proxies)
        self._trusted_proxies = trusted_proxies
        self._proxy_header = proxy_header
        self._unbound = self._caller(proxies=self._proxies(Settings()))
        """Reads callers where no provider can be had."""
        self._bound: Bound | None = None
        if provider is None:
            _attend(span_rules_ahead())

    def bind(self) -> Bound:
        """Return what the provider, which may be a new one, means for this middleware."""
        provider = self._provider or get_audit_provider()
        bound = self._bound
        if bound is None or bound.provider is not provider:
            caller = self._caller(proxies=self._proxies(provider.settings))
            activity = self._http_activity or provider.policy.http_activity
            bound = self._bound = Bound(provider, caller, activity)
        return bound

    def begin(
        self, interface: str, scope: Scope
    ) -> tuple[RequestScope, Activity | None, bytes, AuditUnavailableError | None]:
        """Begin a request: note down in its scope what it is, and who records it.

        Returns both, the header of its id, and why it has to be refused, if it has to.
        """
        try:
            bound = self.bind()
        except (OtelAuditError, OSError) as error:
            # Without lifespan this is the first that anybody hears of it.
            caller = self._unbound
            request = caller.read(scope, secrets.token_bytes(32))
            refusal = AuditUnavailableError(f"the audit trail cannot be used: {error}")
            return request, None, caller.request_id_header, refusal
        caller = bound.caller
        request = scope[REQUEST_KEY] = caller.read(scope, bound.salt)
        request.asked = interface, scope.get("method"), scope.get("root_path"), scope["path"]
        refused = bound.provider.refusal() if bound.refuses else None
        activity = None
        if self._excludes(scope):
            refused = None
        else:
            activity = bound.activity(scope)
            if activity is not None:
                scope[ACTIVITY_KEY] = activity
        if bound.asks_for_routes:
            request.route = partial(route_template, scope, scope.get("root_path") or "")
        return request, activity, caller.request_id_header, refused

    def _proxies(self, settings: Settings) -> TrustedProxies:
        """Return who is believed: as this middleware was told, else as the settings say."""
        trusted = self._trusted_proxies
        return TrustedProxies(
            settings.trusted_proxies if trusted is None else trusted,
            header=self._proxy_header or settings.proxy_header,
        )

    def _excludes(self, scope: Mapping[str, Any]) -> bool:
        """Whether the path gets no activity records and is never refused."""
        if not self._excluded:
            return False
        path: str = scope["path"]
        root_path: str = scope.get("root_path") or ""
        if root_path:
            path = path.removeprefix(root_path)
        return path in self._excluded or path.startswith(self._below_excluded)
