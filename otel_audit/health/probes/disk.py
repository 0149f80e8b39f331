"""Free space where a directory is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.health.probe import ProbeResult
from otel_audit.trail.filesystem import FULL, TIGHT, room

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


def disk_probe(
    path: str | os.PathLike[str], *, degraded_below: int = TIGHT, unhealthy_below: int = FULL
) -> Callable[[], ProbeResult]:
    """Watch the space, and the files, that a user without privileges may still use.

    ``degraded_below`` and ``unhealthy_below``: bytes. Without free inodes no
    file can be made whatever the space, which is unhealthy too.
    """

    def probe() -> ProbeResult:
        free, total, files = room(path)
        no_inodes = files == 0
        details = {"free_bytes": free, "total_bytes": total}
        said = f"{free >> 20:,} MiB are free"
        if free < unhealthy_below or no_inodes:
            said = "no inodes are free" if no_inodes else said
            return ProbeResult.unhealthy(f"{said}: make room on the disk", **details)
        if free < degraded_below:
            return ProbeResult.degraded(f"only {said}", **details)
        return ProbeResult.healthy(said, **details)

    return probe
