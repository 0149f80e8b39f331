"""Applications that others wrote and published, run as they are, used, and looked up in the trail.

Each is started by its own command under ``opentelemetry-instrument`` with
nothing but environment variables, among them those that a test adds: for
another distribution, or for more workers.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import tarfile
import threading
from contextlib import closing, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import pytest

from collector.stack.servers import free_port
from tests.stack.environments import CACHE, environment, run
from tests.stack.launched import Launched
from tests.stack.servers import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

AUDITED: Final = {"OTEL_AUDIT_RULE_SETS": "logins,sql"}
FASTAPI: Final = "0.165.0"
FORM: Final = "application/x-www-form-urlencoded"


@contextmanager
def launched(
    binaries: Path, directory: Path, *command: str, workers: int, **said: str
) -> Iterator[Launched]:
    """Start a server on a port of its own; it is uvicorn if it has several workers, all of them up."""
    port = free_port()
    command = (*command, "--port", str(port))
    if workers > 1:
        command = (*command, "--workers", str(workers))
    with Launched(binaries, directory, *command, port=port, **{**AUDITED, **said}) as server:
        if workers > 1:
            server.wait_until_it_says("Application startup complete.", workers)
        yield server


def log_in(server: Launched, path: str, password: str) -> tuple[int, str]:
    """Send the form of OAuth's password grant; return the status, and the token if there is one."""
    form = urlencode({"grant_type": "password", "username": "alice", "password": password})
    status, body, _ = server.ask(path, "POST", form.encode(), Content_Type=FORM)
    return status, json.loads(body).get("access_token", "")


def check_log_ins(server: Launched, route: str | None = None) -> None:
    """Look for one that failed and one that did not, each in the trace of its request."""
    outcomes = []
    for record in server.records(event="authentication"):
        (request,) = server.records(event="http.request", request_id=record["request_id"])
        assert int(record["trace_id"], 16)
        assert record["trace_id"] == request["trace_id"]
        assert route is None or record["resource_name"] == request["route"] == route
        outcomes.append(record["outcome"])
    assert outcomes == ["failure", "success"]


def check_session(server: Launched) -> None:
    """Look for the session that a log-in writes into the database, in the trace of its request."""
    (login,) = server.records(event="authentication", outcome="success")
    writes = server.records(event="database_write", trace_id=login["trace_id"])
    assert ("INSERT", "sessions") in [(one["action"], one["resource_name"]) for one in writes]
    assert all(one["request_id"] == login["request_id"] for one in writes)


# tiled: a data server for scientists, on FastAPI and SQLAlchemy

TILED: Final = """
authentication:
  providers:
  - provider: toy
    authenticator: tiled.authenticators:DictionaryAuthenticator
    args:
      users_to_passwords: {alice: "correct horse"}
  secret_keys: ["SECRET"]
database: {uri: "sqlite:///./auth.sqlite", init_if_not_exists: true}
trees:
- path: /
  tree: catalog
  args: {uri: "sqlite:///./catalog.sqlite", writable_storage: ./data, init_if_not_exists: true}
"""
KEYS: Final = """
routes:
- match: POST /api/v1/auth/apikey
  event: credential_modified
  event_type: credential_access
  resource_type: credential
  resource_name: "{route}"
- match: GET /api/v1/auth/apikey
  event: credential_accessed
  event_type: credential_access
  resource_type: credential
  resource_name: "{route}"
- match: DELETE /api/v1/auth/apikey
  event: credential_deleted
  event_type: credential_access
  resource_type: credential
  resource_name: "{query.first_eight}"
"""


def tiled(binaries: Path, directory: Path, workers: int = 1, **said: str) -> Launched:
    """Log in badly and well; get an API key, use it, revoke it.

    One worker by its own command, which makes the databases; several by
    uvicorn, where each of them would make its own.
    """
    (directory / "config.yml").write_text(TILED)
    (directory / "policy.yaml").write_text(KEYS)
    said = {"OTEL_AUDIT_POLICY_FILE": "policy.yaml", **said}
    command: tuple[str, ...] = ("tiled", "serve", "config", "config.yml")
    if workers > 1:
        command = ("uvicorn", "tiled.server.app:app_factory", "--factory")
        for name, content in _tiled_databases().items():
            (directory / name).write_bytes(content)
    with launched(binaries, directory, *command, workers=workers, **said) as server:
        assert server.ask("/api/v1/")[0] == 200
        assert log_in(server, "/api/v1/auth/provider/toy/token", "wrong")[0] == 401
        status, token = log_in(server, "/api/v1/auth/provider/toy/token", "correct horse")
        assert status == 200
        key = use_key(server, token)
    check_log_ins(server, "/api/v1/auth/provider/toy/token")
    check_session(server)
    check_key(server)
    assert [
        value for value in ("correct horse", token, key) if value in str(server.records())
    ] == []
    server.verify()
    return server


def use_key(server: Launched, token: str) -> str:
    """Let the user who has logged in make an API key, use it and revoke it; return it."""
    path, user = "/api/v1/auth/apikey", f"Bearer {token}"
    asked = json.dumps({"expires_in": 600, "scopes": ["inherit"]}).encode()
    status, body, _ = server.ask(
        path, "POST", asked, Authorization=user, Content_Type="application/json"
    )
    assert status == 200, body
    key: str = json.loads(body)["secret"]
    assert server.ask(path, Authorization=f"Apikey {key}")[0] == 200
    assert server.ask(f"{path}?first_eight={key[:8]}", "DELETE", Authorization=user)[0] == 204
    assert server.ask(path, Authorization=f"Apikey {key}")[0] == 401
    return key


def check_key(server: Launched) -> None:
    """Look for what happened to the API key, and for what that did in the database."""
    shown = []
    for record in server.records(event_type="credential_access"):
        trace = record["trace_id"]
        (request,) = server.records(event="http.request", trace_id=trace)
        assert record["request_id"] == request["request_id"]
        writes = server.records(event="database_write", trace_id=trace)
        changed = [one["action"] for one in writes if one["resource_name"] == "api_keys"]
        shown.append((record["event"], record["outcome"], changed))
    assert shown == [
        ("credential_modified", "success", ["INSERT"]),
        ("credential_accessed", "success", []),
        ("credential_deleted", "success", ["DELETE"]),
        ("credential_accessed", "failure", []),
    ]


@cache
def _tiled_databases() -> dict[str, bytes]:
    """Make them with tiled's own commands, once a run: it takes seconds."""
    made = {}
    with TemporaryDirectory() as place:
        for command, name in (
            (("catalog", "init"), "catalog.sqlite"),
            (("admin", "initialize-database"), "auth.sqlite"),
        ):
            database = Path(place, name)
            run(environment("published") / "tiled", *command, f"sqlite:///{database}")
            made[name] = database.read_bytes()
    return made


# The examples of FastAPI's documentation


@cache
def _documentation() -> Path:
    """Fetch the examples, which are in FastAPI's source distribution."""
    place = CACHE / "fastapi"
    examples = place / f"fastapi-{FASTAPI}" / "docs_src"
    if not examples.exists():
        run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download",
            "--no-deps", "--no-binary", "fastapi", "--dest", place, f"fastapi=={FASTAPI}")  # fmt: skip
        with tarfile.open(place / f"fastapi-{FASTAPI}.tar.gz") as archive:
            archive.extractall(place, filter="data")
    return examples


def documented_log_in(binaries: Path, directory: Path, workers: int = 1, **said: str) -> Launched:
    """Log in badly and well, and use the token."""
    command = ("uvicorn", "tutorial003:app", "--app-dir", str(_documentation() / "security"))
    with launched(binaries, directory, *command, workers=workers, **said) as server:
        assert log_in(server, "/token", "wrong")[0] == 400
        assert log_in(server, "/token", "secret2")[0] == 200
        assert server.ask("/users/me", Authorization="Bearer johndoe")[0] == 200
    check_log_ins(server, "/token")
    assert "secret2" not in str(server.records())
    server.verify()
    return server


def documented_database(binaries: Path, directory: Path, workers: int = 1, **said: str) -> Launched:
    """Make a hero, and delete them."""
    place = _documentation() / "sql_databases"
    if workers > 1:  # they would make the same table at once
        code = "from tutorial002 import create_db_and_tables as make; make()"
        run("env", f"PYTHONPATH={place}", binaries / "python", "-c", code, cwd=directory)
    command = ("uvicorn", "tutorial002:app", "--app-dir", str(place))
    hero = json.dumps({"name": "Deadpond", "secret_name": "Dive Wilson"}).encode()
    with launched(binaries, directory, *command, workers=workers, **said) as server:
        assert server.ask("/heroes/", "POST", hero, Content_Type="application/json")[0] == 200
        assert server.ask("/heroes/1", "DELETE")[0] == 200
    for method, action in (("POST", "INSERT"), ("DELETE", "DELETE")):
        (request,) = server.records(event="http.request", action=method)
        (write,) = server.records(event="database_write", trace_id=request["trace_id"])
        assert (write["action"], write["resource_name"]) == (action, "hero")
        assert write["request_id"] == request["request_id"]
    assert "Dive Wilson" not in str(server.records())
    server.verify()
    return server


# piccolo_admin: an administration page with a database, on FastAPI and Piccolo


def piccolo_admin(binaries: Path, directory: Path, **said: str) -> Launched:
    """Log in badly and well, as its page does; its demonstration listens on port 8000."""
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is taken, and the demonstration listens nowhere else")
    with postgres() as port:
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "audit"}
        run("psql", "-h", "127.0.0.1", "-p", port, "-U", "audit", "-d", "postgres",
            "-c", "CREATE DATABASE piccolo_admin")  # fmt: skip
        command = ("admin_demo", "--engine=postgres")
        said = {**AUDITED, **place, **said}
        with Launched(binaries, directory, *command, port=8000, **said) as server:
            _, _, headers = server.ask("/public/login/")
            cookie = headers["set-cookie"].split(";")[0]
            token = cookie.partition("=")[2]
            for password in ("wrong", "piccolo123"):
                form = urlencode({"username": "piccolo", "password": password, "csrftoken": token})
                shown = {"Cookie": cookie, "X_CSRFToken": token, "Content_Type": FORM}
                status, body, _ = server.ask("/public/login/", "POST", form.encode(), **shown)
                assert (status < 400) is (password != "wrong"), body
    check_log_ins(server)
    check_session(server)
    assert "piccolo123" not in str(server.records())
    server.verify()
    return server


# mcp-atlassian: tools for language models, on Starlette, which keeps its tokens in the keyring

CALL: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "jira_get_link_types", "arguments": {}},
}
SERVICE: Final = "mcp-atlassian-oauth"
OLD: Final = {"access_token": "access-one", "refresh_token": "refresh-one", "expires_at": 1}
NEW: Final = {"access_token": "access-two", "refresh_token": "refresh-two", "expires_in": 3600}


def mcp_atlassian(binaries: Path, directory: Path, workers: int = 1, **said: Any) -> Launched:
    """Let it read a token that has expired, renew it, and use the new one.

    One worker by its own command, several by uvicorn. The old token comes into the keyring, which is a file here, by the command
    of the keyring library.
    """
    with jira() as (address, asked):
        said = {
            **AUDITED,
            "HOME": str(directory),
            "XDG_DATA_HOME": str(directory / "data"),
            "PYTHON_KEYRING_BACKEND": "keyrings.alt.file.PlaintextKeyring",
            "JIRA_URL": address,
            "ATLASSIAN_OAUTH_CLIENT_ID": "shop",
            "ATLASSIAN_OAUTH_CLIENT_SECRET": "client-secret",
            "ALLOW_GLOBAL_CRED_FALLBACK": "true",
            "FASTMCP_CHECK_FOR_UPDATES": "off",
            "FASTMCP_STATELESS_HTTP": "true",
            **said,
        }
        keyring = ("keyring", "set", SERVICE, "oauth-shop")
        setting = Launched(binaries, directory, *keyring, typed=json.dumps(OLD), **said)
        assert setting.process.wait(60) == 0, setting.said()
        command: tuple[str, ...] = ("mcp-atlassian", "--transport", "streamable-http",
                                    "--stateless", "--host", "127.0.0.1")  # fmt: skip
        if workers > 1:
            command = ("uvicorn", "mcp_atlassian.servers:main_mcp.http_app", "--factory")
        with launched(binaries, directory, *command, workers=workers, **said) as server:
            both = "application/json, text/event-stream"
            sent = {"Content_Type": "application/json", "Accept": both}
            status, body, _ = server.ask("/mcp", "POST", json.dumps(CALL).encode(), **sent)
            assert (status, "Blocks" in body.decode()) == (200, True), body
    assert asked == ["Bearer access-two"]
    check_credentials(server, address, workers)
    server.verify()
    return server


def check_credentials(server: Launched, address: str, workers: int) -> None:
    """By one question: who used the credential; what a request did is in its trace."""
    (request,) = server.records(event="http.request")
    shown = [
        (record["event"], record["resource_name"], record["context"], record.get("trace_id"))
        for record in server.records(event_type="credential_access")
    ]
    own = f"oauth-shop-dc-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    trace = request["trace_id"]
    module = "mcp_atlassian.utils.oauth"
    assert int(trace, 16)
    assert shown == [
        ("credential_modified", f"{SERVICE}/oauth-shop", "__main__:<module>", None),
        *workers
        * [("credential_accessed", f"{SERVICE}/oauth-shop", f"{module}:load_tokens", None)],
        ("credential_modified", f"{SERVICE}/{own}", f"{module}:_save_tokens", trace),
        ("credential_modified", f"{SERVICE}/oauth-shop", f"{module}:_save_tokens", trace),
    ]
    values = (OLD["access_token"], OLD["refresh_token"], NEW["access_token"], NEW["refresh_token"])
    text = str(server.records())
    assert [value for value in (*values, "client-secret") if str(value) in text] == []


@contextmanager
def jira() -> Iterator[tuple[str, list[str]]]:
    """Answer as Jira does when a token is renewed and used; give its address, and the tokens used."""
    used: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path.endswith("/oauth2/latest/token"):
                answer: dict[str, Any] = NEW
            else:
                used.append(self.headers["authorization"])
                answer = {"issueLinkTypes": [{"id": "1", "name": "Blocks"}]}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - http.server's way

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", used
    finally:
        server.shutdown()
        server.server_close()
