"""Start the hub: ``python -m examples.agenthub`` (which is what ``make run`` does)."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Final

import uvicorn

from examples.agenthub.config import Config
from examples.agenthub.services import DEMO_USERS, Services
from otel_audit import get_audit_provider
from otel_audit.web.access import SCOPES
from otel_audit.web.tokens import FILE, TokenFile

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 8000
PORTS: Final = 50
OPERATOR: Final = "operator"


def main() -> None:
    """Prepare the data, say what can be done, and serve until Ctrl-C."""
    arguments = _arguments()
    config = Config.from_env()
    port = _free_port(arguments.host, arguments.port)
    os.environ["AGENTHUB_DATA"] = str(config.data)
    password = _prepare(config, new_password=arguments.new_password)
    token = _operator_token(port)
    address = f"http://{arguments.host}:{port}"
    print(_banner(config, address, password, token), flush=True)
    uvicorn.run(
        "examples.agenthub.app:create_app",
        factory=True,
        host=arguments.host,
        port=port,
        workers=arguments.workers,
        # The trail has a record of each request already.
        access_log=False,
        log_level="warning",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.agenthub", description=__doc__)
    parser.add_argument(
        "--host",
        default=HOST,
        help=f"address to listen on (default: {HOST}; a container's: 0.0.0.0)",
    )
    parser.add_argument(
        "--port",
        type=int,
        help=f"port (default: the first free one from {FIRST_PORT}; 0: any)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--new-password", action="store_true", help="give the demo users a new password"
    )
    return parser.parse_args()


def _free_port(host: str, wanted: int | None) -> int:
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS) if wanted is None else (wanted,)
    for port in candidates:
        with socket.socket() as attempt:
            # As uvicorn will bind it: connections that linger from before are no obstacle.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((host, port))
            except OSError:
                continue
            return int(attempt.getsockname()[1])
    sys.exit(f"port {candidates[0]} on {host} is taken; name another one with --port")


def _prepare(config: Config, *, new_password: bool) -> str | None:
    """Make the demo data on the first start; return the demo users' password if it is new.

    One that was named counts, whatever it was before.
    """
    wanted = os.environ.get("AGENTHUB_PASSWORD")
    password = wanted or "-".join(secrets.token_hex(2) for _ in range(3))
    # uvicorn opens everything anew in the processes that serve.
    services = Services.build(config)
    try:
        if services.add_demo_data(password):
            return password
        if new_password or wanted:
            services.reset_demo_password(password)
        return password if new_password else None
    finally:
        get_audit_provider().close()


def _operator_token(port: int) -> str:
    """Make a token for this evening; that of an earlier start on this port holds no more."""
    tokens = TokenFile(get_audit_provider().directory / FILE)
    # Another hub may serve the same data on another port.
    name = f"{OPERATOR}-{port}"
    tokens.revoke(name)
    token, _ = tokens.create(name, SCOPES, seconds=12 * 3_600)
    return token


def _banner(config: Config, address: str, password: str | None, token: str) -> str:
    provider = get_audit_provider()
    directory = _short(provider.directory)
    mirror = provider.settings.mirror_file
    programs = _short(Path(sys.executable).parent)
    users = ", ".join(f"{name} ({role.value})" for name, role in DEMO_USERS.items())
    another = f"{programs}/python -m examples.agenthub --new-password"
    named = os.environ.get("AGENTHUB_PASSWORD")
    before = f"the one printed on the first start ({another} makes another)"
    known = password or ("the one in AGENTHUB_PASSWORD" if named else before)
    given = password or "..."
    lines = [
        "",
        f"  AgentHub      {address}",
        f"  Sign in as    {users}",
        f"  Password      {known}",
        "",
        f"  The trail     {programs}/otel-audit tail -f --dir {directory}",
        f"                tail -f {_short(mirror)}" if mirror else "",
        f"  Verify it     {programs}/otel-audit verify --dir {directory}",
        f"  Health        echo {token} | {programs}/otel-audit health --token-file - {address}/health",
        "",
        f"  Ask it        curl -sH 'Authorization: Bearer {token}' '{address}/audit/events?event=authentication&outcome=failure&start=-24h'",
        f"                curl -sNH 'Authorization: Bearer {token}' '{address}/audit/stream?outcome=failure'",
        "",
        f"  Play traffic  AGENTHUB_PASSWORD={given} {programs}/python -m examples.agenthub.driver --url {address} --check {directory}",
        "",
        f"  Data in {config.data}; Ctrl-C stops the hub and its servers.",
        "",
    ]
    return "\n".join(lines)


def _short(path: Path) -> Path:
    """Return the path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
