"""The agent signs, empties the log and mirrors, one process at a time, whatever happens."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from otel_audit.errors import AuditSettingsError
from otel_audit.readers import agent as module
from otel_audit.readers import duties
from otel_audit.readers.attendants import attendants
from otel_audit.readers.beside import Beside
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.mirror import cursor_name
from otel_audit.settings import Settings
from otel_audit.trail.reader import TrailReader
from tests.readers.bench import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.readers.bench import Bench

# Python 3.12 warns whoever forks with threads; that the agent copes is what is tested.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def covered(bench: Bench) -> int:
    last = bench.trail.reader.last_checkpoint()
    return last.size if last else 0


def signed(bench: Bench) -> int:
    return sum(1 for _ in bench.trail.reader.checkpoints())


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; return the child's process id."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # a child that hangs must not outlive the test run
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - nobody else would see what it was
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Life


def test_it_mirrors_and_signs(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    assert bench.path.exists()
    bench.append(10)
    assert agent.flush()
    bench.check()
    wait_for(lambda: covered(bench) == 10)
    assert agent.leading
    assert agent.errors == 0
    assert agent.last_error is None
    agent.start()  # harmless
    agent.close()
    agent.close()
    assert not agent.leading


def test_it_starts_again_after_close(bench: Bench) -> None:
    agent = bench.agent()
    for _ in range(2):
        agent.start()
        bench.append(10)
        assert agent.flush()
        agent.close()
    bench.check()


def test_close_signs_and_mirrors_what_is_committed(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    wait_for(lambda: agent.leading)
    for _ in range(5):
        bench.append(10)
        agent.close()
        assert covered(bench) == bench.trail.reader.tree().size
        bench.check()
        agent.start()


@contextmanager
def no_threads() -> Iterator[None]:
    """Let no thread be started, as where a limit is reached."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_an_agent_that_cannot_be_started_holds_nothing_and_starts_later(bench: Bench) -> None:
    agent = bench.agent()
    with no_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
        agent.start()
    agent.close()
    other = bench.agent()
    other.start()
    wait_for(lambda: other.leading)
    other.close()
    agent.start()
    wait_for(lambda: agent.leading)
    agent.close()


def test_what_runs_beside_it_is_stopped_and_started_also_after_it_could_not_be(
    bench: Bench,
) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": "http://localhost:4318",
        "OTEL_AUDIT_RECONCILE_LOKI": "http://localhost:3100",
    }
    for attendant in attendants(
        Settings.from_env(variables, directory=bench.directory),
        lambda: TrailReader(bench.directory),
        lambda _: None,
    ):
        running = threading.active_count()
        with no_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
            attendant.start()
        attendant.stop(0.0)
        with no_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
            attendant.start()
        attendant.start()
        assert threading.active_count() == running + 1
        attendant.stop(5.0)
        assert threading.active_count() == running


def test_what_runs_beside_it_is_started_before_a_short_program_ends(bench: Bench) -> None:
    beside = Beside("nothing", lambda: False)
    agent = bench.agent(attendants=[beside])
    agent.start()
    assert "otel-audit-nothing" in {thread.name for thread in threading.enumerate()}
    agent.close()


def test_it_runs_in_the_foreground_until_it_is_stopped(bench: Bench) -> None:
    bench.append(10)
    agent = bench.agent()
    threading.Timer(0.3, agent.stop).start()
    agent.run()
    assert covered(bench) == 10
    bench.check()


def test_a_signal_that_comes_before_the_run_ends_it(bench: Bench) -> None:
    bench.append(10)
    agent = bench.agent()
    agent.stop()
    agent.run()
    bench.check()


def test_close_ends_a_foreground_run_of_another_thread(bench: Bench) -> None:
    agent = bench.agent()
    thread = threading.Thread(target=agent.run)
    thread.start()
    wait_for(lambda: agent.leading)
    with pytest.raises(RuntimeError, match="runs already"):
        agent.run()
    agent.close()
    thread.join(5)
    assert not thread.is_alive()


def test_what_is_not_running_can_be_closed_stopped_and_hurried(bench: Bench) -> None:
    agent = bench.agent()
    agent.hurry()
    agent.stop()
    agent.close()


def test_without_a_mirror_there_is_nothing_to_flush(bench: Bench) -> None:
    agent = bench.agent(mirror_path=None)
    bench.append(1)
    assert agent.flush(0.0)
    agent.start()
    wait_for(lambda: covered(bench) == 1)
    assert not bench.path.exists()


def test_a_thread_that_hangs_does_not_hang_close(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = threading.Event()
    agent = bench.agent(empty_wal=hanging.wait)
    agent.start()
    wait_for(lambda: agent.leading)
    agent.close(timeout=0.0)
    assert "did not end within" in caplog.text
    hanging.set()
    agent.close()


# Checkpoints


def test_records_are_covered_within_about_a_second(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    waited: list[float] = []
    for _ in range(3):
        bench.append(10)
        committed = time.monotonic()
        wait_for(lambda: covered(bench) == bench.trail.reader.tree().size)
        waited.append(time.monotonic() - committed)
    # The first may have come right before a checkpoint; each of the others came right after one. A
    # busy machine lets some of them wait, and not all.
    assert min(waited[1:]) < 3.0
    assert signed(bench) <= 4


def test_many_records_do_not_wait_for_the_second(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "_CHECKPOINT_SECONDS", 3_600.0)
    bench.append(1)
    bench.trail.signer.sign()
    agent = bench.agent()
    agent.start()
    bench.append(9_000, size=1)
    time.sleep(0.5)
    assert covered(bench) == 1
    bench.append(1_000, size=1)
    wait_for(lambda: covered(bench) == 10_001)


def test_an_idle_trail_gets_a_heartbeat(bench: Bench) -> None:
    bench.append(5)
    agent = bench.agent(heartbeat=0.5)
    agent.start()
    wait_for(lambda: signed(bench) >= 3)
    assert {stored.size for stored in bench.trail.reader.checkpoints()} == {5}


def test_an_empty_trail_gets_none(bench: Bench) -> None:
    agent = bench.agent(heartbeat=0.1)
    agent.start()
    time.sleep(0.5)
    agent.close()
    assert signed(bench) == 0


def test_a_covered_trail_is_not_signed_again(bench: Bench) -> None:
    bench.append(5)
    bench.trail.signer.sign()
    agent = bench.agent()
    agent.start()
    wait_for(lambda: agent.leading)
    bench.append(1)
    bench.trail.signer.sign()  # another process may do that as well
    time.sleep(0.5)
    agent.close()
    assert [stored.size for stored in bench.trail.reader.checkpoints()] == [5, 6]


def test_a_checkpoint_from_the_future_does_not_stop_signing(bench: Bench) -> None:
    bench.append(5)
    bench.trail.signer._clock = lambda: time.time_ns() + 86_400 * 10**9
    bench.trail.signer.sign()
    agent = bench.agent()
    agent.start()
    bench.append(1)
    wait_for(lambda: covered(bench) == 6)


# The write-ahead log


def test_the_log_is_emptied_after_growth_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "_WAL_SECONDS", 0.0)
    calls: list[int] = []
    agent = bench.agent(empty_wal=lambda: calls.append(bench.trail.reader.tree().size))
    agent.start()
    wait_for(lambda: calls == [0])
    bench.append(5)
    wait_for(lambda: calls == [0, 5])
    time.sleep(0.5)
    assert calls == [0, 5]


# Faults


def test_a_failing_duty_stops_neither_the_others_nor_the_agent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) < 3:
            message = "the key is in the safe"
            raise RuntimeError(message)
        bench.trail.signer.sign()

    agent = bench.agent(sign_checkpoint=fail)
    agent.start()
    bench.append(5)
    assert agent.flush()
    wait_for(lambda: agent.errors == 2)
    assert agent.last_error == "checkpoint: the key is in the safe"
    wait_for(lambda: covered(bench) == 5)
    wait_for(lambda: agent.last_error is None)
    wait_for(lambda: "'checkpoint' works again" in caplog.text)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("failed" in message for message in messages) == 1  # not one a second
    assert bench.trail.reader.tree().size == 5


def test_close_does_not_wait_for_the_next_attempt(bench: Bench) -> None:
    broken = threading.Event()
    broken.set()

    def sign() -> None:
        if broken.is_set():
            message = "not now"
            raise RuntimeError(message)
        bench.trail.signer.sign()

    agent = bench.agent(sign_checkpoint=sign)
    bench.append(5)
    agent.start()
    wait_for(lambda: agent.errors == 1)
    broken.clear()
    agent.close()
    assert covered(bench) == 5


def test_a_trail_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    there = threading.Event()

    def reader() -> TrailReader:
        if not there.is_set():
            message = "no trail yet"
            raise OSError(message)
        return TrailReader(bench.directory)

    agent = bench.agent(reader_factory=reader)
    agent.start()
    wait_for(lambda: agent.last_error == "trail: no trail yet")
    there.set()
    bench.append(1)
    wait_for(lambda: bench.path.stat().st_size)
    assert agent.flush()


def test_a_mirror_that_can_never_be_written_is_an_error_at_start(
    bench: Bench, tmp_path: Path
) -> None:
    agent = bench.agent(mirror_path=tmp_path)
    with pytest.raises(AuditSettingsError, match="Is a directory"):
        agent.start()


def test_a_mirror_that_breaks_later_is_reported_and_repaired(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    bench.append(5)
    assert agent.flush()
    bench.path.unlink()
    bench.path.mkdir()
    bench.append(5)
    began = time.monotonic()
    assert not agent.flush(30.0)
    assert time.monotonic() - began < 20  # it is clear before the time is up
    assert "Is a directory" in str(agent.last_error)
    wait_for(lambda: covered(bench) == 10)
    bench.path.rmdir()
    assert agent.flush()
    assert bench.mirrored() == bench.expected()[5:]


def test_trouble_after_a_restart_is_only_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    agent = bench.agent()
    agent.start()
    agent.close()
    bench.path.unlink()
    bench.path.mkdir()
    agent.start()
    assert "cannot be made now" in caplog.text


def test_flush_gives_up_when_time_is_up(bench: Bench) -> None:
    bench.append(1)
    assert not bench.agent().flush(0.05)


# Several processes


def test_one_of_two_serves_and_the_other_takes_over(bench: Bench) -> None:
    first, second = bench.agent(), bench.agent()
    first.start()
    wait_for(lambda: first.leading)
    second.start()
    bench.append(5)
    assert second.flush()
    assert (first.leading, second.leading) == (True, False)
    first.close()
    bench.append(5)
    assert second.flush()
    assert (first.leading, second.leading) == (False, True)
    bench.check()


def test_who_closes_last_serves_what_the_other_left(bench: Bench) -> None:
    first, second = bench.agent(), bench.agent()
    first.start()
    second.start()
    wait_for(lambda: first.leading or second.leading)
    leader, other = (first, second) if first.leading else (second, first)
    leader.close()
    bench.append(5)
    other.close()
    assert covered(bench) == 5
    bench.check()


def test_what_was_committed_while_the_leader_closed_is_served(bench: Bench) -> None:
    # The other one commits and closes after the leader's last look, while the lease is held.
    agent = bench.agent()
    let_go, late = agent._let_go, list[int]()

    def commit_first() -> None:
        if agent.leading and not late:
            late.append(1)
            bench.append(5)
            bench.agent().close()
        let_go()

    agent._let_go = commit_first  # type: ignore[method-assign]
    agent.start()
    wait_for(lambda: agent.leading)
    agent.close()
    assert covered(bench) == 5
    bench.check()


def test_another_mirror_of_the_same_trail_is_warned_about(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STANDBY", 0.01)
    leader = bench.agent()
    leader.start()
    wait_for(lambda: leader.leading)
    same, other = bench.agent(), bench.agent(mirror_path=bench.root / "other.log")
    same.start()
    time.sleep(0.1)
    assert "stays behind" not in caplog.text
    with caplog.at_level(logging.WARNING):
        other.start()
        wait_for(lambda: "stays behind" in caplog.text)
    time.sleep(0.1)
    assert caplog.text.count("stays behind") == 1
    row = Cursors(bench.directory).row(module.CURSOR)
    assert row is not None
    assert row.state == {
        "pid": os.getpid(),
        "mirror": str(bench.path),
        "follows": [cursor_name(bench.path)],
    }


def test_a_killed_leader_is_followed_by_the_next(bench: Bench) -> None:
    with bench.process("agent") as process:
        bench.append(5)
        assert bench.agent().flush(20.0)
        agent = bench.agent()
        agent.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.append(5)
    assert agent.flush()
    bench.check()


# Forks


@FORKS
def test_a_child_of_a_dead_parent_does_not_hold_the_lease(bench: Bench) -> None:
    reading, writing = os.pipe()

    def orphan() -> None:
        os.close(writing)
        os.read(reading, 1)  # until the test is over

    def parent() -> None:
        agent = bench.agent()
        agent.start()
        bench.append(1)
        assert agent.flush()  # so that the mirror's file is open, and locked
        forked(orphan)
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(parent)) == -signal.SIGKILL
    agent = bench.agent()
    agent.start()
    bench.append(1)
    assert agent.flush()
    os.close(writing)
    os.close(reading)


@FORKS
def test_the_parent_goes_on_after_a_fork(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    bench.append(5)
    assert agent.flush()

    def child() -> None:
        assert not agent.leading
        agent.close()  # must not let go of what the parent has

    assert exit_code(forked(child)) == 0
    bench.append(5)
    assert agent.flush()
    assert agent.leading
    bench.check()


@FORKS
def test_a_child_starts_its_own(bench: Bench) -> None:
    agent = bench.agent()
    agent.start()
    wait_for(lambda: agent.leading)

    def child() -> None:
        agent.start()
        bench.append(5)
        assert agent.flush()  # by the parent's agent
        os.write(writing, b"x")
        os.read(resumed, 1)
        bench.append(5)
        assert agent.flush()  # by its own
        assert agent.leading
        agent.close()

    reading, writing = os.pipe()
    resumed, resume = os.pipe()
    process = forked(child)
    os.read(reading, 1)
    agent.close()
    os.write(resume, b"x")
    assert exit_code(process) == 0
    bench.check()
    for descriptor in (reading, writing, resumed, resume):
        os.close(descriptor)


def test_a_flush_outlasts_a_lock_that_somebody_still_has(bench: Bench) -> None:
    """A child that was just forked keeps its copy of the mirror until it gets to run."""
    bench.path.parent.mkdir(exist_ok=True)
    bench.path.touch()
    with bench.path.open("ab") as copy:
        fcntl.flock(copy, fcntl.LOCK_EX)
        agent = bench.agent()
        agent.start()
        bench.append(3)
        wait_for(lambda: agent.errors > 2)
        letting_go = threading.Timer(2.5, fcntl.flock, (copy, fcntl.LOCK_UN))
        letting_go.start()
        assert agent.flush(50.0)
        letting_go.join()
    bench.check()


@FORKS
def test_forks_at_any_moment(bench: Bench) -> None:
    agent = bench.agent(mirror_max_bytes=2_000, mirror_backups=1_000)
    agent.start()
    children = []
    for _ in range(30):
        bench.append(20)
        agent.hurry()

        def child() -> None:
            agent.start()
            bench.append(1)
            assert agent.flush(50.0)  # thirty processes share the machine with other tests

        children.append(forked(child))
    assert [exit_code(child) for child in children] == [0] * 30
    assert agent.flush()
    bench.check()
