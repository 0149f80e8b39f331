"""Measure what a slower disk would give: each sync of a process takes longer.

What groups gain is a statement about the disk. The disks of this project's
machines sync in 0.15 ms; those that services rent take 0.5 to 3 ms.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("slower_disk.c")


def environment(microseconds: int) -> dict[str, str]:
    """Return the environment of processes whose syncs take so much longer; none for 0.

    It compiles a library that the loader puts before the C library's. Raises
    `SystemExit` where there is no C compiler.
    """
    if not microseconds:
        return {}
    compiler = shutil.which("cc")
    if compiler is None:
        message = "--slower needs a C compiler: install gcc (apt-get install gcc), or leave it out"
        raise SystemExit(message)
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-slower-"))
    atexit.register(shutil.rmtree, directory)
    library = directory / "slower_disk.so"
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True
    )
    return {"LD_PRELOAD": str(library), "SLOWER_MICROSECONDS": str(microseconds)}
