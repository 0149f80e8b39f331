"""The hub's servers, in this process: what is announced, who owns what, what is noticed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from examples.agenthub.hub import Hub, ServerMissingError, ServerStateError, ToolFailedError
from examples.agenthub.mcp_process import McpError
from examples.agenthub.vault import Vault
from otel_audit import AuditUnavailableError, get_audit_provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from examples.agenthub.store import Store
    from tests.examples.conftest import Records

WORDS = {"text": "the arguments are nobody's business"}


class Workers:
    """Hubs on one database, as the workers of uvicorn have them."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.vault = Vault(directory / "vault")
        self._store = store
        self._directory = directory

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Hub]:
        hub = Hub(self._store, self.vault, self._directory / "servers")
        hub.add_demo_servers()
        await hub.open()
        try:
            yield hub
        finally:
            await hub.close()


@pytest.fixture
def workers(records: Callable[[], Records], store: Store, tmp_path: Path) -> Workers:
    assert records() == []
    return Workers(store, tmp_path)


def children() -> list[psutil.Process]:
    return psutil.Process().children()


async def test_without_a_trail_no_server_starts(workers: Workers) -> None:
    async with workers.one() as hub:
        get_audit_provider().close()
        with pytest.raises(AuditUnavailableError):
            await hub.start("text")
        assert children() == []
        assert hub.server("text").state == "stopped"


async def test_the_start_is_on_record_while_it_is_under_way(
    workers: Workers, records: Callable[[], Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    holds = workers.vault.holds

    def look(server: str) -> bool:
        seen.extend(record["status"] for record in records())
        return holds(server)

    async with workers.one() as hub:
        monkeypatch.setattr(workers.vault, "holds", look)
        await hub.start("text")
        monkeypatch.undo()
    assert seen == ["initiated"]


async def test_a_call_is_recorded_without_what_it_is_about(
    workers: Workers, records: Callable[[], Records]
) -> None:
    async with workers.one() as hub:
        await hub.start("text")
        assert await hub.call("text", "count_words", WORDS) == "5"
        with pytest.raises(ToolFailedError) as failed:
            await hub.call("text", "sign", WORDS)
        assert "without a credential" in failed.value.text
        with pytest.raises(McpError, match="unknown tool"):
            await hub.call("text", "no_such_tool", {})
    calls = [record for record in records() if record["event"] == "mcp_tool_call"]
    assert [(call["resource_name"], call["status"]) for call in calls] == [
        ("text/count_words", "success"),
        ("text/sign", "failed"),
        ("text/no_such_tool", "failed"),
    ]
    assert calls[0]["argument_names"] == ["text"]
    assert "nobody's business" not in str(records())


async def test_any_worker_may_be_asked_about_any_server(workers: Workers) -> None:
    async with workers.one() as owner, workers.one() as other:
        await owner.start("text")
        assert other.server("text").pid == owner.server("text").pid
        assert await other.call("text", "count_words", WORDS) == "5"
        with pytest.raises(McpError, match="unknown tool"):
            await other.call("text", "no_such_tool", {})
        with pytest.raises(ServerStateError, match="'text' is running already"):
            await other.start("text")
        await other.stop("text")
        assert children() == []
        assert owner.server("text").state == "stopped"
        with pytest.raises(ServerStateError, match="is not running"):
            await other.stop("text")


async def test_a_worker_that_is_gone_takes_its_servers_state_along(
    workers: Workers, records: Callable[[], Records]
) -> None:
    async with workers.one() as owner, workers.one() as other:
        await owner.start("text")
        await owner._peers.close()  # as if the process had been killed
        with pytest.raises(ServerStateError, match="does not run any more"):
            await other.call("text", "count_words", WORDS)
        assert other.server("text").state == "crashed"
    crashed = [record for record in records() if record["event"] == "mcp_server_crashed"]
    assert [record["resource_name"] for record in crashed] == ["text"]


async def test_a_crash_is_recorded_once_and_the_server_starts_again(
    workers: Workers, records: Callable[[], Records]
) -> None:
    async with workers.one() as hub:
        await hub.start("clock")
        with pytest.raises(McpError):
            await hub.call("clock", "crash", {"code": 7})
        await asyncio.gather(*hub._watchers)
        assert hub.server("clock").state == "crashed"
        assert hub.server("clock").exit_code == 7
        await hub.start("clock")
        assert hub.server("clock").state == "running"
        await hub.stop("clock")
        assert hub.server("clock").exit_code == 0
    assert sum(record["event"] == "mcp_server_crashed" for record in records()) == 1


async def test_a_server_gets_its_credential(workers: Workers) -> None:
    workers.vault.store("text", "s3cret")
    async with workers.one() as hub:
        await hub.start("text")
        signature = await hub.call("text", "sign", WORDS)
        await hub.stop("text")
        workers.vault.store("text", "another")
        await hub.start("text")
        assert await hub.call("text", "sign", WORDS) != signature


async def test_names_are_unique_and_must_exist(workers: Workers) -> None:
    async with workers.one() as hub:
        with pytest.raises(ServerStateError, match="exists already"):
            hub.register("text", "clock")
        for attempt in (hub.start("nobody"), hub.stop("nobody"), hub.call("nobody", "now", {})):
            with pytest.raises(ServerMissingError, match="no server named 'nobody'"):
                await attempt
