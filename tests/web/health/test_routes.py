"""The health routes in the outermost layer: of FastAPI, and of any ASGI application."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette

from otel_audit import instrument_app
from otel_audit.errors import AuditSettingsError
from otel_audit.health.checker import HealthChecker, get_health_checker, set_health_checker
from otel_audit.health.probe import HealthStatus, ProbeResult
from otel_audit.web.access import Access, RefusedError, bearer
from otel_audit.web.health.routes import HealthLayer, setup_health_check_routes
from otel_audit.web.tokens import TokenFile
from tests.health.conftest import until, wait_until
from tests.web.driving import Wire, http, request, websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Message, Receive, Scope, Send

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus


async def plain(scope: Scope, _receive: Receive, send: Send) -> None:
    """Be an application that answers everything with its path."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Switch:
    """A probe whose answer is set from outside."""

    def __init__(self) -> None:
        self.answer: Any = None

    def __call__(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def db() -> Switch:
    return Switch()


@pytest.fixture
def checker(db: Switch) -> Iterator[HealthChecker]:
    """Give a checker of one component, which believes at once and runs already."""
    made = HealthChecker(watch_trail=False)
    made.register("db", db, interval=0.05, failure_threshold=1, success_threshold=1)
    yield made
    made.stop()


def running(checker: HealthChecker) -> HealthChecker:
    checker.start()
    wait_until(lambda: checker.started)
    return checker


async def get(app: ASGIApp, path: str = "/health", **more: Any) -> Wire:
    return await request(app, http(path, **more))


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [(None, HEALTHY, 200), ("degraded", DEGRADED, 200), (OSError("gone"), UNHEALTHY, 503)],
)
async def test_health_is_the_status_and_its_code(
    checker: HealthChecker, db: Switch, answer: Any, status: HealthStatus, code: int
) -> None:
    app = setup_health_check_routes(plain, checker=running(checker))
    db.answer = answer
    await until(lambda: checker.get_quick_status() is status)
    wire = await get(app)
    assert wire.status == code
    assert wire.body == b'{"status":"%s"}' % status.value.encode()
    assert wire.header(b"content-type") == [b"application/json"]
    assert wire.header(b"content-length") == [b"%d" % len(wire.body)]
    assert wire.header(b"cache-control") == [b"no-store"]
    head = await get(app, method="HEAD")
    assert head.sent[0] == wire.sent[0]
    assert head.body == b""


async def test_health_speaks_the_format_of_the_draft(checker: HealthChecker, db: Switch) -> None:
    app = setup_health_check_routes(plain, checker=running(checker), details="open")
    accept = [(b"accept", b"application/health+json, application/json;q=0.5")]
    wire = await get(app, headers=accept)
    assert (wire.body, wire.header(b"content-type")) == (
        b'{"status":"pass"}',
        [b"application/health+json"],
    )
    assert wire.header(b"vary") == [b"accept"]
    db.answer = ProbeResult.unhealthy("gone")
    await until(lambda: checker.get_quick_status() is UNHEALTHY)
    detailed = json.loads((await get(app, "/health/detailed", headers=accept)).body)
    check = detailed["checks"]["db"][0]
    assert (detailed["status"], check["status"], check["output"]) == ("fail", "fail", "gone")
    assert check["observedUnit"] == "ms"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("Application/Health+JSON", b"application/health+json"),
        ("text/html, application/health+json ; q=0.1", b"application/health+json"),
        ("application/health+json;charset=utf-8;q=1.0,*/*;q=0", b"application/health+json"),
        ("application/health+json;q=0", b"application/json"),
        ("application/health+json; charset=utf-8 ; Q=0.000 , */*", b"application/json"),
        ("application/health+jsonp", b"application/json"),
        ("x-application/health+json", b"application/json"),
    ],
)
async def test_the_format_of_the_draft_is_for_who_accepts_it(
    checker: HealthChecker, accept: str, kind: bytes
) -> None:
    app = setup_health_check_routes(plain, checker=running(checker))
    wire = await get(app, headers=[(b"accept", accept.encode())])
    assert wire.header(b"content-type") == [kind]


async def test_the_routes_of_kubernetes(checker: HealthChecker, db: Switch) -> None:
    app = setup_health_check_routes(plain, checker=checker)
    db.answer = False
    assert (await get(app, "/health/live")).status == 200
    assert (await get(app, "/health/startup")).status == 503
    assert (await get(app, "/health/ready")).status == 503
    db.answer = None
    await until(lambda: checker.started)
    assert (await get(app, "/health/startup")).status == 200
    await until(lambda: checker.get_quick_status() is HEALTHY)
    assert (await get(app, "/health/ready")).status == 200
    db.answer = OSError("the database is down")
    await until(lambda: checker.get_quick_status() is UNHEALTHY)
    assert (await get(app, "/health/ready")).status == 503
    assert (await get(app, "/health/live")).status == 200
    assert (await get(app, "/health/startup")).status == 200


async def test_without_lifespan_the_first_question_starts_the_checker(
    checker: HealthChecker,
) -> None:
    app = setup_health_check_routes(plain, checker=checker)
    assert (await get(app)).body == b'{"status":"unknown"}'
    assert checker.running
    await until(lambda: checker.get_http_status_code() == 200)
    assert (await get(app)).status == 200


async def test_everything_else_is_the_applications(checker: HealthChecker) -> None:
    app = setup_health_check_routes(plain, checker=checker)
    for path in ("/", "/healthy", "/health/", "/health/other", "/health/detailed/db"):
        assert (await get(app, path)).body == path.encode()
    with pytest.raises(AssertionError):
        await app(websocket("/health"), Wire().receive, Wire().send)


async def test_only_reading_is_allowed(checker: HealthChecker) -> None:
    app = setup_health_check_routes(plain, checker=running(checker))
    for path in ("/health", "/health/detailed"):
        wire = await get(app, path, method="POST")
        assert wire.status == 405
        assert wire.header(b"allow") == [b"GET, HEAD"]


async def test_a_path_below_a_root_path_is_found(checker: HealthChecker) -> None:
    app = setup_health_check_routes(plain, "/status", checker=running(checker))
    below = {"root_path": "/api"}
    assert (await get(app, "/api/status", **below)).body == b'{"status":"healthy"}'
    assert (await get(app, "/api/status", method="PUT", **below)).status == 405
    assert (await get(app, "/api/other", **below)).body == b"/api/other"
    assert (await get(app, "/health")).body == b"/health"


async def test_a_path_below_the_root_path_of_a_fastapi_is_found(checker: HealthChecker) -> None:
    """It becomes the scope's only within the application."""
    app = fastapi()
    app.root_path = "/api"
    setup_health_check_routes(app, checker=running(checker), details="open")
    for path in ("/health", "/api/health", "/api/health/live", "/api/health/detailed"):
        assert (await get(app, path)).status == 200
    assert (await get(app, "/api/hello")).body == b'{"hello":"world"}'
    assert (await get(app, "/api/other")).status == 404


# details


async def test_details_are_for_nobody_unless_it_is_said_who(
    checker: HealthChecker, caplog: pytest.LogCaptureFixture
) -> None:
    """What to do about it is for whoever reads the log, once, and for no caller."""
    app = setup_health_check_routes(plain, checker=running(checker))
    for _ in range(2):
        wire = await get(app, "/health/detailed")
        assert wire.status == 403
        assert wire.body == b'{"detail":"details are for authorized callers"}'
    (said,) = (record.message for record in caplog.records if "authorize=" in record.message)
    assert said.startswith("/health/detailed was asked for and lets nobody in: give ")


async def test_details_are_for_who_has_the_token(checker: HealthChecker) -> None:
    app = setup_health_check_routes(plain, checker=running(checker), token="s3cret")
    denied = await get(app, "/health/detailed")
    assert denied.status == 401
    assert denied.header(b"www-authenticate") == [b"Bearer"]
    wrong = [(b"authorization", b"Bearer guess")]
    assert (await get(app, "/health/detailed", headers=wrong)).status == 401
    right = [(b"authorization", b"bearer s3cret")]
    shown = json.loads((await get(app, "/health/detailed", headers=right)).body)
    assert set(shown) == {"status", "components", "summary"}
    assert set(shown["components"]["db"]) == {
        "status",
        "critical",
        "response_time_ms",
        "checks",
        "failures",
        "last_success",
        "message",
        "since",
    }


async def test_details_are_for_whom_the_application_lets_through(
    checker: HealthChecker, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(scope: Scope) -> bool:
        return bool(scope["client"] == ("192.0.2.7", 50_000))

    for authorize in (ask, lambda scope: scope["client"] == ("192.0.2.7", 50_000)):
        app = setup_health_check_routes(plain, checker=running(checker), authorize=authorize)
        assert (await get(app, "/health/detailed")).status == 200
        refused = await get(app, "/health/detailed", client=("203.0.113.9", 1))
        assert refused.status == 403
    assert "authorize=" not in caplog.text


@pytest.mark.parametrize("plainly", [True, False])
async def test_a_hook_that_recognises_callers_is_one_for_details_as_well(
    checker: HealthChecker,
    caplog: pytest.LogCaptureFixture,
    plainly: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    """What `access.Authorize` says, somebody, nobody or that it does not hold, means the same."""

    def recognise(scope: Scope) -> Access | None:
        token = bearer(scope)
        if token == "guess":
            message = "the token does not hold"
            raise RefusedError(message)
        if token == "broken":
            raise LookupError(token)
        return None if token is None else Access.of(token, ["proof"])

    async def ask(scope: Scope) -> Access | None:
        return recognise(scope)

    hook = recognise if plainly else ask
    app = setup_health_check_routes(plain, checker=running(checker), authorize=hook)
    assert (await get(app, "/health/detailed")).status == 403
    right = [(b"authorization", b"Bearer alice")]
    assert (await get(app, "/health/detailed", headers=right)).status == 200
    wrong = [(b"authorization", b"Bearer guess")]
    refused = await get(app, "/health/detailed", headers=wrong)
    assert refused.status == 401
    assert refused.body == b'{"detail":"the token does not hold"}'
    assert refused.header(b"www-authenticate") == [b'Bearer error="invalid_token"']
    broken = [(b"authorization", b"Bearer broken")]
    assert (await get(app, "/health/detailed", headers=broken)).status == 503
    assert "authorize= failed" in caplog.text


async def test_the_file_of_tokens_is_such_a_hook(checker: HealthChecker, tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    token, _ = tokens.create("operator", ["read"])
    app = setup_health_check_routes(plain, checker=running(checker), authorize=tokens)
    for said, status in ((token, 200), (f"{token}x", 401)):
        headers = [(b"authorization", b"Bearer " + said.encode())]
        assert (await get(app, "/health/detailed", headers=headers)).status == status


async def test_details_have_the_code_of_the_status(checker: HealthChecker, db: Switch) -> None:
    app = setup_health_check_routes(plain, checker=running(checker), details="open")
    db.answer = ProbeResult.unhealthy("gone", attempts=3, when=object())
    await until(lambda: checker.get_quick_status() is UNHEALTHY)
    wire = await get(app, "/health/detailed")
    assert wire.status == 503
    component = json.loads(wire.body)["components"]["db"]
    assert component["message"] == "gone"
    assert component["details"]["attempts"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "health"}, "begins, and does not end, with '/'"),
        ({"path": "/"}, "begins, and does not end"),
        ({"details": "closed"}, "authorized or open"),
        ({"token": ""}, "everybody knows"),
        ({"port": 70_000}, "0 .any. to 65535"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(AuditSettingsError, match=says):
        setup_health_check_routes(plain, **options)


# lifespan


class Lifespan:
    """A server that speaks the lifespan protocol with an application."""

    def __init__(self, app: ASGIApp) -> None:
        self.wire = Wire({"type": "lifespan.startup"})
        self._app = app

    async def run(self) -> None:
        await self._app({"type": "lifespan", "state": {}}, self.wire.receive, self.wire.send)


async def test_the_checker_lives_as_long_as_the_application(checker: HealthChecker) -> None:
    seen: list[bool] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        seen.append(checker.running)
        yield
        seen.append(checker.running)

    app = Starlette(lifespan=lifespan)
    assert setup_health_check_routes(app, checker=checker) is app
    server = Lifespan(app)
    server.wire.incoming.put_nowait({"type": "lifespan.shutdown"})
    began: list[bool] = []
    send = server.wire.send

    async def note(message: Message) -> None:
        began.append(checker.running)
        await send(message)

    server.wire.send = note  # type: ignore[method-assign]
    await server.run()
    assert server.wire.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert seen == [False, False]
    assert began == [True, False]
    assert (await get(app, "/health/ready")).body == b'{"status":"stopped"}'


async def test_a_port_that_is_taken_fails_the_start(checker: HealthChecker) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = setup_health_check_routes(Starlette(), checker=checker, port=taken.getsockname()[1])
        server = Lifespan(app)
        server.wire.incoming.put_nowait({"type": "lifespan.shutdown"})
        await server.run()
    assert server.wire.types[0] == "lifespan.startup.failed"
    assert "each worker process needs a port of its own" in server.wire.sent[0]["message"]
    assert not checker.running


async def test_of_several_ports_the_first_free_one_is_served(checker: HealthChecker) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        layer = setup_health_check_routes(
            Starlette().router, checker=checker, port=(taken.getsockname()[1], 0)
        )
        assert isinstance(layer, HealthLayer)
        server = Lifespan(layer)
        ports: list[int | None] = []
        send = server.wire.send

        async def note(message: Message) -> None:
            ports.append(layer.port)
            await send(message)

        server.wire.send = note  # type: ignore[method-assign]
        server.wire.incoming.put_nowait({"type": "lifespan.shutdown"})
        await server.run()
        assert isinstance(ports[0], int)
        assert ports[0] != taken.getsockname()[1]
        assert layer.port is None


# beside others


def fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


ORDERS = ("health first", "health last", "health in between")


@pytest.mark.parametrize("order", ORDERS)
async def test_health_is_neither_traced_nor_recorded_whoever_came_first(
    provider: AuditProvider, records: Any, checker: HealthChecker, order: str
) -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    app = fastapi()
    steps: dict[str, Callable[[], object]] = {
        "health": lambda: setup_health_check_routes(app, checker=running(checker)),
        "audit": lambda: instrument_app(app, provider=provider),
        "traces": lambda: FastAPIInstrumentor.instrument_app(app, tracer_provider=tracers),
    }
    for step in {
        "health first": ("health", "audit", "traces"),
        "health last": ("audit", "traces", "health"),
        "health in between": ("traces", "health", "audit"),
    }[order]:
        steps[step]()
    try:
        assert (await get(app)).body == b'{"status":"healthy"}'
        assert exporter.get_finished_spans() == ()
        assert records() == []
        assert (await get(app, "/hello")).body == b'{"hello":"world"}'
        assert [record["event"] for record in records()] == ["http.request"]
        assert any(span.name == "GET /hello" for span in exporter.get_finished_spans())
        assert records()[0]["trace_id"]
    finally:
        FastAPIInstrumentor.uninstrument_app(app)
    assert (await get(app)).status == 200
    assert (await get(app, "/hello")).status == 200


async def test_an_application_stays_what_it_was_and_its_class_too(checker: HealthChecker) -> None:
    app = fastapi()
    other = fastapi()
    setup_health_check_routes(app, checker=running(checker))
    assert isinstance(app, FastAPI)
    assert type(app).__name__ == "FastAPI"
    assert type(other) is FastAPI
    assert (await get(other)).status == 404
    setup_health_check_routes(app, "/healthz", checker=checker)
    assert (await get(app)).status == (await get(app, "/healthz")).status == 200


async def test_middleware_can_be_added_afterwards_and_does_not_see_health(
    checker: HealthChecker,
) -> None:
    seen: list[str] = []

    class Noting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"])
            await self.app(scope, receive, send)

    app = fastapi()
    setup_health_check_routes(app, checker=running(checker))
    app.add_middleware(Noting)
    assert (await get(app)).status == 200
    assert (await get(app, "/hello")).status == 200
    assert seen == ["/hello"]


async def test_what_stands_outside_may_change_headers_of_one_answer_only(
    checker: HealthChecker,
) -> None:
    app = setup_health_check_routes(plain, checker=running(checker))
    first = await get(app)
    first.sent[0]["headers"].append((b"x-server", b"1"))
    assert (await get(app)).header(b"x-server") == []


async def test_the_default_is_the_checker_of_the_process() -> None:
    try:
        app = setup_health_check_routes(fastapi())
        await get(app)
        assert get_health_checker().running
    finally:
        set_health_checker(None)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_each_worker_knows_its_own_state(checker: HealthChecker, db: Switch) -> None:
    """A forked worker begins anew when it is first asked, whatever its parent knows."""
    import asyncio

    app = setup_health_check_routes(plain, checker=running(checker))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            db.answer = False

            async def worker() -> int:
                if (await get(app)).body != b'{"status":"unknown"}':
                    return 2
                await until(lambda: checker.get_quick_status() is UNHEALTHY)
                return 0

            code = asyncio.run(worker())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert checker.get_quick_status() is HEALTHY
