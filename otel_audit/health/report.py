"""Everything that is known at one moment, as it is shown to people and programs."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_audit.health.probe import HealthStatus

if TYPE_CHECKING:
    from otel_audit.health.component import ComponentState


class HealthReport(NamedTuple):
    """The whole and its components; ``now`` is the monotonic time of it."""

    status: HealthStatus
    started: bool
    states: tuple[ComponentState, ...]
    now: float

    def as_dict(self) -> dict[str, Any]:
        """Return ``status``, ``components`` by name, and ``summary``, the counts by status."""
        components = {state.name: self._component(state) for state in self.states}
        counts = dict.fromkeys((status.value for status in HealthStatus), 0)
        for component in components.values():
            counts[component["status"]] += 1
        return {"status": self.status.value, "components": components, "summary": counts}

    def as_health_json(self) -> dict[str, Any]:
        """Return the same as ``application/health+json`` (draft-inadarei-api-health-check-06)."""
        return {
            "status": IETF[self.status],
            "checks": {state.name: [self._check(state)] for state in self.states},
        }

    def _component(self, state: ComponentState) -> dict[str, Any]:
        shown = {
            "status": state.at(self.now).value,
            "critical": state.critical,
            "response_time_ms": state.response_time_ms,
            "checks": state.checks,
            "failures": state.failures,
            "last_success": _moment(state.last_success),
            "message": state.message_at(self.now),
            "since": _moment(state.since),
        }
        return {**shown, "details": state.details} if state.details else shown

    def _check(self, state: ComponentState) -> dict[str, Any]:
        status = state.at(self.now)
        check: dict[str, Any] = {"componentId": state.name, "status": IETF[status]}
        if state.response_time_ms is not None:
            check |= {"observedValue": state.response_time_ms, "observedUnit": "ms"}
        message = state.message_at(self.now)
        if message and status is not HealthStatus.HEALTHY:
            check["output"] = message
        return check


IETF = {
    HealthStatus.HEALTHY: "pass",
    HealthStatus.DEGRADED: "warn",
    HealthStatus.UNHEALTHY: "fail",
    HealthStatus.UNKNOWN: "fail",
}
"""The words of the draft; it has none for unknown."""


def _moment(unix: float | None) -> str | None:
    if unix is None:
        return None
    moment = datetime.fromtimestamp(unix, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
