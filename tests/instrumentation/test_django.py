"""A Django project that knows nothing of us, by WSGI and by ASGI."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from socket import socket
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import django
import pytest
import uvicorn
from django.conf import settings
from django.contrib import auth
from django.contrib.auth import authenticate, login, logout
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from opentelemetry.instrumentation.django import DjangoInstrumentor as Tracing
from opentelemetry.trace import SpanKind

from otel_audit import get_audit_logger
from otel_audit.api.sessions import hashed_session
from otel_audit.instrumentation.asgi import UvicornInstrumentor
from otel_audit.instrumentation.django import DjangoInstrumentor
from otel_audit.web.middleware import AuditMiddleware
from tests.instrumentation.test_launch import BIN, QUIET, listening, records
from tests.web.driving import http, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_audit.testing import AuditTrail


def item(_request: Any, pk: int) -> HttpResponse:
    get_audit_logger().audit_event("read", "read", item=pk)
    return HttpResponse(str(pk))


def session(request: Any) -> HttpResponse:
    """Log in, do something, and log out."""
    user = authenticate(request, username="ann", password=request.META.get("HTTP_X_PASSWORD"))
    if user is None:
        return HttpResponse(status=403)
    login(request, user)
    get_audit_logger().audit_event("work", "do")
    logout(request)
    return HttpResponse("done")


def whoami(request: Any) -> HttpResponse:
    name = request.user.get_username()
    get_audit_logger().audit_event("work", "do")
    return HttpResponse(name)


async def whoami_async(request: Any) -> HttpResponse:
    name = (await request.auser()).get_username()
    get_audit_logger().audit_event("work", "do")
    return HttpResponse(name)


urlpatterns = [
    path("items/<int:pk>/", item),
    path("session", session),
    path("whoami", whoami),
    path("whoami/async", whoami_async),
]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place: Path = tmp_path_factory.mktemp("django")
    if not settings.configured:
        settings.configure(
            SECRET_KEY="not a secret",
            ROOT_URLCONF=__name__,
            ALLOWED_HOSTS=["*"],
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
            MIDDLEWARE=[
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
            ],
            SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
            PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
            DATABASES={
                "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(place / "db")}
            },
            USE_TZ=True,
        )
        django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    User.objects.create_user("ann", password="right")
    yield
    connections.close_all()


@pytest.fixture
def instrumented() -> Iterator[None]:
    instrumentor = DjangoInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


def get(url: str, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """Ask a handler as a WSGI server does."""
    environ |= {"PATH_INFO": url, "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    answer: list[Any] = []
    response: Any = WSGIHandler()(environ, lambda *started: answer.extend(started))
    body = b"".join(response)
    close = getattr(response, "close", None)
    if close is not None:
        close()
    return answer[0], dict(answer[1]), body


@pytest.mark.usefixtures("instrumented")
def test_requests_are_recorded_with_their_route(trail: AuditTrail) -> None:
    status, headers, body = get("/items/7/")
    assert (status, body, "x-request-id" in headers) == ("200 OK", b"7", True)
    get("/nothing")
    read, first, second = trail.records()
    assert (first["route"], first["status_code"]) == ("/items/<int:pk>/", 200)
    assert (second["route"], second["status_code"]) == ("unmatched", 404)
    assert read["request_id"] == first["request_id"]


@pytest.mark.usefixtures("instrumented")
def test_log_ins_are_recorded_and_make_the_actor(trail: AuditTrail) -> None:
    assert get("/session", HTTP_X_PASSWORD="wrong")[0] == "403 Forbidden"
    assert get("/session", HTTP_X_PASSWORD="right")[0] == "200 OK"
    said = [(r["event"], r["action"], r["outcome"], r["actor_id"]) for r in trail.records()]
    assert said == [
        ("authentication", "login", "failure", "anonymous"),
        ("http.request", "GET", "failure", "anonymous"),
        ("authentication", "login", "success", "ann"),
        ("work", "do", "success", "ann"),
        ("authentication", "logout", "success", "ann"),
        ("http.request", "GET", "success", "ann"),
    ]
    assert all(record["user_id"] == "ann" for record in trail.records(event="authentication"))
    assert "wrong" not in str(trail.records())


def of_ann() -> str:
    """Return a cookie of hers."""
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.signed_cookies import SessionStore

    ann = User.objects.get()
    store = SessionStore()
    store["_auth_user_id"] = str(ann.pk)
    store["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    store["_auth_user_hash"] = ann.get_session_auth_hash()
    store.save()
    return f"sessionid={store.session_key}"


@pytest.mark.usefixtures("instrumented")
def test_who_is_behind_a_session_acts_once_somebody_asked(trail: AuditTrail) -> None:
    cookie = of_ann()
    assert get("/whoami", HTTP_COOKIE=cookie)[2] == b"ann"
    assert get("/items/1/", HTTP_COOKIE=cookie)[2] == b"1"
    assert [record["actor_id"] for record in trail.records()] == [
        "ann", "ann", "anonymous", "anonymous",
    ]  # fmt: skip
    assert len({record["session_id"] for record in trail.records()}) == 1


@pytest.mark.usefixtures("instrumented")
async def test_who_asks_in_a_coroutine_has_asked(trail: AuditTrail) -> None:
    cookie = await asyncio.to_thread(of_ann)
    wire = await request(
        ASGIHandler(), http("/whoami/async", headers=[(b"cookie", cookie.encode())])
    )
    assert wire.body == b"ann"
    assert [record["actor_id"] for record in trail.records()] == ["ann", "ann"]


@pytest.mark.usefixtures("instrumented")
def test_the_session_is_that_of_the_cookie_that_the_settings_name(trail: AuditTrail) -> None:
    with override_settings(SESSION_COOKIE_NAME="sid"):
        get("/items/1/", HTTP_COOKIE="sid=a; sessionid=b")
    get("/items/1/", HTTP_COOKIE="sessionid=a; sid=b")
    get("/items/1/", HTTP_COOKIE="sid=a")
    named = [record.get("session_id") for record in trail.records(event="http.request")]
    assert named == [hashed_session(trail.provider.session_salt, "a")] * 2 + [None]


@pytest.mark.parametrize("option", ["mine", None])
def test_an_option_says_otherwise(trail: AuditTrail, option: str | None) -> None:
    instrumentor = DjangoInstrumentor()
    instrumentor.instrument(session_cookie=option)
    try:
        get("/items/1/", HTTP_COOKIE="sessionid=a")
        get("/items/1/", HTTP_COOKIE="sessionid=a; mine=b")
    finally:
        instrumentor.uninstrument()
    named = [record.get("session_id") for record in trail.records(event="http.request")]
    assert named == [None, option and hashed_session(trail.provider.session_salt, "b")]


@pytest.mark.usefixtures("instrumented")
async def test_a_session_is_named_within_what_knows_nothing_of_django(trail: AuditTrail) -> None:
    async def around(scope: Any, receive: Any, send: Any) -> None:
        get_audit_logger().audit_event("before", "do")
        await ASGIHandler()(scope, receive, send)

    cookie = http("/items/1/", headers=[(b"cookie", b"sessionid=a")])
    assert (await request(AuditMiddleware(around), cookie)).status == 200
    salt = trail.provider.session_salt
    assert [record.get("session_id") for record in trail.records()] == [
        None, hashed_session(salt, "a"), hashed_session(salt, "a"),
    ]  # fmt: skip


@pytest.mark.usefixtures("instrumented")
def test_uvicorn_leaves_it_to_the_instrumentor_that_knows_django() -> None:
    instrumentor = UvicornInstrumentor()
    instrumentor.instrument()
    try:
        app = ASGIHandler()
        config = uvicorn.Config(app, proxy_headers=False, log_config=None)
        config.load()
        assert config.loaded_app is app
    finally:
        instrumentor.uninstrument()


PROJECT = """
from django.http import HttpResponse
from django.urls import path

ROOT_URLCONF = "project"
ALLOWED_HOSTS = ["*"]
SESSION_COOKIE_NAME = "sid"
urlpatterns = [path("items/<int:pk>/", lambda request, pk: HttpResponse(str(pk)))]
"""


def test_sessions_are_named_under_uvicorn_and_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "app.py").write_text(
        "from django.core.asgi import get_asgi_application\napp = get_asgi_application()\n"
    )
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    server = subprocess.Popen(
        [BIN / "opentelemetry-instrument", sys.executable, "-m", "uvicorn", "app:app",
         "--port", str(port)],
        cwd=tmp_path,
        env={
            **os.environ,
            **QUIET,
            "DJANGO_SETTINGS_MODULE": "project",
            "LOG_DIR": str(tmp_path / "logs"),
        },
    )  # fmt: skip
    try:
        netloc = listening(f"http://127.0.0.1:{port}", server)
        with closing(HTTPConnection(netloc, timeout=30)) as connection:
            connection.request("GET", "/items/7/", headers={"Cookie": "session=b; sid=a"})
            assert connection.getresponse().read() == b"7"
    finally:
        server.terminate()
        server.wait(30)
    (record,) = records(tmp_path / "logs")
    assert record["route"] == "/items/<int:pk>/"
    salt = (tmp_path / "logs" / "trail" / "session.salt").read_bytes()
    assert record["session_id"] == hashed_session(salt, "a")


@pytest.mark.usefixtures("instrumented")
async def test_by_asgi(trail: AuditTrail) -> None:
    wire = await request(ASGIHandler(), http("/items/7/"))
    assert (wire.status, wire.body) == (200, b"7")
    read, asked = trail.records()
    assert asked["route"] == "/items/<int:pk>/"
    assert read["request_id"] == asked["request_id"]


@pytest.mark.parametrize("first", ["audit", "opentelemetry"])
def test_it_composes_with_opentelemetry(
    trail: AuditTrail, tracers: TracerProvider, spans: InMemorySpanExporter, first: str
) -> None:
    """One server span, and both records inside it."""
    audit, tracing = DjangoInstrumentor(), Tracing()
    order = [audit.instrument, lambda: tracing.instrument(tracer_provider=tracers)]
    try:
        for instrument in order if first == "audit" else reversed(order):
            instrument()
        get("/items/7/")
    finally:
        tracing.uninstrument()
        audit.uninstrument()
    (server,) = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert server.context is not None
    records = trail.records()
    assert [record["trace_id"] for record in records] == [f"{server.context.trace_id:032x}"] * 2
    assert [record["event"] for record in records] == ["read", "http.request"]
    # What OpenTelemetry extracts from the headers begins with an empty Context.
    assert records[0]["request_id"] == records[1]["request_id"]
    assert [record["actor_id"] for record in records] == ["anonymous"] * 2


def test_uninstrumenting_restores_everything(trail: AuditTrail) -> None:
    def patched() -> list[Any]:
        return [
            WSGIHandler.__call__, ASGIHandler.__call__, BaseHandler.load_middleware,
            auth.get_user, auth.aget_user,
        ]  # fmt: skip

    before = patched()
    middleware = list(settings.MIDDLEWARE)
    instrumentor = DjangoInstrumentor()
    instrumentor.instrument()
    get("/items/1/")
    assert all(one is not other for one, other in zip(patched(), before, strict=True))
    instrumentor.uninstrument()
    assert patched() == before
    assert middleware == settings.MIDDLEWARE
    get("/session", HTTP_X_PASSWORD="right")
    assert [record["event"] for record in trail.records()] == ["read", "http.request", "work"]
