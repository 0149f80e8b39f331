"""What a client gets when the trail does not confirm: a 503, a cut, a close; never a 200."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import anyio
import orjson
import pytest

from otel_audit.api.logger import AuditLogger
from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditTimeoutError,
    AuditUnavailableError,
)
from otel_audit.web import problem
from otel_audit.web.exchange import GoneError
from otel_audit.web.middleware import AuditMiddleware
from tests.small_disk import mounted
from tests.web.driving import (
    ACCEPT,
    BODY,
    CHUNK,
    SEND,
    START,
    Wire,
    connect,
    http,
    request,
    websocket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from tests.web.conftest import Hold, Records

    Wrap = Callable[..., AuditMiddleware]


@pytest.fixture
def audit(impatient: AuditProvider) -> AuditLogger:
    """Give a logger that waits no longer than a fifth of a second."""
    return AuditLogger(provider=impatient)


@pytest.fixture
def wrap(impatient: AuditProvider) -> Wrap:
    """Make the middleware, without activity records unless they are asked for."""

    def wrapped(app: ASGIApp, **options: Any) -> AuditMiddleware:
        return AuditMiddleware(app, provider=impatient, **{"http_activity": "off", **options})

    return wrapped


def emitting(
    audit: AuditLogger, *, start: Any = START, emitted: list[Any] | None = None
) -> ASGIApp:
    """Make an application that emits one record and answers with 200."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        receipt = audit.audit_event("order", "place")
        if emitted is not None:
            emitted.append(receipt.record_id)
        await send(start)
        await send(BODY)

    return app


async def test_a_response_that_is_not_confirmed_becomes_a_503(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """RFC 9457, with what is needed to look the record up afterwards."""
    emitted: list[str] = []
    audited = wrap(emitting(audit, emitted=emitted))
    with hold():
        wire = await request(audited, http(headers=[(b"x-request-id", b"r-1")]))
    assert wire.types == [START["type"], BODY["type"]]
    assert wire.status == 503
    assert wire.header(b"content-type") == [b"application/problem+json"]
    assert wire.header(b"cache-control") == [b"no-store"]
    assert wire.header(b"retry-after") == [b"5"]
    assert wire.header(b"x-request-id") == [b"r-1"]
    assert wire.header(b"content-length") == [b"%d" % len(wire.body)]
    said = orjson.loads(wire.body)
    assert said == {
        "type": problem.NOT_CONFIRMED,
        "title": "Audit record not confirmed",
        "status": 503,
        "detail": said["detail"],
        "instance": f"urn:uuid:{emitted[0]}",
        "record_id": emitted[0],
        "request_id": "r-1",
    }
    assert "not confirmed" in said["detail"]
    assert "not recorded" not in said["detail"]


async def test_an_answer_waits_for_one_time_out(
    make_provider: Callable[..., AuditProvider], hold: Hold
) -> None:
    """Not for a second one while the commit goes on, and however many records it is for."""
    provider = make_provider(timeout=2.0)
    audit = AuditLogger(provider=provider)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for _ in range(3):
            audit.audit_event("order", "place")
        await send(START)
        await send(BODY)

    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        # The group before fails two seconds from now, that of the request two seconds later.
        audit.audit_event("order", "before")
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert (await request(audited)).status == 503
        assert 1.9 < asyncio.get_running_loop().time() - began < 3.5


def stream(audit: AuditLogger, hold: Hold, opening: list[Any], rest: list[Any]) -> ASGIApp:
    """Make an application that swallows the failure of a record, and then sends from several tasks.

    They wait, all at a time, for a record that is stored.
    """

    def pay() -> None:
        with suppress(AuditUnavailableError), hold():
            audit.log_event("payment", "pay")

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in opening:
            await send(message)
        await asyncio.to_thread(pay)
        held = ExitStack()
        held.enter_context(hold())
        audit.log_event("note", "written")
        asyncio.get_running_loop().call_later(0.05, held.close)
        await asyncio.gather(*map(send, rest), return_exceptions=True)

    return app


async def test_of_a_failure_all_tasks_that_send_hear(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """Of a response that has begun."""
    app = stream(audit, hold, [START, CHUNK], [CHUNK, BODY])
    wire = Wire({"type": "http.request"})
    with pytest.raises(AuditUnavailableError):
        await wrap(app)(http(), wire.receive, wire.send)
    assert wire.sent[1:] == [CHUNK]


async def test_of_a_failure_all_tasks_of_a_connection_hear(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    app = stream(audit, hold, [ACCEPT], [SEND, SEND, SEND])
    wire = Wire({"type": "websocket.connect"})
    await wrap(app)(websocket(), wire.receive, wire.send)
    assert wire.types == [ACCEPT["type"], "websocket.close"]
    assert wire.sent[1]["code"] == 1011


@pytest.mark.parametrize("messages", [[START, BODY], [BODY, START], [CHUNK, START, BODY]])
async def test_an_answer_is_replaced_once(
    wrap: Wrap, audit: AuditLogger, hold: Hold, messages: list[Any]
) -> None:
    """Whatever tasks of the application send, and in which order."""
    wire = Wire({"type": "http.request"})
    await wrap(stream(audit, hold, [], messages))(http(), wire.receive, wire.send)
    assert wire.types == [START["type"], BODY["type"]]
    assert wire.status == 503


async def test_the_reason_stays_in_the_log(
    wrap: Wrap, audit: AuditLogger, hold: Hold, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Directories and process ids are nobody's business outside."""
    with hold():
        wire = await request(wrap(emitting(audit)))
    assert str(tmp_path).encode() not in wire.body
    assert "is answered with 503" in caplog.text


async def test_cors_survives(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """Without these headers a browser would not show the page the 503."""
    headers = [
        (b"Access-Control-Allow-Origin", b"https://shop.example"),
        (b"vary", b"Origin"),
        (b"set-cookie", b"a=b"),
        (b"content-length", b"4"),
    ]
    with hold():
        wire = await request(wrap(emitting(audit, start={**START, "headers": headers})))
    assert wire.header(b"access-control-allow-origin") == [b"https://shop.example"]
    assert wire.header(b"vary") == [b"Origin"]
    assert wire.header(b"set-cookie") == []
    assert wire.header(b"content-length") == [b"%d" % len(wire.body)]


@pytest.mark.parametrize("steps", range(4))
async def test_there_is_one_503_however_soon_the_background_ends(
    wrap: Wrap, audit: AuditLogger, hold: Hold, steps: int
) -> None:
    """The answer is let go by a task of its own or by the application's end, never by both."""
    tasks: list[asyncio.Task[Any]] = []

    def noted(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(work, loop=loop, **options))
        return tasks[-1]

    asyncio.get_running_loop().set_task_factory(noted)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)
        for _ in range(steps):
            await asyncio.sleep(0)

    with hold():
        wire = await request(wrap(app))
        assert wire.types == [START["type"], BODY["type"]]
        assert wire.status == 503
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert set(results) <= {None}


async def test_everything_after_the_503_is_swallowed(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """The application may go on; what it sends has no place in the client's answer."""
    went_on: list[bool] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)
        await send({"type": "http.response.trailers", "headers": []})
        went_on.append(True)

    with hold():
        wire = await request(wrap(app))
    assert went_on == [True]
    assert wire.types == [START["type"], BODY["type"]]
    assert wire.status == 503


async def test_an_endless_stream_ends_after_the_503(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """To swallow for ever would keep a request alive that nobody waits for."""
    errors: list[BaseException] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        try:
            while True:
                await send(CHUNK)
        except OSError as error:
            errors.append(error)
            raise

    with hold():
        wire = await asyncio.wait_for(request(wrap(app)), 30)
    assert wire.status == 503
    assert isinstance(errors[0], GoneError)


async def test_a_stream_is_cut_off(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """After the beginning there is no 503: the connection must break, so the error goes on."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(CHUNK)
        audit.audit_event("order", "place")
        await send(BODY)

    wire = Wire()
    with hold(), pytest.raises(AuditTimeoutError):
        await wrap(app)(http(), wire.receive, wire.send)
    assert wire.types == [START["type"], CHUNK["type"]]


async def test_a_cut_cannot_be_mended(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """An application that swallows the error gets nothing out all the same."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        audit.audit_event("order", "place")
        for message in (CHUNK, BODY):
            with suppress(AuditUnavailableError):
                await send(message)

    wire = Wire()
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)(http(), wire.receive, wire.send)
    assert wire.types == [START["type"]]


async def test_background_tasks_fail_loudly(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """The response is out; the server's log must say that its aftermath is not confirmed."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(BODY)
        audit.audit_event("mail", "send")

    wire = Wire()
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)(http(), wire.receive, wire.send)


async def test_no_response_at_all_becomes_a_503(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """An application that returns without an answer would get the server's 500."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        audit.audit_event("order", "place")

    with hold():
        assert (await request(wrap(app))).status == 503


async def test_a_handler_may_let_the_error_through(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """Who awaits the receipt gets the error, and need do nothing about it."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await audit.emit(_event())

    with hold():
        wire = await request(wrap(app))
    assert wire.status == 503
    assert orjson.loads(wire.body)["type"] == problem.NOT_CONFIRMED


async def test_a_handler_may_not_swallow_the_error(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """A 200 despite of it would be a lie, whoever catches what."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        with suppress(AuditUnavailableError):
            await audit.aemit(_event())
        await send(START)
        await send(BODY)

    with hold():
        assert (await request(wrap(app))).status == 503


async def test_nor_in_a_thread(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """In a worker thread emit blocks and raises; the request knows of it."""

    def emit() -> None:
        with suppress(AuditUnavailableError):
            audit.emit(_event())

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.to_thread(emit)
        await send(START)
        await send(BODY)

    with hold():
        assert (await request(wrap(app))).status == 503


@pytest.mark.parametrize("after", [[START], [START, BODY]], ids=["stream", "background"])
async def test_nor_in_a_thread_later_on(
    wrap: Wrap, audit: AuditLogger, hold: Hold, after: list[Any]
) -> None:
    """Nothing is pending then; that something has failed is known all the same."""

    def emit() -> None:
        with suppress(AuditUnavailableError):
            audit.emit(_event())

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in after:
            await send(message)
        await asyncio.to_thread(emit)
        if BODY not in after:
            await send(BODY)

    wire = Wire()
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)(http(), wire.receive, wire.send)
    assert wire.types == [message["type"] for message in after]


async def test_an_application_that_fails_as_well_is_logged(
    wrap: Wrap, audit: AuditLogger, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """One answer is enough for the client; the log gets both stories."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        audit.audit_event("order", "place")
        message = "the other story"
        raise KeyError(message)

    with hold():
        wire = await request(wrap(app))
    assert wire.status == 503
    assert "the application failed as well" in caplog.text
    assert "the other story" in caplog.text


async def test_our_own_error_in_a_group_is_no_second_failure(
    wrap: Wrap, audit: AuditLogger, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """Starlette before 1.0 streams in a task group, and so do applications."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        audit.audit_event("order", "place")

        async def finish() -> None:
            await send(BODY)

        async with anyio.create_task_group() as group:
            group.start_soon(finish)

    wire = Wire()
    with hold(), pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
        await wrap(app)(http(), wire.receive, wire.send)
    assert wire.types == [START["type"]]
    assert "failed as well" not in caplog.text


async def test_an_exception_after_the_start_goes_on(
    wrap: Wrap, audit: AuditLogger, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's own error cuts the response already; ours is only logged."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        audit.audit_event("order", "place")
        raise KeyError

    wire = Wire()
    with hold(), pytest.raises(KeyError):
        await wrap(app)(http(), wire.receive, wire.send)
    assert "records of a failed request are not confirmed" in caplog.text


async def test_cancellation_is_never_swallowed(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """A server that cancels a request must see it cancelled, whatever else failed."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        audit.audit_event("order", "place")
        await asyncio.Event().wait()

    with hold():
        task = asyncio.create_task(request(wrap(app)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)


async def room(provider: AuditProvider) -> None:
    """Wait until a queue that was full has room, however long the disk takes."""
    assert await asyncio.to_thread(provider.flush, 30)


async def test_the_client_s_503_is_recorded(
    make_provider: Callable[..., AuditProvider], hold: Hold, records: Records
) -> None:
    """The activity record of the 200 stands in the trail; another one sets it right."""
    provider = make_provider(queue_size=1)
    audit = AuditLogger(provider=provider)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        with hold(), suppress(AuditBackpressureError):
            while True:
                audit.audit_event("order", "place")
        await room(provider)
        await send(START)

    wire = await request(AuditMiddleware(app, provider=provider))
    assert wire.status == 503
    assert wire.header(b"retry-after") == [b"1"]
    assert provider.flush()
    said, replaced = records()[-2:]
    assert (said["event"], said["status_code"]) == ("http.request", 200)
    assert (replaced["event"], replaced["status_code"]) == ("http.response.replaced", 503)
    assert replaced["unconfirmed_record_id"] == orjson.loads(wire.body)["record_id"]
    assert replaced["request_id"] == said["request_id"]


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_declined_handshake_is_recorded(
    make_provider: Callable[..., AuditProvider],
    hold: Hold,
    records: Records,
    accepts: bool,  # noqa: FBT001 - parametrized
) -> None:
    """As what the client got, whatever the application meant to answer."""
    provider = make_provider(queue_size=1)
    audit = AuditLogger(provider=provider)

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with hold(), suppress(AuditBackpressureError):
            while True:
                audit.audit_event("chat", "join")
        await room(provider)
        if accepts:
            await send({"type": "websocket.accept"})

    await connect(AuditMiddleware(app, provider=provider))
    assert provider.flush()
    written = [(record["event"], record.get("status_code")) for record in records()]
    handshake = ("websocket.connect", 101) if accepts else ("websocket.connect", 500)
    assert written[-2:] == [handshake, ("http.response.replaced", 503)]


async def test_an_error_that_passes_is_recorded_as_503(
    make_provider: Callable[..., AuditProvider], hold: Hold, records: Records
) -> None:
    """Nothing was answered before, so there is one record of the request."""
    provider = make_provider(queue_size=1)
    audit = AuditLogger(provider=provider)

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        try:
            with hold():
                while True:
                    audit.audit_event("order", "place")
        finally:
            await room(provider)

    assert (await request(AuditMiddleware(app, provider=provider))).status == 503
    assert provider.flush()
    last = records()[-1]
    assert (last["event"], last["status_code"]) == ("http.request", 503)
    assert last["error"] == "otel_audit.errors.AuditBackpressureError"


async def test_activity_alone_never_costs_a_response(wrap: Wrap, hold: Hold) -> None:
    """An http.request record that is not confirmed is counted and logged; the answer goes out."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(BODY)

    with hold():
        wire = await request(wrap(app, http_activity="all"))
    assert wire.status == 200


async def test_nor_a_connection(wrap: Wrap, hold: Hold) -> None:
    """The records of a WebSocket are activity as well."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    with hold():
        wire = await connect(wrap(app, http_activity="all"))
    assert wire.types == ["websocket.accept", "websocket.close"]


async def test_a_websocket_is_not_accepted(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """Before the handshake's answer there is still a 503, where the server can send one."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        audit.audit_event("chat", "join")
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        with pytest.raises(GoneError):
            await send({"type": "websocket.send", "text": "hello"})
        await send({"type": "websocket.close"})

    audited = wrap(app, exclude=["/ws"])  # else a trail known to be broken would decline
    with hold():
        plain = await connect(audited)
        denied = await connect(audited, scope=websocket(extensions={"websocket.http.response": {}}))
    assert plain.sent == [{"type": "websocket.close", "code": 1013, "reason": problem.CLOSE_REASON}]
    assert denied.types == ["websocket.http.response.start", "websocket.http.response.body"]
    assert denied.status == 503
    assert orjson.loads(denied.body)["type"] == problem.NOT_CONFIRMED


async def test_an_open_websocket_is_closed(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """The message that was to answer for the record does not arrive."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        audit.audit_event("chat", "write")
        while True:
            await send({"type": "websocket.send", "text": "written"})

    with hold():
        wire = await asyncio.wait_for(connect(wrap(app)), 30)
    assert wire.types == ["websocket.accept", "websocket.close"]
    assert wire.sent[1]["code"] == 1011


async def test_a_websocket_s_last_records_count(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """An application that just returns still closes with 1011; after its close it raises."""

    async def returns(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        audit.audit_event("chat", "leave")

    async def closes(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        audit.audit_event("chat", "leave")

    async def raises(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await audit.emit(_event())

    closed = ["websocket.accept", "websocket.close"]
    with hold():  # "/ws" is excluded, so that a trail known to be broken is no reason to decline
        assert (await connect(wrap(returns, exclude=["/ws"]))).types == closed
        assert (await connect(wrap(raises, exclude=["/ws"]))).types == closed
        with pytest.raises(AuditUnavailableError):
            await connect(wrap(closes, exclude=["/ws"]))


async def test_a_denial_that_has_begun_is_cut_off(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """After its start there is no other answer, however often the application tries."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        audit.audit_event("chat", "decline")
        for _ in range(2):
            with suppress(AuditUnavailableError):
                await send({"type": "websocket.http.response.body", "body": b"no"})

    wire = Wire({"type": "websocket.connect"})
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)(websocket(), wire.receive, wire.send)
    assert wire.types == ["websocket.http.response.start"]


async def test_a_websocket_s_own_error_goes_on(
    wrap: Wrap, audit: AuditLogger, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """On an open connection the server closes for it; before, the handshake is declined."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/open":
            await send({"type": "websocket.accept"})
        audit.audit_event("chat", "join")
        raise KeyError

    audited = wrap(app, exclude=["/open", "/early"])
    with hold():
        with pytest.raises(KeyError):
            await connect(audited, scope=websocket("/open"))
        assert (await connect(audited, scope=websocket("/early"))).types == ["websocket.close"]
    assert "records of a failed connection are not confirmed" in caplog.text
    assert "the application failed as well" in caplog.text


async def test_a_websocket_whose_client_left(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """There is nobody to close for; the server's log gets the error."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        await audit.emit(_event())

    with hold(), pytest.raises(AuditUnavailableError):
        await connect(wrap(app), {"type": "websocket.disconnect", "code": 1001})


async def test_unknown_messages_of_a_websocket_pass(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """They neither wait nor change, like those of HTTP."""
    unknown = {"type": "websocket.http.response.debug", "info": {}}

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        audit.audit_event("chat", "join")
        await send(unknown)

    with hold():
        wire = await connect(wrap(app))
    assert wire.sent[0] is unknown


async def test_startup_fails(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """An application whose start is not on record does not serve; it gives back what it opened."""
    given_back: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        audit.audit_event("service", "start")
        try:
            await send({"type": "lifespan.startup.complete"})
        except BaseException:
            given_back.append(True)
            await send({"type": "lifespan.startup.failed", "message": "traceback"})
            raise

    wire = Wire({"type": "lifespan.startup"})
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)({"type": "lifespan"}, wire.receive, wire.send)
    assert wire.types == ["lifespan.startup.failed"]
    assert "records of the application's start are not confirmed" in wire.sent[0]["message"]
    assert given_back == [True]


async def test_startup_fails_also_when_nobody_says_so(
    wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """The server hears of it even if the application only raises."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        audit.audit_event("service", "start")
        await send({"type": "lifespan.startup.complete"})

    wire = Wire({"type": "lifespan.startup"})
    with hold(), pytest.raises(AuditUnavailableError):
        await wrap(app)({"type": "lifespan"}, wire.receive, wire.send)
    assert wire.types == ["lifespan.startup.failed"]


async def test_shutdown_fails(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """The server says that the end is not on record."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        audit.audit_event("service", "stop")
        await send({"type": "lifespan.shutdown.complete"})

    wire = Wire({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    with hold():
        await wrap(app)({"type": "lifespan"}, wire.receive, wire.send)
    assert wire.types == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
    assert "records of the shutdown are not confirmed" in wire.sent[1]["message"]


async def test_a_broken_trail_refuses_before_the_handler(
    impatient: AuditProvider, wrap: Wrap, audit: AuditLogger, hold: Hold
) -> None:
    """What cannot be recorded had better not happen."""
    called: list[str] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        called.append(scope["path"])
        if scope["path"] == "/order":
            audit.audit_event("order", "place")
        if scope["type"] == "http":
            await send(START)
            await send(BODY)

    audited = wrap(app, exclude=["/health"])
    with hold():
        assert (await request(audited, http("/order"))).status == 503
        for _ in range(3000):
            if "lock has been held" in str(impatient.refusal()):
                break  # the committer has given up on the lock as well
            await asyncio.sleep(0.01)
        refused = await request(audited, http("/order"))
        declined = await connect(audited)
        healthy = await request(audited, http("/health/live"))
    assert refused.status == 503
    said = orjson.loads(refused.body)
    assert said["type"] == problem.REFUSED
    assert "before it was handled" in said["detail"]
    assert "record_id" not in said
    assert declined.types == ["websocket.close"]
    assert healthy.status == 200
    assert called == ["/order", "/health/live"]


async def healed(audited: ASGIApp) -> bool:
    """Ask until there is an answer; one of the next may be late again on a disk that stalls."""
    for _ in range(300):
        if (await request(audited)).status == 200:
            return True
        await asyncio.sleep(0.1)
    return False


async def test_it_heals_by_itself(wrap: Wrap, audit: AuditLogger, hold: Hold) -> None:
    """Nobody has to restart anything."""
    audited = wrap(emitting(audit))
    with hold():
        assert (await request(audited)).status == 503
    assert await healed(audited)


async def test_a_closed_provider_refuses(impatient: AuditProvider, wrap: Wrap) -> None:
    """After close there is nobody left who could confirm anything."""
    audited = wrap(emitting(AuditLogger(provider=impatient)))
    impatient.close()
    assert (await request(audited)).status == 503


async def test_continue_lets_responses_out(
    make_provider: Callable[..., AuditProvider], hold: Hold
) -> None:
    """Who chose ``continue`` gets answers, also from a trail that is known to be broken."""
    provider = make_provider(timeout=0.2, on_failure="continue")
    audited = AuditMiddleware(emitting(AuditLogger(provider=provider)), provider=provider)
    with hold():
        assert (await request(audited)).status == 200
        assert (await request(audited)).status == 200
    assert provider.statistics["not_recorded"] >= 1


async def test_without_a_usable_trail_every_request_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without lifespan finds out with the first request; it is a 503 and no 500."""
    (tmp_path / "trail").write_text("a file where the directory should be")
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "trail"))
    called: list[bool] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        called.append(True)

    wire = await request(AuditMiddleware(app))
    assert wire.status == 503
    assert called == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of twelve mebibytes where the trail will be."""
    with mounted(tmp_path / "trail") as place:
        yield place


async def test_a_full_disk_is_a_503_until_there_is_room(
    small_disk: Path,
    make_provider: Callable[..., AuditProvider],
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every 200 has its record, also among those that came while the disk filled up."""
    caplog.set_level(logging.CRITICAL, "otel_audit")
    provider = make_provider()
    audit = AuditLogger(provider=provider)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place", note="x" * 50_000)
        await send(START)
        await send(BODY)

    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    filler = small_disk / "filler"
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 300_000))
    statuses = [(await request(audited)).status for _ in range(300)]
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert len(records()) >= statuses.count(200)
    filler.unlink()
    assert await healed(audited)


@pytest.mark.parametrize(
    ("error", "soon"),
    [(AuditBackpressureError("full"), True), (AuditClosedError("closed"), False)],
)
def test_when_to_come_back(error: AuditUnavailableError, soon: bool) -> None:  # noqa: FBT001 - parametrized
    """A full queue drains within a second; for anything else it takes longer."""
    headers = dict(problem.headers(error, b""))
    assert headers[b"retry-after"] == (b"1" if soon else b"5")


def test_without_a_record_there_is_none_to_name() -> None:
    """A problem says only what is known."""
    said = orjson.loads(problem.not_confirmed(AuditClosedError("closed"), None))
    assert set(said) == {"type", "title", "status", "detail"}
    assert "Check the audit trail" in said["detail"]


def _event() -> Any:
    from otel_audit.record.event import AuditEvent

    return AuditEvent("order", "place")
