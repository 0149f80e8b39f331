"""The checker in real threads and loops, with probes that do their worst."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.errors import AuditSettingsError
from otel_audit.health import checker as checking
from otel_audit.health import loops
from otel_audit.health.checker import (
    HealthChecker,
    get_health_checker,
    set_health_checker,
)
from otel_audit.health.probe import HealthStatus, ProbeResult
from tests.health.conftest import state, until, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus
FAST: dict[str, Any] = {"interval": 0.1, "timeout": 0.1}


def works() -> None:
    """Be a probe of something that works."""


async def works_async() -> None:
    await asyncio.sleep(0)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Let go of threads that a test has blocked."""
    event = threading.Event()
    yield event
    event.set()


def test_before_the_start_nothing_is_known(checker: HealthChecker) -> None:
    checker.register("db", works)
    assert checker.get_quick_status() is UNKNOWN
    assert checker.get_http_status_code() == 503
    assert not checker.started
    assert not checker.running


def test_without_components_all_is_well(checker: HealthChecker) -> None:
    checker.start()
    assert checker.get_quick_status() is HEALTHY
    assert checker.started


def test_components_become_healthy_at_their_first_success(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second one would come too late.
    monkeypatch.setattr(checking, "_STARTING_SECONDS", 300.0)
    checker.register("plain", works, interval=300)
    checker.register("coroutine", works_async, interval=300)
    checker.register("lambda", lambda: works_async(), interval=300)  # noqa: PLW0108 - a plain function that returns a coroutine
    checker.start()
    wait_until(lambda: checker.get_http_status_code() == 200)
    assert checker.started
    shown = checker.report().as_dict()
    assert shown["status"] == "healthy"
    assert shown["summary"] == {"healthy": 3, "degraded": 0, "unhealthy": 0, "unknown": 0}
    plain = shown["components"]["plain"]
    assert plain["checks"] == 1
    assert plain["failures"] == 0
    assert plain["response_time_ms"] >= 0
    assert plain["last_success"].endswith("Z")
    assert plain["since"] == plain["last_success"]


def test_a_component_that_was_never_well_is_starting_not_failing(checker: HealthChecker) -> None:
    there = threading.Event()

    def database() -> bool:
        return there.is_set()

    checker.register("db", database, interval=0.05)
    checker.start()
    wait_until(lambda: state(checker, "db").checks >= 1)
    if state(checker, "db").checks < 3:
        assert checker.get_quick_status() is UNKNOWN
    assert not checker.started
    there.set()
    wait_until(lambda: checker.started)
    there.clear()
    wait_until(lambda: checker.get_quick_status() is UNHEALTHY)
    assert checker.started


def swallow_cancellation() -> Any:
    async def probe() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    return probe


@pytest.mark.parametrize("kind", ["never returns", "swallows cancellation", "blocks the loop"])
def test_a_time_out_holds_and_others_go_on(
    checker: HealthChecker, release: threading.Event, kind: str
) -> None:
    async def block() -> None:
        release.wait(30)

    hanging = {
        "never returns": lambda: release.wait(30),
        "swallows cancellation": swallow_cancellation(),
        "blocks the loop": block,
    }[kind]
    checker.register("hangs", hanging, **FAST)
    checker.register("plain", works, **FAST)
    checker.register("coroutine", works_async, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "hangs").status is UNHEALTHY)
    assert "no answer" in state(checker, "hangs").message
    wait_until(lambda: state(checker, "plain").checks >= 3)
    wait_until(lambda: state(checker, "coroutine").checks >= 3)
    now = time.monotonic()
    assert state(checker, "plain").at(now) is HEALTHY
    assert state(checker, "coroutine").at(now) is HEALTHY


def test_a_coroutine_is_cancelled_when_its_time_is_up(checker: HealthChecker) -> None:
    cancelled = threading.Event()

    async def patient() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    checker.register("patient", patient, **FAST)
    checker.start()
    assert cancelled.wait(5)
    wait_until(lambda: state(checker, "patient").status is UNHEALTHY)


@pytest.mark.parametrize(("timeout", "awaited"), [(0.05, "stubborn"), (60, "plain")])
def test_an_application_ends_whatever_a_probe_swallows(
    checker: HealthChecker, timeout: float, awaited: str
) -> None:
    """`asyncio.run` waits for the tasks of its loop: for those whose time was up, and the others."""

    async def application() -> None:
        checker.register("stubborn", swallow_cancellation(), interval=0.1, timeout=timeout)
        checker.register("plain", works, interval=0.1)
        checker.start()
        await until(lambda: state(checker, awaited).checks)
        checker.stop()

    thread = threading.Thread(target=asyncio.run, args=(application(),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_who_is_cancelled_by_the_end_may_tidy_up(checker: HealthChecker) -> None:
    began, tidy = threading.Event(), threading.Event()

    async def patient() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            tidy.set()

    checker.register("patient", patient)
    checker.start()
    assert began.wait(5)
    checker.stop()
    assert tidy.wait(5)


def test_a_component_that_hangs_is_called_once_until_it_returns(
    checker: HealthChecker, release: threading.Event
) -> None:
    calls: list[float] = []

    def hangs() -> None:
        calls.append(time.monotonic())
        release.wait(30)

    checker.register("hangs", hangs, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "hangs").failures >= 4)
    assert len(calls) == 1
    release.set()
    wait_until(lambda: state(checker, "hangs").status is HEALTHY)
    assert len(calls) >= 3


def test_all_of_many_hang_and_reading_does_not_notice(
    checker: HealthChecker, release: threading.Event
) -> None:
    for number in range(20):
        checker.register(f"plain-{number}", lambda: release.wait(30), **FAST)
        checker.register(f"coroutine-{number}", swallow_cancellation(), **FAST)
    checker.start()
    longest = 0.0
    deadline = time.monotonic() + 30
    while any(one.status is not UNHEALTHY for one in checker.states):
        assert time.monotonic() < deadline, [
            one for one in checker.states if one.status != "unhealthy"
        ]
        begun = time.thread_time()
        checker.get_quick_status()
        longest = max(longest, time.thread_time() - begun)
        time.sleep(0.001)
    assert checker.get_http_status_code() == 503
    assert longest < 0.01


class Stubborn(BaseException):
    """Something that `except Exception` lets through."""


@pytest.mark.parametrize(
    "error", [OSError("refused"), SystemExit(3), KeyboardInterrupt(), Stubborn()]
)
@pytest.mark.parametrize("in_loop", [False, True])
def test_whatever_is_raised_is_a_failure(
    checker: HealthChecker, error: BaseException, *, in_loop: bool
) -> None:
    def plain() -> None:
        raise error

    async def coroutine() -> None:
        raise error

    checker.register("raises", coroutine if in_loop else plain, **FAST)
    checker.register("works", works_async if in_loop else works, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "raises").status is UNHEALTHY)
    assert type(error).__name__ in state(checker, "raises").message
    wait_until(lambda: state(checker, "works").status is HEALTHY)


def test_a_probe_may_change_the_registry(checker: HealthChecker) -> None:
    def busybody() -> None:
        checker.unregister("victim")
        checker.unregister("busybody")
        checker.register("child", works, **FAST)

    checker.register("busybody", busybody, **FAST)
    checker.register("victim", works, **FAST)
    checker.start()
    wait_until(lambda: [one.name for one in checker.states] == ["child"])
    wait_until(lambda: checker.get_quick_status() is HEALTHY)


def test_a_name_is_taken_once(checker: HealthChecker) -> None:
    checker.register("db", works)
    with pytest.raises(AuditSettingsError, match="registered already"):
        checker.register("db", works)
    assert checker.unregister("db")
    assert not checker.unregister("db")
    checker.register("db", works)


def test_the_result_of_a_component_that_was_removed_is_not_anothers(
    checker: HealthChecker, release: threading.Event
) -> None:
    def slow() -> bool:
        release.wait(30)
        return False

    checker.register("db", slow, interval=0.1, timeout=20)
    checker.start()
    time.sleep(0.1)
    checker.unregister("db")
    checker.register("db", works, interval=0.1)
    release.set()
    wait_until(lambda: state(checker, "db").checks >= 2)
    assert state(checker, "db").failures == 0


def test_a_state_that_nobody_confirms_is_unknown_when_it_is_read(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the checker's own thread has died, which is played here by stopping it."""
    checker.register("db", works, interval=0.1)
    checker.start()
    wait_until(lambda: checker.get_quick_status() is HEALTHY)
    checker.stop()
    assert checker.get_quick_status() is HEALTHY
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert checker.get_quick_status() is UNKNOWN
    assert checker.get_http_status_code() == 503
    component = checker.report().as_dict()["components"]["db"]
    assert component["status"] == "unknown"
    assert "no result" in component["message"]


def test_the_degree_that_a_component_matters(checker: HealthChecker) -> None:
    checker.register("db", works, **FAST)
    checker.register("cache", lambda: False, critical=False, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "cache").status is UNHEALTHY)
    wait_until(lambda: checker.get_quick_status() is DEGRADED)
    assert checker.get_http_status_code() == 200


async def test_coroutines_run_in_the_loop_that_started_the_checker(checker: HealthChecker) -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    async def where() -> ProbeResult:
        seen.append(asyncio.get_running_loop())
        return ProbeResult.healthy()

    checker.register("where", where)
    checker.start()
    checker.start()
    await until(lambda: seen)
    assert seen[0] is asyncio.get_running_loop()


async def test_who_blocks_the_applications_loop_is_not_blamed_on_others(
    checker: HealthChecker,
) -> None:
    """A coroutine that could not run says nothing about its component, and stays in its loop."""
    seen: set[asyncio.AbstractEventLoop] = set()

    async def database() -> None:
        seen.add(asyncio.get_running_loop())

    checker.register("db", database, interval=0.1, timeout=0.1)
    checker.register("plain", works, **FAST)
    checker.start()
    await until(lambda: state(checker, "db").status is HEALTHY)
    time.sleep(2.4)  # noqa: ASYNC251 - to block the loop is the test
    assert checker.loop_silence() > 1
    assert state(checker, "db").status is HEALTHY
    assert state(checker, "db").failures == 0
    assert state(checker, "db").at(time.monotonic()) is UNKNOWN
    assert checker.get_quick_status() is UNKNOWN
    await until(lambda: checker.get_quick_status() is HEALTHY)
    assert checker.loop_silence() == 0
    assert seen == {asyncio.get_running_loop()}


async def test_who_blocks_the_applications_loop_runs_in_one_of_its_own_from_then_on(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(loops, "STALLED_SECONDS", 0.2)
    foreign = asyncio.get_running_loop().create_future()
    cancelled = threading.Event()
    threads: list[threading.Thread] = []

    async def blocks() -> None:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            time.sleep(0.6)  # noqa: ASYNC251 - to block the loop is the test
        if len(threads) == 2:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
        if len(threads) == 3:
            await foreign

    checker.register("blocks", blocks, interval=0.1, timeout=1, failure_threshold=1)
    checker.start()
    await until(lambda: threads)
    await until(lambda: state(checker, "blocks").message)
    assert "make the probe a plain function" in state(checker, "blocks").message
    assert "blocks: it blocks its event loop" in caplog.text
    await until(cancelled.is_set)
    await until(lambda: "different loop" in state(checker, "blocks").message)
    assert "clients of the application may not work" in state(checker, "blocks").message
    await until(lambda: state(checker, "blocks").status is HEALTHY)
    assert "make the probe a plain function" in state(checker, "blocks").message
    here = threading.current_thread()
    assert [thread is here for thread in threads[:4]] == [True, False, False, False]


def test_a_check_that_is_cancelled_before_it_began_says_nothing(checker: HealthChecker) -> None:
    """An application may cancel whatever its loop knows; the component is checked again."""
    cancelled: list[asyncio.Task[Any]] = []

    async def cancel() -> None:
        if not cancelled:
            me = asyncio.current_task()
            cancelled.extend(task for task in asyncio.all_tasks() if task is not me)
            for task in cancelled:
                task.cancel()

    checker.register("cancels", cancel, interval=0.1)
    checker.register("db", works_async, interval=0.1, timeout=0.5)
    checker.start()
    wait_until(lambda: state(checker, "db").checks)
    assert len(cancelled) == 1
    assert state(checker, "db").failures == 0


def test_a_loop_that_is_gone_is_replaced(checker: HealthChecker) -> None:
    async def begin() -> None:
        checker.start()
        await until(lambda: state(checker, "db").checks >= 1)

    checker.register("db", works_async, **FAST)
    asyncio.run(begin())
    before = state(checker, "db").checks
    wait_until(lambda: state(checker, "db").checks >= before + 2)
    assert checker.get_quick_status() is HEALTHY


def test_checks_are_spread_out(checker: HealthChecker) -> None:
    """What started together does not go on together, and no interval is far from what was said."""
    checker.register("db", works)
    watched = checker._watched["db"]
    starting = {watched.next_interval() for _ in range(100)}
    assert all(0.9 <= interval <= 1.1 for interval in starting)
    watched.state = watched.state._replace(status=HEALTHY, checks=1)
    assert all(1 <= watched.next_interval() <= 5 for _ in range(100))
    watched.state = watched.state._replace(checks=2)
    usual = {watched.next_interval() for _ in range(100)}
    assert all(4.5 <= interval <= 5.5 for interval in usual)
    assert len(usual) > 90


def test_it_can_be_stopped_and_started_again(checker: HealthChecker) -> None:
    checker.register("db", works, **FAST)
    checker.register("hangs", swallow_cancellation(), critical=False, **FAST)
    checker.start()
    wait_until(lambda: state(checker, "db").checks >= 1)
    checker.stop()
    assert not checker.running
    before = state(checker, "db").checks
    time.sleep(0.25)
    assert state(checker, "db").checks == before
    checker.start()
    wait_until(lambda: state(checker, "db").checks > before)


def test_it_can_be_stopped_from_a_probe(checker: HealthChecker) -> None:
    checker.register("last", checker.stop)
    checker.start()
    wait_until(lambda: not checker.running)


def test_no_thread_stays(checker: HealthChecker) -> None:
    before = set(threading.enumerate())
    for number in range(30):
        checker.register(f"plain-{number}", lambda: time.sleep(0.1), **FAST)
        checker.register(f"coroutine-{number}", works_async, **FAST)
    checker.start()
    wait_until(lambda: all(one.checks >= 2 for one in checker.states))
    checker.stop()
    wait_until(lambda: not set(threading.enumerate()) - before)


def test_a_defect_of_ours_is_logged_and_the_next_turn_goes_on(
    checker: HealthChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turn = HealthChecker._turn
    broken = iter([True])

    def fragile(self: HealthChecker, runner: Any) -> float:
        if next(broken, False):
            raise ZeroDivisionError
        return turn(self, runner)

    monkeypatch.setattr(HealthChecker, "_turn", fragile)
    checker.register("db", works, **FAST)
    with caplog.at_level(logging.ERROR):
        checker.start()
        wait_until(lambda: checker.get_quick_status() is HEALTHY)
    assert "a defect of otel-audit" in caplog.text


def test_there_is_one_checker_a_process() -> None:
    first = get_health_checker()
    assert get_health_checker() is first
    assert set_health_checker(None) is first
    second = get_health_checker()
    assert second is not first


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_knows_nothing_until_it_is_asked(checker: HealthChecker) -> None:
    checker.register("db", works, **FAST)
    checker.start()
    wait_until(lambda: checker.get_quick_status() is HEALTHY)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            threads = threading.active_count()
            first = checker.get_quick_status()
            wait_until(lambda: checker.get_quick_status() is HEALTHY)
            code = 0 if (threads, first) == (1, UNKNOWN) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert checker.running


def test_reading_takes_less_than_a_probe_could_notice(checker: HealthChecker) -> None:
    """Not a timed test: reading calls nothing but the clock."""
    checker.register("db", works)
    checker.start()
    wait_until(lambda: checker.get_quick_status() is HEALTHY)
    with checker._mutex:
        done = threading.Event()

        def read() -> None:
            checker.get_quick_status()
            checker.get_http_status_code()
            checker.report()
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert done.wait(5), "reading waited for the checker"
        thread.join()


def test_the_name_of_the_trail_is_kept() -> None:
    assert checking.TRAIL == "audit_trail"
