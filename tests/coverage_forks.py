"""A plugin of coverage: a forked child gets a lock of its own, and measures itself only.

With threads, coverage's C tracer takes one lock at each call of a measured
function. A child that is forked while another thread has it would wait for it
for ever, in its first measured function, which is one of our own hooks for
forks: a deadlock of the measurement that looks like one of ours (it was twice
taken for one). coverage 7.17.3 does not renew the lock.

The child has what its parent has measured until then, too, and would write it
all once more when it ends: a tenth of a second each.
"""

from __future__ import annotations

import os
import threading

import coverage


def coverage_init(_registry: object, _options: object) -> None:
    """Register with fork; coverage calls this before it measures, so ahead of what it measures."""
    os.register_at_fork(after_in_child=_renew)


def _renew() -> None:
    current = coverage.Coverage.current()
    collector = getattr(current, "_collector", None)
    if collector is not None and collector.data_lock is not None:
        collector.data_lock = threading.Lock()
        for lines in collector.data.values():
            lines.clear()
