"""The MCP servers: which there are, which run, and what is asked of them.

Promises: before a server starts, the trail durably says that somebody is
about to; every start, call and stop leaves a record with its outcome; a
server that ends without being told to is noticed and recorded; and when the
hub ends, no server stays. Every worker process may be asked about every
server: the one that runs it is found through the table and peers.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.agenthub.mcp_process import McpError, McpProcess
from examples.agenthub.mcp_server import TOOLSETS
from examples.agenthub.peers import PeerGoneError, Peers
from examples.agenthub.store import Store
from examples.agenthub.vault import Vault
from otel_audit import audit_span, get_audit_logger

audit = get_audit_logger(__name__)

Json = dict[str, Any]


class ServerMissingError(LookupError):
    """There is no such server."""


class ServerStateError(Exception):
    """The server is not in the state for this, such as starting a running one."""


class ToolFailedError(Exception):
    """The tool said that it failed; ``text`` is why, and may hold the caller's data."""

    def __init__(self, tool: str, text: str) -> None:
        super().__init__(f"the tool {tool} reported a failure")
        self.text = text


@dataclass(frozen=True)
class Server:
    """A server as the hub knows it."""

    name: str
    toolset: str
    state: str
    pid: int | None
    exit_code: int | None
    has_credential: bool


class Hub:
    """The table servers, and the processes of this worker."""

    def __init__(self, store: Store, vault: Vault, logs: Path) -> None:
        self._store = store
        self._vault = vault
        self._logs = logs
        self._peers = Peers(self._answer_peer)
        self._running: dict[str, McpProcess] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Be there for the other workers, and note what a killed hub left in the table."""
        self._logs.mkdir(parents=True, exist_ok=True)
        await self._peers.open()
        for row in await asyncio.to_thread(self._rows, "owner != ''"):
            if not await self._peers.alive(row["owner"]):
                await self._record_crash(row["name"], None, "the hub that ran it was killed")

    async def close(self) -> None:
        """Stop the servers of this worker."""
        # One that crashes meanwhile must not keep the others from being stopped.
        stops = [self.stop(name) for name in self._running]
        await asyncio.gather(*stops, return_exceptions=True)
        await self._peers.close()

    def register(self, name: str, toolset: str) -> Server:
        """Add a server; raises `ServerStateError` when the name is taken."""
        with audit_span(
            "mcp_server_registered",
            "register",
            resource_type="mcp_server",
            resource_name=name,
            toolset=toolset,
        ):
            try:
                with self._store.write() as connection:
                    connection.execute(
                        "INSERT INTO servers (name, toolset) VALUES (?, ?)", (name, toolset)
                    )
            except sqlite3.IntegrityError:
                message = f"a server named {name!r} exists already"
                raise ServerStateError(message) from None
        return self.server(name)

    def add_demo_servers(self) -> None:
        """Add one server for each set of tools, if there is none at all."""
        with self._store.write() as connection:
            if connection.execute("SELECT 1 FROM servers").fetchone() is None:
                connection.executemany(
                    "INSERT INTO servers (name, toolset) VALUES (?, ?)",
                    [(toolset, toolset) for toolset in TOOLSETS],
                )

    def servers(self) -> list[Server]:
        """Return all servers, by name."""
        return [self._server(row) for row in self._rows()]

    def server(self, name: str) -> Server:
        """Return one server; raises `ServerMissingError`."""
        return self._server(self._row(name))

    async def start(self, name: str) -> list[Json]:
        """Start a server here and return its tools.

        Raises `ServerMissingError`, `ServerStateError` when it runs already,
        `McpError` when it does not answer.
        """
        async with audit_span(
            "mcp_server_start",
            "start",
            resource_type="mcp_server",
            resource_name=name,
            write_ahead=True,
        ) as span:
            await asyncio.to_thread(self._claim, name)
            try:
                process = await self._launch(name)
            except BaseException:
                await asyncio.to_thread(self._update, name, state="stopped", owner="")
                raise
            self._running[name] = process
            self._watch(name, process)
            await asyncio.to_thread(self._update, name, state="running", pid=process.pid)
            span.set(pid=process.pid, tools=len(process.tools))
        return process.tools

    async def stop(self, name: str) -> None:
        """Stop a server, whichever worker runs it; raises as `start`."""
        async with audit_span(
            "mcp_server_stop", "stop", resource_type="mcp_server", resource_name=name
        ):
            await self._ask_owner(name, {"do": "stop", "name": name})

    async def call(self, name: str, tool: str, arguments: Json) -> str:
        """Call a tool and return its text; raises as `start`, and `ToolFailedError`.

        The record names the arguments and leaves their values out: those are
        the caller's data, and may be anybody's.
        """
        async with audit_span(
            "mcp_tool_call",
            "call",
            resource_type="mcp_tool",
            resource_name=f"{name}/{tool}",
            argument_names=sorted(arguments),
        ):
            question = {"do": "call", "name": name, "tool": tool, "arguments": arguments}
            result = await self._ask_owner(name, question)
            text = "\n".join(part.get("text", "") for part in result["content"])
            if result.get("isError"):
                raise ToolFailedError(tool, text)
            return text

    async def _launch(self, name: str) -> McpProcess:
        credential = None
        if await asyncio.to_thread(self._vault.holds, name):
            credential = await asyncio.to_thread(self._vault.read, name, "start the server")
        toolset = (await asyncio.to_thread(self._row, name))["toolset"]
        return await McpProcess.launch(toolset, self._logs / f"{name}.log", credential)

    async def _ask_owner(self, name: str, question: Json) -> Json:
        """Have the worker that runs the server do something, be it this one or another."""
        owner = (await asyncio.to_thread(self._row, name))["owner"]
        if owner in {"", self._peers.address}:
            return await self._do(question)
        try:
            answer = await self._peers.ask(owner, question)
        except PeerGoneError as error:
            await self._record_crash(name, None, str(error))
            message = f"{name!r} does not run any more: {error}"
            raise ServerStateError(message) from None
        if "error" in answer:
            kind = McpError if answer["error"] == McpError.__name__ else ServerStateError
            raise kind(answer["message"])
        result: Json = answer["result"]
        return result

    async def _answer_peer(self, question: Json) -> Json:
        try:
            return {"result": await self._do(question)}
        except (McpError, ServerStateError) as error:
            return {"error": type(error).__name__, "message": str(error)}

    async def _do(self, question: Json) -> Json:
        name = question["name"]
        process = self._running.get(name)
        if process is None:
            message = f"{name!r} is not running"
            raise ServerStateError(message)
        if question["do"] == "call":
            return await process.call(question["tool"], question["arguments"])
        del self._running[name]  # from here on its end is no crash
        code = await process.stop()
        await asyncio.to_thread(
            self._update, name, state="stopped", pid=None, exit_code=code, owner=""
        )
        return {}

    def _watch(self, name: str, process: McpProcess) -> None:
        async def until_it_ends() -> None:
            code = await asyncio.shield(process.ended)
            if self._running.get(name) is process:
                del self._running[name]
                await self._record_crash(name, code, "it ended without being told to")

        # In a context of its own: when the server crashes, the one who started it is not the actor.
        watcher = contextvars.Context().run(asyncio.create_task, until_it_ends())
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _record_crash(self, name: str, code: int | None, reason: str) -> None:
        await asyncio.to_thread(
            self._update, name, state="crashed", pid=None, exit_code=code, owner=""
        )
        await asyncio.to_thread(
            audit.log_system_event,
            component="mcp_server",
            event="mcp_server_crashed",
            status="failed",
            details={"exit_code": code, "reason": reason},
            resource_type="mcp_server",
            resource_name=name,
        )

    def _claim(self, name: str) -> None:
        row = self._row(name)
        with self._store.write() as connection:
            cursor = connection.execute(
                "UPDATE servers SET state = 'starting', exit_code = NULL, owner = ?"
                " WHERE name = ? AND owner = ''",
                (self._peers.address, name),
            )
            if not cursor.rowcount:
                message = f"{name!r} is {row['state']} already"
                raise ServerStateError(message)

    def _update(self, name: str, **columns: str | int | None) -> None:
        assignments = ", ".join(f"{column} = :{column}" for column in columns)
        with self._store.write() as connection:
            connection.execute(
                f"UPDATE servers SET {assignments} WHERE name = :name",  # noqa: S608 - the columns are literals of this class
                {**columns, "name": name},
            )

    def _rows(self, condition: str = "TRUE") -> list[sqlite3.Row]:
        with self._store.read() as connection:
            return connection.execute(
                f"SELECT * FROM servers WHERE {condition} ORDER BY name"  # noqa: S608 - the condition is a literal of this class
            ).fetchall()

    def _row(self, name: str) -> sqlite3.Row:
        with self._store.read() as connection:
            row: sqlite3.Row | None = connection.execute(
                "SELECT * FROM servers WHERE name = ?", (name,)
            ).fetchone()
        if row is None:
            message = f"there is no server named {name!r}"
            raise ServerMissingError(message)
        return row

    def _server(self, row: sqlite3.Row) -> Server:
        return Server(
            row["name"],
            row["toolset"],
            row["state"],
            row["pid"],
            row["exit_code"],
            self._vault.holds(row["name"]),
        )
