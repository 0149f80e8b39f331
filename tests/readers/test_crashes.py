"""kill -9 at any moment: the mirror neither misses nor repeats a line."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from otel_audit.readers.agent import CURSOR
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.mirror import cursor_name
from tests.readers.bench import wait_for

if TYPE_CHECKING:
    from tests.readers.bench import Bench

RECORDS = 2_500


@pytest.mark.parametrize("max_bytes", [0, 200_000])
def test_an_agent_killed_again_and_again(bench: Bench, max_bytes: int) -> None:
    cursors = Cursors(bench.directory)
    name = cursor_name(bench.path)

    def serving(process: int) -> bool:
        row = cursors.row(CURSOR)
        return row is not None and row.state["pid"] == process

    kills = 0
    with bench.process("write", str(RECORDS)) as writer:
        while writer.poll() is None:
            with bench.process("agent", str(max_bytes)) as agent:
                wait_for(lambda: serving(agent.pid), 60)
                time.sleep(kills * 0.037 % 0.25)
                agent.kill()
                agent.wait()
            kills += 1
    assert writer.returncode == 0
    with bench.process("agent", str(max_bytes)) as agent:
        wait_for(lambda: serving(agent.pid) and cursors.get(name) == RECORDS, 60)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    cursors.close()
    assert kills >= 3
    last = bench.trail.reader.last_checkpoint()
    assert last is not None
    assert last.size == RECORDS
    bench.check()
