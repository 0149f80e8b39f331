"""A small MCP server over stdin and stdout: one JSON-RPC 2.0 message a line.

Run by the hub as ``python mcp_server.py TOOLSET``. It answers ``initialize``,
``ping``, ``tools/list`` and ``tools/call`` (Model Context Protocol, revision
2025-06-18, stdio transport), and ends when its stdin does: a hub that was
killed leaves no server behind. Standard library only, so that it starts fast.

The credential that the hub may hand over arrives in the environment variable
``MCP_CREDENTIAL`` and leaves this process only as the key of a signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import statistics
import sys
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL_VERSION: Final = "2025-06-18"
# JSON-RPC 2.0, section 5.1
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

Json = dict[str, Any]


class Tool(NamedTuple):
    """What ``tools/list`` says of a tool, and the function that does it."""

    description: str
    parameters: dict[str, str]
    function: Callable[..., str]

    def describe(self, name: str) -> Json:
        """Return the tool as MCP lists it, with the JSON schema of its arguments."""
        properties = {key: {"type": kind} for key, kind in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        return {"name": name, "description": self.description, "inputSchema": schema}


class RpcError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def count_words(text: str) -> str:
    """Count what stands between white space."""
    return str(len(text.split()))


def sign(text: str) -> str:
    """Sign with the credential: it is used here and never shown."""
    credential = os.environ.get("MCP_CREDENTIAL")
    if not credential:
        message = "this server was started without a credential; store one and restart it"
        raise ValueError(message)
    return hmac.new(credential.encode(), text.encode(), hashlib.sha256).hexdigest()


def now() -> str:
    """Tell the time."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def days_between(start: str, end: str) -> str:
    """Count days between two ISO dates."""
    return str((date.fromisoformat(end) - date.fromisoformat(start)).days)


def summarize(numbers: list[float]) -> str:
    """Describe a list of numbers."""
    return json.dumps(
        {
            "count": len(numbers),
            "mean": statistics.fmean(numbers),
            "median": statistics.median(numbers),
        }
    )


def crash(code: int) -> str:
    """End at once, as a defect in native code would."""
    os._exit(code)


CRASH: Final = Tool("End at once, to see how the hub notices", {"code": "integer"}, crash)
TOOLSETS: Final[dict[str, dict[str, Tool]]] = {
    "text": {
        "count_words": Tool("Count the words of a text", {"text": "string"}, count_words),
        "sign": Tool("Sign a text with the server's credential", {"text": "string"}, sign),
        "crash": CRASH,
    },
    "clock": {
        "now": Tool("The time in UTC", {}, now),
        "days_between": Tool(
            "Days between two dates", {"start": "string", "end": "string"}, days_between
        ),
        "crash": CRASH,
    },
    "numbers": {
        "summarize": Tool("Mean and median of numbers", {"numbers": "array"}, summarize),
        "crash": CRASH,
    },
}


class McpServer:
    """The conversation: one request in, at most one answer out."""

    def __init__(self, toolset: str) -> None:
        self._name = toolset
        self._tools = TOOLSETS[toolset]
        self._methods: dict[str, Callable[[Json], Json]] = {
            "initialize": self._initialize,
            "ping": lambda _params: {},
            "tools/list": self._list,
            "tools/call": self._call,
        }

    def answer(self, line: str) -> Json | None:
        """Return the answer to one line, or None for a notification."""
        try:
            message = json.loads(line)
        except ValueError as error:
            return _failure(None, RpcError(PARSE_ERROR, f"not JSON: {error}"))
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            return _failure(None, RpcError(INVALID_REQUEST, "not a JSON-RPC request"))
        if "id" not in message:
            return None
        try:
            result = self._dispatch(message["method"], message.get("params", {}))
        except RpcError as error:
            return _failure(message["id"], error)
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    def _dispatch(self, method: str, params: object) -> Json:
        if method not in self._methods:
            raise RpcError(METHOD_NOT_FOUND, f"unknown method {method!r}")
        if not isinstance(params, dict):
            raise RpcError(INVALID_PARAMS, "params must be an object")
        return self._methods[method](params)

    def _initialize(self, _params: Json) -> Json:
        return {
            "protocolVersion": PROTOCOL_VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": f"agenthub-{self._name}", "version": "1.0.0"},
        }

    def _list(self, _params: Json) -> Json:
        return {"tools": [tool.describe(name) for name, tool in self._tools.items()]}

    def _call(self, params: Json) -> Json:
        tool = self._tools.get(str(params.get("name")))
        arguments = params.get("arguments", {})
        if tool is None or not isinstance(arguments, dict):
            raise RpcError(INVALID_PARAMS, f"unknown tool {params.get('name')!r}")
        try:
            text, failed = tool.function(**arguments), False
        except (TypeError, ValueError, AttributeError, statistics.StatisticsError) as error:
            # MCP: a tool that failed is a result with isError, so that the model can read why.
            text, failed = f"{type(error).__name__}: {error}", True
        return {"content": [{"type": "text", "text": text}], "isError": failed}


def _failure(request_id: object, error: RpcError) -> Json:
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": error.code, "message": str(error)},
    }


def main(toolset: str) -> None:
    """Answer line by line until stdin ends."""
    server = McpServer(toolset)
    for line in sys.stdin:
        if (answer := server.answer(line)) is not None:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in TOOLSETS:  # noqa: PLR2004 - the program and its one argument
        sys.exit(f"usage: mcp_server.py {'|'.join(TOOLSETS)}")
    main(sys.argv[1])
