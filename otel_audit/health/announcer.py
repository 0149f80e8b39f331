"""Every change of a component's state becomes an audit record, and a line in the log.

Promises: a change is kept until the trail has confirmed its record, so also
what changes while the trail is broken, or not configured yet, is recorded once
it can be; the record says when it happened. Nobody waits for that. What is
still waiting when more than 10,000 changes do is dropped, counted and logged.

Records are `health.state_changed` with the fields component, from, to, reason,
occurred_at and checks; the level is error, warning or info by what it changed to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.api.logger import AuditLogger
from otel_audit.errors import AuditUnavailableError
from otel_audit.health.probe import HealthStatus
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider

EVENT: Final = "health.state_changed"

_LIMIT: Final = 10_000
_RETRY_SECONDS: Final = 1.0
_LEVELS: Final = {
    HealthStatus.HEALTHY: "info",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.UNHEALTHY: "error",
    HealthStatus.UNKNOWN: "warning",
}

_logger: Final = logging.getLogger("otel_audit.health")


class Change(NamedTuple):
    """One change of one component's state; ``unix`` seconds say when."""

    component: str
    before: HealthStatus
    after: HealthStatus
    reason: str
    checks: int
    unix: float


class Announcer:
    """Tells of changes, in order, on a daemon thread that lives while there are some."""

    def __init__(self, provider: Callable[[], AuditProvider | None]) -> None:
        """Ask ``provider`` for whoever records, each time; None while there is nobody."""
        self.dropped = 0
        self._provider = provider
        self._waiting: deque[Change] = deque()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """How many changes are not recorded yet."""
        return len(self._waiting)

    def tell(self, change: Change) -> None:
        """Log a change, and keep it until it is recorded. Never blocks."""
        level = logging.getLevelName(_LEVELS[change.after].upper())
        _logger.log(
            level,
            "%s is %s (was %s): %s",
            change.component,
            change.after.value,
            change.before.value,
            change.reason or "all is well",
        )
        if len(self._waiting) >= _LIMIT:
            self.dropped += 1
            _logger.error(
                "the change of %s will not be in the audit trail, as %d changes wait for it "
                "already (%d dropped so far)",
                change.component,
                _LIMIT,
                self.dropped,
            )
            return
        self._waiting.append(change)

    def pursue(self) -> None:
        """See to it that what waits is being recorded, if there is a trail. Never blocks.

        For the checker's thread only.
        """
        if self._waiting and self._thread is None and self._open_provider() is not None:
            thread = threading.Thread(
                target=self._work, name="otel-audit-health-announcer", daemon=True
            )
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:
                # There are no threads left; the next turn asks again.
                self._thread = None

    def flush(self, timeout: float) -> bool:
        """Wait until everything is recorded; False when ``timeout`` (seconds) is up first."""
        deadline = time.monotonic() + timeout
        while self._waiting:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def _open_provider(self) -> AuditProvider | None:
        provider = self._provider()
        return None if provider is None or provider.closed else provider

    def _work(self) -> None:
        try:
            while self._waiting:
                provider = self._open_provider()
                if provider is None:
                    return
                if self._record(provider, self._waiting[0]):
                    self._waiting.popleft()
                else:
                    time.sleep(_RETRY_SECONDS)
        except Exception:
            _logger.exception("changes of health cannot be recorded; tried again at the next one")
        finally:
            self._thread = None

    def _record(self, provider: AuditProvider, change: Change) -> bool:
        """Record a change; False when the trail cannot take it now."""
        if provider.refusal() is not None:
            return False
        occurred = datetime.fromtimestamp(change.unix, timezone.utc)
        event = AuditEvent(
            EVENT,
            "change",
            event_type="system_event",
            level=_LEVELS[change.after],
            resource_type="component",
            resource_name=change.component,
            fields={
                "component": change.component,
                "from": change.before.value,
                "to": change.after.value,
                "reason": change.reason,
                "occurred_at": occurred.isoformat(timespec="milliseconds"),
                "checks": change.checks,
            },
        )
        try:
            AuditLogger(provider=provider).emit(event)
        except AuditUnavailableError as error:
            _logger.warning("the change of %s is not recorded yet: %s", change.component, error)
            return False
        return True
