"""What a probe is, and what its answer means.

A probe is a callable without parameters, plain or a coroutine function. It
says that all is well by returning None, True or "healthy", that something is
wrong by False, "degraded", "unhealthy", a `ProbeResult`, or by raising. What
else it returns is a failure, whose message says so. Messages and details MUST
NOT hold secrets: what looks like one is masked. Messages are cut at 300
characters; details become plain JSON as the fields of a record do, of at most 16 KiB.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import orjson

from otel_audit.record.coerce import plain
from otel_audit.record.redact import Redactor
from otel_audit.record.shorten import shorten

if TYPE_CHECKING:
    from otel_audit.record.shorten import JsonValue

_LONGEST: Final = 300
_MOST_DETAILS: Final = 16_384
"""Bytes of one component's details."""

_DETAILS: Final = "details"

_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]*@")
_redactor: Final = Redactor()


class HealthStatus(str, Enum):
    """How a component, or the whole, is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"

    @property
    def severity(self) -> int:
        """Rank, 0 for healthy: degraded, unknown, unhealthy. What is certain is worst."""
        return _SEVERITY[self]

    @property
    def http_status(self) -> int:
        """What whoever sends requests is told: 200 to send them here, else 503."""
        return 200 if self in _SERVES else 503


_SEVERITY: Final = {
    HealthStatus.HEALTHY: 0,
    HealthStatus.DEGRADED: 1,
    HealthStatus.UNKNOWN: 2,
    HealthStatus.UNHEALTHY: 3,
}
_SERVES: Final = (HealthStatus.HEALTHY, HealthStatus.DEGRADED)


class ProbeResult(NamedTuple):
    """What a probe found out; ``details`` are shown in ``/health/detailed``."""

    status: HealthStatus = HealthStatus.HEALTHY
    message: str = ""
    details: Mapping[str, Any] | None = None

    @classmethod
    def healthy(cls, message: str = "", **details: Any) -> ProbeResult:
        """Say that all is well."""
        return cls(HealthStatus.HEALTHY, message, details or None)

    @classmethod
    def degraded(cls, message: str, **details: Any) -> ProbeResult:
        """Say that it works, but not as it should."""
        return cls(HealthStatus.DEGRADED, message, details or None)

    @classmethod
    def unhealthy(cls, message: str, **details: Any) -> ProbeResult:
        """Say that it does not work."""
        return cls(HealthStatus.UNHEALTHY, message, details or None)


Answer = ProbeResult | HealthStatus | str | bool | None
Probe = Callable[[], Answer | Awaitable[Answer]]


def judged(answer: object) -> ProbeResult:
    """Return what a probe's answer means, whatever it is. Never raises."""
    if answer is None or answer is True:
        return ProbeResult()
    if answer is False:
        return ProbeResult.unhealthy("the probe returned False")
    if isinstance(answer, ProbeResult):
        return _checked(answer)
    try:
        return ProbeResult(_stated(answer))
    except Exception:  # noqa: BLE001 - what it compares as is somebody else's code, too
        kind = type(answer).__name__
        return ProbeResult.unhealthy(
            f"the probe returned a {kind}, which means nothing: return a ProbeResult, a bool or None"
        )


def failed(error: BaseException) -> ProbeResult:
    """Return what an exception out of a probe means. Never raises."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception's __str__ is somebody else's code
        text = "its message cannot be shown"
    name = type(error).__name__
    return ProbeResult.unhealthy(shown(f"{name}: {text}" if text else name))


def shown(message: str) -> str:
    """Return a message in one line, without secrets, and of bounded length."""
    line = " ".join(message[: 8 * _LONGEST].split())
    line = _redactor.text(_USER_INFO.sub("***@", line))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _stated(answer: object) -> HealthStatus:
    status = HealthStatus(answer)
    if status is HealthStatus.UNKNOWN:
        # It was asked so that it be known.
        message = "unknown is no answer"
        raise ValueError(message)
    return status


def _checked(result: ProbeResult) -> ProbeResult:
    """Return the result with a status, a message and details that can be relied on."""
    status, message, details = result
    try:
        status = _stated(status)
        message = shown(message) if message else ""
        details = None if details is None else cast("dict[str, Any]", _plain(dict(details)))
    except Exception as error:  # noqa: BLE001 - what stands in there is somebody else's
        reason = f"the probe returned a ProbeResult that means nothing: {error}"
        return ProbeResult.unhealthy(shown(reason))
    return ProbeResult(status, message, details)


def _plain(details: dict[Any, Any]) -> JsonValue:
    """Return details that can be shown, whatever they hold."""
    # As one field: many small ones could not be cut.
    fields, _ = plain({_DETAILS: details}, _redactor)
    _redactor.fields(fields)
    shorten(fields, len(orjson.dumps(fields)) - _MOST_DETAILS)
    return fields[_DETAILS]
