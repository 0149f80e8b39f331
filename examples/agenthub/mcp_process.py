"""One MCP server as a subprocess, spoken to over its stdin and stdout.

Promises: an answer reaches the request it belongs to, whatever the order; a
server that ends fails what waits for it at once; `stop` leaves no process
behind (MCP's stdio shutdown: close stdin, then SIGTERM, then SIGKILL); and a
hub that dies takes its servers along, because they see their stdin end.
Nothing here is audited: that is hub.py's, which knows why it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from examples.agenthub.mcp_server import PROTOCOL_VERSION

SCRIPT: Final = Path(__file__).with_name("mcp_server.py")
ANSWER_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 2.0
LINE_LIMIT: Final = 1024 * 1024

Json = dict[str, Any]


class McpError(Exception):
    """The server answered with an error, or not at all."""


class McpProcess:
    """A running server; made by `launch`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self.tools: list[Json] = []
        self.ended = asyncio.ensure_future(self._listen())
        """Done, with the exit code, once the process is gone."""

    @classmethod
    async def launch(cls, toolset: str, log: Path, credential: str | None) -> McpProcess:
        """Start the process and shake hands; raises `McpError` when it does not answer."""
        # The hub's own environment may hold secrets; a server gets what it needs and no more.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUTF8": "1"}
        if credential is not None:
            environment["MCP_CREDENTIAL"] = credential
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(SCRIPT),
                toolset,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=environment,
                limit=LINE_LIMIT,
                # Ctrl-C is for the hub, which then stops its servers in order.
                start_new_session=True,
            )
        server = cls(process)
        try:
            await server._shake_hands()
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def call(self, tool: str, arguments: Json) -> Json:
        """Call a tool; returns MCP's result, raises `McpError`."""
        return await self._request("tools/call", {"name": tool, "arguments": arguments})

    async def stop(self) -> int:
        """End the process, gently at first; returns its exit code."""
        self._stdin.close()
        for action in (None, signal.SIGTERM, signal.SIGKILL):
            if action is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(action)
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(asyncio.shield(self.ended), GRACE_SECONDS)
        return await self.ended

    async def _shake_hands(self) -> None:
        await self._request(
            "initialize",
            {
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {},
                "clientInfo": {"name": "agenthub", "version": "1.0.0"},
            },
        )
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        self.tools = (await self._request("tools/list", {}))["tools"]

    async def _request(self, method: str, params: Json) -> Json:
        if self.ended.done():
            text = "the server has ended"
            raise McpError(text)
        request_id = next(self._ids)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            self._send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
            message = await asyncio.wait_for(answer, ANSWER_SECONDS)
        except asyncio.TimeoutError:
            text = f"no answer to {method} within {ANSWER_SECONDS:g} s"
            raise McpError(text) from None
        finally:
            del self._waiting[request_id]
        if "error" in message:
            raise McpError(message["error"]["message"])
        result: Json = message["result"]
        return result

    def _send(self, message: Json) -> None:
        self._stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> int:
        """Hand out answers until the process closes its stdout; return its exit code."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            while line := await stdout.readline():
                self._hand_out(line)
        except ValueError:  # a line over the limit: what follows can no longer be told apart
            self._process.kill()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(McpError("the server ended before it answered"))
        return await self._process.wait()

    def _hand_out(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # not JSON-RPC: not ours
            message = json.loads(line)
            answer = self._waiting.get(message.get("id"))
            if answer is not None and not answer.done():
                answer.set_result(message)

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        return self._process.stdin
