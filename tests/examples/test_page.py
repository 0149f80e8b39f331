"""The pages: what others wrote is text there, never markup."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from examples.agenthub import page
from examples.agenthub.accounts import Role, User
from examples.agenthub.config import Config
from examples.agenthub.mcp_server import TOOLSETS
from examples.agenthub.services import Services
from examples.agenthub.trail import State, Verdict
from otel_audit import get_audit_logger, get_audit_provider

HOSTILE = "<script>alert('x')</script>\"'&"
VOID = {"meta", "link", "input", "hr", "th"}


class Checker(HTMLParser):
    """Fails on markup that does not close, and collects what a page loads and runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> None:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert checker.scripts == 1
    assert checker.handlers == []
    assert HOSTILE not in text


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("OTEL_AUDIT_AGENT", "off")
    parts = Services.build(Config(data=tmp_path / "data"))
    assert parts.add_demo_data("a-password")
    assert not parts.add_demo_data("another-password")
    return parts


@pytest.mark.parametrize("role", [None, *Role])
def test_hostile_names_and_records_are_text(parts: Services, role: Role | None) -> None:
    user = None if role is None else User(HOSTILE, role)
    parts.hub.register(HOSTILE, "text")
    get_audit_logger(HOSTILE).audit_event(
        HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, error=HOSTILE, field=HOSTILE
    )
    check(page.home(user, parts))
    check(page.home(user, parts, requests=True))


def running(parts: Services, *names: str) -> str:
    """Return the operator's page while these servers run."""
    servers = [
        replace(server, state="running", pid=7) if server.name in names else server
        for server in parts.hub.servers()
    ]
    return page._servers(User("olga", Role.OPERATOR), servers)


def test_tools_are_called_of_servers_that_run(parts: Services) -> None:
    none, some = running(parts), running(parts, "clock")
    assert re.findall(r"<button class=\"main\"( disabled)?>Call the tool", none) == [" disabled"]
    assert re.findall(r"<button class=\"main\"( disabled)?>Call the tool", some) == [""]
    (offered,) = re.findall(r'<option data-tools="([^"]*)">clock</option>', some)
    assert list(json.loads(unescape(offered))) == ["now", "days_between", "crash"]
    assert "<option>days_between</option>" in some
    assert "<option>count_words</option>" not in some


def test_a_server_stays_in_its_row_when_it_starts(parts: Services) -> None:
    rows = [re.findall(r"<tr><td><code>(\w+)", running(parts, *names)) for names in ((), ("text",))]
    assert rows == [["clock", "numbers", "text"]] * 2


@pytest.mark.parametrize("toolset", TOOLSETS)
def test_each_tool_has_arguments_that_it_takes(
    toolset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_CREDENTIAL", "a-secret")
    for name, tool in TOOLSETS[toolset].items():
        example = page.EXAMPLES[name]
        assert list(example) == list(tool.parameters)
        if name != "crash":
            assert tool.function(**example)


def test_a_trail_that_does_not_verify_is_said_so() -> None:
    state = State(Path(HOSTILE), HOSTILE, 3, b"\0" * 32, 2, HOSTILE)
    verdict = Verdict(ok=False, size=3, covered=2, findings=[HOSTILE], seconds=0.1)
    text = page.verification(User("aurel", Role.AUDITOR), state, verdict)
    check(text)
    assert "does not verify" in text
    assert "newer" not in text


def test_records_that_are_not_signed_yet_are_explained_and_the_command_can_be_pasted() -> None:
    state = State(Path("/srv/trail"), "origin", 387, b"\0" * 32, 378, "note")
    verdict = Verdict(ok=True, size=387, covered=378, findings=[], seconds=0.1)
    text = page.verification(User("aurel", Role.AUDITOR), state, verdict)
    check(text)
    assert "378; the 9 newer are signed within a second" in text
    (command,) = re.findall("<pre>(.*verify.*)</pre>", text)
    program, *rest = command.split()
    assert Path(program).parent == Path(sys.executable).parent
    assert rest == ["verify", "--dir", "/srv/trail"]


def test_the_policy_allows_the_pages_own_script_and_style_only(parts: Services) -> None:
    policy = page.HEADERS["Content-Security-Policy"]
    text = page.home(None, parts)
    assert "unsafe" not in policy
    for kind, source in (("script", page.SCRIPT), ("style", page.STYLE)):
        assert f"<{kind}>{source}</{kind}>" in text
        assert f"{kind}-src 'sha256-" in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", text)


def test_what_a_user_may_not_do_is_marked(parts: Services) -> None:
    pages = {role: page.home(User("x", role), parts) for role in Role}
    assert {role: text.count("Not for your role") for role, text in pages.items()} == {
        Role.ADMIN: 0,
        Role.OPERATOR: 2,
        Role.STEWARD: 3,
        Role.AUDITOR: 4,
    }


def test_on_what_it_was_is_said_as_in_the_terminal(parts: Services) -> None:
    audit = get_audit_logger()
    audit.audit_event("http.request", "GET", "route", "/api/login", "denied")
    change = {"component": "db", "from": "healthy", "to": "unhealthy"}
    audit.audit_event("health.state_changed", "change", "component", "db", **change)
    text = page.home(User("aurel", Role.AUDITOR), parts, requests=True)
    assert ">route /api/login</span>" in text
    assert ">db: healthy -&gt; unhealthy</span>" in text
    assert '<span class="bad" title="outcome: failure">denied</span>' in text
    assert "<span>time (UTC)</span>" in text
    assert "<span>status</span>" in text


def test_the_page_shows_the_newest_records_first(parts: Services) -> None:
    audit = get_audit_logger()
    for number in range(3):
        audit.audit_event("numbered", f"count-{number}")
    text = page.home(User("aurel", Role.AUDITOR), parts)
    assert text.index("count-2") < text.index("count-1") < text.index("count-0")
    with get_audit_provider().reader() as reader:
        assert reader.tree().root.hex()[:24] in text
