"""Where the hub keeps its things and how strict it is; the only reader of AGENTHUB_*."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

PORTS: Final = range(1, 65_536)


class ConfigError(ValueError):
    """A variable that cannot be used; the message names it, its value and what it should be."""


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
        Raises `ConfigError`.
        """

        def read(name: str, parse: Callable[[str], T], otherwise: T) -> T:
            variable = f"AGENTHUB_{name}"
            said = environ.get(variable, "")
            try:
                return parse(said) if said else otherwise
            except ValueError as error:
                message = f"{variable}={said!r} cannot be used: {error}; correct it or unset it"
                raise ConfigError(message) from None

        return cls(
            data=read("DATA", Path, cls.data).absolute(),
            attempts=read("ATTEMPTS", _attempts, cls.attempts),
            lock_seconds=read("LOCK_SECONDS", _seconds, cls.lock_seconds),
            session_seconds=read("SESSION_SECONDS", _seconds, cls.session_seconds),
            health_ports=read("HEALTH_PORTS", _ports, cls.health_ports),
        )

    @property
    def logs(self) -> Path:
        """What LOG_DIR is unless the environment says otherwise."""
        return self.data / "logs"


def _attempts(said: str) -> int:
    if not said.isdecimal() or int(said) < 1:
        message = "expected a whole number of at least 1"
        raise ValueError(message)
    return int(said)


def _seconds(said: str) -> float:
    message = "expected seconds, more than 0"
    try:
        number = float(said)
    except ValueError:
        raise ValueError(message) from None
    if not 0 < number < float("inf"):
        raise ValueError(message)
    return number


def _ports(said: str) -> tuple[int, ...]:
    first, _, last = said.partition("-")
    ends = [int(end) if end.isdecimal() else 0 for end in (first, last or first)]
    if ends != sorted(ends) or not all(end in PORTS for end in ends):
        message = "expected a port, or the first and the last of several: 9000-9003"
        raise ValueError(message)
    return tuple(range(ends[0], ends[1] + 1))
