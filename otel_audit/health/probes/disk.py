"""Free space where a directory is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from otel_audit.health.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable

MEBIBYTE: Final = 1 << 20
FULL: Final = 64 * MEBIBYTE
TIGHT: Final = 1_024 * MEBIBYTE


def disk_probe(
    path: str | os.PathLike[str], *, degraded_below: int = TIGHT, unhealthy_below: int = FULL
) -> Callable[[], ProbeResult]:
    """Watch the space, and the files, that a user without privileges may still use.

    ``degraded_below`` and ``unhealthy_below``: bytes. Without free inodes no
    file can be made whatever the space, which is unhealthy too.
    """

    def probe() -> ProbeResult:
        facts = os.statvfs(path)
        free = facts.f_bavail * facts.f_frsize
        # Some file systems (btrfs) have no fixed number of inodes and state 0 of 0.
        no_inodes = facts.f_files > 0 and facts.f_favail == 0
        details = {"free_bytes": free, "total_bytes": facts.f_blocks * facts.f_frsize}
        said = f"{free // MEBIBYTE:,} MiB are free"
        if free < unhealthy_below or no_inodes:
            said = "no inodes are free" if no_inodes else said
            return ProbeResult.unhealthy(f"{said}: make room on the disk", **details)
        if free < degraded_below:
            return ProbeResult.degraded(f"only {said}", **details)
        return ProbeResult.healthy(said, **details)

    return probe
