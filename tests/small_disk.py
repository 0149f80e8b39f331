"""A file system of a few megabytes, to be filled, made read-only, and lost."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def mounted(place: Path, size: str = "12m") -> Iterator[Path]:
    """Mount one at ``place``; skips the test, loudly, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("ONLY ROOT CAN MOUNT: the disk was neither filled nor made read-only")
    place.mkdir(mode=0o700, parents=True)
    options = f"size={size},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        # What was killed may still have files open there.
        subprocess.run(["umount", "--lazy", str(place)], check=True)
