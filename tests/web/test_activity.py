"""The activity records: one a request, whatever becomes of it."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, START, Wire, connect, http, request, websocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Receive, Scope, Send
    from tests.web.conftest import Records


def answering(status: int = 200) -> ASGIApp:
    """Make an application that answers with ``status``."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({**START, "status": status})
        await send(BODY)

    return app


@pytest.mark.parametrize(
    ("status_code", "status", "outcome", "level"),
    [
        (200, "success", "success", "info"),
        (304, "success", "success", "info"),
        (400, "failed", "failure", "warning"),
        (401, "denied", "failure", "warning"),
        (403, "denied", "failure", "warning"),
        (404, "failed", "failure", "warning"),
        (500, "failed", "failure", "error"),
        (503, "failed", "failure", "error"),
    ],
)
async def test_one_record_a_request(
    provider: AuditProvider,
    records: Records,
    status_code: int,
    status: str,
    outcome: str,
    level: str,
) -> None:
    """Method, path, status, and how it went; nothing of the query string."""
    scope = http("/orders/7", "DELETE", query_string=b"token=secret")
    await request(AuditMiddleware(answering(status_code), provider=provider), scope)
    (record,) = records()
    assert record["event"] == "http.request"
    assert record["action"] == record["method"] == "DELETE"
    assert record["path"] == "/orders/7"
    assert record["resource_type"] == "route"
    assert record["resource_name"] == record["route"] == "unmatched"
    assert record["status_code"] == status_code
    assert (record["status"], record["outcome"], record["level"]) == (status, outcome, level)
    assert record["duration_ms"] >= 0
    assert "secret" not in str(record)


async def test_the_duration_ends_where_the_response_starts(
    provider: AuditProvider, records: Records
) -> None:
    """A stream that goes on for hours was answered at once."""
    times: list[float] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await send(START)
        times.append(perf_counter())
        await asyncio.sleep(0.3)
        await send(BODY)

    times.append(perf_counter())
    await request(AuditMiddleware(app, provider=provider))
    began, started = times
    assert 50 <= records()[0]["duration_ms"] <= (started - began) * 1000


async def test_a_long_path_is_cut(provider: AuditProvider, records: Records) -> None:
    """1,024 characters say enough about a path that somebody made up."""
    await request(AuditMiddleware(answering(), provider=provider), http("/" + "x" * 5_000))
    assert len(records()[0]["path"]) == 1_024


@pytest.mark.parametrize("by", ["argument", "policy"])
@pytest.mark.parametrize(
    ("activity", "recorded"),
    [
        ("all", ["GET", "HEAD", "POST", "PURGE"]),
        ("on", ["GET", "HEAD", "POST", "PURGE"]),
        ("mutating", ["POST", "PURGE"]),
        ("off", []),
    ],
)
async def test_which_requests_are_recorded(
    provider: AuditProvider,
    make_provider: Callable[..., AuditProvider],
    records: Records,
    activity: str,
    recorded: list[str],
    by: str,
) -> None:
    """All, those that may change something, or none: as the policy or the argument says."""
    if by == "argument":
        audited = AuditMiddleware(answering(), provider=provider, http_activity=activity)
    else:
        audited = AuditMiddleware(answering(), provider=make_provider(http_activity=activity))
    for method in ("GET", "HEAD", "POST", "PURGE"):
        await request(audited, http("/", method))
    assert [record["method"] for record in records()] == recorded


async def test_excluded_paths(provider: AuditProvider, records: Records) -> None:
    """A path and what is below it, wherever the application is mounted."""
    audited = AuditMiddleware(answering(), provider=provider, exclude=["/health", "/static/"])
    for path in ("/health", "/health/live", "/healthy", "/static", "/static/a.css", "/"):
        await request(audited, http(path))
    await request(audited, http("/app/health", root_path="/app"))
    assert [record["path"] for record in records()] == ["/healthy", "/"]
    only_root = AuditMiddleware(answering(), provider=provider, exclude="/")
    await request(only_root, http("/"))
    await request(only_root, http("/x"))
    assert [record["path"] for record in records()][2:] == ["/x"]


async def test_an_exception_before_the_response(provider: AuditProvider, records: Records) -> None:
    """The server will answer 500; the type is kept, the message may quote a password."""

    class CustomError(Exception):
        pass

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        message = "password hunter2 is wrong"
        raise CustomError(message)

    with pytest.raises(CustomError):
        await request(AuditMiddleware(app, provider=provider))
    (record,) = records()
    assert (record["status"], record["level"], record["status_code"]) == ("failed", "error", 500)
    assert record["error"].endswith("CustomError")
    assert "hunter2" not in str(record)


async def test_an_exception_that_is_answered(provider: AuditProvider, records: Records) -> None:
    """Error handlers send while they handle, so that the record knows what they handle."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            dict[str, str]()["missing"]
        except KeyError:
            await answering(500)(scope, receive, send)

    await request(AuditMiddleware(app, provider=provider))
    assert records()[0]["error"] == "KeyError"


async def test_an_exception_after_the_response_started(
    provider: AuditProvider, records: Records
) -> None:
    """There is one record, of what was answered."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        raise KeyError

    with pytest.raises(KeyError):
        await request(AuditMiddleware(app, provider=provider))
    assert [record["status_code"] for record in records()] == [200]


async def test_an_answer_is_recorded_once(provider: AuditProvider, records: Records) -> None:
    """Also when an application starts its response twice; the server will see to that."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send({**START, "status": 500})

    await request(AuditMiddleware(app, provider=provider))
    assert [record["status_code"] for record in records()] == [200]


async def test_no_answer(provider: AuditProvider, records: Records) -> None:
    """An application that returns without one has failed."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    await request(AuditMiddleware(app, provider=provider))
    (record,) = records()
    assert (record["status"], record["error"]) == ("failed", "no response")
    assert "status_code" not in record


async def leaves(_scope: Scope, receive: Receive, _send: Send) -> None:
    """Notice that the client has left, and stop."""
    assert (await receive())["type"] == "http.disconnect"


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    """Notice that the client has left, and raise."""
    await leaves(scope, receive, send)
    raise ConnectionResetError


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """Notice that the client has left, and answer all the same."""
    await leaves(scope, receive, send)
    await answering()(scope, receive, send)


@pytest.mark.parametrize(
    ("app", "more"),
    [
        (leaves, {"error": "the client disconnected before the response"}),
        (fails, {"error": "ConnectionResetError"}),
        (answers, {"error": "the client disconnected before the response", "status_code": 200}),
    ],
)
async def test_a_client_that_leaves_before_the_response(
    provider: AuditProvider, records: Records, app: ASGIApp, more: dict[str, Any]
) -> None:
    """What was asked is on record, and that nobody got the answer."""
    wire = Wire({"type": "http.disconnect"})
    try:
        await AuditMiddleware(app, provider=provider)(http(), wire.receive, wire.send)
    except ConnectionResetError:
        assert app is fails
    (record,) = records()
    assert record["status"] == "failed"
    assert {key: record[key] for key in ("error", "status_code") if key in record} == more


async def test_a_request_that_is_cancelled(provider: AuditProvider, records: Records) -> None:
    """Some servers cancel when the client leaves; it is on record as well."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(request(AuditMiddleware(app, provider=provider)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (record,) = records()
    assert record["status"] == "failed"
    assert record["error"].endswith("CancelledError")


def short(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes a WebSocket's records."""
    return tuple(
        record.get(key)
        for key in ("event", "status", "status_code", "close_code", "closed_by", "error")
        if record.get(key) is not None
    )


CONNECTED = ("websocket.connect", "success", 101)
ACCEPT = {"type": "websocket.accept"}


def speaking(*messages: dict[str, Any], error: Exception | None = None, wait: int = 0) -> ASGIApp:
    """Make an application that sends ``messages``, receives ``wait`` ones, and raises."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)
        for _ in range(wait):
            await receive()
        if error is not None:
            raise error

    return app


LEFT = {"type": "websocket.disconnect", "code": 1001}
LOST = {"type": "websocket.disconnect", "code": None}
DENIAL = {"type": "websocket.http.response.start", "status": 429, "headers": []}


@pytest.mark.parametrize(
    ("app", "incoming", "expected"),
    [
        (
            speaking(ACCEPT, {"type": "websocket.close", "code": 1000}),
            [],
            [CONNECTED, ("websocket.disconnect", "success", 1000, "server")],
        ),
        (
            speaking(ACCEPT, {"type": "websocket.close", "code": 4000}),
            [],
            [CONNECTED, ("websocket.disconnect", "failed", 4000, "server")],
        ),
        (
            speaking(ACCEPT, wait=1),
            [LEFT],
            [CONNECTED, ("websocket.disconnect", "success", 1001, "client")],
        ),
        (
            speaking(ACCEPT, wait=1),
            [LOST],
            [CONNECTED, ("websocket.disconnect", "failed", 1006, "client")],
        ),
        (
            speaking(ACCEPT),
            [],
            [CONNECTED, ("websocket.disconnect", "failed", 1006, "server")],
        ),
        (
            speaking(ACCEPT, error=KeyError()),
            [],
            [CONNECTED, ("websocket.disconnect", "failed", 1011, "server", "KeyError")],
        ),
        (
            speaking({"type": "websocket.close"}),
            [],
            [("websocket.connect", "denied", 403)],
        ),
        (speaking(DENIAL), [], [("websocket.connect", "failed", 429)]),
        (
            speaking(error=KeyError()),
            [],
            [("websocket.connect", "failed", 500, "KeyError")],
        ),
        (speaking(), [], [("websocket.connect", "failed", 500, "no answer")]),
        (
            speaking(wait=1),
            [LEFT],
            [("websocket.connect", "failed", "the client disconnected before the answer")],
        ),
    ],
)
async def test_the_records_of_a_websocket(
    provider: AuditProvider,
    records: Records,
    app: ASGIApp,
    incoming: list[Any],
    expected: list[Any],
) -> None:
    """One of the handshake, and one of the end of what was accepted."""
    try:
        await connect(AuditMiddleware(app, provider=provider), *incoming)
    except KeyError:
        assert "KeyError" in expected[-1]
    assert [short(record) for record in records()] == expected
    assert {record["path"] for record in records()} == {"/ws"}


async def test_a_websocket_s_time_counts_from_the_handshake(
    provider: AuditProvider, records: Records
) -> None:
    """The end says how long the connection was open."""
    accepted: list[float] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.1)
        accepted.append(perf_counter())
        await send(ACCEPT)
        await send({"type": "websocket.close"})

    await connect(AuditMiddleware(app, provider=provider))
    opened = perf_counter() - accepted[0]
    handshake, end = records()
    assert handshake["duration_ms"] >= 100
    assert end["duration_ms"] <= opened * 1000


async def test_websockets_without_activity(provider: AuditProvider, records: Records) -> None:
    """Off is off; a connection may change something, so ``mutating`` has it."""
    app = speaking(ACCEPT, {"type": "websocket.close"})
    await connect(AuditMiddleware(app, provider=provider, http_activity="off"))
    await connect(
        AuditMiddleware(app, provider=provider, exclude=["/quiet"]), scope=websocket("/quiet")
    )
    assert records() == []
    await connect(AuditMiddleware(app, provider=provider, http_activity="mutating"))
    assert [record["event"] for record in records()] == [
        "websocket.connect",
        "websocket.disconnect",
    ]


async def test_unknown_protocols_pass(provider: AuditProvider, records: Records) -> None:
    """Who speaks something else through us is not our business."""
    passed: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.append(scope)

    scope = {"type": "x.unknown"}
    wire = Wire()
    await AuditMiddleware(app, provider=provider)(scope, wire.receive, wire.send)
    assert passed == [{"type": "x.unknown"}]
    assert records() == []
