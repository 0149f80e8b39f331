"""Who asks reaches every record of the request, and no other."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

import otel_audit
from otel_audit.api.context import (
    Actor,
    RequestScope,
    acting_as,
    current_actor,
    current_scope,
    get_audit_context,
    set_actor,
    stay_in_requests,
)
from otel_audit.api.logger import AuditLogger
from otel_audit.api.policy import Policy
from otel_audit.api.provider import AuditProvider
from otel_audit.errors import AuditClosedError, AuditEventError, AuditTimeoutError
from otel_audit.record.event import AuditEvent
from otel_audit.settings import Settings
from tests.api.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping


@contextmanager
def request(request_id: str) -> Iterator[RequestScope]:
    scope = RequestScope(request_id)
    token = scope.attach()
    try:
        yield scope
    finally:
        scope.detach(token)


@pytest.fixture(autouse=True)
def _own_context() -> Iterator[None]:
    token = otel_context.attach(otel_context.Context())
    yield
    otel_context.detach(token)


def request_id() -> Any:
    return get_audit_context().get("request_id")


# What is known


def test_outside_a_request_nothing_is_known() -> None:
    assert dict(get_audit_context()) == {}
    assert current_scope() is None
    assert current_actor() is None


def test_in_a_request_everything_known_has_the_names_of_the_record() -> None:
    scope = RequestScope(
        "r1", client_id="c", client_ip="10.0.0.1", session_id="s", user_agent="curl"
    )
    token = scope.attach()
    set_actor("ann", "service", verified=False)
    assert dict(get_audit_context()) == {
        "request_id": "r1",
        "client_id": "c",
        "client_ip": "10.0.0.1",
        "session_id": "s",
        "user_agent": "curl",
        "actor_id": "ann",
        "actor_type": "service",
        "actor_verified": False,
    }
    assert current_scope() is scope
    scope.detach(token)
    assert dict(get_audit_context()) == {}


def test_unknown_facts_are_absent() -> None:
    with request("r1"):
        assert dict(get_audit_context()) == {
            "request_id": "r1", "client_id": "anonymous", "client_ip": "unknown",
        }  # fmt: skip


def test_the_context_cannot_be_changed() -> None:
    with request("r1"):
        context: Mapping[str, Any] = get_audit_context()
        with pytest.raises(TypeError):
            context["request_id"] = "forged"  # type: ignore[index]
        assert request_id() == "r1"


def test_a_nested_scope_is_its_own() -> None:
    with request("outer"):
        with request("inner"):
            set_actor("ann")
            assert request_id() == "inner"
        assert request_id() == "outer"
        assert current_actor() is None


def test_a_context_is_read_where_it_is_given() -> None:
    with request("r1") as scope:
        set_actor("ann")
        seen = otel_context.get_current()
    assert current_scope() is None
    assert current_scope(seen) is scope
    assert current_actor(seen) == Actor("ann")


# Actors


def test_in_a_request_an_actor_holds_for_all_of_it() -> None:
    with request("r1") as scope:
        with ThreadPoolExecutor(1) as pool:
            inside = otel_context.get_current()

            def authenticate() -> None:
                token = otel_context.attach(inside)
                set_actor("ann")
                otel_context.detach(token)

            pool.submit(authenticate).result()
        assert scope.actor == Actor("ann", "user", verified=True)
        assert get_audit_context()["actor_id"] == "ann"
        assert get_audit_context()["actor_verified"] is True


async def test_an_actor_set_in_a_task_of_the_request_reaches_the_request() -> None:
    async def authenticate() -> None:
        set_actor("ann")

    with request("r1"):
        await asyncio.create_task(authenticate())
        assert current_actor() == Actor("ann")


async def test_outside_a_request_an_actor_holds_for_the_current_context() -> None:
    async def job(name: str) -> Any:
        set_actor(name, "system", verified=False)
        await asyncio.sleep(0)
        return get_audit_context()

    first, second = await asyncio.gather(job("a"), job("b"))
    assert dict(first) == {"actor_id": "a", "actor_type": "system", "actor_verified": False}
    assert second["actor_id"] == "b"
    assert current_actor() is None


def test_an_actor_from_outside_is_not_the_request_s() -> None:
    set_actor("job")
    with request("r1"):
        assert current_actor() is None
    assert current_actor() == Actor("job")


def test_acting_as_ends_by_itself_outside_a_request() -> None:
    with acting_as("job", "service"):
        assert current_actor() == Actor("job", "service")
        with acting_as("ann", verified=False):
            assert current_actor() == Actor("ann", "user", verified=False)
        assert current_actor() == Actor("job", "service")
    assert current_actor() is None


def test_acting_as_ends_by_itself_in_a_request_also_by_an_exception() -> None:
    with request("r1"):
        set_actor("ann")
        with pytest.raises(KeyError), acting_as("root"):
            raise KeyError(current_actor())
        assert current_actor() == Actor("ann")


def test_acting_as_ends_by_an_exception_outside_a_request() -> None:
    with pytest.raises(KeyError), acting_as("root"):
        raise KeyError
    assert current_actor() is None


@pytest.mark.parametrize("actor_id", ["", None, 5])
def test_an_actor_needs_an_id(actor_id: Any) -> None:
    with pytest.raises(AuditEventError, match="must say who acted: pass the authenticated user"):
        set_actor(actor_id)
    with pytest.raises(AuditEventError, match="actor_id is"), acting_as(actor_id):
        pass
    assert current_actor() is None


def test_an_actor_has_one_of_three_types() -> None:
    with pytest.raises(AuditEventError, match="'robot' is not one of user, service, system"):
        set_actor("r2", "robot")


@pytest.mark.parametrize("verified", ["yes", None, 1])
def test_an_actor_is_verified_or_not(verified: Any) -> None:
    with pytest.raises(
        AuditEventError, match="but a record says yes or no: pass True only after authentication"
    ):
        set_actor("ann", verified=verified)


# Where it goes


async def passed_to_thread() -> Any:
    return await asyncio.to_thread(request_id)


async def passed_to_task() -> Any:
    async def task() -> Any:
        await asyncio.sleep(0)
        return request_id()

    return await asyncio.create_task(task())


async def passed_to_gather() -> Any:
    async def one() -> Any:
        await asyncio.sleep(0)
        return request_id()

    first, second = await asyncio.gather(one(), one())
    assert first == second
    return first


async def passed_to_group() -> Any:
    groups: Any = getattr(asyncio, "TaskGroup", None)
    if groups is None:
        pytest.skip("TaskGroup came with Python 3.11")
    async with groups() as group:
        task = group.create_task(passed_to_task())
    return task.result()


@pytest.mark.parametrize(
    "way", [passed_to_thread, passed_to_task, passed_to_gather, passed_to_group]
)
async def test_the_context_follows_and_two_requests_never_mix(
    way: Callable[[], Awaitable[Any]],
) -> None:
    met = asyncio.Event()

    async def handle(name: str) -> None:
        with request(name):
            set_actor(f"actor of {name}")
            for _ in range(5):
                assert await way() == name
                await asyncio.sleep(0)
                assert get_audit_context()["actor_id"] == f"actor of {name}"
            met.set()

    await asyncio.gather(*(handle(f"r{number}") for number in range(10)))
    assert met.is_set()
    assert request_id() is None


def test_thread_pools_follow_by_the_threading_instrumentation() -> None:
    """And what they do for nobody is of no request, also where one has started the thread."""
    stay_in_requests()
    instrumentor = ThreadingInstrumentor()
    with ThreadPoolExecutor(2) as pool, request("r0"):
        assert pool.submit(request_id).result() is None
    instrumentor.instrument()
    try:
        with ThreadPoolExecutor(2) as pool:
            futures = []
            for number in range(20):
                with request(f"r{number}"):
                    futures.append(pool.submit(request_id))
            assert [future.result() for future in futures] == [f"r{n}" for n in range(20)]
            assert pool.submit(request_id).result() is None
    finally:
        instrumentor.uninstrument()


def test_a_request_that_ended_has_no_more_records() -> None:
    with request("r1") as scope:
        set_actor("ann")
        scope.close()
        assert current_scope() is None
        assert dict(get_audit_context()) == {}
        set_actor("job")
        assert scope.actor == Actor("ann")
        assert current_actor() == Actor("job")


async def test_a_task_that_outlives_its_request_is_nobody_s(desk: Desk) -> None:
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        await desk.audit.emit(AuditEvent("late", "a"))

    with request("r1") as scope:
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
        scope.close()
    ended.set()
    await task
    assert "request_id" not in desk.record()
    assert scope.pending == []


def test_there_is_no_context_variable_of_our_own() -> None:
    package = Path(otel_audit.__file__).parent
    for source in package.rglob("*.py"):
        assert not re.search(r"ContextVar\(|import .*\bContextVar\b", source.read_text("utf-8"))


# The barrier


def provider(tmp_path: Path, **rest: Any) -> AuditProvider:
    settings = Settings.from_env(log_dir=tmp_path, mirror=False, agent="off", timeout=0.1)
    return AuditProvider(settings, **rest)


async def test_the_barrier_waits_for_all_records_also_those_that_come_meanwhile(
    desk: Desk,
) -> None:
    with request("r1") as scope:
        with desk.held():
            for number in range(5):
                desk.audit.info("e", "a", number=number)
            waiting = asyncio.create_task(scope.barrier())
            await asyncio.sleep(0.02)
            assert not waiting.done()
            desk.audit.info("e", "a", number=5)
        await waiting
    assert [record["number"] for record in desk.records()] == list(range(6))
    await scope.barrier()


async def test_the_barrier_raises_what_is_not_confirmed_and_waits_for_the_others(
    tmp_path: Path,
) -> None:
    desk = Desk(opened := provider(tmp_path), AuditLogger(provider=opened))
    with request("r1") as scope:
        with desk.held():
            receipts = [desk.audit.info("e", "a") for _ in range(3)]
            with pytest.raises(AuditTimeoutError) as caught:
                await scope.barrier()
        assert caught.value.record_id == receipts[0].record_id
        assert scope.pending == []
        with pytest.raises(AuditTimeoutError):
            await scope.barrier()


async def test_the_barrier_raises_what_the_code_swallowed(tmp_path: Path) -> None:
    closed = provider(tmp_path)
    audit = AuditLogger(provider=closed)
    closed.close()
    with request("r1") as scope:
        with pytest.raises(AuditClosedError):
            audit.info("e", "a")
        with pytest.raises(AuditClosedError, match="not confirmed"):
            await scope.barrier()


async def test_the_barrier_lets_pass_what_the_policy_lets_pass(tmp_path: Path) -> None:
    opened = provider(tmp_path, policy=Policy(on_failure="continue"))
    desk = Desk(opened, AuditLogger(provider=opened))
    with request("r1") as scope, desk.held():
        desk.audit.info("e", "a")
        await scope.barrier()
    assert opened.statistics["not_recorded"] == 1
