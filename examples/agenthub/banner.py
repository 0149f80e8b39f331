"""What the hub says in the terminal at its start and at its end: commands to paste, as they are."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.agenthub.config import Config
from examples.agenthub.services import DEMO_USERS
from otel_audit import get_audit_provider
from otel_audit.trail.layout import AGENT_LOCK
from otel_audit.trail.occupants import holders, name_of


@dataclass(frozen=True)
class Start:
    """What differs from one start to another; the password only where it was made up just now."""

    address: str
    token: str
    password: str | None
    taken: str
    """Which port could not be had, in words; empty where none was taken."""


def at_start(config: Config, start: Start) -> str:
    """Say where the hub is, who may sign in, and how to look at the trail."""
    provider = get_audit_provider()
    directory = _short(provider.directory)
    mirror = provider.settings.mirror_file
    programs = _short(Path(sys.executable).parent)
    users = ", ".join(f"{name} ({role.value})" for name, role in DEMO_USERS.items())
    address, token = start.address, start.token
    # Without the variable the driver asks for the password.
    given = f"AGENTHUB_PASSWORD={start.password} " if start.password else ""
    lines = [
        "",
        f"  AgentHub      {address}",
        *_notes(start.taken),
        f"  Sign in as    {users}",
        *_password(start.password, f"{programs}/python -m examples.agenthub --new-password"),
        "",
        f"  The trail     {programs}/otel-audit tail -f --dir {directory}",
        f"                tail -f {_short(mirror)}" if mirror else "",
        f"  Verify it     {verification()}",
        f"  Health        echo {token} | {programs}/otel-audit health --token-file - {address}/health",
        "",
        f"  Ask it        curl -sH 'Authorization: Bearer {token}' '{address}/audit/events?event=authentication&outcome=failure&start=-24h'",
        f"                curl -sNH 'Authorization: Bearer {token}' '{address}/audit/stream?outcome=failure'",
        "",
        f"  Play traffic  {given}{programs}/python -m examples.agenthub.driver --url {address} --check {directory}",
        "",
        f"  Data in {config.data}; Ctrl-C stops the hub and its servers.",
        "",
    ]
    return "\n".join(lines)


def at_end() -> str:
    """Say where the trail stays, and how to verify it."""
    directory = _short(get_audit_provider().directory)
    return (
        f"\n  The hub has ended, and its token holds no more. The trail stays in {directory}\n"
        f"  Verify it     {verification()}\n"
    )


def verification() -> str:
    """Return the command that verifies the trail, as one would type it where the hub was started."""
    programs = _short(Path(sys.executable).parent)
    return f"{programs}/otel-audit verify --dir {_short(get_audit_provider().directory)}"


def _password(made: str | None, another: str) -> list[str]:
    if made:
        return [f"  Password      {made}"]
    if os.environ.get("AGENTHUB_PASSWORD"):
        return ["  Password      the one in AGENTHUB_PASSWORD"]
    return [
        "  Password      printed when the hub was first started; for another one, stop the hub and run",
        f"                {another}",
    ]


def _notes(taken: str) -> list[str]:
    notes = [taken] if taken else []
    # This process has let go of the trail: whoever serves it now is somebody else.
    lock = get_audit_provider().directory / AGENT_LOCK
    others = ", ".join(name_of(pid) for pid in holders(lock) if pid != os.getpid())
    if others:
        notes.append(
            f"another hub seems to run on the same data ({others}); both have the same users, servers "
            "and trail. AGENTHUB_DATA=DIRECTORY starts one with data of its own"
        )
    return [f"  Note          {note}" for note in notes]


def _short(path: Path) -> Path:
    """Return the path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
