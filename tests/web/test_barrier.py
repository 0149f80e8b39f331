"""The commit barrier: nothing leaves before what was emitted until then is durable.

A trail whose lock somebody else holds commits nothing. While it is held, the
test looks at what the server has got; then it lets go and looks again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import ACCEPT, BODY, CHUNK, SEND, START, Wire, http, websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.api.receipt import Receipt
    from otel_audit.web.asgi import ASGIApp, Message, Receive, Scope, Send
    from tests.web.conftest import Hold, Records

PATHSEND: Message = {"type": "http.response.pathsend", "path": "/srv/file"}
ZEROCOPY: Message = {"type": "http.response.zerocopysend", "file": 3}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [], "more_trailers": False}
DEBUG: Message = {"type": "http.response.debug", "info": {}}
EARLY_HINT: Message = {"type": "http.response.early_hint", "links": []}
CLOSE: Message = {"type": "websocket.close", "code": 1000}
DENY: Message = {"type": "websocket.http.response.start", "status": 401, "headers": []}
DENY_BODY: Message = {"type": "websocket.http.response.body", "body": b"no"}


class Emit:
    """A step of a script: emit a record."""


EMIT = Emit()
Step = Emit | dict[str, Any]


def scripted(audit: AuditLogger, steps: list[Any]) -> ASGIApp:
    """Make an application that sends and emits what the script says, in that order."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for step in steps:
            if isinstance(step, Emit):
                audit.audit_event("order", "place")
            else:
                await send(step)

    return app


async def quiet() -> None:
    """Give everything that could happen the time to happen."""
    await asyncio.sleep(0.1)


async def until_released(
    app: ASGIApp, scope: Scope, wire: Wire, hold: Hold, passes: int = 0
) -> list[str]:
    """Run the application; return what the server had got while the trail was held.

    ``passes`` messages are waited for, however slow the machine is.
    """
    with hold():
        task = asyncio.create_task(_call(app, scope, wire))
        for _ in range(500):
            if len(wire.types) < passes:
                await asyncio.sleep(0.01)
        await quiet()
        assert not task.done()
        before = wire.types
    await asyncio.wait_for(task, 30)
    return before


async def _call(app: ASGIApp, scope: Scope, wire: Wire) -> None:
    await app(scope, wire.receive, wire.send)


PLACES = {
    "response start": ([EMIT, START, BODY], 0),
    "only chunk": ([START, EMIT, BODY], 1),
    "a chunk on the way": ([START, CHUNK, EMIT, CHUNK, BODY], 2),
    "last chunk": ([START, CHUNK, EMIT, BODY], 2),
    "pathsend": ([START, EMIT, PATHSEND], 1),
    "zerocopysend": ([START, EMIT, ZEROCOPY], 1),
    "trailers": ([START, BODY, EMIT, TRAILERS], 2),
    "end of the background tasks": ([START, BODY, EMIT], 2),
    "no response": ([EMIT], 0),
}


@pytest.mark.parametrize(("script", "passed"), PLACES.values(), ids=PLACES.keys())
async def test_http_waits_for_the_commit(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, script: list[Any], passed: int
) -> None:
    """Each message that a client could take for an answer stands behind the barrier."""
    app = AuditMiddleware(scripted(audit, script), provider=provider, http_activity="off")
    wire = Wire({"type": "http.request"})
    before = await until_released(app, http(), wire, hold, passed)
    everything = [step["type"] for step in script if not isinstance(step, Emit)]
    assert before == everything[:passed]
    assert wire.types == everything


@pytest.mark.parametrize("message", [DEBUG, EARLY_HINT, {"type": "x.unknown", "value": 1}])
async def test_what_is_no_answer_passes_untouched(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, message: Message
) -> None:
    """Messages that nobody takes for an answer neither wait nor change."""
    app = AuditMiddleware(
        scripted(audit, [EMIT, message, START, BODY]), provider=provider, http_activity="off"
    )
    wire = Wire({"type": "http.request"})
    assert await until_released(app, http(), wire, hold) == [message["type"]]
    assert wire.sent[0] is message


async def test_activity_is_durable_before_the_response_too(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, records: Records
) -> None:
    """The http.request record is emitted before the barrier, not after it."""
    app = AuditMiddleware(scripted(audit, [START, BODY]), provider=provider)
    wire = Wire({"type": "http.request"})
    assert await until_released(app, http(), wire, hold) == []
    assert [record["event"] for record in records()] == ["http.request"]


async def test_an_exception_waits_for_the_commit(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """The server answers an exception with 500: also an answer, so it has to wait as well."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        audit.audit_event("order", "place")
        raise KeyError

    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    wire = Wire()
    with hold():
        task = asyncio.create_task(_call(audited, http(), wire))
        await quiet()
        assert not task.done()
    with pytest.raises(KeyError):
        await asyncio.wait_for(task, 30)


async def test_what_child_tasks_emit_is_waited_for(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """A record is the request's, whichever of its tasks emitted it."""

    async def work() -> None:
        audit.audit_event("order", "place")

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.gather(work(), asyncio.create_task(work()))
        await send(START)
        await send(BODY)

    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    assert await until_released(audited, http(), Wire(), hold) == []


WEBSOCKET_PLACES = {
    "accept": ([EMIT, ACCEPT, CLOSE], 0),
    "send": ([ACCEPT, EMIT, SEND, CLOSE], 1),
    "close": ([ACCEPT, SEND, EMIT, CLOSE], 2),
    "decline": ([EMIT, CLOSE], 0),
    "denial": ([EMIT, DENY, DENY_BODY], 0),
    "denial's body": ([DENY, EMIT, DENY_BODY], 1),
    "after the close": ([ACCEPT, CLOSE, EMIT], 2),
}


@pytest.mark.parametrize(
    ("script", "passed"), WEBSOCKET_PLACES.values(), ids=WEBSOCKET_PLACES.keys()
)
async def test_websocket_waits_for_the_commit(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, script: list[Any], passed: int
) -> None:
    """The handshake's answer and every message after it stand behind the barrier."""
    app = AuditMiddleware(scripted(audit, script), provider=provider, http_activity="off")
    wire = Wire({"type": "websocket.connect"})
    before = await until_released(app, websocket(), wire, hold)
    everything = [step["type"] for step in script if not isinstance(step, Emit)]
    assert before == everything[:passed]
    assert wire.types == everything


STARTED: Message = {"type": "lifespan.startup.complete"}
STOPPED: Message = {"type": "lifespan.shutdown.complete"}


@pytest.mark.parametrize(
    ("script", "before"),
    [([EMIT, STARTED, STOPPED], 0), ([STARTED, EMIT, STOPPED], 1)],
    ids=["startup", "shutdown"],
)
async def test_lifespan_waits_for_the_commit(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, script: list[Any], before: int
) -> None:
    """The server begins to serve, and ends, only when what was emitted is durable."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for step in script:
            if isinstance(step, Emit):
                audit.audit_event("service", "change")
            else:
                await send(step)
                await receive() if step is STARTED else None

    audited = AuditMiddleware(app, provider=provider)
    wire = Wire({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    passed = await until_released(audited, {"type": "lifespan"}, wire, hold, before)
    assert passed == [STARTED["type"], STOPPED["type"]][:before]
    assert wire.types == [STARTED["type"], STOPPED["type"]]


async def test_a_stream_may_wait_often(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """Events of an SSE stream are each answered for, and none is lost or doubled."""

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(50):
            audit.audit_event("event", "publish", number=number)
            yield b"%d" % number

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        async for chunk in chunks():
            seen = len(records()) if chunk.endswith(b"7") else None
            await send({**CHUNK, "body": chunk})
            assert seen is None or len(records()) > int(chunk)
        await send(BODY)

    wire = Wire()
    await AuditMiddleware(app, provider=provider, http_activity="off")(
        http(), wire.receive, wire.send
    )
    assert [record["number"] for record in records()] == list(range(50))
    assert wire.sent[1:-1] == [{**CHUNK, "body": b"%d" % number} for number in range(50)]


async def test_two_requests_do_not_wait_for_each_other(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """A request that emits nothing is answered while another one's record waits."""

    def asks(path: str) -> Callable[[], Wire]:
        wire = Wire()
        tasks.append(asyncio.create_task(_call(audited, http(path), wire)))
        return lambda: wire

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/emits":
            audit.audit_event("order", "place")
        await send(START)
        await send(BODY)

    tasks: list[asyncio.Task[None]] = []
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        waits, passes = asks("/emits"), asks("/quiet")
        await quiet()
        assert waits().types == []
        assert passes().types == [START["type"], BODY["type"]]
    await asyncio.gather(*tasks)
    assert waits().types == [START["type"], BODY["type"]]


# The answer waits, not the application


async def test_the_application_ends_while_its_answer_waits(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """What is in memory of a request that waits for the disk is its answer, and no frame of it."""
    ended: list[bool] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)
        ended.append(True)

    wire = Wire()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        task = asyncio.create_task(_call(audited, http(), wire))
        await quiet()
        assert ended == [True]
        assert wire.types == []
        assert not task.done()
    await asyncio.wait_for(task, 30)
    assert wire.types == [START["type"], BODY["type"]]
    assert wire.body == BODY["body"]


async def test_an_answer_does_not_wait_for_background_tasks(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """What the response's background tasks do, and emit without end, comes after it."""
    wire = Wire()
    seen: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)
        number = 0
        while not seen:
            audit.audit_event("order", "follow_up", number=number)
            number += 1
            await asyncio.sleep(0)
            seen.extend(wire.types)

    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    await asyncio.wait_for(_call(audited, http(), wire), 30)
    assert wire.types == seen == [START["type"], BODY["type"]]
    actions = [record["action"] for record in records()]
    assert actions[0] == "place"
    assert len(actions) > 1  # nothing of the background is left when the call ends


async def test_an_exception_after_the_answer_does_not_cost_the_answer(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, records: Records
) -> None:
    """A background task that fails has never taken back what the client was told."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)
        audit.audit_event("order", "follow_up")
        raise KeyError

    wire = Wire()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        task = asyncio.create_task(_call(audited, http(), wire))
        await quiet()
        assert wire.types == []
        assert not task.done()
    with pytest.raises(KeyError):
        await asyncio.wait_for(task, 30)
    assert wire.types == [START["type"], BODY["type"]]
    assert [record["action"] for record in records()] == ["place", "follow_up"]


@pytest.mark.parametrize("late", [BODY, DEBUG])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_a_task_sends_late_takes_no_answer_with_it(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, *, late: Message, cancelled: bool
) -> None:
    """The application has returned, its answer waits for the disk, and a task of it goes on."""
    tasks: list[asyncio.Task[None]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        await send(BODY)

        async def afterwards() -> None:
            await asyncio.sleep(0.02)
            await send(late)

        tasks.append(asyncio.create_task(afterwards()))

    wire = Wire()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")

    async def served() -> list[str]:
        await _call(audited, http(), wire)
        return wire.types

    with hold():
        task = asyncio.create_task(served())
        await quiet()
        assert wire.types == []
        if cancelled:
            tasks[0].cancel()
    at_its_end = await asyncio.wait_for(task, 30)
    assert at_its_end[:2] == [START["type"], BODY["type"]]
    await asyncio.gather(*tasks, return_exceptions=True)
    assert wire.types[2:] == ([] if cancelled else [late["type"]])


@pytest.mark.parametrize(
    ("scope", "answer"),
    [(http(), [START, BODY]), (websocket(), [ACCEPT, SEND, CLOSE])],
    ids=["http", "websocket"],
)
async def test_who_goes_on_emitting_keeps_no_answer(
    provider: AuditProvider, audit: AuditLogger, scope: Scope, answer: list[Message]
) -> None:
    """A message waits for what was emitted before it was sent, not for what comes meanwhile."""
    tasks: list[asyncio.Task[None]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        async def chatter() -> None:
            # There is always one that waits, and never more than a disk that stalls can bear.
            emitted: deque[Receipt] = deque()
            for _ in range(20_000):
                emitted.append(audit.audit_event("order", "place"))
                await asyncio.sleep(0)
                if len(emitted) > 1000:
                    await emitted.popleft()

        tasks.append(asyncio.create_task(chatter()))
        audit.audit_event("order", "place")
        for message in answer:
            await send(message)

    wire = Wire()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    await _call(audited, scope, wire)
    assert not tasks[0].done()
    tasks[0].cancel()
    assert wire.types == [message["type"] for message in answer]


async def test_who_is_cancelled_while_the_answer_waits_leaves_nothing_unsettled(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, records: Records
) -> None:
    """A server that gives a request up does not hear of it before its records are durable."""
    wire = Wire()
    audited = AuditMiddleware(
        scripted(audit, [EMIT, START, BODY]), provider=provider, http_activity="off"
    )
    wire.incoming.put_nowait({"type": "http.request"})
    with hold():
        task = asyncio.create_task(_call(audited, http(), wire))
        await quiet()
        task.cancel()
        await quiet()
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert len(records()) == 1
    assert wire.types == []


@pytest.mark.parametrize(
    "rest",
    [
        [CHUNK, BODY],
        [PATHSEND],
        [{"type": "x.unknown", "value": 1}, BODY],
        [{**BODY, "body": bytearray(b"used again")}],
        [],
    ],
    ids=["stream", "pathsend", "unknown", "buffer", "nothing"],
)
async def test_what_follows_a_start_that_waited_follows_in_order(
    provider: AuditProvider, audit: AuditLogger, hold: Hold, rest: list[Message]
) -> None:
    """Only an answer in one piece lets the application go on; all else waits where it stands."""
    script: list[Any] = [EMIT, START, *rest]
    app = AuditMiddleware(scripted(audit, script), provider=provider, http_activity="off")
    wire = Wire({"type": "http.request"})
    assert await until_released(app, http(), wire, hold) == []
    assert wire.types == [START["type"], *(message["type"] for message in rest)]


async def test_a_start_that_waited_survives_the_cancellation_of_what_follows(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """An application that gives one chunk up goes on with the others, and the answer has begun."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(send({**CHUNK, "body": b"given up"}), 0.05)
        await send(CHUNK)
        await send(BODY)

    wire = Wire()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    with hold():
        task = asyncio.create_task(_call(audited, http(), wire))
        await asyncio.sleep(0.2)
        assert wire.types == []
    await asyncio.wait_for(task, 30)
    assert wire.sent == [wire.sent[0], CHUNK, BODY]
    assert wire.types[0] == START["type"]


@pytest.mark.parametrize("cancelled", [None, 0, 1], ids=["none", "first", "second"])
async def test_a_start_that_waited_is_sent_once_and_first_to_a_slow_client(
    provider: AuditProvider, audit: AuditLogger, cancelled: int | None
) -> None:
    """Whoever sends meanwhile waits for it, and whoever is cancelled does not cost it."""

    class Slow(Wire):
        """A connection whose client reads late: the server waits before it takes a message."""

        def __init__(self) -> None:
            super().__init__()
            self.waits, self.reads = asyncio.Event(), asyncio.Event()

        async def send(self, message: Message) -> None:
            self.waits.set()
            await self.reads.wait()
            await super().send(message)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        audit.audit_event("order", "place")
        await send(START)
        chunks = [{**CHUNK, "body": b"%d" % number} for number in range(3)]
        sending = [asyncio.ensure_future(send(chunk)) for chunk in chunks]
        await wire.waits.wait()
        if cancelled is not None:
            sending[cancelled].cancel()
        await asyncio.sleep(0.05)
        wire.reads.set()
        await asyncio.gather(*sending, return_exceptions=True)
        await send(BODY)

    wire = Slow()
    audited = AuditMiddleware(app, provider=provider, http_activity="off")
    await asyncio.wait_for(_call(audited, http(), wire), 30)
    assert wire.types[0] == START["type"]
    assert wire.types.count(START["type"]) == 1
    sent = [b"%d" % number for number in range(3) if number != cancelled]
    assert [message["body"] for message in wire.sent[1:]] == [*sent, BODY["body"]]


async def test_trailers_follow_the_body(
    provider: AuditProvider, audit: AuditLogger, hold: Hold
) -> None:
    """A response that announces trailers is not complete with its body."""
    start = {**START, "trailers": True}
    app = AuditMiddleware(
        scripted(audit, [EMIT, start, BODY, TRAILERS]), provider=provider, http_activity="off"
    )
    wire = Wire({"type": "http.request"})
    assert await until_released(app, http(), wire, hold) == []
    assert wire.types == [START["type"], BODY["type"], TRAILERS["type"]]
