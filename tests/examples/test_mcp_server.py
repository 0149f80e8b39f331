"""The shipped MCP server, as any MCP client would talk to it: a process and its pipes."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "agenthub" / "mcp_server.py"


@contextmanager
def running(toolset: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-I", str(SCRIPT), toolset],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        yield process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()


def ask(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def request(process: subprocess.Popen[str], method: str, **params: Any) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "id": "a", "method": method, "params": params}
    answer = ask(process, json.dumps(message))
    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == "a"
    return answer


def call(process: subprocess.Popen[str], tool: str, **arguments: Any) -> tuple[str, bool]:
    result = request(process, "tools/call", name=tool, arguments=arguments)["result"]
    return result["content"][0]["text"], result["isError"]


def test_handshake_list_and_call() -> None:
    with running("text") as server:
        result = request(server, "initialize", protocolVersion="2025-06-18")["result"]
        assert result["protocolVersion"] == "2025-06-18"
        assert result["capabilities"] == {"tools": {}}
        assert request(server, "ping")["result"] == {}
        tools = {tool["name"]: tool for tool in request(server, "tools/list")["result"]["tools"]}
        assert set(tools) == {"count_words", "sign", "crash"}
        assert tools["count_words"]["inputSchema"]["required"] == ["text"]
        assert call(server, "count_words", text="to be or not") == ("4", False)


def test_a_notification_gets_no_answer() -> None:
    with running("clock") as server:
        assert server.stdin is not None
        server.stdin.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        assert request(server, "ping")["result"] == {}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{not json", -32700),
        ("[]", -32600),
        ('{"id": 1}', -32600),
        ('{"id": 1, "method": "resources/list"}', -32601),
        ('{"id": 1, "method": "tools/call", "params": {"name": "rm"}}', -32602),
        ('{"id": 1, "method": "tools/call", "params": [1]}', -32602),
        ('{"id": 1, "method": "tools/call", "params": {"name": "now", "arguments": 1}}', -32602),
    ],
)
def test_what_is_no_request_gets_an_error_and_costs_nothing_else(line: str, code: int) -> None:
    with running("clock") as server:
        assert ask(server, line)["error"]["code"] == code
        assert request(server, "ping")["result"] == {}


@pytest.mark.parametrize(
    ("toolset", "tool", "arguments"),
    [
        ("text", "count_words", {}),
        ("text", "count_words", {"text": 1}),
        ("text", "sign", {"text": "no credential here"}),
        ("clock", "days_between", {"start": "yesterday", "end": "today"}),
        ("numbers", "summarize", {"numbers": []}),
    ],
)
def test_a_tool_that_fails_says_so_in_its_result(
    toolset: str, tool: str, arguments: dict[str, Any]
) -> None:
    with running(toolset) as server:
        text, failed = call(server, tool, **arguments)
        assert failed
        assert text


def test_tools_do_what_they_say() -> None:
    with running("clock") as clock:
        assert call(clock, "days_between", start="2024-02-28", end="2024-03-01") == ("2", False)
        assert call(clock, "now")[0].endswith("+00:00")
    with running("numbers") as numbers:
        text, _ = call(numbers, "summarize", numbers=[1, 2, 6])
        assert json.loads(text) == {"count": 3, "mean": 3.0, "median": 2}


def test_the_credential_signs_and_is_not_shown() -> None:
    with running("text", MCP_CREDENTIAL="s3cret-value") as server:
        text, failed = call(server, "sign", text="hello")
        assert not failed
        assert text == hmac.new(b"s3cret-value", b"hello", hashlib.sha256).hexdigest()


def test_it_ends_with_its_stdin() -> None:
    with running("text") as server:
        assert request(server, "ping")["result"] == {}
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(timeout=5) == 0


def test_crash_ends_it_at_once() -> None:
    with running("text") as server:
        assert server.stdin is not None
        server.stdin.write(
            '{"id": 1, "method": "tools/call", "params": {"name": "crash", "arguments": {"code": 3}}}\n'
        )
        server.stdin.flush()
        assert server.wait(timeout=5) == 3


def test_an_unknown_toolset_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "wizardry"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "usage: mcp_server.py text|clock|numbers" in done.stderr
