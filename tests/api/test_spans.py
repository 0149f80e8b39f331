"""The record of a block says how the block went, inside the block's span."""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.api.receipt import AuditReceipt, PendingReceipt
from otel_audit.api.spans import AuditSpan, audit_span, audited
from otel_audit.errors import AuditClosedError, AuditEventError, AuditTimeoutError
from otel_audit.settings import Settings
from tests.api.desk import Desk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

P = ParamSpec("P")
R = TypeVar("R")


@pytest.fixture(scope="module", autouse=True)
def _tracing() -> None:
    """Have real spans; OpenTelemetry takes one provider a process."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())


class Refusing:
    """An argument without a name that can be read."""

    @property
    def name(self) -> str:
        raise RuntimeError


def fail(text: str, span: AuditSpan | None = None, **said: str) -> NoReturn:
    """Say something about the block, and raise."""
    for name, value in said.items():
        setattr(span, name, value)
    raise ValueError(text)


# How it went


def test_a_block_is_one_record_of_success(desk: Desk) -> None:
    with audit_span(
        "deploy",
        "start",
        resource_type="server",
        resource_name="web-1",
        event_type="admin_action",
        severity="low",
        retention="3y",
        zone="b",
    ) as span:
        assert desk.records() == []
        span.set(pid=7, self="a name like any other")
    record = desk.record()
    assert record["event"] == "deploy"
    assert record["action"] == "start"
    assert record["event_type"] == "admin_action"
    assert (record["status"], record["outcome"], record["level"]) == ("success", "success", "info")
    assert (record["resource_type"], record["resource_name"]) == ("server", "web-1")
    assert (record["zone"], record["pid"], record["retention"]) == ("b", 7, "3y")
    assert record["self"] == "a name like any other"
    assert 0 <= record["duration_ms"] < 60_000
    assert "error" not in record
    assert "initiated_record_id" not in record
    assert isinstance(span.receipt, AuditReceipt)
    assert span.receipt.record_id == record["record_id"]


def test_the_event_of_a_block_may_be_a_member_of_an_enum(desk: Desk) -> None:
    class Event(enum.Enum):
        DEPLOY = "deploy"
        START = "start"

    said: Any = (Event.DEPLOY, Event.START)
    with audit_span(*said):
        span: Any = trace.get_current_span()
    assert span.name == "deploy"
    assert (desk.record()["event"], desk.record()["action"]) == ("deploy", "start")


def test_an_exception_is_a_failure_and_goes_on(desk: Desk) -> None:
    error = ValueError("no disk")
    with pytest.raises(ValueError, match="no disk") as caught, audit_span("deploy", "start"):
        raise error
    assert caught.value is error
    record = desk.record()
    assert (record["status"], record["outcome"], record["level"]) == ("failed", "failure", "error")
    assert (record["error"], record["error_type"]) == ("no disk", "ValueError")


async def test_an_exception_in_async_with_is_a_failure_and_goes_on(desk: Desk) -> None:
    with pytest.raises(ValueError, match="no disk"):
        async with audit_span("deploy", "start"):
            fail("no disk")
    assert desk.record()["status"] == "failed"
    assert desk.record()["error"] == "no disk"


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_no_exception_is_swallowed(desk: Desk, error: type[BaseException]) -> None:
    with pytest.raises(error), audit_span("deploy", "start"):
        raise error
    assert desk.record()["error_type"] == error.__name__


def test_the_text_of_an_error_may_be_replaced(desk: Desk) -> None:
    with pytest.raises(ValueError, match="private"), audit_span("deploy", "start") as span:
        fail("private", span, error="the key was refused")
    record = desk.record()
    assert (record["error"], record["error_type"]) == ("the key was refused", "ValueError")
    assert "private" not in str(record)


def test_an_error_may_be_said_without_an_exception(desk: Desk) -> None:
    with audit_span("deploy", "start") as span:
        span.status, span.error = "denied", "not today"
    record = desk.record()
    assert (record["status"], record["outcome"], record["error"]) == (
        "denied", "failure", "not today",
    )  # fmt: skip
    assert "error_type" not in record


def test_the_block_may_set_the_status_also_of_its_failure(desk: Desk) -> None:
    with audit_span("deploy", "start") as span:
        span.status = "skipped"
    with pytest.raises(ValueError, match="x"), audit_span("deploy", "start") as span:
        fail("x", span, status="denied")
    first, second = desk.records()
    assert (first["status"], first["outcome"]) == ("skipped", "unknown")
    assert (second["status"], second["outcome"], second["error"]) == ("denied", "failure", "x")


async def test_a_cancelled_block_is_recorded_as_cancelled(desk: Desk) -> None:
    async def run() -> None:
        async with audit_span("deploy", "start") as span:
            span.status = "success"
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = desk.record()
    assert (record["status"], record["outcome"]) == ("cancelled", "failure")
    assert record["error_type"] == "CancelledError"


async def test_async_with_ends_when_the_record_is_durable(desk: Desk) -> None:
    async def run() -> None:
        async with audit_span("deploy", "start") as span:
            pass
        assert isinstance(span.receipt, AuditReceipt)

    with desk.held():
        task = asyncio.create_task(run())
        await asyncio.sleep(0.05)
        assert not task.done()
    await task
    assert desk.record()["event"] == "deploy"


async def test_with_in_an_event_loop_leaves_a_pending_receipt(desk: Desk) -> None:
    with audit_span("deploy", "start") as span:
        pass
    assert isinstance(span.receipt, PendingReceipt)
    assert await span.receipt
    assert desk.record()["status"] == "success"


# Before the block


def test_write_ahead_is_durable_before_the_block_runs(desk: Desk) -> None:
    with audit_span("deploy", "start", write_ahead=True, zone="b") as span:
        ahead = desk.record()
        assert (ahead["status"], ahead["outcome"]) == ("initiated", "unknown")
        assert ahead["zone"] == "b"
        assert "duration_ms" not in ahead
        span.set(pid=7)
    first, last = desk.records()
    assert first == ahead
    assert last["status"] == "success"
    assert last["initiated_record_id"] == ahead["record_id"]
    assert (last["zone"], last["pid"]) == ("b", 7)
    assert last["span_id"] == first["span_id"]


async def test_write_ahead_in_async_with_is_durable_before_the_block_runs(desk: Desk) -> None:
    async with audit_span("deploy", "start", write_ahead=True):
        ahead = desk.record()
        assert ahead["status"] == "initiated"
    assert desk.records()[1]["initiated_record_id"] == ahead["record_id"]


async def test_write_ahead_in_with_would_block_the_event_loop(desk: Desk) -> None:
    before = trace.get_current_span()
    with pytest.raises(AuditEventError, match="write `async with` instead of `with`"):
        audit_span("deploy", "start", write_ahead=True).__enter__()
    assert trace.get_current_span() is before
    assert desk.records() == []


def refused(tmp_path: Path) -> AuditLogger:
    """Give a logger whose trail takes nothing any more."""
    provider = AuditProvider(Settings.from_env(log_dir=tmp_path, mirror=False, agent="off"))
    provider.close()
    return AuditLogger(provider=provider)


@pytest.mark.parametrize("write_ahead", [True, False])
def test_what_cannot_be_recorded_is_raised_and_leaves_no_span(
    tmp_path: Path,
    write_ahead: bool,  # noqa: FBT001 - a parameter of the table above
) -> None:
    before = trace.get_current_span()
    ran = []
    with (
        pytest.raises(AuditClosedError),
        audit_span("deploy", "start", write_ahead=write_ahead, logger=refused(tmp_path)),
    ):
        ran.append(True)
    assert bool(ran) is not write_ahead
    assert trace.get_current_span() is before


async def test_async_write_ahead_that_is_not_confirmed_keeps_the_block_from_running(
    tmp_path: Path,
) -> None:
    settings = Settings.from_env(log_dir=tmp_path, mirror=False, agent="off", timeout=0.1)
    provider = AuditProvider(settings)
    desk = Desk(provider, AuditLogger(provider=provider))
    before = trace.get_current_span()
    ran = []
    with desk.held(), pytest.raises(AuditTimeoutError):
        async with audit_span("deploy", "start", write_ahead=True, logger=desk.audit):
            ran.append(True)
    assert not ran
    assert trace.get_current_span() is before


# The span


def test_records_carry_the_ids_of_the_span_they_are_made_in(desk: Desk) -> None:
    with audit_span("outer", "a"):
        outer = trace.get_current_span().get_span_context()
        with audit_span("inner", "a"):
            inner = trace.get_current_span().get_span_context()
            desk.audit.info("within", "a")
            desk.audit.info("within", "a")
    desk.audit.info("after", "a")
    records = desk.records()
    assert [record["event"] for record in records] == [
        "within", "within", "inner", "outer", "after",
    ]  # fmt: skip
    for record, context in zip(records, (inner, inner, inner, outer), strict=False):
        assert record["trace_id"] == format(context.trace_id, "032x")
        assert record["span_id"] == format(context.span_id, "016x")
        assert record["trace_flags"] == format(context.trace_flags, "02x")
    assert outer.trace_id == inner.trace_id
    assert outer.span_id != inner.span_id
    assert {"trace_id", "span_id", "trace_flags"}.isdisjoint(records[-1])


def test_without_an_sdk_there_are_records_without_a_trace(tmp_path: Path) -> None:
    program = (
        "from otel_audit import audit_span, configure\n"
        f"provider = configure(log_dir={str(tmp_path)!r}, agent='off', mirror=False)\n"
        "with audit_span('deploy', 'start', write_ahead=True) as span:\n"
        "    pass\n"
        "(first, last) = [leaf.record for leaf in provider.reader().leaves()]\n"
        "assert b'success' in last and b'initiated' in first\n"
        "assert b'trace_id' not in first + last\n"
        "print(bool(span.receipt))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr


# The decorator


def test_each_call_of_an_audited_function_is_recorded(desk: Desk) -> None:
    @audited(
        "server.start",
        "start",
        resource_type="server",
        resource_name="{server_id}/{options[zone]}",
        event_type="admin_action",
        capture=("count",),
        severity="high",
        team="ops",
    )
    def start(server_id: str, options: dict[str, str], *, count: int = 2) -> str:
        """Start a server."""
        return f"{server_id}:{options['zone']}:{count}"

    assert start("web-1", {"zone": "b"}) == "web-1:b:2"
    assert start("web-2", options={"zone": "c"}, count=3) == "web-2:c:3"
    assert start.__name__ == "start"
    assert start.__doc__ == "Start a server."
    first, second = desk.records()
    assert first["resource_name"] == "web-1/b"
    assert second["resource_name"] == "web-2/c"
    assert (first["count"], second["count"]) == (2, 3)
    assert (first["team"], first["level"]) == ("ops", "error")
    assert (first["resource_type"], first["event_type"]) == ("server", "admin_action")
    assert "server_id" not in first


def test_a_call_that_fails_is_recorded_and_raises(desk: Desk) -> None:
    @audited("e", "a", write_ahead=True)
    def fail() -> None:
        assert desk.record()["status"] == "initiated"
        raise KeyError("x")  # noqa: EM101 - the text is what is tested

    with pytest.raises(KeyError):
        fail()
    assert [record["status"] for record in desk.records()] == ["initiated", "failed"]


async def test_a_coroutine_function_stays_one_and_is_recorded(desk: Desk) -> None:
    @audited("e", "a", resource_name="{name}", write_ahead=True, capture=("name",))
    async def run(name: str) -> str:
        assert desk.record()["status"] == "initiated"
        await asyncio.sleep(0)
        return name.upper()

    assert inspect.iscoroutinefunction(run)
    assert await run("web") == "WEB"
    ahead, done = desk.records()
    assert ahead["name"] == done["name"] == "web"
    assert (done["status"], done["resource_name"]) == ("success", "web")


def passed_through(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate as most decorators do: what comes of it is a plain function."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return call


async def test_a_coroutine_that_a_plain_function_returns_is_part_of_the_block(desk: Desk) -> None:
    @audited("e", "a", resource_name="{name}")
    @passed_through
    async def run(name: str) -> str:
        await asyncio.sleep(0.02)
        desk.audit.info("within", "a")
        if name == "bad":
            raise KeyError(name)
        return name.upper()

    before = trace.get_current_span()
    called = run("web")
    assert trace.get_current_span() is before
    # Also in another context than the one in which it was called.
    assert await asyncio.create_task(called) == "WEB"
    with pytest.raises(KeyError):
        await run("bad")
    assert trace.get_current_span() is before
    within, done, _, failed = desk.records()
    assert (done["status"], done["resource_name"]) == ("success", "web")
    assert (failed["status"], failed["error_type"]) == ("failed", "KeyError")
    assert min(done["duration_ms"], failed["duration_ms"]) >= 15
    assert (done["trace_id"], done["span_id"]) == (within["trace_id"], within["span_id"])


def test_such_a_coroutine_may_be_called_before_its_event_loop_runs(desk: Desk) -> None:
    @audited("e", "a", write_ahead=True)
    @passed_through
    async def run() -> int:
        assert desk.record()["status"] == "initiated"
        return 3

    assert asyncio.run(run()) == 3
    ahead, done = desk.records()
    assert (done["status"], done["initiated_record_id"]) == ("success", ahead["record_id"])


async def test_a_future_that_a_plain_function_returns_is_part_of_the_block(desk: Desk) -> None:
    """It stays one, which nobody has to await."""

    @audited("e", "a")
    def start(seconds: float) -> asyncio.Task[str]:
        return asyncio.create_task(asyncio.sleep(seconds, "done"))

    ended = asyncio.Event()
    start(0.01).add_done_callback(lambda _: ended.set())
    assert desk.records() == []
    await ended.wait()
    assert desk.record()["status"] == "success"
    task = start(10)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.records()[1]["status"] == "cancelled"


def test_what_can_be_awaited_but_is_complete_is_returned_as_it_is(desk: Desk) -> None:
    """A receipt is one: its call is over, and who asked for it may want more than to await it."""

    @audited("e", "a")
    def emit() -> Any:
        return desk.audit.info("within", "a")

    assert emit()
    assert [record["event"] for record in desk.records()] == ["within", "e"]


def test_methods_are_audited_and_another_logger_may_be_given(desk: Desk) -> None:
    class Server:
        name = "web"

        @audited("e", "a", resource_name="{self.name}", logger=AuditLogger("ops"))
        def start(self) -> int:
            return 1

    assert Server().start() == 1
    assert (desk.record()["resource_name"], desk.record()["logger"]) == ("web", "ops")


def test_an_argument_may_have_the_name_of_a_parameter_of_ours(desk: Desk) -> None:
    @audited("e", "a", capture=("event", "logger", "write_ahead", "self", "severity"))
    def run(event: str, logger: int, write_ahead: int, self: int, severity: str) -> None:
        del event, logger, write_ahead, self, severity

    run("theirs", 2, 3, 4, "low")
    record = desk.record()
    assert (record["event"], record["field_event"]) == ("e", "theirs")
    assert (record["logger"], record["write_ahead"], record["self"]) == (2, 3, 4)
    assert record["severity"] == "low"


def test_an_argument_that_cannot_be_named_does_not_keep_the_function_from_running(
    desk: Desk,
) -> None:
    @audited("e", "a", resource_name="{server.name}")
    def run(server: object) -> int:
        del server
        return 1

    assert run(Refusing()) == 1
    assert run(5) == 1
    assert run(types.SimpleNamespace(name="{server}")) == 1
    names = [record["resource_name"] for record in desk.records()]
    assert names == ["{server.name}", "{server.name}", "{server}"]


def test_wrong_arguments_are_the_function_s_own_error(desk: Desk) -> None:
    @audited("e", "a")
    def run(one: int) -> int:
        return one

    with pytest.raises(TypeError, match="one"):
        run()  # type: ignore[call-arg]
    assert desk.records() == []


@pytest.mark.parametrize(
    "said",
    [
        {"resource_name": "{nobody}"},
        {"resource_name": "{nobody.name}"},
        {"resource_name": "{nobody[0]}"},
        {"resource_name": "{}"},
        {"resource_name": "{0}"},
        {"capture": ("nobody",)},
    ],
)
def test_an_unknown_argument_is_refused_at_decoration(said: dict[str, Any]) -> None:
    def run(somebody: int) -> int:
        return somebody

    with pytest.raises(AuditEventError, match=r"which is not one of its arguments \(somebody\)"):
        audited("e", "a", **said)(run)


@pytest.mark.parametrize("template", ["{", "}", "{somebody", "{somebody!z}", 5, b"x"])
def test_a_template_that_is_none_is_refused_at_decoration(template: Any) -> None:
    def run(somebody: int) -> int:
        return somebody

    with pytest.raises(AuditEventError, match=r"resource_name is .* \{\{ for a brace"):
        audited("e", "a", resource_name=template)(run)


@pytest.mark.parametrize("capture", ["some", 5, (5, "nobody"), (None,)])
def test_arguments_to_capture_are_names(capture: Any) -> None:
    def run(somebody: int) -> int:
        return somebody

    with pytest.raises(AuditEventError, match=r"capture is .* it lists names of arguments"):
        audited("e", "a", capture=capture)(run)


def test_a_function_without_arguments_has_none_to_name() -> None:
    def run() -> None:
        pass

    with pytest.raises(AuditEventError, match=r"names 'x', .* arguments \(none\)"):
        audited("e", "a", resource_name="{x}")(run)


def test_methods_of_classes_are_audited_from_above_and_below(desk: Desk) -> None:
    class Shop:
        @audited("e", "above", resource_name="{name}")
        @classmethod
        def made(cls, name: str) -> tuple[type, str]:
            return cls, name

        @audited("e", "static", capture=("name",))
        @staticmethod
        def closed(name: str) -> str:
            return name

        @classmethod
        @audited("e", "below")
        def found(cls) -> type:
            return cls

    class Bakery(Shop):
        pass

    assert Bakery.made("a") == (Bakery, "a")
    assert Bakery().made("b") == (Bakery, "b")
    assert (Shop.closed("c"), Shop().closed("d")) == ("c", "d")
    assert Bakery.found() is Bakery
    actions = [record["action"] for record in desk.records()]
    assert actions == ["above", "above", "static", "static", "below"]


def test_what_is_no_function_is_refused_at_decoration() -> None:
    wrong: Any = property(lambda _: 1)
    with pytest.raises(AuditEventError, match=r"on a property, .*@property above @audited"):
        audited("e", "a")(wrong)


def test_generators_are_refused_at_decoration() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(AuditEventError, match=r"numbers is a generator.*put audit_span\(\) inside"):
        audited("e", "a")(numbers)
    with pytest.raises(AuditEventError, match=r"later is a generator"):
        audited("e", "a")(later)
