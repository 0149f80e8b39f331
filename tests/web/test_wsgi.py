"""WSGI: the same promise as for ASGI, by a real server's rules."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from opentelemetry import trace

from otel_audit import (
    AuditSettingsError,
    AuditUnavailableError,
    AuditWSGIMiddleware,
    get_audit_context,
    get_audit_logger,
    set_actor,
)
from otel_audit.api.context import Actor
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_audit.testing import AuditTrail

Start = Any


class Answer:
    """What a server would send."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body = b""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info is not None and self.body:
            raise exc_info[1]
        self.status, self.headers = status, {name.lower(): value for name, value in headers}
        return self.write

    def write(self, data: bytes) -> None:
        self.body += data


def get(app: Any, path: str = "/", *, checked: bool = True, **environ: Any) -> Answer:
    """Send a request as a server does, with wsgiref's validator in between."""
    setup_testing_defaults(environ)
    environ |= {"PATH_INFO": path, "QUERY_STRING": ""}
    answer = Answer()
    response = (validator(app) if checked else app)(environ, answer.start)
    try:
        for chunk in response:
            assert answer.status, "the response begins before its first byte"
            answer.write(chunk)
    finally:
        close = getattr(response, "close", None)
        if close is not None:
            close()
    return answer


def home(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    get_audit_logger().audit_event("work", "do", path=environ["PATH_INFO"])
    start("200 OK", [("Content-Type", "text/plain"), ("X-Request-ID", "of the application")])
    return [b"home"]


def stream(_environ: dict[str, Any], start: Start) -> Iterator[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    yield b""
    yield b"one"
    get_audit_logger().audit_event("streamed", "do", **get_audit_context())
    yield b"two"


@pytest.fixture
def trail() -> Iterator[AuditTrail]:
    with audit_trail() as trail:
        yield trail


@contextmanager
def held() -> Iterator[AuditTrail]:
    """Give a trail that takes nothing while the block runs."""
    with audit_trail(timeout=0.2) as trail, (trail.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield trail


def test_a_request_has_its_context_and_its_record(trail: AuditTrail) -> None:
    answer = get(
        AuditWSGIMiddleware(home), "/a/\u00c3\u00a9", HTTP_X_REQUEST_ID="r-1", HTTP_X_CLIENT_ID="c-1",
        HTTP_USER_AGENT="test", HTTP_COOKIE="session=abc", REMOTE_ADDR="192.0.2.7",
    )  # fmt: skip
    assert (answer.status, answer.body) == ("200 OK", b"home")
    assert answer.headers["x-request-id"] == "r-1"
    work, request = trail.records()
    for record in (work, request):
        said = {name: record[name] for name in ("request_id", "client_id", "client_ip",
                                                "user_agent", "actor_id")}  # fmt: skip
        assert said == {"request_id": "r-1", "client_id": "c-1", "client_ip": "192.0.2.7",
                        "user_agent": "test", "actor_id": "anonymous"}  # fmt: skip
        assert len(record["session_id"]) == 32
    assert (request["event"], request["path"], request["status_code"]) == (
        "http.request", "/a/é", 200,
    )  # fmt: skip


def test_streams_are_in_the_request_to_the_end(trail: AuditTrail) -> None:
    answer = get(AuditWSGIMiddleware(stream))
    assert answer.body == b"onetwo"
    streamed = trail.record(event="streamed")
    assert streamed["request_id"] == trail.record(event="http.request")["request_id"]
    assert get_audit_context() == {}


def test_who_it_is(trail: AuditTrail) -> None:
    def identify(environ: dict[str, Any]) -> str | None:
        if environ["PATH_INFO"] == "/breaks":
            raise ValueError(environ)
        if environ["PATH_INFO"] == "/cancelled":
            raise asyncio.CancelledError
        return "u-1"

    app = AuditWSGIMiddleware(home, identify=identify)
    get(app)
    get(app, "/breaks")
    get(app, "/cancelled")
    get(AuditWSGIMiddleware(home, identify=lambda environ: Actor(environ.get("HTTP_X_USER"))))
    assert [(record["actor_id"], record["actor_verified"]) for record in trail.records()] == [
        ("u-1", True), ("u-1", True), *[("anonymous", False)] * 6,
    ]  # fmt: skip


def test_an_unconfirmed_record_is_a_503() -> None:
    with held():
        answer = get(AuditWSGIMiddleware(home, http_activity="off"))
    assert answer.status == "503 Service Unavailable"
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"not confirmed" in answer.body


def test_a_swallowed_error_is_a_503_as_well() -> None:
    def swallows(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        try:
            return home(environ, start)
        except AuditUnavailableError:
            start("200 OK", [("Content-Type", "text/plain"), ("Vary", "Origin")])
            return iter([b"all is well"])

    with held():
        answer = get(AuditWSGIMiddleware(swallows, http_activity="off"), checked=False)
    assert answer.status == "503 Service Unavailable"
    assert answer.headers["vary"] == "Origin"
    assert b"all is well" not in answer.body


def test_an_error_of_write_that_is_swallowed_is_a_503_as_well() -> None:
    def swallows(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        with suppress(AuditUnavailableError):
            get_audit_logger().audit_event("work", "do")
        write = start("200 OK", [("Content-Type", "text/plain")])
        with suppress(AuditUnavailableError):
            write(b"all is ")
        return [b"well"]

    with held():
        answer = get(AuditWSGIMiddleware(swallows, http_activity="off"), checked=False)
    assert answer.status == "503 Service Unavailable"
    assert b"not confirmed" in answer.body


def test_a_response_that_has_begun_is_cut_off() -> None:
    with held(), pytest.raises(AuditUnavailableError):
        get(AuditWSGIMiddleware(stream, http_activity="off"))


def test_what_a_view_emits_in_an_event_loop_is_awaited(trail: AuditTrail) -> None:
    def view(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        async def work() -> None:
            get_audit_logger().audit_event("asynchronous", "do")

        # As asgiref does for asynchronous views: with the context, and without waiting for us.
        asyncio.run(work())
        return home(environ, start)

    class Durable(Answer):
        committed = 0

        def start(self, status: str, headers: Any, exc_info: Any = None) -> Any:
            with trail.provider.reader() as reader:
                self.committed = reader.tree().size
            return super().start(status, headers, exc_info)

    answer = Durable()
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    list(AuditWSGIMiddleware(view)(environ, answer.start))
    assert answer.committed == 3


def test_a_closed_trail_refuses_before_the_application_runs(trail: AuditTrail) -> None:
    trail.provider.close()
    ran: list[str] = []

    def app(_environ: dict[str, Any], _start: Start) -> Iterable[bytes]:
        ran.append("ran")
        return []

    answer = get(AuditWSGIMiddleware(app, provider=trail.provider))
    assert answer.status.startswith("503")
    assert b"refused" in answer.body
    assert ran == []


def test_an_unusable_trail_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "file" / "trail"))
    assert get(AuditWSGIMiddleware(home)).status.startswith("503")


def test_errors_of_the_application_are_recorded_and_go_on(trail: AuditTrail) -> None:
    def raises(_environ: dict[str, Any], _start: Start) -> Iterable[bytes]:
        raise KeyError

    def raises_later(environ: dict[str, Any], _start: Start) -> Iterator[bytes]:
        if environ:
            raise KeyError
        yield b""

    for app in (raises, raises_later):
        with pytest.raises(KeyError):
            get(AuditWSGIMiddleware(app), checked=False)
    for record in trail.records():
        assert (record["status_code"], record["error"], record["level"]) == (
            500, "KeyError", "error",
        )  # fmt: skip
    assert len(trail.records()) == 2


def test_an_error_of_an_application_whose_records_are_lost_is_a_503() -> None:
    def raises(_environ: dict[str, Any], _start: Start) -> Iterable[bytes]:
        try:
            get_audit_logger().audit_event("work", "do")
        except AuditUnavailableError:
            raise KeyError from None
        return []

    with held():
        assert get(AuditWSGIMiddleware(raises, http_activity="off")).status.startswith("503")


def test_write_and_exc_info_of_old_applications(trail: AuditTrail) -> None:
    def old(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ValueError  # noqa: TRY301 - what the application does
        except ValueError as error:
            write = start("500 Oh", [("Content-Type", "text/plain")], (ValueError, error, None))
        write(b"writ")
        return [b"ten"]

    answer = get(AuditWSGIMiddleware(old), checked=False)
    assert (answer.status, answer.body) == ("500 Oh", b"written")
    (record,) = trail.records()
    assert (record["status_code"], record["status"], record["error"]) == (
        500, "failed", "ValueError",
    )  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True])
def test_the_record_is_of_the_answer_that_was_sent(trail: AuditTrail, lazy: bool) -> None:  # noqa: FBT001 - parametrized
    """Until the first byte an application may call start_response again (PEP 3333)."""

    def thinks_again(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ValueError  # noqa: TRY301 - what the application does
        except ValueError:
            start("500 Oh", [("Content-Type", "text/plain")], sys.exc_info())
        return iter([b"oh"]) if lazy else [b"oh"]

    assert get(AuditWSGIMiddleware(thinks_again)).status == "500 Oh"
    (record,) = trail.records()
    assert (record["status_code"], record["status"], record["error"]) == (
        500, "failed", "ValueError",
    )  # fmt: skip


def test_an_answer_that_fails_before_its_first_byte_is_no_success(trail: AuditTrail) -> None:
    def breaks(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        if environ:
            raise KeyError
        yield b""

    with pytest.raises(KeyError):
        get(AuditWSGIMiddleware(breaks), checked=False)
    (record,) = trail.records()
    assert (record["status_code"], record["status"], record["error"]) == (500, "failed", "KeyError")


def test_the_record_is_of_the_span_in_which_the_answer_was_made(trail: AuditTrail) -> None:
    """OpenTelemetry's middleware leaves its span before the server asks for the first byte."""
    span = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False))

    def traced(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        with trace.use_span(span):
            return iter(home(environ, start))

    get(AuditWSGIMiddleware(traced))
    assert trail.record(event="http.request")["trace_id"] == f"{7:032x}"


@pytest.mark.parametrize(
    ("options", "path", "method", "recorded"),
    [
        ({"http_activity": "off"}, "/", "GET", 0),
        ({"http_activity": "mutating"}, "/", "GET", 0),
        ({"http_activity": "mutating"}, "/", "POST", 1),
        ({"exclude": "/health"}, "/health/live", "GET", 0),
        ({"exclude": "/health"}, "/healthy", "GET", 1),
    ],
)
def test_activity(
    trail: AuditTrail, options: dict[str, Any], path: str, method: str, recorded: int
) -> None:
    get(AuditWSGIMiddleware(home, **options), path, REQUEST_METHOD=method)
    assert len(trail.records(event="http.request")) == recorded


def test_nested_middleware_stays_out_of_the_way(trail: AuditTrail) -> None:
    get(AuditWSGIMiddleware(AuditWSGIMiddleware(home)))
    assert len(trail.records()) == 2


def test_an_empty_response_and_one_that_never_began(trail: AuditTrail) -> None:
    def empty(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        set_actor("u-7")
        start("204 No Content", [])
        return iter(())

    def silent(_environ: dict[str, Any], _start: Start) -> Iterable[bytes]:
        return iter(())

    assert get(AuditWSGIMiddleware(empty), checked=False).status == "204 No Content"
    assert get(AuditWSGIMiddleware(silent), checked=False).status == ""
    first, second = trail.records()
    assert (first["status_code"], first["actor_id"]) == (204, "u-7")
    assert (second["error"], second.get("status_code")) == ("no response", None)


def test_proxies_of_the_settings_are_believed() -> None:
    with audit_trail(trusted_proxies=["192.0.2.0/24"]) as trail:
        get(AuditWSGIMiddleware(home), REMOTE_ADDR="192.0.2.1", HTTP_X_FORWARDED_FOR="198.51.100.9")
        assert {record["client_ip"] for record in trail.records()} == {"198.51.100.9"}


@pytest.mark.parametrize("option", [{"http_activity": "some"}, {"exclude": ["health"]}, {"foo": 1}])
def test_options_that_cannot_be_used_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(AuditSettingsError):
        AuditWSGIMiddleware(home, **option)
