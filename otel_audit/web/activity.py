"""The activity records of the web layer: what was asked, and how it was answered.

Promises facts of low risk and low cardinality: the route's template, the path
without its query string, of an exception the type and never the message
(messages quote what users typed). Such records do not make a request fail:
their event type is `EVENT_TYPE`, for which the policy's default is `continue`.
"""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from otel_audit.api.route_facts import QUERY
from otel_audit.errors import AuditUnavailableError
from otel_audit.record.event import AuditEvent
from otel_audit.web.routes import UNMATCHED, behind_a_bridge, route_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from otel_audit.api.derived import RouteRule
    from otel_audit.api.logger import AuditLogger

EVENT_TYPE: Final = "http.request"
ACTIVITY_KEY: Final = "otel_audit.activity"
"""Where a request's scope holds its `Activity`, for whoever can record it inside the server span."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that are not meant to change anything (RFC 9110, section 9.2.1)."""

_NOT_FOUND: Final = 404
_LONGEST_PATH: Final = 1024
_LONGEST_METHOD: Final = 32  # any token is one (RFC 9110, section 9.1), however long
_DENIED: Final = frozenset({401, 403})
_NORMAL_CLOSURES: Final = frozenset({1000, 1001, 1005})
"""Close codes of connections that ended in order (RFC 6455, section 7.4.1)."""


class Activity:
    """Records what becomes of one request or one connection; a record once, never twice."""

    __slots__ = (
        "_audit",
        "_began",
        "_listed",
        "_recorded",
        "_root_path",
        "_rules",
        "_scope",
        "context",
    )

    def __init__(
        self,
        audit: AuditLogger,
        scope: Mapping[str, Any],
        rules: tuple[RouteRule, ...] = (),
        *,
        listed: bool = True,
    ) -> None:
        """Watch a request; ``rules`` are the policy's, not ``listed`` is one without activity."""
        self._audit = audit
        self._scope = scope
        self._rules = rules
        self._listed = listed
        self._root_path: str = scope.get("root_path") or ""
        self._began = perf_counter()
        self._recorded = False
        self.context: Context | None = None
        """Where the answer was made, for whoever records it elsewhere: who acted, in which span."""

    def request(self, status_code: int | None, error: str | None = None) -> None:
        """Record how the request is answered; without a status it never was."""
        if self._recorded:
            return
        self._recorded = True
        method: str = self._scope["method"][:_LONGEST_METHOD]
        status, level = _judged(status_code)
        if error and status == "success":
            status, level = "failed", "warning"
        fields: dict[str, Any] = {"method": method, **self._where()}
        if status_code is not None:
            fields["status_code"] = status_code
        if self._rules:
            self._derive(method, status, error, fields)
        self._emit(EVENT_TYPE, method, status, level, error, fields)

    def unconfirmed(self, status_code: int, error: AuditUnavailableError) -> None:
        """Record that the client got ``status_code``, whatever was recorded before.

        Nobody waits for this record, and when it fails as well, it is only
        counted and logged.
        """
        method = self._scope.get("method")
        with suppress(AuditUnavailableError):
            if not self._recorded:
                record = self.connect if method is None else self.request
                record(status_code, named(type(error)))
                return
            fields: dict[str, Any] = {} if method is None else {"method": method}
            fields |= self._where()
            fields["status_code"] = status_code
            if error.record_id:
                fields["unconfirmed_record_id"] = error.record_id
            self._emit("http.response.replaced", "replace", "failed", "error", None, fields)

    def connect(self, status_code: int | None, error: str | None = None) -> None:
        """Record how a WebSocket handshake is answered (101: accepted); None: it never was."""
        if self._recorded:
            return
        self._recorded = True
        status, level = _judged(status_code)
        fields = self._where()
        if status_code is not None:
            fields["status_code"] = status_code
        self._emit("websocket.connect", "connect", status, level, error, fields)
        self._began = perf_counter()

    def disconnect(self, code: int, closed_by: str, error: str | None = None) -> None:
        """Record the end of a WebSocket connection, and how long it was open."""
        normal = code in _NORMAL_CLOSURES
        status, level = ("success", "info") if normal else ("failed", "warning")
        fields = {**self._where(), "close_code": code, "closed_by": closed_by}
        self._emit("websocket.disconnect", "disconnect", status, level, error, fields)

    def _derive(self, method: str, status: str, error: str | None, fields: dict[str, Any]) -> None:
        """Emit what the policy's rules make of this request."""
        outcome = "success" if status == "success" else "failure"
        route: str = fields["route"]
        if route == UNMATCHED and fields.get("status_code") != _NOT_FOUND:
            route = fields["path"]  # of an application whose routing nobody knows
        facts: dict[str, Any] = {}
        for rule in self._rules:
            if rule.matches(method, route, outcome):
                facts = facts or {**fields, "status": status, **self._parameters()}
                self._audit.emit(rule.saying.say(facts, status, error), self.context)

    def _parameters(self) -> dict[str, Any]:
        """Return the request's parameters: those of the path, and ``query.<name>``."""
        query = parse_qsl((self._scope.get("query_string") or b"").decode("latin-1"))
        named: dict[str, Any] = {f"{QUERY}{name}": value for name, value in query}
        inside = behind_a_bridge(self._scope) or {}
        return {
            **named,
            **(self._scope.get("path_params") or {}),
            **(inside.get("path_params") or {}),
        }

    def _where(self) -> dict[str, Any]:
        path: str = self._scope["path"]
        return {
            "route": route_template(self._scope, self._root_path),
            "path": path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH],
            "duration_ms": round((perf_counter() - self._began) * 1000, 3),
        }

    def _emit(
        self,
        event: str,
        action: str,
        status: str,
        level: str,
        error: str | None,
        fields: dict[str, Any],
    ) -> None:
        if not self._listed:
            return
        self._audit.emit(
            AuditEvent(
                event,
                action,
                event_type=EVENT_TYPE,
                status=status,
                level=level,
                resource_type="route",
                resource_name=fields["route"],
                error=error,
                fields=fields,
            ),
            self.context,
        )


def _judged(status_code: int | None) -> tuple[str, str]:
    """Return the record's status and level for an HTTP status."""
    if status_code is None:
        return "failed", "warning"
    if status_code < 400:  # noqa: PLR2004 - RFC 9110, section 15.5: errors begin here
        return "success", "info"
    level = "warning" if status_code < 500 else "error"  # noqa: PLR2004 - section 15.6: the server's
    return ("denied" if status_code in _DENIED else "failed"), level


def named(kind: type[BaseException]) -> str:
    """Return an exception type's name as tracebacks show it."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
