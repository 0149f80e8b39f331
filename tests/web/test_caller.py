"""Who asks: claims kept as claims, spoofed headers without effect, identity only if verified."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.api.context import Actor, get_audit_context, set_actor
from otel_audit.api.sessions import hashed_session
from otel_audit.errors import AuditSettingsError
from otel_audit.web.caller import CallerReader
from otel_audit.web.middleware import AuditMiddleware
from otel_audit.web.proxies import TrustedProxies
from tests.web.driving import BODY, START, Headers, Wire, connect, http, request, websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.web.asgi import Receive, Scope, Send
    from tests.web.conftest import Records

READER = CallerReader(
    proxies=TrustedProxies(),
    session_cookie="session",
    request_id_header="X-Request-ID",
    client_id_header="X-Client-ID",
)


async def seen(provider: AuditProvider, scope: Scope, **options: Any) -> Mapping[str, Any]:
    """Return the context that a handler sees."""
    contexts: list[Mapping[str, Any]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        contexts.append(get_audit_context())
        await send(START)
        await send(BODY)

    await request(AuditMiddleware(app, provider=provider, **options), scope)
    return contexts[0]


async def answering(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer with 200 and a request id of its own."""
    await send({**START, "headers": [(b"X-Request-Id", b"mine"), (b"etag", b"1")]})
    await send(BODY)


async def test_a_request_without_any_claim(provider: AuditProvider) -> None:
    """What is unknown is called so; a request id is made."""
    context = await seen(provider, http(client=None))
    assert UUID(context["request_id"]).version == 4
    assert dict(context) == {
        "request_id": context["request_id"],
        "client_id": "anonymous",
        "client_ip": "unknown",
    }


async def test_what_a_request_may_claim(provider: AuditProvider) -> None:
    """Each fact under its own name; none of them is an actor."""
    headers = [
        (b"x-request-id", b"req-42"),
        (b"x-client-id", b"kiosk/7"),
        (b"user-agent", b"curl/8"),
        (b"cookie", b"a=b; session=s3cret; c=d"),
    ]
    context = await seen(provider, http(headers=headers))
    assert dict(context) == {
        "request_id": "req-42",
        "client_id": "kiosk/7",
        "client_ip": "192.0.2.7",
        "user_agent": "curl/8",
        "session_id": hashed_session(provider.session_salt, "s3cret"),
    }


@pytest.mark.parametrize(
    "claimed",
    [b"", b"a b", b"a\nb", b"\xff", b"x" * 129, b'"quoted"', b"a;b", b"a,b", b"<script>"],
)
async def test_a_malformed_request_id_is_replaced(provider: AuditProvider, claimed: bytes) -> None:
    """It goes into logs and back into a header, so it holds nothing that means something there."""
    app = AuditMiddleware(answering, provider=provider)
    wire = await request(app, http(headers=[(b"x-request-id", claimed)]))
    assert re.fullmatch(rb"[0-9a-f-]{36}", wire.header(b"x-request-id")[0])


async def test_a_repeated_claim_is_none(provider: AuditProvider) -> None:
    """Two ids are a sign that somebody added one, and nobody knows which."""
    headers = [(b"x-request-id", b"one"), (b"x-client-id", b"one")]
    context = await seen(provider, http(headers=headers + [(n, b"two") for n, _ in headers]))
    assert context["request_id"] not in {"one", "two"}
    assert context["client_id"] == "anonymous"


async def test_the_response_names_the_request_once(provider: AuditProvider) -> None:
    """Our id, not the application's beside it; the application's own list stays as it was."""
    app = AuditMiddleware(answering, provider=provider)
    wire = await request(app, http(headers=[(b"x-request-id", b"req-42")]))
    assert wire.header(b"x-request-id") == [b"req-42"]
    assert wire.header(b"etag") == [b"1"]
    assert START["headers"] == []


async def test_headers_may_have_other_names(provider: AuditProvider) -> None:
    """Who uses X-Correlation-ID keeps it, and X-Request-ID means nothing then."""
    app = AuditMiddleware(answering, provider=provider, request_id_header="X-Correlation-ID")
    scope = http(headers=[(b"x-correlation-id", b"corr"), (b"x-request-id", b"req")])
    wire = await request(app, scope)
    assert wire.header(b"x-correlation-id") == [b"corr"]
    assert wire.header(b"x-request-id") == [b"mine"]


async def test_a_client_id_may_be_ignored(provider: AuditProvider) -> None:
    """Without a header there is no such claim."""
    scope = http(headers=[(b"x-client-id", b"kiosk")])
    assert (await seen(provider, scope, client_id_header=None))["client_id"] == "anonymous"


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"x-real-ip"])
async def test_a_forwarding_header_means_nothing_by_itself(
    provider: AuditProvider, name: bytes
) -> None:
    """Nobody said that a proxy stands before us."""
    context = await seen(provider, http(headers=[(name, b"for=1.2.3.4")]))
    assert context["client_ip"] == "192.0.2.7"


async def test_trusted_proxies_by_argument_and_by_setting(
    provider: AuditProvider, make_provider: Callable[..., AuditProvider]
) -> None:
    """The argument wins over the settings; both are networks."""
    scope = http(headers=[(b"x-forwarded-for", b"6.6.6.6, 203.0.113.9")])
    rfc = http(
        headers=[(b"forwarded", b'for="[2001:db8::1]:80"'), (b"x-forwarded-for", b"6.6.6.6")]
    )
    trusting = make_provider(trusted_proxies=("192.0.2.0/24",))
    assert (await seen(trusting, dict(scope)))["client_ip"] == "203.0.113.9"
    assert (await seen(trusting, dict(scope), trusted_proxies=[]))["client_ip"] == "192.0.2.7"
    by_argument = await seen(provider, dict(scope), trusted_proxies=["192.0.2.7"])
    assert by_argument["client_ip"] == "203.0.113.9"
    by_rfc = await seen(
        provider, dict(rfc), trusted_proxies=["192.0.2.7"], proxy_header="Forwarded"
    )
    assert by_rfc["client_ip"] == "2001:db8::1"
    by_one_pass = await seen(provider, dict(scope), trusted_proxies=iter(["192.0.2.7"]))
    assert by_one_pass["client_ip"] == "203.0.113.9"
    settings = make_provider(trusted_proxies=("unix",), proxy_header="forwarded")
    assert (await seen(settings, {**rfc, "client": None}))["client_ip"] == "2001:db8::1"
    by_other = await seen(settings, {**rfc, "client": None}, proxy_header="x-forwarded-for")
    assert by_other["client_ip"] == "6.6.6.6"


async def test_sessions_are_hashed_with_the_trail_s_salt(
    provider: AuditProvider, records: Records
) -> None:
    """One session has one name in one trail, and the cookie itself is nowhere."""
    cookie = [(b"cookie", b"session=s3cret")]
    first = await seen(provider, http(headers=cookie))
    again = await seen(provider, http(headers=[(b"cookie", b"x=y"), *cookie]))
    other = await seen(provider, http(headers=[(b"cookie", b"session=other")]))
    assert first["session_id"] == again["session_id"] != other["session_id"]
    assert re.fullmatch("[0-9a-f]{32}", first["session_id"])
    assert "s3cret" not in str(records())


@pytest.mark.parametrize("cookie", [b"", b"session", b"session=", b"xsession=1", b";;=;", b"\xff"])
async def test_no_session_in_the_cookies(provider: AuditProvider, cookie: bytes) -> None:
    """Neither an empty value nor another cookie is a session."""
    assert "session_id" not in await seen(provider, http(headers=[(b"cookie", cookie)]))


async def test_the_session_cookie_is_a_choice(provider: AuditProvider) -> None:
    """It may have another name, or none."""
    scope = http(headers=[(b"cookie", b"session=a; sid=b")])
    named = await seen(provider, dict(scope), session_cookie="sid")
    assert named["session_id"] == hashed_session(provider.session_salt, "b")
    assert "session_id" not in await seen(provider, dict(scope), session_cookie=None)


async def test_a_long_user_agent_is_cut(provider: AuditProvider) -> None:
    """It is a story of the client's; 256 characters tell enough."""
    context = await seen(provider, http(headers=[(b"user-agent", b"x" * 10_000)]))
    assert context["user_agent"] == "x" * 256


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"x-request-id", b"x-client-id", b"user-agent", b"cookie", b"x-forwarded-for"]
            ),
            st.binary(max_size=300),
        )
    ),
    client=st.sampled_from([None, ("::1", 1), ("", 0), ("not an address", 1), ("fe80::1%eth0", 1)]),
)
def test_no_header_raises_or_gets_through_raw(headers: Headers, client: object) -> None:
    """Whatever is sent: facts that are short and well formed, or none."""
    scope = READER.read(http(headers=headers, client=client), b"salt")
    assert re.fullmatch(r"[!-~]{1,128}", scope.request_id)
    assert re.fullmatch(r"[!-~]{1,128}", scope.client_id)
    assert scope.session_id is None or re.fullmatch(r"[0-9a-f]{32}", scope.session_id)
    assert scope.actor is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"request_id_header": "a b"}, "request_id_header='a b' is no header's name"),
        ({"client_id_header": "a:"}, "client_id_header='a:' is no header's name"),
        ({"session_cookie": "a;b"}, "session_cookie='a;b' is no cookie's name"),
        ({"trusted_proxies": ["x"]}, "trusted proxy 'x' cannot be used"),
        ({"proxy_header": "via"}, "proxy_header='via' cannot be used"),
        ({"http_activity": "some"}, "http_activity='some' cannot be used"),
        ({"exclude": ["health"]}, "exclude='health' cannot be used"),
    ],
)
def test_options_are_checked_when_the_middleware_is_made(options: Any, said: str) -> None:
    """A typing error is an error at the start, not at the first request."""
    with pytest.raises(AuditSettingsError, match=re.escape(said)):
        AuditMiddleware(answering, **options)


async def identified(
    provider: AuditProvider, records: Records, hook: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Return what the newest record says of the actor."""
    await request(AuditMiddleware(answering, provider=provider, identify=hook))
    record = records()[-1]
    return record["actor_id"], record["actor_type"], record["actor_verified"]


ANONYMOUS = ("anonymous", "user", False)


async def test_identify(provider: AuditProvider, records: Records) -> None:
    """A string is a user; an Actor says more; a coroutine function is awaited; None is nobody."""

    async def looked_up(scope: Mapping[str, Any]) -> Actor:
        assert scope["path"] == "/"
        return Actor("billing", "service")

    assert await identified(provider, records, lambda _scope: "alice") == ("alice", "user", True)
    assert await identified(provider, records, looked_up) == ("billing", "service", True)
    assert await identified(provider, records, lambda _scope: None) == ANONYMOUS
    assert await identified(provider, records, lambda _scope: "") == ANONYMOUS


async def test_an_identity_that_fails_is_none(
    provider: AuditProvider, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    """The request goes on, anonymous, and the log says why."""

    async def breaks(_scope: object) -> str:
        message = "the directory is down"
        raise ConnectionError(message)

    assert await identified(provider, records, breaks) == ANONYMOUS
    assert "the directory is down" in caplog.text
    assert await identified(provider, records, lambda _scope: 42) == ANONYMOUS
    assert "identify= returned int" in caplog.text


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio does not tell whose cancellation it is"
)
async def test_a_cancellation_within_the_hook_is_its_failure(
    provider: AuditProvider, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    """A look-up that was cancelled is no reason to leave the request without an answer."""

    async def cancelled(_scope: object) -> str:
        lookup = asyncio.create_task(asyncio.sleep(10, "alice"))
        await asyncio.sleep(0)
        lookup.cancel()
        return await lookup

    assert await identified(provider, records, cancelled) == ANONYMOUS
    assert "identify= failed" in caplog.text


async def test_a_request_that_is_cancelled_ends_in_the_hook(provider: AuditProvider) -> None:
    """Whoever cancels a request must not find that it goes on, as nobody's."""

    async def waits(_scope: object) -> str:
        return await asyncio.sleep(10, "alice")

    app = AuditMiddleware(answering, provider=provider, identify=waits)
    task = asyncio.create_task(request(app))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Actor(None), "actor_id is None"),  # type: ignore[arg-type]
        (Actor(""), "actor_id is ''"),
        (Actor(42), "actor_id is 42"),  # type: ignore[arg-type]
        (Actor({"id": 1}), "actor_id is {'id': 1}"),  # type: ignore[arg-type]
        (Actor("bob", "superuser"), "actor_type 'superuser'"),
        (Actor("bob", ["user"]), "actor_type ['user']"),  # type: ignore[arg-type]
        (Actor("bob", verified="yes"), "verified is 'yes'"),  # type: ignore[arg-type]
    ],
)
async def test_an_actor_that_says_nobody_is_none(
    provider: AuditProvider,
    records: Records,
    caplog: pytest.LogCaptureFixture,
    found: Actor,
    said: str,
) -> None:
    """A header that is not there makes no verified nobody: what `set_actor` refuses is no identity."""
    assert await identified(provider, records, lambda _scope: found) == ANONYMOUS
    assert said in caplog.text


async def test_later_authentication_wins(
    provider: AuditProvider, audit: AuditLogger, records: Records
) -> None:
    """What a handler finds out, it says for the rest of the request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        audit.audit_event("step", "first")
        set_actor("bob")
        audit.audit_event("step", "second")
        await answering(scope, receive, send)

    await request(AuditMiddleware(app, provider=provider, identify=lambda _scope: "alice"))
    assert [record["actor_id"] for record in records()] == ["alice", "bob", "bob"]


async def test_an_actor_does_not_survive_the_request(
    provider: AuditProvider, records: Records
) -> None:
    """The next request on the same connection is nobody again."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/login":
            set_actor("alice")
        await answering(scope, receive, send)

    audited = AuditMiddleware(app, provider=provider)
    await request(audited, http("/login"))
    await request(audited, http("/other"))
    assert [record["actor_id"] for record in records()] == ["alice", "anonymous"]
    assert dict(get_audit_context()) == {}


async def test_a_websocket_has_the_same_context(provider: AuditProvider) -> None:
    """And the same request id in the handshake's answer."""
    contexts: list[Mapping[str, Any]] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        contexts.append(get_audit_context())
        await send({"type": "websocket.accept", "headers": None})

    wire: Wire = await connect(
        AuditMiddleware(app, provider=provider, identify=lambda _scope: "alice"),
        scope=websocket(headers=[(b"x-request-id", b"ws-1")]),
    )
    assert contexts[0]["request_id"] == "ws-1"
    assert contexts[0]["actor_id"] == "alice"
    assert wire.header(b"x-request-id") == [b"ws-1"]
