"""Where the hub keeps its things and how strict it is; the only reader of AGENTHUB_*."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """The hub's own settings; those of the trail are otel-audit's (LOG_DIR, OTEL_AUDIT_*)."""

    data: Path = Path("agenthub-data")
    attempts: int = 5
    """Failed logins in a row after which an account is locked."""
    lock_seconds: float = 60.0
    session_seconds: float = 8 * 3600.0
    health_ports: tuple[int, ...] = ()
    """Ports of which each worker takes one for health alone; without any there is none."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read AGENTHUB_DATA, _ATTEMPTS, _LOCK_SECONDS, _SESSION_SECONDS and _HEALTH_PORTS.

        The last is a port, or the first and the last of several: ``9000-9003``.
        """
        first, _, last = environ.get("AGENTHUB_HEALTH_PORTS", "").partition("-")
        return cls(
            data=Path(environ.get("AGENTHUB_DATA", cls.data)).absolute(),
            attempts=int(environ.get("AGENTHUB_ATTEMPTS", cls.attempts)),
            lock_seconds=float(environ.get("AGENTHUB_LOCK_SECONDS", cls.lock_seconds)),
            session_seconds=float(environ.get("AGENTHUB_SESSION_SECONDS", cls.session_seconds)),
            health_ports=tuple(range(int(first), int(last or first) + 1)) if first else (),
        )

    @property
    def logs(self) -> Path:
        """What LOG_DIR is unless the environment says otherwise."""
        return self.data / "logs"
