"""One MCP server as the hub holds it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from examples.agenthub import mcp_process
from examples.agenthub.mcp_process import McpError, McpProcess

if TYPE_CHECKING:
    from pathlib import Path


async def launch(toolset: str, tmp_path: Path, credential: str | None = None) -> McpProcess:
    return await McpProcess.launch(toolset, tmp_path / "server.log", credential)


async def test_launch_shakes_hands_and_learns_the_tools(tmp_path: Path) -> None:
    server = await launch("clock", tmp_path)
    assert [tool["name"] for tool in server.tools] == ["now", "days_between", "crash"]
    assert psutil.Process(server.pid).cmdline()[-1] == "clock"
    assert await server.stop() == 0
    assert not psutil.pid_exists(server.pid)


async def test_answers_reach_the_request_they_belong_to(tmp_path: Path) -> None:
    server = await launch("text", tmp_path)
    calls = [server.call("count_words", {"text": "a " * count}) for count in range(50)]
    results = await asyncio.gather(*calls)
    assert [result["content"][0]["text"] for result in results] == [str(n) for n in range(50)]
    await server.stop()


async def test_the_credential_goes_to_the_server_and_the_hubs_environment_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTHUB_PASSWORD", "the-hubs-own")
    server = await launch("text", tmp_path, "s3cret")
    environment = psutil.Process(server.pid).environ()
    assert environment["MCP_CREDENTIAL"] == "s3cret"
    assert "the-hubs-own" not in environment.values()
    await server.stop()


async def test_a_crash_fails_what_waits_and_what_comes_after(tmp_path: Path) -> None:
    server = await launch("text", tmp_path)
    with pytest.raises(McpError, match="ended before it answered"):
        await server.call("crash", {"code": 3})
    assert await server.ended == 3
    with pytest.raises(McpError, match="has ended"):
        await server.call("count_words", {"text": "hello"})


async def test_stop_kills_what_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_process, "GRACE_SECONDS", 0.2)
    server = await launch("text", tmp_path)
    os.kill(server.pid, signal.SIGSTOP)  # it sees neither its stdin end nor SIGTERM
    await asyncio.to_thread(os.waitpid, server.pid, os.WUNTRACED)  # until it stands still
    assert await server.stop() == -signal.SIGKILL
    assert not psutil.pid_exists(server.pid)


async def test_no_answer_in_time_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch("text", tmp_path)
    monkeypatch.setattr(mcp_process, "ANSWER_SECONDS", 0.1)
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitpid, server.pid, os.WUNTRACED)  # until it stands still
    with pytest.raises(McpError, match=r"no answer to tools/call within 0\.1 s"):
        await server.call("count_words", {"text": "hello"})
    os.kill(server.pid, signal.SIGCONT)
    assert await server.stop() == 0


async def test_what_cannot_be_launched_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(McpError, match="ended before it answered"):
        await launch("wizardry", tmp_path)
    assert b"usage" in (tmp_path / "server.log").read_bytes()
    assert not [child for child in psutil.Process().children() if child.is_running()]


async def test_a_line_that_never_ends_costs_the_server_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_process, "LINE_LIMIT", 2_000)
    server = await launch("text", tmp_path)
    with pytest.raises(McpError):
        await server.call("x" * 4_000, {})  # the error names the tool, in one long line
    assert await server.ended == -signal.SIGKILL
