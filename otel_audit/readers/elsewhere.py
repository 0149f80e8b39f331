"""The agent of another process, as a provider with OTEL_AUDIT_AGENT=off sees it.

`AgentElsewhere.flush` promises what `Agent.flush` does while `otel-audit
agent` runs; when nobody runs it, it says so at once instead of waiting.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from otel_audit.trail.layout import AGENT_LOCK
from otel_audit.trail.lock import FileLock

if TYPE_CHECKING:
    from otel_audit.readers.agent import Agent

_logger = logging.getLogger("otel_audit.agent")


class AgentElsewhere:
    """Starts nothing; its progress can be awaited."""

    def __init__(self, agent: Agent) -> None:
        """Take an agent that is never started, for where it looks."""
        self._agent = agent

    def start(self) -> None:
        """Leave the work to the other process."""

    def flush(self, timeout: float) -> bool:
        """Wait until the other process's mirror has every record that is committed now."""
        lease = FileLock(self._agent.directory / AGENT_LOCK)
        try:
            if lease.try_acquire():
                lease.release()
                _logger.warning(
                    "OTEL_AUDIT_AGENT is off, and no `otel-audit agent` serves %s: the mirror "
                    "does not follow",
                    self._agent.directory,
                )
                return False
        finally:
            lease.close()
        return self._agent.flush(timeout)

    def hand_over(self, timeout: float) -> None:
        """Do nothing: the process that serves the trail goes on."""

    def close(self) -> None:
        """Leave the other process alone."""
