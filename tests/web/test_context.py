"""A request's context goes wherever its work goes, and nowhere else."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.propagate import extract

from otel_audit.api.context import get_audit_context, set_actor
from otel_audit.record.event import AuditEvent
from otel_audit.web.fastapi import instrument_app
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, START, Wire, http, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from opentelemetry.context import Context

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from tests.web.conftest import Hold, Records


@pytest.fixture
def handle(provider: AuditProvider) -> Callable[..., Any]:
    """Run a coroutine function as the handler of one request; return its request id."""

    async def handled(handler: Callable[[], Any], name: str = "req-1") -> str:
        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await handler()
            await send(START)
            await send(BODY)

        scope = http(headers=[(b"x-request-id", name.encode())])
        await request(AuditMiddleware(app, provider=provider, http_activity="off"), scope)
        return name

    return handled


def owners(records: Records) -> list[str | None]:
    """Return the request id of each record."""
    return [record.get("request_id") for record in records()]


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("when", ["attached", "attached and passed on", "said"])
async def test_another_otel_context_is_of_the_same_request(
    provider: AuditProvider, audit: AuditLogger, records: Records, hold: Hold, when: str
) -> None:
    """As what `extract` makes of headers, beginning with an empty Context."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        set_actor("ann")
        foreign = extract({"traceparent": TRACEPARENT})
        if when == "said":
            audit.emit(AuditEvent("work", "do"), foreign)
        else:
            token = otel_context.attach(foreign)
            audit.audit_event("work", "do")
            if when != "attached":
                await asyncio.create_task(in_a_task())
            otel_context.detach(token)
        await send(START)
        await send(BODY)

    async def in_a_task() -> None:
        await asyncio.to_thread(audit.audit_event, "work", "do")

    wrapped = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        wire = Wire()
        answering = asyncio.create_task(wrapped(http(), wire.receive, wire.send))
        await asyncio.sleep(0.1)
        assert wire.sent == []
    await answering
    assert wire.status == 200
    for record in records():
        assert record["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        # Who says where it happened says who acted as well.
        assert record["actor_id"] == ("shop" if when == "said" else "ann")
        assert ("request_id" in record) is (when != "said")


async def test_a_context_of_another_request_stays_that_one_s_until_it_ends(
    handle: Callable[..., Any], audit: AuditLogger, records: Records
) -> None:
    ended: list[Context] = []

    async def first() -> None:
        ended.append(otel_context.get_current())
        audit.audit_event("work", "do")
        await handle(second, "inner")

    async def second() -> None:
        token = otel_context.attach(ended[0])
        audit.audit_event("work", "do")
        otel_context.detach(token)

    await handle(first, "outer")
    await handle(second, "later")
    assert owners(records) == ["outer", "outer", "later"]


async def test_gather_and_create_task(
    handle: Callable[..., Any], audit: AuditLogger, records: Records
) -> None:
    """Tasks take the context with them."""

    async def work() -> None:
        await asyncio.sleep(0)
        audit.audit_event("work", "do")

    async def handler() -> None:
        await asyncio.gather(work(), work())
        await asyncio.create_task(work())

    await handle(handler)
    assert owners(records) == ["req-1"] * 3


async def test_task_groups(
    handle: Callable[..., Any], audit: AuditLogger, records: Records
) -> None:
    """And so do those of a group, asyncio's (from Python 3.11) or AnyIO's."""

    async def work() -> None:
        audit.audit_event("work", "do")

    async def handler() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(work)
        if sys.version_info >= (3, 11):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(work())
        else:
            await work()

    await handle(handler)
    assert owners(records) == ["req-1"] * 2


async def test_to_thread(handle: Callable[..., Any], audit: AuditLogger, records: Records) -> None:
    """asyncio.to_thread copies the context; emit blocks there and gives a receipt."""
    receipts: list[Any] = []

    async def handler() -> None:
        receipts.append(await asyncio.to_thread(audit.audit_event, "work", "do"))

    await handle(handler)
    assert owners(records) == ["req-1"]
    assert receipts[0].sequence_number == 0


async def test_thread_pools_with_opentelemetry_s_instrumentation(
    handle: Callable[..., Any], audit: AuditLogger, records: Records
) -> None:
    """An executor takes no context along by itself; OpenTelemetry's instrumentation sees to it."""

    async def handler() -> None:
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, audit.audit_event, "work", "do")

    await handle(handler)
    instrumentor = ThreadingInstrumentor()
    instrumentor.instrument()
    try:
        await handle(handler, "req-2")
    finally:
        instrumentor.uninstrument()
    assert owners(records) == [None, "req-2"]


async def test_interleaved_requests_never_mix(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """Two requests in one event loop, step by step in turns."""
    mine, other = asyncio.Event(), asyncio.Event()
    turn = {"alice": (mine, other), "bob": (other, mine)}
    mine.set()

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        who = scope["path"][1:]
        may_go, goes_next = turn[who]
        for step in range(5):
            await may_go.wait()
            may_go.clear()
            goes_next.set()
            set_actor(who)
            audit.audit_event("step", who, step=step)
            assert get_audit_context()["actor_id"] == who
        await send(START)
        await send(BODY)

    audited = AuditMiddleware(app, provider=provider)

    def ask(who: str) -> Any:
        return request(audited, http(f"/{who}", headers=[(b"x-request-id", who.encode())]))

    await asyncio.gather(ask("alice"), ask("bob"))
    written = records()
    assert len(written) == 12
    for record in written:
        who = record["path"][1:] if record["event"] == "http.request" else record["action"]
        assert record["request_id"] == record["actor_id"] == who


async def test_tasks_that_outlive_the_request_belong_to_none(
    handle: Callable[..., Any], audit: AuditLogger, records: Records
) -> None:
    """The request is over: what goes on is the service's own work."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        await over.wait()
        assert dict(get_audit_context()) == {}
        await audit.audit_event("work", "do")

    async def handler() -> None:
        tasks.append(asyncio.create_task(work()))

    await handle(handler)
    over.set()
    await tasks[0]
    (record,) = records()
    assert "request_id" not in record
    assert (record["actor_id"], record["actor_type"]) == ("shop", "service")


async def test_a_call_in_process_is_a_request_of_its_own(
    provider: AuditProvider, records: Records
) -> None:
    """An application that asks another one by ASGI has two requests, with two barriers."""
    inner = FastAPI()

    @inner.get("/inner")
    async def answer() -> str:
        return get_audit_context()["request_id"]  # type: ignore[no-any-return]

    instrument_app(inner, provider=provider)
    outer = FastAPI()

    @outer.get("/outer")
    async def ask() -> list[str]:
        before = get_audit_context()["request_id"]
        transport = httpx.ASGITransport(app=inner)
        async with httpx.AsyncClient(transport=transport, base_url="http://inner") as client:
            said = (await client.get("/inner")).json()
        return [before, said, get_audit_context()["request_id"]]

    instrument_app(outer, provider=provider)
    transport = httpx.ASGITransport(app=outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://outer") as client:
        before, said, after = (await client.get("/outer")).json()
    assert before == after != said
    assert [record["path"] for record in records()] == ["/inner", "/outer"]


def _authenticate(request: Request) -> str:
    set_actor(request.headers["x-user"])
    return request.headers["x-user"]


async def _authenticate_async(request: Request) -> str:
    return _authenticate(request)


def _authenticate_and_clean_up(request: Request) -> Iterator[str]:
    yield _authenticate(request)


@pytest.fixture
def app(provider: AuditProvider, audit: AuditLogger) -> FastAPI:
    """Make a FastAPI application with endpoints of several kinds."""
    app = FastAPI()

    @app.get("/sync")
    def sync() -> int:
        receipt = audit.audit_event("work", "do")
        return receipt.sequence_number  # type: ignore[union-attr]

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        async def later() -> None:
            audit.audit_event("later", "do")

        tasks.add_task(later)
        tasks.add_task(audit.audit_event, "later", "do in a thread")
        return "now"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            for number in range(3):
                audit.audit_event("chunk", "send", number=number)
                yield str(number)

        return StreamingResponse(chunks())

    instrument_app(app, provider=provider)
    return app


def test_sync_endpoints(app: FastAPI, records: Records) -> None:
    """In Starlette's thread pool emit blocks; the receipt's number is in the answer."""
    with TestClient(app) as client:
        assert client.get("/sync", headers={"x-request-id": "req-1"}).json() == 0
    assert owners(records) == ["req-1"] * 2


def test_background_tasks(app: FastAPI, records: Records) -> None:
    """They run after the response, in the request's context, before the call ends."""
    with TestClient(app) as client:
        client.get("/background", headers={"x-request-id": "req-1"})
        assert [record["event"] for record in records()] == ["http.request", "later", "later"]
    assert owners(records) == ["req-1"] * 3


def test_streams(app: FastAPI, records: Records) -> None:
    """What a generator emits belongs to the request as well."""
    with TestClient(app) as client:
        assert client.get("/stream", headers={"x-request-id": "req-1"}).text == "012"
    assert owners(records) == ["req-1"] * 4


@pytest.mark.parametrize(
    "authenticate", [_authenticate, _authenticate_async, _authenticate_and_clean_up]
)
def test_authentication_in_a_dependency(
    app: FastAPI, records: Records, authenticate: Callable[..., Any]
) -> None:
    """FastAPI runs plain dependencies in a thread; the actor reaches the whole request."""

    @app.get("/orders", dependencies=[Depends(authenticate)])
    async def orders() -> None: ...

    with TestClient(app) as client:
        client.get("/orders", headers={"x-user": "alice"})
        client.get("/orders", headers={"x-user": "bob"})
    assert [record["actor_id"] for record in records()] == ["alice", "bob"]
    assert all(record["actor_verified"] for record in records())


def nested(inner: ASGIApp, outer: AuditMiddleware) -> AuditMiddleware:
    """Put an audited application into an audited one."""
    outer.app = inner
    return outer


async def test_nested_middleware_is_one_request(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """The inner one stays out of the way; only its identify= may find out more."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("work", "do")
        await send(START)
        await send(BODY)

    inner = AuditMiddleware(app, provider=provider, identify=lambda _scope: "inner")
    anonymous = nested(inner, AuditMiddleware(app, provider=provider))
    wire = await request(anonymous)
    assert len(wire.header(b"x-request-id")) == 1
    known = AuditMiddleware(inner, provider=provider, identify=lambda _scope: "outer")
    await request(known)
    assert [(record["event"], record["actor_id"]) for record in records()] == [
        ("work", "inner"),
        ("http.request", "inner"),
        ("work", "outer"),
        ("http.request", "outer"),
    ]
    assert len(set(owners(records))) == 2


def test_a_mounted_application_with_middleware_of_its_own(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """The record has the whole route, and there is one."""
    inner = FastAPI()

    @inner.get("/items/{item}")
    def read(item: int) -> int:
        audit.audit_event("item", "read")
        return item

    instrument_app(inner, provider=provider)
    outer = FastAPI()
    outer.mount("/shops/{shop}", inner)
    instrument_app(outer, provider=provider)
    with TestClient(outer) as client:
        assert client.get("/shops/7/items/3").json() == 3
    read_record, activity = records()
    assert read_record["request_id"] == activity["request_id"]
    assert activity["route"] == "/shops/{shop}/items/{item}"
