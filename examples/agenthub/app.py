"""The hub's HTTP interface: which route does what, and who may.

What happens is recorded where it happens (accounts.py, hub.py, members.py,
vault.py), and what is refused in access.py. Requests get their context, their
``http.request`` record and their commit barrier from `instrument_app`: no
answer leaves before the records behind it are on disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel, Field

from examples.agenthub import health, page
from examples.agenthub.access import COOKIE, Allow, Parts, SignedIn, Token, Visitor
from examples.agenthub.accounts import AccountError, LoginError, Role, User
from examples.agenthub.config import Config
from examples.agenthub.hub import Server, ServerMissingError, ServerStateError, ToolFailedError
from examples.agenthub.mcp_process import McpError
from examples.agenthub.mcp_server import TOOLSETS
from examples.agenthub.members import Member, MemberMissingError
from examples.agenthub.services import Services
from examples.agenthub.vault import CredentialMissingError
from otel_audit import events, instrument_app
from otel_audit.web.events import audit_router

NAME: Final = r"^[a-z][a-z0-9-]{0,31}$"
PROBLEMS: Final[dict[type[Exception], int]] = {
    LoginError: 401,
    ServerMissingError: 404,
    MemberMissingError: 404,
    CredentialMissingError: 404,
    AccountError: 409,
    ServerStateError: 409,
    ToolFailedError: 422,
    McpError: 502,
}

router = APIRouter()
Why = Annotated[str, Field(min_length=1, max_length=200)]
Purpose = Annotated[str, Query(min_length=1, max_length=200)]
for_servers = [Depends(Allow("servers"))]
for_credentials = [Depends(Allow("credentials", events.CREDENTIAL_ACCESS, "credential"))]
for_members = [Depends(Allow("members"))]
for_users = [Depends(Allow("users"))]


class Login(BaseModel):
    """A name and a password."""

    name: str = Field(max_length=64)
    password: str = Field(max_length=256)


class NewServer(BaseModel):
    """A server to add."""

    name: str = Field(pattern=NAME)
    toolset: str = Field(pattern=f"^({'|'.join(TOOLSETS)})$")


class ToolCall(BaseModel):
    """A tool and its arguments."""

    tool: str = Field(max_length=64)
    arguments: dict[str, Any] = {}


class Credential(BaseModel):
    """A secret value."""

    value: str = Field(min_length=1, max_length=4096)


class NewMember(BaseModel):
    """A member to add."""

    name: str = Field(min_length=1, max_length=200)
    email: str = Field(max_length=200)
    phone: str = Field(max_length=50)
    health: str = Field(max_length=2000)


class Export(BaseModel):
    """What for, and to whom."""

    purpose: Why
    recipient: Why


class Consent(BaseModel):
    """What the member said, having read which version of the notice."""

    granted: bool
    notice_version: str = Field(default="2026-01", max_length=50)


class NewUser(BaseModel):
    """An account to add."""

    name: str = Field(pattern=NAME)
    password: str = Field(min_length=8, max_length=256)
    role: Role
    reason: Why


class NewRole(BaseModel):
    """Another role, and why."""

    role: Role
    reason: Why


class Reason(BaseModel):
    """Why."""

    reason: Why


@router.post("/api/login")
def login(body: Login, parts: Parts, response: Response) -> dict[str, str]:
    """Sign in; the session is a cookie."""
    token = parts.accounts.login(body.name, body.password)
    # Not "secure": the demo speaks plain HTTP on the loopback address.
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
    return {"signed_in": body.name}


@router.post("/api/logout")
def logout(user: SignedIn, token: Token, parts: Parts, response: Response) -> dict[str, str]:
    """Sign out."""
    parts.accounts.logout(token or "", user)
    response.delete_cookie(COOKIE)
    return {"signed_out": user.name}


@router.get("/api/servers")
def servers(_user: SignedIn, parts: Parts) -> list[Server]:
    """List the MCP servers."""
    return parts.hub.servers()


@router.post("/api/servers", status_code=201, dependencies=for_servers)
def register_server(body: NewServer, parts: Parts) -> Server:
    """Add an MCP server."""
    return parts.hub.register(body.name, body.toolset)


@router.post("/api/servers/{name}/start", dependencies=for_servers)
async def start_server(name: str, parts: Parts) -> dict[str, Any]:
    """Start a server's process and return the tools that it offers."""
    return {"state": "running", "tools": await parts.hub.start(name)}


@router.post("/api/servers/{name}/stop", dependencies=for_servers)
async def stop_server(name: str, parts: Parts) -> dict[str, str]:
    """Stop a server's process."""
    await parts.hub.stop(name)
    return {"state": "stopped"}


@router.post("/api/servers/{name}/call", dependencies=for_servers)
async def call_tool(name: str, body: ToolCall, parts: Parts) -> dict[str, str]:
    """Call a tool of a running server."""
    return {"text": await parts.hub.call(name, body.tool, body.arguments)}


@router.put("/api/servers/{name}/credential", dependencies=for_credentials)
def store_credential(name: str, body: Credential, parts: Parts) -> dict[str, str]:
    """Keep a server's credential in the keyring."""
    parts.vault.store(parts.hub.server(name).name, body.value)
    return {"stored": name}


@router.get("/api/servers/{name}/credential", dependencies=for_credentials)
def read_credential(name: str, purpose: Purpose, parts: Parts) -> dict[str, str]:
    """Show a server's credential."""
    return {"value": parts.vault.read(name, purpose)}


@router.delete("/api/servers/{name}/credential", dependencies=for_credentials)
def delete_credential(name: str, parts: Parts) -> dict[str, str]:
    """Forget a server's credential."""
    parts.vault.delete(name)
    return {"deleted": name}


@router.post("/api/members", status_code=201, dependencies=for_members)
def add_member(body: NewMember, parts: Parts) -> Member:
    """Add a member."""
    return parts.members.add(body.name, body.email, body.phone, body.health)


@router.post("/api/members/export", dependencies=for_members)
def export_members(body: Export, parts: Parts) -> list[Member]:
    """Export the contact data of the members who consented to the purpose."""
    return parts.members.export(body.purpose, body.recipient)


@router.get("/api/members/{member_id}", dependencies=for_members)
def read_member(member_id: int, purpose: Purpose, parts: Parts) -> Member:
    """Show a member's contact data."""
    return parts.members.contact(member_id, purpose)


@router.get("/api/members/{member_id}/health", dependencies=for_members)
def read_health(member_id: int, purpose: Purpose, parts: Parts) -> dict[str, str]:
    """Show a member's health note."""
    return {"health": parts.members.health(member_id, purpose)}


@router.put("/api/members/{member_id}/consents/{purpose}", dependencies=for_members)
def set_consent(member_id: int, purpose: str, body: Consent, parts: Parts) -> dict[str, bool]:
    """Note down a member's consent to a purpose, or its withdrawal."""
    parts.members.set_consent(
        member_id, purpose, granted=body.granted, notice_version=body.notice_version
    )
    return parts.members.consents(member_id)


@router.delete("/api/members/{member_id}", dependencies=for_members)
def delete_member(member_id: int, reason: Purpose, parts: Parts) -> dict[str, int]:
    """Delete a member and all that is known of them."""
    parts.members.delete(member_id, reason)
    return {"deleted": member_id}


@router.post("/api/users", status_code=201, dependencies=for_users)
def create_user(body: NewUser, parts: Parts) -> User:
    """Add an account."""
    return parts.accounts.create(body.name, body.password, body.role, body.reason)


@router.put("/api/users/{name}/role", dependencies=for_users)
def change_role(name: str, body: NewRole, parts: Parts) -> User:
    """Give a user another role."""
    return parts.accounts.set_role(name, body.role, body.reason)


@router.post("/api/users/{name}/unlock", dependencies=for_users)
def unlock_user(name: str, body: Reason, parts: Parts) -> User:
    """Let a locked-out user try again."""
    return parts.accounts.unlock(name, body.reason)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def home(user: Visitor, parts: Parts, *, requests: bool = False) -> HTMLResponse:
    """Show everything on one page, and on demand the ``http.request`` records too."""
    return HTMLResponse(page.home(user, parts, requests=requests), headers=page.HEADERS)


@router.get("/verify", response_class=HTMLResponse, include_in_schema=False)
def verify(user: SignedIn, parts: Parts) -> HTMLResponse:
    """Check the whole trail against its signed checkpoints, now."""
    verdict = parts.trail.verify()
    return HTMLResponse(page.verification(user, parts.trail.state(), verdict), headers=page.HEADERS)


def create_app(config: Config | None = None) -> FastAPI:
    """Build the application; uvicorn calls this once in each worker."""
    config = config or Config.from_env()
    parts = Services.build(config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await parts.hub.open()
        yield
        await parts.hub.close()

    # No /docs: its page loads scripts from elsewhere. /openapi.json says the same.
    app = FastAPI(title="AgentHub", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.services = parts
    app.include_router(router)
    app.include_router(audit_router())
    for kind, status in PROBLEMS.items():
        app.add_exception_handler(kind, _answer_with(status))
    instrument_app(app, session_cookie=COOKIE)
    _give_traces(app)
    health.watch(app, parts, config)
    return app


def _give_traces(app: FastAPI) -> None:
    """Have a span around each request, so that its records share a trace id.

    Nothing is exported here; started by ``opentelemetry-instrument`` the hub
    has its spans already, and sends them where that is told to.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(TracerProvider())
        FastAPIInstrumentor.instrument_app(app)


def _answer_with(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_request: Request, error: Exception) -> Response:
        detail = str(error)
        if isinstance(error, LoginError):
            # Which half of it was wrong is for the trail, not for the one who tries.
            detail = "the login was refused"
        elif isinstance(error, ToolFailedError):
            detail = error.text
        return JSONResponse({"detail": detail}, status)

    return answer
