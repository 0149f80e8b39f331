"""The hub's pages: HTML made here, one style sheet and one script inlined, nothing from elsewhere.

Promises: whatever users, servers or records say is escaped, and the
Content-Security-Policy runs this file's script and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Final

from examples.agenthub.accounts import Role, User
from examples.agenthub.hub import Server
from examples.agenthub.mcp_server import TOOLSETS
from examples.agenthub.services import DEMO_USERS, Services
from examples.agenthub.trail import Entry, State, Verdict

HERE: Final = Path(__file__).parent
STYLE: Final = (HERE / "page.css").read_text()
SCRIPT: Final = (HERE / "page.js").read_text()
RECORDS: Final = 60
TRAIL: Final = 'id="trail"'
EXAMPLES: Final[dict[str, dict[str, object]]] = {
    "count_words": {"text": "to be or not to be"},
    "sign": {"text": "to be or not to be"},
    "crash": {"code": 3},
    "now": {},
    "days_between": {"start": "2026-01-01", "end": "2026-12-31"},
    "summarize": {"numbers": [1, 2, 4]},
}
"""Arguments that each tool takes."""

PROGRAMS: Final = Path(sys.executable).parent
"""Where the command is, whether or not the terminal has this environment in its path."""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; img-src data:"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def home(user: User | None, parts: Services, *, requests: bool = False) -> str:
    """Return the page with everything on it, as far as the user may see it."""
    state = parts.trail.state()
    if user is None:
        return _page(user, _welcome(state))
    actor = None if user.may("trail") else user.name
    entries = parts.trail.recent(RECORDS, actor=actor, requests=requests)
    cards = [
        _servers(user, parts.hub.servers()),
        _credentials(user, parts.hub.servers()),
        _members(user, parts.members.ids()),
        _users(user, parts.accounts.users()),
    ]
    return _page(
        user,
        f'<div class="cards">{"".join(cards)}</div>'
        + _records(user, state, entries, requests=requests),
    )


def verification(user: User, state: State, verdict: Verdict) -> str:
    """Return the page that says whether the trail is what was written."""
    kind, word = (
        ("good", "✓ The trail verifies") if verdict.ok else ("bad", "✗ The trail does not verify")
    )
    newer = verdict.size - verdict.covered
    pending = f"; the {newer:,} newer are signed within a second" if verdict.ok and newer else ""
    findings = "".join(f"<li>{escape(line)}</li>" for line in verdict.findings)
    content = f"""<section class="card">
<p class="verdict {kind}">{word}</p>
{
        _facts(
            {
                "records checked": f"{verdict.size:,}",
                "under a signed checkpoint": f"{verdict.covered:,}{pending}",
                "took": f"{verdict.seconds:.2f} s",
                "origin": escape(state.origin),
            }
        )
    }
<ul>{findings}</ul>
<p>Every record was hashed again, every hash of the tree recomputed, and each checkpoint's
signature checked. The same from a terminal, with nothing but the directory:</p>
<pre>{escape(f"{PROGRAMS}/otel-audit verify --dir {state.directory}")}</pre>
<h2>The last checkpoint</h2>
<p class="quiet">Keep a copy elsewhere: <code>otel-audit verify --checkpoint FILE</code> then also
finds a trail that was cut off or rolled back.</p>
<pre>{escape(state.checkpoint)}</pre>
<p><a href="/">Back to the hub</a></p>
</section>"""
    return _page(user, content)


def _page(user: User | None, content: str) -> str:
    if user is None:
        account = '<span class="quiet">not signed in</span>'
    else:
        account = (
            f'<a href="{"" if TRAIL in content else "/"}#trail">Audit trail</a>'
            f'<span>{escape(user.name)} <span class="quiet">({user.role.value})</span></span>'
            + _form("POST", "/api/logout", "", "Sign out")
        )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AgentHub</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header class="top"><h1><a href="/">AgentHub</a></h1>{account}</header>
<main tabindex="-1">{content}</main>
<aside id="answer" aria-live="polite" hidden></aside>
<script>{SCRIPT}</script>
</body>
</html>"""


def _welcome(state: State) -> str:
    form = _form(
        "POST",
        "/api/login",
        '<label>name<input name="name" list="users" autocomplete="username" required autofocus></label>'
        f'<datalist id="users">{"".join(f"<option>{name}</option>" for name in DEMO_USERS)}</datalist>'
        '<label>password<input type="password" name="password" autocomplete="current-password" '
        "required></label>",
        "Sign in",
        main=True,
    )
    return f"""<section class="card narrow">
<h2>A small hub for MCP servers</h2>
<p>Start and stop servers, keep their credentials, look after members' data - and find each step in
the audit trail. A wrong password is worth a try, too.</p>
{form}
<p class="quiet">The password was printed where the hub was first started.
{" · ".join(f"<code>{name}</code> {role.value}" for name, role in DEMO_USERS.items())}</p>
<hr>
<p class="quiet">The trail holds {state.size:,} records. Your visit is one of them.
The interface is described in <a href="/openapi.json">openapi.json</a>.</p>
</section>"""


def _servers(user: User, servers: list[Server]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(server.name)}</code></td><td>{escape(server.toolset)}</td>"
        f"<td>{_server_state(server)}</td><td>{_server_button(server)}</td></tr>"
        # By name, whatever their state: a button that is clicked stays where it is.
        for server in servers
    )
    call = _call([server for server in servers if server.state == "running"])
    register = _form(
        "POST",
        "/api/servers",
        _input("name", "new server", "") + _select("toolset", "tools", [*TOOLSETS]),
        "Add",
    )
    return _card(
        user,
        "servers",
        "MCP servers",
        f'<div class="long" tabindex="0"><table><tr><th>name<th>tools<th>state<th></tr>{rows}</table></div>'
        f"{call}<hr>{register}",
    )


def _call(running: list[Server]) -> str:
    """Offer the tools of what runs; the script shows those of the server that is chosen."""
    tools = {
        server.name: {tool: json.dumps(EXAMPLES[tool]) for tool in TOOLSETS[server.toolset]}
        for server in running
    }
    servers = "".join(
        f'<option data-tools="{escape(json.dumps(examples))}">{escape(name)}</option>'
        for name, examples in tools.items()
    )
    first: dict[str, str] = next(iter(tools.values()), {})
    return _form(
        "POST",
        "/api/servers/{server}/call",
        f'<label>running server<select name="server">{servers or "<option value>none: start one</option>"}'
        "</select></label>"
        + _select("tool", "tool", first)
        + '<label class="wide">arguments (JSON)<textarea name="arguments" data-kind="json" rows="1">'
        f"{escape(next(iter(first.values()), '{}'))}</textarea></label>",
        "Call the tool",
        main=True,
        off=not running,
    )


def _server_state(server: Server) -> str:
    kind = {"running": "good", "crashed": "bad"}.get(server.state, "quiet")
    if server.pid is not None:
        detail = f"pid {server.pid}"
    else:
        detail = "" if server.exit_code is None else f"exit {server.exit_code}"
    return (
        f'<span class="{kind}">● {escape(server.state)}</span> <span class="quiet">{detail}</span>'
    )


def _server_button(server: Server) -> str:
    action = "stop" if server.state == "running" else "start"
    address = f"/api/servers/{server.name}/{action}"
    return _form("POST", address, "", action.capitalize(), key=f"server {server.name}")


def _credentials(user: User, servers: list[Server]) -> str:
    names = [server.name for server in servers]
    held = (
        ", ".join(f"<code>{escape(s.name)}</code>" for s in servers if s.has_credential) or "none"
    )
    address = "/api/servers/{server}/credential"
    store = _form(
        "PUT",
        address,
        _select("server", "server", names) + _input("value", "secret value", "", kind="password"),
        "Store",
        main=True,
    )
    read = _form(
        "GET",
        address,
        _select("server", "server", names) + _input("purpose", "purpose", "rotation"),
        "Read",
    )
    delete = _form("DELETE", address, _select("server", "server", names), "Delete")
    return _card(
        user,
        "credentials",
        "Credentials",
        f'<p class="quiet">In the keyring: {held}. The tool <code>sign</code> uses the credential that '
        f"its server was started with. No value is ever in the trail.</p>{store}{read}{delete}",
    )


def _members(user: User, ids: list[int]) -> str:
    options = [str(one) for one in ids]
    member = _select("member", "member", options)
    purpose = _input("purpose", "purpose", "support")
    address = "/api/members/{member}"
    forms = [
        _form("GET", address, member + purpose, "Contact data", main=True),
        _form("GET", f"{address}/health", member + purpose, "Health note"),
        _form(
            "PUT",
            f"{address}/consents/{{purpose}}",
            member
            + _input("purpose", "purpose", "newsletter")
            + '<label>consent<select name="granted" data-kind="boolean"><option value="true">given</option>'
            '<option value="false">withdrawn</option></select></label>',
            "Note down",
        ),
        _form(
            "POST",
            "/api/members/export",
            _input("purpose", "purpose", "newsletter")
            + _input("recipient", "recipient", "Print Ltd"),
            "Export",
        ),
        _form("DELETE", address, member + _input("reason", "reason", "asked for it"), "Delete"),
    ]
    return _card(user, "members", "Members' data", "".join(forms))


def _users(user: User, users: list[User]) -> str:
    names = [one.name for one in users]
    rows = "".join(
        f"<tr><td><code>{escape(one.name)}</code></td><td>{one.role.value}</td>"
        f"<td>{'<span class=bad>locked</span>' if one.locked else ''}</td></tr>"
        for one in users
    )
    roles = [role.value for role in Role]
    change = _form(
        "PUT",
        "/api/users/{user}/role",
        _select("user", "user", names)
        + _select("role", "role", roles)
        + _input("reason", "reason", "new duties"),
        "Change",
        main=True,
    )
    unlock = _form(
        "POST",
        "/api/users/{user}/unlock",
        _select("user", "user", names) + _input("reason", "reason", "called in"),
        "Unlock",
    )
    create = _form(
        "POST",
        "/api/users",
        _input("name", "new user", "", autocomplete="username")
        + _input("password", "password", "", kind="password")
        + _select("role", "role", roles)
        + _input("reason", "reason", "joined"),
        "Add",
    )
    return _card(
        user,
        "users",
        "Users",
        f'<div class="long" tabindex="0"><table><tr><th>name<th>role<th></tr>{rows}</table></div>'
        f"{change}{unlock}<hr>{create}",
    )


def _records(user: User, state: State, entries: list[Entry], *, requests: bool) -> str:
    whose = "everybody's" if user.may("trail") else "your own; auditors see everybody's"
    other = (
        '<a href="/">without http.request</a>'
        if requests
        else '<a href="/?requests=true">with http.request</a>'
    )
    titles = ["seq", "time (UTC)", "event", "action", "status", "actor", "on what", "request"]
    facts = _facts(
        {
            "records": f"{state.size:,}",
            "under a signed checkpoint": f"{state.covered:,}",
            "root hash": f"<code>{state.root.hex()[:24]}…</code>",
            "trail": f"<code>{escape(str(state.directory))}</code>",
        }
    )
    return f"""<section class="card records" {TRAIL}>
<div class="headline"><h2>The audit trail <span class="quiet">({whose})</span></h2>{other}
<a href="/verify">Verify now</a></div>
{facts}
<div class="titles">{"".join(f"<span>{title}</span>" for title in titles)}</div>
{"".join(map(_record, entries))}
</section>"""


def _record(entry: Entry) -> str:
    record = entry.record
    outcome = str(record.get("outcome", ""))
    kind = {"success": "good", "failure": "bad"}.get(outcome, "open")
    timestamp, request = str(record["timestamp"]), str(record.get("request_id", ""))
    cells = [
        ("mono", str(entry.sequence), ""),
        ("mono quiet", timestamp[11:19], timestamp),
        ("mono", str(record["event"]), ""),
        ("", str(record["action"]), ""),
        (kind, str(record["status"]), f"outcome: {outcome}"),
        ("", str(record.get("actor_id", "")), ""),
        ("mono quiet", _target(record), ""),
        ("mono quiet", request[:8], request),
    ]
    columns = "".join(
        f'<span class="{style}" title="{escape(more or text)}">{escape(text)}</span>'
        for style, text, more in cells
    )
    whole = escape(json.dumps(record, indent=2, ensure_ascii=False))
    return (
        f'<details class="record" data-sequence="{entry.sequence}" data-request="{escape(request)}">'
        f"<summary>{columns}</summary><pre>{whole}</pre>"
        f'<p class="quiet">leaf hash <code>{entry.leaf_hash.hex()}</code></p></details>'
    )


def _target(record: Mapping[str, object]) -> str:
    """Say on what it was done, in the words of the terminal."""
    if record["event"] == "health.state_changed":
        return f"{record.get('component')}: {record.get('from')} -> {record.get('to')}"
    return " ".join(str(record[key]) for key in ("resource_type", "resource_name") if key in record)


def _card(user: User, permission: str, title: str, content: str) -> str:
    hint = (
        ""
        if user.may(permission)
        else '<p class="hint">Not for your role: try, and find the refusal in the trail.</p>'
    )
    return f'<section class="card"><h2>{title}</h2>{hint}{content}</section>'


def _facts(facts: Mapping[str, str]) -> str:
    """Show names and values; the values are HTML."""
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _form(
    method: str,
    address: str,
    fields: str,
    button: str,
    *,
    main: bool = False,
    off: bool = False,
    key: str = "",
) -> str:
    """Return a form; ``key`` names it where its address changes, for the focus to find it again."""
    style = (' class="main"' if main else "") + (" disabled" if off else "")
    return (
        f'<form data-method="{method}" data-address="{escape(address)}" '
        f'data-key="{escape(key or f"{method} {address}")}">{fields}<button{style}>{button}</button></form>'
    )


def _input(name: str, label: str, value: str, kind: str = "text", autocomplete: str = "off") -> str:
    known = "new-password" if kind == "password" else autocomplete
    return (
        f'<label>{label}<input type="{kind}" name="{name}" value="{escape(value)}" '
        f'autocomplete="{known}" required></label>'
    )


def _select(name: str, label: str, options: Iterable[str], chosen: str = "") -> str:
    items = "".join(
        f"<option{' selected' if option == chosen else ''}>{escape(option)}</option>"
        for option in options
    )
    return f'<label>{label}<select name="{name}">{items}</select></label>'
