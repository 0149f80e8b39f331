"""The door of what is asked over HTTP: who is let in, and how often.

Promises: nobody is let in who was not recognised; whatever goes wrong while
that is found out, the answer is no. Refusals are `ProblemError`. Who does not
show valid credentials is counted by address, who does by name.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from otel_audit.api.context import current_scope, set_actor
from otel_audit.errors import AuditSettingsError
from otel_audit.trail.layout import TOKENS
from otel_audit.web.access import Access, RefusedError
from otel_audit.web.answer import ProblemError
from otel_audit.web.tokens import TokenFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.access import Authorize
    from otel_audit.web.asgi import Scope

_CALLERS: Final = 10_000

_logger = logging.getLogger("otel_audit.web")


class Admission:
    """Lets callers in, by ``authorize`` or the token file of the provider."""

    def __init__(
        self,
        authorize: Authorize | None,
        per_minute: int,
        provider: Callable[[], AuditProvider],
    ) -> None:
        """Open nothing yet; ``per_minute``: requests of one caller, 0 for any number."""
        self._authorize = authorize
        self._limit = RateLimit(per_minute)
        self._provider = provider
        self._tokens: TokenFile | None = None

    async def admit(self, scope: Scope) -> Access:
        """Let one request in, or raise `ProblemError`; who is recognised is its actor from now on."""
        access = await self.recognise(scope)
        if current_scope() is not None:
            set_actor(access.name)
        self._count_against(f"name {access.name}")
        return access

    async def recognise(self, scope: Scope) -> Access:
        """Find out who asks, without counting those that may. Raises `ProblemError`."""
        client = scope.get("client")
        caller = f"address {client[0] if client else ''}"
        authorize = self._authorize or await self._token_file()
        try:
            found = authorize(scope)
            access = await found if isinstance(found, Awaitable) else found
            _check(access)
        except RefusedError as error:
            self._count_against(caller)
            challenge = ("www-authenticate", 'Bearer error="invalid_token"')
            raise ProblemError(401, "not-authenticated", f"{error}", challenge) from None
        except AuditSettingsError as error:
            self._count_against(caller)
            raise _undecided(authorize, error) from None
        except Exception as error:
            _logger.exception("authorize= failed, so nobody has access")
            detail = "Who you are could not be found out; the server's log says why."
            raise ProblemError(503, "unavailable", detail, ("retry-after", "5")) from error
        if access is None:
            self._count_against(caller)
            challenge = ("www-authenticate", "Bearer")
            detail = "Send a token: Authorization: Bearer TOKEN."
            raise ProblemError(401, "not-authenticated", detail, challenge)
        return access

    async def _token_file(self) -> TokenFile:
        provider = self._provider()
        path = provider.settings.read_token_file or provider.directory / TOKENS
        if self._tokens is None or self._tokens.path != path:
            self._tokens = TokenFile(path)
        if not self._tokens.exists:
            detail = (
                "Nobody may query this trail over HTTP yet. Whoever runs the service opens it by "
                "`otel-audit token create NAME --scope read`, by OTEL_AUDIT_READ_TOKEN_FILE, or "
                "by authorize= in the application."
            )
            raise ProblemError(403, "closed", detail)
        return self._tokens

    def _count_against(self, caller: str) -> None:
        wait = self._limit.wait(caller)
        if wait:
            seconds = str(math.ceil(wait))
            detail = f"There were too many requests; the next one may come in {seconds} s."
            raise ProblemError(429, "too-many", detail, ("retry-after", seconds))


class RateLimit:
    """So many requests a minute for each caller, a sixth of them at once."""

    def __init__(self, per_minute: int) -> None:
        """0 is no limit."""
        self._per_second = per_minute / 60
        self._burst = max(1.0, per_minute / 6)
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Count one request; return the seconds until there may be one, 0 when it may be now."""
        if not self._per_second:
            return 0.0
        now = time.monotonic()
        left, seen = self._callers.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        allowed = left >= 1
        self._callers[caller] = (left - allowed, now)
        if len(self._callers) > _CALLERS:
            self._callers.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


def _check(found: object) -> None:
    if not isinstance(found, Access | None):
        message = f"it returned {type(found).__name__}, neither an Access nor None"
        raise AuditSettingsError(message)


def _undecided(authorize: Authorize, error: AuditSettingsError) -> ProblemError:
    """Say that nobody is let in; why, which names files, is told to the server's log alone."""
    if isinstance(authorize, TokenFile):
        _logger.error("nobody may query over HTTP: %s", error)
        detail = (
            "The file of tokens cannot be used, so nobody is let in. Whoever runs the service "
            "finds the file, what is wrong with it and what to do in the server's log, or by "
            "`otel-audit token list`."
        )
    else:
        _logger.error("authorize= failed, so nobody has access: %s", error)
        detail = "Who you are could not be found out; the server's log says why."
    return ProblemError(503, "unavailable", detail, ("retry-after", "5"))
