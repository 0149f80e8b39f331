"""Access by the tokens of an OpenID provider, whose keys a real endpoint serves."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from otel_audit import AuditProvider, AuditSettingsError
from otel_audit.web.access import Oidc
from otel_audit.web.events import AuditEvents
from tests.web.driving import Wire, http, request

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS: dict[str, Any] = {
    "ed": Ed25519PrivateKey.generate(),
    "ec": ec.generate_private_key(ec.SECP256R1()),
    "rsa": rsa.generate_private_key(65_537, 2_048),
}
ALGORITHMS = {"ed": "EdDSA", "ec": "ES256", "rsa": "RS256"}


class Provider:
    """An OpenID provider, as far as its keys go."""

    def __init__(self) -> None:
        self.asked = 0
        self.names = [*KEYS]
        """Of the keys that it publishes."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = json.dumps({"keys": [outer.public(name) for name in outer.names]}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @staticmethod
    def public(name: str) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(ALGORITHMS[name])
        key: Any = algorithm.to_jwk(KEYS[name].public_key(), as_dict=True)
        return {**key, "kid": name, "use": "sig", "alg": ALGORITHMS[name]}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def token(self, name: str = "ed", key: Any = None, headers: Any = None, **claims: Any) -> str:
        said = {
            "iss": self.issuer, "aud": "audit", "sub": "ann", "exp": time.time() + 60,
            "scope": "openid read proof", **claims,
        }  # fmt: skip
        said = {claim: value for claim, value in said.items() if value is not None}
        return jwt.encode(
            said,
            key or KEYS[name],
            algorithm=ALGORITHMS[name],
            headers={"kid": name, **(headers or {})},
        )


@pytest.fixture
def openid() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


async def ask(app: AuditEvents, token: str, path: str = "/audit/events") -> Wire:
    return await request(app, http(path, headers=[(b"authorization", b"Bearer " + token.encode())]))


@pytest.fixture
def app(openid: Provider, provider: AuditProvider) -> AuditEvents:
    authorize = Oidc(issuer=openid.issuer, audience="audit", jwks_url=f"{openid.issuer}/keys")
    return AuditEvents(provider=provider, authorize=authorize, per_minute=0)


@pytest.mark.parametrize("name", sorted(KEYS))
async def test_a_token_that_the_provider_signed_opens_its_scopes(
    app: AuditEvents, openid: Provider, provider: AuditProvider, name: str
) -> None:
    assert (await ask(app, openid.token(name))).status == 200
    assert (await ask(app, openid.token(name, scope=None, scp=["read"]))).status == 200
    assert (await ask(app, openid.token(name, scope="openid"))).status == 403
    with provider.reader() as reader:
        record = orjson.loads(next(iter(reader.leaves())).record)
    assert (record["actor_id"], record["actor_verified"]) == ("ann", True)
    assert openid.asked == 1


async def test_tokens_that_do_not_hold_open_nothing(app: AuditEvents, openid: Provider) -> None:
    public = KEYS["ed"].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    head, body, signature = openid.token().split(".")
    forged = base64.urlsafe_b64encode(
        json.dumps({**json.loads(base64.urlsafe_b64decode(body + "==")), "sub": "root"}).encode()
    ).decode().rstrip("=")  # fmt: skip
    unsigned = jwt.encode({"sub": "ann"}, "", algorithm="none", headers={"kid": "ed"})
    with_public_key = jwt.encode(
        {"iss": openid.issuer, "aud": "audit", "sub": "ann", "exp": time.time() + 60, "scope": "read"},
        public,
        algorithm="HS256",
        headers={"kid": "ed"},
    )  # fmt: skip
    for token in (
        openid.token(exp=time.time() - 60),
        openid.token(exp=None),
        openid.token(sub=None),
        openid.token(aud="another"),
        openid.token(iss="https://elsewhere.example"),
        openid.token(nbf=time.time() + 600),
        openid.token(key=Ed25519PrivateKey.generate()),
        openid.token(headers={"kid": "unknown"}),
        f"{head}.{forged}.{signature}",
        unsigned,
        with_public_key,
        "a.b.c",
        "x",
    ):
        wire = await ask(app, token)
        assert wire.status == 401, token
        assert wire.header(b"content-type") == [b"application/problem+json"]


async def test_scopes_may_have_other_names(openid: Provider, provider: AuditProvider) -> None:
    names = {"audit.read": "read"}
    authorize = Oidc(
        issuer=openid.issuer, audience="audit", jwks_url=f"{openid.issuer}/keys", scopes=names
    )
    app = AuditEvents(provider=provider, authorize=authorize)
    assert (await ask(app, openid.token(scope="audit.read"))).status == 200
    assert (await ask(app, openid.token(scope="read"))).status == 403
    with pytest.raises(AuditSettingsError, match="no scope"):
        Oidc(issuer="i", audience="a", jwks_url="u", scopes={"x": "write"})


async def test_a_provider_that_does_not_answer_opens_nothing(
    app: AuditEvents, openid: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    token = openid.token()
    openid.server.shutdown()
    openid.server.server_close()
    wire = await ask(app, token)
    assert wire.status == 503
    assert orjson.loads(wire.body)["detail"].startswith("Who you are could not be found out")
    assert "Fail to fetch data from the url" in caplog.text


async def test_a_key_that_the_provider_withdrew_opens_nothing_five_minutes_later(
    app: AuditEvents, openid: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ask(app, openid.token("ec"))).status == 200
    openid.names.remove("ec")
    started = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: started + 301, time=lambda: time.time() + 301)
    monkeypatch.setattr("jwt.jwk_set_cache.time", clock)
    assert (await ask(app, openid.token("ec"))).status == 401
    assert (await ask(app, openid.token("ed"))).status == 200
