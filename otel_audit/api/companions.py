"""What lives as long as a provider without the provider knowing it.

Readers and instrumentation stand above the API, so the API cannot start them;
the package's root puts here who does instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider


class Companion(Protocol):
    """A thing that follows the trail, such as the agent."""

    def start(self) -> None:
        """Begin; called again in a forked child."""
        ...

    def flush(self, timeout: float) -> bool:
        """Catch up with the trail within ``timeout`` seconds; False when time is up."""
        ...

    def hand_over(self, timeout: float) -> None:
        """Deliver what has to leave the machine, for at most ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Finish and let go."""
        ...


factories: list[Callable[[AuditProvider], Companion | None]] = []
"""Each is called once for every provider; None means that none is needed."""

changed: list[Callable[[AuditProvider | None], None]] = []
"""Each is called with the provider that has become the global one."""
