"""The audit trail itself: whether it takes records, and whether what follows it keeps up.

| what | unhealthy | degraded |
|---|---|---|
| writing | the newest group failed or hangs; a sync in its directory fails | |
| space | below 64 MiB | below 1 GiB |
| log | | it cannot be emptied any more after an I/O error, until a restart |
| checkpoint | | records have waited for one for more than 10 s |
| each follower: the mirror, each destination | | a record has waited for it for more than 60 s |

Who follows is what the agent said that serves the trail: a mirror or a destination
that is not configured any more waits for nothing.

Nothing is written to the trail. While it is in use its own commits show that it
can be written; else one byte of the file ``health`` beside it is written and
synced, at most each 30 s.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from otel_audit.health.probe import HealthStatus, ProbeResult
from otel_audit.health.probes.disk import disk_probe
from otel_audit.readers.agent import CURSOR as AGENT
from otel_audit.readers.cursors import Cursors
from otel_audit.trail.layout import CURSORS, HEALTH

if TYPE_CHECKING:
    from pathlib import Path

    from otel_audit.api.provider import AuditProvider
    from otel_audit.trail.reader import TrailReader, Tree

_PROVEN_SECONDS: Final = 30.0
_CHECKPOINT_SECONDS: Final = 10.0
_LAG_SECONDS: Final = 60.0
_NANO: Final = 1e9


def trail_probe(provider: AuditProvider, *, max_lag: float = _LAG_SECONDS) -> TrailProbe:
    """Watch the trail that a provider writes to; ``max_lag`` is seconds."""
    return TrailProbe(provider, max_lag)


class TrailProbe:
    """Looks at one trail, from a thread where it may take its time."""

    def __init__(self, provider: AuditProvider, max_lag: float = _LAG_SECONDS) -> None:
        """Watch the provider's trail."""
        self._provider = provider
        self._max_lag = max_lag
        self._space = disk_probe(provider.directory)
        self._proven_until = 0.0

    def __call__(self) -> ProbeResult:
        """Look once. Raises what reading or syncing raises, which is a failure as well."""
        provider = self._provider
        refusal = provider.refusal()
        if refusal is not None:
            return ProbeResult.unhealthy(str(refusal))
        now = time.time()
        details: dict[str, Any] = {"waiting": provider.statistics["waiting"]}
        with provider.reader() as reader:
            tree = reader.tree()
            details |= {"records": tree.size, "last_commit_age_s": _age(now, tree)}
            concerns = [_log(provider), self._checkpoint(reader, tree, now, details)]
            concerns += self._followers(reader, tree, now, details)
        self._prove_writable(provider.directory, tree, now)
        space = self._space()
        details |= space.details or {}
        if space.status is not HealthStatus.HEALTHY:
            concerns.insert(0, space.message)
        said = "; ".join(filter(None, concerns))
        if space.status is HealthStatus.UNHEALTHY:
            return ProbeResult.unhealthy(said, **details)
        return ProbeResult.degraded(said, **details) if said else ProbeResult.healthy(**details)

    def _checkpoint(
        self, reader: TrailReader, tree: Tree, now: float, details: dict[str, Any]
    ) -> str:
        """Return what is wrong with the checkpoints, or nothing."""
        last = reader.last_checkpoint()
        covered = 0 if last is None else last.size
        details["checkpoint_age_s"] = None if last is None else _since(now, last.unix_nano)
        details["uncovered"] = max(0, tree.size - covered)
        waited = _waited(reader, tree, covered, now)
        if waited <= _CHECKPOINT_SECONDS:
            return ""
        return (
            f"{tree.size - covered:,} records have waited for a checkpoint for {waited:.0f} s: see "
            "that an agent runs (otel-audit doctor)"
        )

    def _followers(
        self, reader: TrailReader, tree: Tree, now: float, details: dict[str, Any]
    ) -> list[str]:
        """Return which followers lag too far behind."""
        directory = self._provider.directory
        if not (directory / CURSORS).exists():
            return []
        cursors = Cursors(directory, read_only=True)
        try:
            rows = cursors.rows()
        finally:
            cursors.close()
        concerns = []
        lags = details["lag"] = {}
        agent = rows.get(AGENT)
        for name in () if agent is None else agent.state.get("follows", ()):
            position = rows[name].position if name in rows else 0
            waited = _waited(reader, tree, position, now)
            lags[name] = {"records": max(0, tree.size - position), "seconds": waited}
            if waited > self._max_lag:
                concerns.append(f"{name} is {waited:.0f} s behind the trail")
        return concerns

    def _prove_writable(self, directory: Path, tree: Tree, now: float) -> None:
        """Raise `OSError` unless something was, or can be, written and synced there."""
        committed = tree.size and abs(_since(now, tree.committed_unix_nano)) < _PROVEN_SECONDS
        if committed or time.monotonic() < self._proven_until:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(directory / HEALTH, flags, 0o600)
        try:
            os.pwrite(descriptor, b"\n", 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._proven_until = time.monotonic() + _PROVEN_SECONDS


def _log(provider: AuditProvider) -> str:
    """Return what is wrong with the write-ahead log, or nothing."""
    if not provider.trail.store.wal.stuck:
        return ""
    return (
        "the write-ahead log grows, since it could not be copied into the database: repair the "
        f"disk, then restart process {os.getpid()}"
    )


def _since(now: float, unix_nano: int) -> float:
    return round(now - unix_nano / _NANO, 3)


def _age(now: float, tree: Tree) -> float | None:
    """Return how long ago the last record was committed, None without records."""
    return _since(now, tree.committed_unix_nano) if tree.size else None


def _waited(reader: TrailReader, tree: Tree, position: int, now: float) -> float:
    """Return for how many seconds the record at a position has been there; 0 if there is none."""
    if position >= tree.size:
        return 0.0
    leaf = reader.leaf(position)
    # Without the row somebody has removed it, which `verify` tells.
    return 0.0 if leaf is None else max(0.0, _since(now, leaf.committed_unix_nano))
