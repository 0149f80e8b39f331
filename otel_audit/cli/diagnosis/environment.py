"""Whether the process that serves the trail has other settings than those that are judged here.

`doctor` sees its own environment. A service that was started by its unit or in
its container has another one, of which "shipped nowhere" or "no policy" may
not be true.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_audit.cli.diagnosis.check import Check, ok, warn
from otel_audit.settings import Settings
from otel_audit.trail.layout import AGENT_LOCK
from otel_audit.trail.occupants import holders, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.cli.diagnosis.check import Subject

_SAME: Final = frozenset({"OTEL_SERVICE_NAME", "OTEL_AUDIT_DIR"})
"""What leads to the trail: here it led to the same one."""


def environment(subject: Subject) -> Iterator[Check]:
    """Compare with what the agent's process was started with; values are not shown."""
    here = _said(subject.settings, Path.cwd())
    for pid in holders(subject.directory / AGENT_LOCK):
        if pid == os.getpid():
            continue
        who = f"{name_of(pid)}, which serves the trail,"
        try:
            there = _said(*_started_with(Path(f"/proc/{pid}")))
        except OSError:
            yield ok("environment", f"{who} cannot be asked for its settings: they may be others")
            continue
        other = sorted(
            name
            for name in here.keys() | there.keys()
            if here.get(name) != there.get(name)
            # Whoever names the directory in code still has to name it to commands.
            and not (name == "LOG_DIR" and there.get(name) is None)
        )
        if other:
            yield warn(
                "environment",
                f"{who} was started with other settings than are judged here: {', '.join(other)}",
                "run doctor with the service's own environment, for what depends on them",
            )
        else:
            yield ok("environment", f"{who} was started with the same settings")


def _started_with(process: Path) -> tuple[Settings, Path]:
    """Return what the variables of a process say, and its directory. Raises `OSError`."""
    text = (process / "environ").read_bytes().decode(errors="surrogateescape")
    pairs = (entry.partition("=") for entry in text.split("\0") if "=" in entry)
    settings, _ = Settings.salvage({name: value for name, _, value in pairs})
    return settings, (process / "cwd").readlink()


def _said(settings: Settings, directory: Path) -> dict[str, Any]:
    """Return each variable's value; paths as they are from ``directory``."""
    said = {}
    for row in settings.describe():
        value = getattr(settings, row["name"], row["value"])
        if row["variable"] not in _SAME:
            said[row["variable"]] = directory / value if isinstance(value, Path) else value
    return said
