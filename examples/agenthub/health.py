"""How the hub is: what it watches, and who may see the details.

`/health` and its relatives are answered by the outermost layer, from memory; the checks run in
the background. The audit trail is watched without a line here.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from examples.agenthub.access import COOKIE
from examples.agenthub.config import Config
from examples.agenthub.services import Services
from otel_audit import (
    HealthChecker,
    HealthStatus,
    get_audit_provider,
    setup_health_check_routes,
)
from otel_audit.health.probes.agents import agents_probe
from otel_audit.health.probes.disk import disk_probe
from otel_audit.trail.layout import TOKENS
from otel_audit.web.asgi import Scope
from otel_audit.web.tokens import TokenFile


def watch(app: FastAPI, parts: Services, config: Config) -> None:
    """Watch the database, the MCP servers and the disk, and answer health in ``app``."""

    def database() -> None:
        parts.accounts.users()

    async def servers() -> dict[str, HealthStatus]:
        found = await asyncio.to_thread(parts.hub.servers)
        return {
            server.name: HealthStatus.UNHEALTHY
            if server.state == "crashed"
            else HealthStatus.HEALTHY
            for server in found
        }

    operators = TokenFile(get_audit_provider().directory / TOKENS)

    async def may_see_details(scope: Scope) -> bool:
        if await operators(scope) is not None:
            return True
        token = HTTPConnection(scope).cookies.get(COOKIE)
        user = await asyncio.to_thread(parts.accounts.user_of, token) if token else None
        return user is not None and user.may("trail")

    checker = HealthChecker()
    checker.register("database", database)
    # A server that crashed is its operator's business: the hub itself works.
    checker.register("mcp_servers", agents_probe(servers, at_least=0), critical=False, interval=2)
    checker.register("disk", disk_probe(config.data), interval=30)
    setup_health_check_routes(
        app, checker=checker, authorize=may_see_details, port=config.health_ports
    )
