"""What the health routes answer: prebuilt bytes, from what the checker knows.

| route | answers |
|---|---|
| `/health` | 200 while healthy or degraded, else 503; `{"status": ...}` |
| `/health/live` | 200: whoever answers is alive |
| `/health/ready` | as `/health`, and 503 when the checker does not run (any more) |
| `/health/startup` | 200 once every critical component has been well, and ever after |
| `/health/detailed` | everything that is known, for those who may see it |

Promises: no answer does I/O or waits; none is cached by anybody on the way;
GET and HEAD only. By ``Accept: application/health+json`` `/health` and
`/health/detailed` speak that format.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.errors import AuditSettingsError
from otel_audit.health.probe import HealthStatus
from otel_audit.health.report import IETF
from otel_audit.web.access import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_audit.health.checker import HealthChecker
    from otel_audit.web.access import Access
    from otel_audit.web.asgi import Header, Scope

    Verdict = Access | bool | None
    LetsIn = Callable[[Scope], Verdict | Awaitable[Verdict]]
    """An `access.Authorize`, or a hook that says only whether: what is true is let in."""

_JSON: Final = b"application/json"
_HEALTH_JSON: Final = b"application/health+json"
# An element of Accept with that type, and without the weight 0 (RFC 9110, section 12.5.1).
_ACCEPTS: Final = re.compile(
    rb"(?:^|,)[ \t]*application/health\+json[ \t]*(?![^,]*;[ \t]*q=0(?:\.0*)?[ \t]*(?:[,;]|$))(?:[,;]|$)",
    re.IGNORECASE,
)
_METHODS: Final = frozenset({"GET", "HEAD"})
_DETAILS: Final = ("authorized", "open")


class Answer(NamedTuple):
    """A complete response."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    @classmethod
    def of(cls, status: int, value: object, kind: bytes = _JSON, *more: Header) -> Answer:
        """Build an answer from a JSON value."""
        body = json.dumps(value, separators=(",", ":")).encode()
        headers = (
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            *more,
        )
        return cls(status, headers, body)


_VARIES: Final = (b"vary", b"accept")
_PLAIN: Final = {
    status: Answer.of(status.http_status, {"status": status.value}, _JSON, _VARIES)
    for status in HealthStatus
}
_IETF: Final = {
    status: Answer.of(status.http_status, {"status": IETF[status]}, _HEALTH_JSON, _VARIES)
    for status in HealthStatus
}
_ALIVE: Final = Answer.of(200, {"status": "alive"})
_STARTED: Final = Answer.of(200, {"status": "started"})
_STARTING: Final = Answer.of(503, {"status": "starting"})
_STOPPED: Final = Answer.of(503, {"status": "stopped"})
_NOT_ALLOWED: Final = Answer.of(
    405, {"detail": "health is read with GET or HEAD"}, _JSON, (b"allow", b"GET, HEAD")
)
_CHALLENGED: Final = Answer.of(
    401,
    {"detail": "details are for authorized callers: send the bearer token"},
    _JSON,
    (b"www-authenticate", b"Bearer"),
)
_FORBIDDEN: Final = Answer.of(403, {"detail": "details are for authorized callers"})

_logger: Final = logging.getLogger("otel_audit.health")


class HealthAnswers:
    """Answers for one checker; ``routes`` is by path."""

    def __init__(
        self,
        checker: HealthChecker,
        path: str,
        *,
        details: str = _DETAILS[0],
        authorize: LetsIn | None = None,
        token: str | None = None,
    ) -> None:
        """Check everything once. Raises `AuditSettingsError`."""
        self.checker = checker
        if not path.startswith("/") or path.endswith("/"):
            _refuse(f"path={path!r} cannot be used: it begins, and does not end, with '/'")
        if details not in _DETAILS:
            _refuse(f"details={details!r} cannot be used: say {' or '.join(_DETAILS)}")
        if token is not None and not token:
            _refuse("token is empty, which everybody knows: give a secret, or None")
        self.detailed_path = f"{path}/detailed"
        self._open = details == "open"
        self._authorize = authorize
        self._token = None if token is None else token.encode()
        self._unexplained = not self._open and authorize is None and token is None
        self.routes: dict[str, Callable[[Scope], Answer]] = {
            path: self.health,
            f"{path}/live": self.live,
            f"{path}/ready": self.ready,
            f"{path}/startup": self.startup,
        }

    def health(self, scope: Scope) -> Answer:
        """Answer how the whole is."""
        answers = _IETF if _wants_health_json(scope["headers"]) else _PLAIN
        return answers[self.checker.get_quick_status()]

    def live(self, _scope: Scope) -> Answer:
        """Answer that somebody answers."""
        return _ALIVE

    def ready(self, scope: Scope) -> Answer:
        """Answer whether requests should be sent here."""
        # In this order: reading the status starts a checker again after a fork.
        answer = self.health(scope)
        return answer if self.checker.running else _STOPPED

    def startup(self, _scope: Scope) -> Answer:
        """Answer whether the start is over."""
        return _STARTED if self.checker.started else _STARTING

    def detailed(self, scope: Scope) -> Answer:
        """Answer everything that is known, to somebody who may see it."""
        report = self.checker.report()
        code = report.status.http_status
        if _wants_health_json(scope["headers"]):
            return Answer.of(code, report.as_health_json(), _HEALTH_JSON, _VARIES)
        return Answer.of(code, report.as_dict(), _JSON, _VARIES)

    def refusal(self, scope: Scope) -> Answer | Awaitable[Verdict] | None:
        """Return why the caller may not see details, or None; `awaited` takes what comes later."""
        if self._open:
            return None
        if self._token is not None and hmac.compare_digest(_bearer(scope["headers"]), self._token):
            return None
        if self._authorize is None:
            self._explain()
            return self.refused
        try:
            verdict = self._authorize(scope)
        except Exception as error:  # noqa: BLE001 - whatever it is, it lets nobody in
            return _not_let_in(error)
        if isinstance(verdict, Awaitable):
            return verdict
        return None if verdict else self.refused

    async def awaited(self, verdict: Awaitable[Verdict]) -> Answer | None:
        """Return the same once the hook, a coroutine function, has decided."""
        try:
            return None if await verdict else self.refused
        except Exception as error:  # noqa: BLE001 - whatever it is, it lets nobody in
            return _not_let_in(error)

    def _explain(self) -> None:
        """Tell the developer once what the caller must not be told: how to let somebody in."""
        if self._unexplained:
            self._unexplained = False
            _logger.warning(
                "%s was asked for and lets nobody in: give setup_health_check_routes() a token, "
                'authorize=, or details="open" where the network is trusted',
                self.detailed_path,
            )

    @property
    def refused(self) -> Answer:
        """The answer to those who may not see details."""
        return _FORBIDDEN if self._token is None else _CHALLENGED

    def blocked(self, seconds: float) -> Answer:
        """Answer that the event loop has been blocked for so long."""
        said = {
            "status": HealthStatus.UNHEALTHY.value,
            "event_loop_blocked_s": round(seconds, 3),
            "message": "the event loop of this process does not answer",
        }
        return Answer.of(503, said)


def allowed(scope: Scope) -> bool:
    """Whether the method is one that reads."""
    return scope["method"] in _METHODS


NOT_ALLOWED: Final = _NOT_ALLOWED


def _wants_health_json(headers: Iterable[Header]) -> bool:
    return any(name == b"accept" and _ACCEPTS.search(value) for name, value in headers)


def _bearer(headers: Iterable[Header]) -> bytes:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return b""


def _not_let_in(error: Exception) -> Answer:
    if isinstance(error, RefusedError):
        challenge = (b"www-authenticate", b'Bearer error="invalid_token"')
        return Answer.of(401, {"detail": str(error)}, _JSON, challenge)
    _logger.error("authorize= failed, so nobody sees details", exc_info=error)
    return Answer.of(
        503, {"detail": "who you are could not be found out; the server's log says why"}
    )


def _refuse(message: str) -> None:
    raise AuditSettingsError(message)
