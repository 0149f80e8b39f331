"""Start and end of an application: a usable trail, and nothing left behind."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from otel_audit.api.context import current_scope, get_audit_context, set_actor
from otel_audit.api.current import get_audit_provider, is_configured
from otel_audit.errors import OtelAuditError
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.web.fastapi import instrument_app
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, START, Wire, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from otel_audit.api.context import RequestScope
    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import ASGIApp, Message, Receive, Scope, Send
    from tests.web.conftest import Records

STARTUP: Message = {"type": "lifespan.startup"}
SHUTDOWN: Message = {"type": "lifespan.shutdown"}


def lived(app: ASGIApp) -> Wire:
    """Take the application through its life; return what it said."""
    wire = Wire(STARTUP, SHUTDOWN)
    asyncio.run(app({"type": "lifespan"}, wire.receive, wire.send))  # type: ignore[arg-type] # every ASGI application is a coroutine function here
    return wire


def signed_size(provider: AuditProvider) -> int:
    """Return how many records the last checkpoint covers."""
    with provider.reader() as reader:
        last = reader.last_checkpoint()
    return 0 if last is None else read_checkpoint(last.note).size


def test_the_global_provider_is_opened_at_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the first request, which would have to wait for it."""
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "trail"))
    app = FastAPI()
    instrument_app(app)
    assert not is_configured()
    with TestClient(app):
        assert is_configured()
        assert get_audit_provider().directory == tmp_path / "trail"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_AUDIT_HTTP_ACTIVITY", "sometimes", "OTEL_AUDIT_HTTP_ACTIVITY='sometimes'"),
        ("OTEL_AUDIT_SIGNING_KEY_FILE", "/nowhere/signing.key", "/nowhere/signing.key"),
    ],
)
def test_an_unusable_configuration_fails_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """The server shows the message and ends; the application is not even called."""
    monkeypatch.setenv(variable, value)

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError

    wire = Wire(STARTUP)
    with pytest.raises(OtelAuditError, match=said):
        asyncio.run(AuditMiddleware(app)({"type": "lifespan"}, wire.receive, wire.send))
    assert wire.types == ["lifespan.startup.failed"]
    assert "the audit trail cannot be used" in wire.sent[0]["message"]
    assert said in wire.sent[0]["message"]
    assert wire.incoming.empty()


def test_a_test_client_hears_that_the_trail_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY_FILE", "/nowhere/signing.key")
    app = FastAPI()
    instrument_app(app)
    with pytest.raises(OtelAuditError, match=r"/nowhere/signing\.key"), TestClient(app):
        pytest.fail("the application was started")  # pragma: no cover - it is not


def test_records_of_start_and_end_are_the_service_s(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """They belong to no request, and nobody asked for them."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        audit.audit_event("service", "start")
        yield
        audit.audit_event("service", "stop")

    app = FastAPI(lifespan=lifespan)
    instrument_app(app, provider=provider)
    with TestClient(app):
        pass
    started, stopped = records()
    assert (started["action"], stopped["action"]) == ("start", "stop")
    for record in (started, stopped):
        assert (record["actor_id"], record["actor_type"]) == ("shop", "service")
        assert record.keys().isdisjoint({"actor_verified", "request_id", "client_ip", "client_id"})
    assert signed_size(provider) == 2


def test_who_starts_it_may_be_said(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """set_actor works there as well."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        set_actor("systemd", "system")
        audit.audit_event("service", "start")
        yield

    app = FastAPI(lifespan=lifespan)
    instrument_app(app, provider=provider)
    with TestClient(app):
        pass
    assert [(record["actor_id"], record["actor_type"]) for record in records()] == [
        ("systemd", "system")
    ]


def test_the_end_signs_and_catches_up(
    make_provider: Callable[..., AuditProvider], tmp_path: Path
) -> None:
    """All that was answered is under a checkpoint, and the provider is still usable."""
    provider = make_provider(agent="off")
    app = FastAPI()

    @app.get("/")
    async def root() -> None: ...

    instrument_app(app, provider=provider)
    with TestClient(app) as client:
        client.get("/")
        client.get("/")
        assert signed_size(provider) == 0
    assert signed_size(provider) == 2
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert signed_size(provider) == 3
    assert (tmp_path / "trail" / "trail.db").exists()


def test_tasks_of_the_start_go_on_as_the_service(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """A worker that is started there runs for ever; nothing piles up that waits for it."""
    turned = asyncio.Event()
    scopes: list[RequestScope | None] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(worker())
        yield
        task.cancel()

    async def worker() -> None:
        while True:
            assert not get_audit_context().get("request_id")
            await audit.audit_event("worker", "turn")
            scopes.append(current_scope())
            turned.set()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root() -> None:
        for _ in range(4):
            turned.clear()
            await turned.wait()
        assert scopes[-1] is None

    instrument_app(app, provider=provider, http_activity="off")
    with TestClient(app) as client:
        client.get("/")
    written = records()
    assert len(written) > 3
    assert {record["actor_id"] for record in written} == {"shop"}


async def silent(scope: Scope, _receive: Receive, send: Send) -> None:
    """Know HTTP only, and ignore everything else."""
    if scope["type"] == "http":
        await send(START)
        await send(BODY)


async def strict(scope: Scope, receive: Receive, send: Send) -> None:
    """Know HTTP only, and raise for everything else."""
    assert scope["type"] == "http"
    await silent(scope, receive, send)


@pytest.mark.parametrize("app", [silent, strict])
def test_an_application_without_lifespan(provider: AuditProvider, app: ASGIApp) -> None:
    """Its trail has one."""
    audited = AuditMiddleware(app, provider=provider)
    asyncio.run(_ask(audited))
    assert signed_size(provider) == 0
    assert lived(audited).types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert signed_size(provider) == 1


async def _ask(app: ASGIApp) -> None:
    assert (await request(app)).status == 200


def test_a_start_that_fails_says_so_itself(provider: AuditProvider) -> None:
    """The application's own failure passes through as it is."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        message = "no database"
        if message:
            raise ConnectionError(message)
        yield

    app = FastAPI(lifespan=lifespan)
    instrument_app(app, provider=provider)
    wire = Wire(STARTUP, SHUTDOWN)
    with pytest.raises(ConnectionError):
        asyncio.run(app({"type": "lifespan", "state": {}}, wire.receive, wire.send))
    assert wire.types == ["lifespan.startup.failed"]
    assert "no database" in wire.sent[0]["message"]


def test_an_end_that_fails_still_signs(provider: AuditProvider, audit: AuditLogger) -> None:
    """Whatever the application leaves behind, the trail is left in order."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        audit.audit_event("service", "start")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise KeyError

    with pytest.raises(KeyError):
        lived(AuditMiddleware(app, provider=provider))
    assert signed_size(provider) == 1


def test_nested_instances_open_and_close_once(provider: AuditProvider, records: Records) -> None:
    """The inner one leaves the protocol to the outer one."""
    inner = AuditMiddleware(silent, provider=provider)
    outer = AuditMiddleware(inner, provider=provider)
    assert lived(outer).types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert records() == []


def test_disabled(
    make_provider: Callable[..., AuditProvider], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """OTEL_AUDIT_DISABLED: the application runs, requests keep their ids, nothing is written."""
    provider = make_provider(disabled=True)
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(get_audit_context()))
        await silent(scope, receive, send)

    audited = AuditMiddleware(app, provider=provider)
    assert lived(audited).types[-1] == "lifespan.shutdown.complete"
    asyncio.run(_ask(audited))
    assert seen[-1]["client_ip"] == "192.0.2.7"
    assert "NOTHING is audited" in caplog.text
    assert not (tmp_path / "trail").exists()
