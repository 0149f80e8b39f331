"""Django, by WSGI and by ASGI: requests, and the log-ins of django.contrib.auth.

Promises what the two middlewares promise, with Django's route as template, and
a record of the request inside the server span of OpenTelemetry. Django's
settings stay as they are: our middleware is put into the chain while a handler
builds it. A user whom Django has authenticated, and whom the request has
looked at, is the actor; nobody is loaded from the database for the sake of it.
The session is that of the cookie that Django's settings name, unless
``session_cookie=`` says otherwise, whichever middleware is around Django.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import wrapt

from otel_audit.api.context import Actor, current_scope
from otel_audit.api.current import get_audit_provider
from otel_audit.api.logger import get_audit_logger
from otel_audit.api.sessions import hashed_session
from otel_audit.instrumentation.entries import entries
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.instrumentation.wsgi import Route, audited
from otel_audit.record.classes import AUTHENTICATION
from otel_audit.web.activity import ACTIVITY_KEY
from otel_audit.web.asgi import REQUEST_KEY
from otel_audit.web.middleware import AuditMiddleware
from otel_audit.web.wsgi import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.api.provider import AuditProvider

_HANDLER: Final = "otel_audit.django"
_OURS: Final = "otel_audit.instrumentation.django.audit_middleware"
_SIGNALS: Final = "django.contrib.auth.signals"


class DjangoInstrumentor(AuditInstrumentor):
    """Audits applications of Django; takes the options of both middlewares."""

    name = "django"
    requires = "django >= 4.2"

    sessions: Sessions | None = None
    """Names sessions for the chains that are built while Django is instrumented."""

    def _instrument(self, **options: Any) -> None:
        if "session_cookie" not in options:
            # What the cookie is called is known when the settings are; then the chain is built.
            options["session_cookie"] = None
            self.sessions = Sessions(options.get("provider"))
        self._patches = [
            Patch("django.core.handlers.wsgi", "WSGIHandler", "__call__", audited(**options)),
            Patch("django.core.handlers.asgi", "ASGIHandler", "__call__", _audited_asgi(options)),
            Patch("django.core.handlers.base", "BaseHandler", "load_middleware", _with_ours),
            Patch("django.contrib.auth", "", "get_user", _observed),
            Patch("django.contrib.auth", "", "aget_user", _observed_async, needed=False),
        ]
        for patch in self._patches:
            patch.apply()
        self._receivers = Receivers()
        self._receivers.connect()

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        for patch in self._patches:
            patch.restore()
        self._receivers.disconnect()
        self.sessions = None


def audit_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Be Django's middleware that says what Django knows of a request, to those around it."""
    from asgiref.sync import (  # noqa: PLC0415 - Django brings it
        iscoroutinefunction,
        markcoroutinefunction,
    )

    sessions = DjangoInstrumentor().sessions
    if iscoroutinefunction(get_response):

        async def answer(request: Any) -> Any:
            if sessions is not None:
                sessions.name(request)
            response = await get_response(request)
            _describe(request, response)
            return response

        marked: Callable[[Any], Any] = markcoroutinefunction(answer)
        return marked

    def middleware(request: Any) -> Any:
        if sessions is not None:
            sessions.name(request)
        response = get_response(request)
        _describe(request, response)
        return response

    return middleware


audit_middleware.sync_capable = True  # type: ignore[attr-defined]  # Django's way to ask
audit_middleware.async_capable = True  # type: ignore[attr-defined]  # Django's way to ask


class Sessions:
    """Says in which session a request is, by the cookie that is Django's."""

    def __init__(self, provider: AuditProvider | None) -> None:
        self._given = provider
        self._salted: tuple[AuditProvider, bytes] | None = None

    def name(self, request: Any) -> None:
        """Name the session, unless a middleware around Django did."""
        from django.conf import settings  # noqa: PLC0415 - only a Django comes here

        scope = current_scope()
        if scope is None or scope.session_id is not None:
            return
        value = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        if value:
            scope.in_session(hashed_session(self._salt(), value))

    def _salt(self) -> bytes:
        provider = self._given or get_audit_provider()
        if self._salted is None or self._salted[0] is not provider:
            salt = b"" if provider.disabled else provider.session_salt
            self._salted = provider, salt
        return self._salted[1]


class Receivers:
    """Records what django.contrib.auth says of log-ins and log-outs."""

    def __init__(self) -> None:
        self._audit = get_audit_logger()
        self._active = False
        self._signals: Any = None

    def connect(self) -> None:
        """Listen, now or when the signals are imported."""
        self._active = True
        wrapt.when_imported(_SIGNALS)(self._connect)

    def disconnect(self) -> None:
        """Listen no more."""
        self._active = False
        signals, self._signals = self._signals, None
        if signals is not None:
            signals.user_logged_in.disconnect(self.logged_in)
            signals.user_logged_out.disconnect(self.logged_out)
            signals.user_login_failed.disconnect(self.login_failed)

    def _connect(self, signals: Any) -> None:
        if self._active and self._signals is None:
            self._signals = signals
            signals.user_logged_in.connect(self.logged_in)
            signals.user_logged_out.connect(self.logged_out)
            signals.user_login_failed.connect(self.login_failed)

    def logged_in(self, user: Any, **_: Any) -> None:
        """Record a log-in; from now on the user acts."""
        acts(user)
        backend = str(getattr(user, "backend", "")).rpartition(".")[2]
        self._record("login", user.get_username(), "success", method=backend or "unknown")

    def logged_out(self, user: Any = None, **_: Any) -> None:
        """Record a log-out, unless nobody was logged in."""
        if user is not None:
            self._record("logout", user.get_username(), "success", method="session")

    def login_failed(self, credentials: Any = None, **_: Any) -> None:
        """Record an attempt: the name that was claimed, never what was given as proof."""
        claimed = credentials or {}
        name = claimed.get("username") or claimed.get("email") or "unknown"
        self._record("login", str(name), "failed", method="credentials")

    def _record(self, action: str, user_id: str, status: str, *, method: str) -> None:
        self._audit.audit_event(
            AUTHENTICATION, action, "account", user_id, status, user_id=user_id, method=method
        )


def acts(user: Any) -> None:
    """Make a user whom Django has authenticated the request's actor, unless there is one."""
    scope = current_scope()
    if scope is not None and scope.actor is None and getattr(user, "is_authenticated", False):
        scope.actor = Actor(str(user.get_username()))


def _observed(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Notice whom Django finds behind a session, at the moment somebody asks."""

    @functools.wraps(original)
    def get_user(request: Any) -> Any:
        user = original(request)
        acts(user)
        return user

    return get_user


def _observed_async(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Do the same for who asks in a coroutine, as there is in Django 5.0 and newer."""

    @functools.wraps(original)
    async def aget_user(request: Any) -> Any:
        user = await original(request)
        acts(user)
        return user

    return aget_user


def _with_ours(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def load_middleware(handler: Any, *arguments: Any, **options: Any) -> None:
        with _in_the_chain():
            original(handler, *arguments, **options)

    return load_middleware


@contextmanager
def _in_the_chain() -> Iterator[None]:
    """Have our middleware in the settings while a chain is built: inside OpenTelemetry's, if there."""
    from django.conf import settings  # noqa: PLC0415 - only a Django comes here

    before = settings.MIDDLEWARE
    names = list(before)
    if _OURS in names:
        yield
        return
    tracing = [place for place, name in enumerate(names) if name.startswith("opentelemetry.")]
    names.insert(max(tracing, default=-1) + 1, _OURS)
    settings.MIDDLEWARE = names
    try:
        yield
    finally:
        settings.MIDDLEWARE = before


def _audited_asgi(options: dict[str, Any]) -> Callable[[Any], Any]:
    """Return what makes an audited ``__call__`` of an ASGIHandler's."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        async def enter(scope: Any, receive: Any, send: Any) -> None:
            await original(scope[_HANDLER], scope, receive, send)

        middleware = AuditMiddleware(enter, **options)

        @functools.wraps(original)
        async def call(handler: Any, scope: Any, receive: Any, send: Any) -> None:
            if REQUEST_KEY in scope:
                await original(handler, scope, receive, send)
            else:
                await middleware({**scope, _HANDLER: handler}, receive, send)

        entries.add(call)
        return call

    return make


def _describe(request: Any, response: Any) -> None:
    """Say which route it was, and record the request while its span is the current one."""
    scope = getattr(request, "scope", None) or getattr(request, "environ", {}).get(SCOPE_KEY)
    if not isinstance(scope, dict):
        return
    match = getattr(request, "resolver_match", None)
    if match is not None:
        scope["route"] = Route(f"/{match.route}")
        scope["path_params"] = match.kwargs
    activity = scope.get(ACTIVITY_KEY)
    if activity is not None:
        activity.request(response.status_code)
