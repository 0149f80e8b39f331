"""How the hub's worker processes reach each other (uvicorn --workers).

A server is a child of one worker, but a request may arrive at any. Each
worker listens on a Unix socket that only its user may enter; one connection
carries one question and one answer, both a line of JSON. Who owns what
stands in the table servers; what is asked is hub.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

ANSWER_SECONDS: Final = 15.0
LINE_LIMIT: Final = 1024 * 1024


class PeerGoneError(Exception):
    """Nobody listens there any more: that worker is dead."""


class Peers:
    """This worker's own socket, and the way to the others."""

    def __init__(self, answer: Callable[[Json], Awaitable[Json]]) -> None:
        self._answer = answer
        # A path of a Unix socket must be short, and the data directory's may not be.
        self._directory = Path(tempfile.mkdtemp(prefix="agenthub-"))
        self.address = str(self._directory / "worker.sock")
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.address, limit=LINE_LIMIT)

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def alive(self, address: str) -> bool:
        """Tell whether a worker listens there."""
        try:
            _, writer = await asyncio.open_unix_connection(address)
        except OSError:
            return False
        writer.close()
        return True

    async def ask(self, address: str, question: Json) -> Json:
        """Ask another worker; raises `PeerGoneError`."""
        try:
            reader, writer = await asyncio.open_unix_connection(address, limit=LINE_LIMIT)
        except OSError:
            message = f"the worker at {address} is gone"
            raise PeerGoneError(message) from None
        try:
            writer.write(json.dumps(question).encode() + b"\n")
            line = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
            answer: Json = json.loads(line)
        except (OSError, ValueError, asyncio.TimeoutError):
            message = f"the worker at {address} did not answer"
            raise PeerGoneError(message) from None
        finally:
            writer.close()
        return answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError), contextlib.closing(writer):
            if line := await reader.readline():
                answer = await self._answer(json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
