"""Plays real traffic against a running hub, over HTTP, and says what should be in its trail.

``python -m examples.agenthub.driver --url URL --rounds N --seed S`` signs in as
the demo users (password in AGENTHUB_PASSWORD, else asked for) and does what
people do: the right things, wrong passwords, things that their role may not
do. In the end it tidies up: members and credentials that it made are deleted,
and no server of its own counts as crashed. Servers and users stay, since the
hub deletes none. The same seed plays the same traffic. With ``--check DIR`` it then reads
the trail and looks for every request that was answered: exit code 0 when all
are there, 1 when one is missing, 2 when the hub answered what it should not.
A hub that answers no more in the middle, such as one that was killed, ends
the play. The driver waits ``--wait`` seconds for it to come back, and checks
what had been answered until then: 2 where it stays away, or without ``--check``.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.agenthub.services import DEMO_USERS
from otel_audit import OtelAuditError, events
from otel_audit.trail.reader import TrailReader

CLIENT_ID: Final = "agenthub-driver"
REQUEST: Final = "http.request"
CRASH_SECONDS: Final = 10.0
"""How long the hub may take to notice that a server has ended."""

Json = dict[str, Any]


class UnexpectedAnswerError(Exception):
    """The hub answered otherwise than it should; ``status`` is how, where that was it."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class WrongPasswordError(Exception):
    """The demo users have another password."""


class HubLostError(Exception):
    """The hub answers no more; ``played`` is what it had answered until then."""

    def __init__(self, played: Played, why: str) -> None:
        super().__init__(why)
        self.played = played


@dataclass(frozen=True)
class Answered:
    """A request that got its answer, and the events that must therefore be in the trail."""

    request_id: str
    what: str
    status: int
    events: tuple[str, ...]


@dataclass
class Played:
    """What happened: all answered requests, and every secret that was sent or received."""

    answered: list[Answered] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def counts(self) -> Counter[str]:
        """Count the records that must be there at least, by event."""
        return Counter(event for one in self.answered for event in one.events)


class Visitor:
    """Somebody with a browser of their own."""

    def __init__(self, url: str, played: Played) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, headers={"X-Client-ID": CLIENT_ID})
        self._played = played

    def __enter__(self) -> Visitor:  # noqa: PYI034 - typing.Self comes with Python 3.11
        """Return the visitor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the browser."""
        self._client.close()

    def does(
        self,
        request: str,
        *events: str,
        body: Json | None = None,
        query: dict[str, str] | None = None,
        status: int = 200,
    ) -> httpx.Response:
        """Send ``METHOD path``; expect the status, and the events in the trail afterwards."""
        method, _, path = request.partition(" ")
        response = self._client.request(method, path, json=body, params=query)
        request_id = response.headers.get("x-request-id", "")
        what = f"{request} was answered {response.status_code}"
        if response.status_code != status or not request_id:
            message = f"{what}, expected {status}: {response.text[:500]}"
            raise UnexpectedAnswerError(message, response.status_code)
        self._played.answered.append(Answered(request_id, what, status, events or (REQUEST,)))
        return response

    def knocks(self, name: str, password: str) -> None:
        """Sign in for the first time; raises `WrongPasswordError`."""
        try:
            self.signs_in(name, password)
        except UnexpectedAnswerError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
            raise WrongPasswordError from None

    def signs_in(self, name: str, password: str, *, status: int = 200, locks: bool = False) -> None:
        """Send a name and a password."""
        self._played.secrets.add(password)
        events_ = (events.AUTHENTICATION, "account_locked") if locks else (events.AUTHENTICATION,)
        body = {"name": name, "password": password}
        self.does("POST /api/login", *events_, body=body, status=status)
        self._played.secrets.update(self._client.cookies.values())


class Scenes:
    """What people do, one scene a method; each may be played again and again."""

    def __init__(
        self, url: str, password: str, seed: int, played: Played, rooms: ExitStack
    ) -> None:
        self._url = url
        self._random = random.Random(seed)  # noqa: S311 - the same seed is to play the same traffic
        self._played = played
        self._rooms = rooms
        self._users = {name: self._enter() for name in DEMO_USERS}
        for name, visitor in self._users.items():
            visitor.knocks(name, password)
        self._admin, self._operator, self._steward, self._auditor = self._users.values()
        self._number = self._random.randrange(16**6)
        self._members: set[int] = set()
        self._credentials: set[str] = set()
        self._crashed: set[str] = set()

    def all(self) -> list[Callable[[], None]]:
        """Return the scenes in an order of the seed's choice."""
        scenes = [
            self.wrong_password,
            self.locked_out,
            self.promoted,
            self.credential_kept,
            self.credential_denied,
            self.server_used,
            self.server_crashes,
            self.member_joins,
            self.member_leaves,
            self.members_denied,
            self.consent_and_export,
            self.auditor_looks,
        ]
        self._random.shuffle(scenes)
        return scenes

    def tidy_up(self) -> None:
        """Delete what was made, as far as the hub offers it, and leave nothing crashed."""
        for member in sorted(self._members):
            self._deletes(member)
        for server in sorted(self._credentials):
            self._operator.does(
                f"DELETE /api/servers/{server}/credential", events.CREDENTIAL_ACCESS
            )
        for server in sorted(self._crashed):
            self._restores(server)
        for made in (self._members, self._credentials, self._crashed):
            made.clear()

    def wrong_password(self) -> None:
        """Mistype a name, then a password."""
        stranger = self._enter()
        stranger.signs_in(self._new("stranger"), self._secret(), status=401)
        stranger.signs_in("olga", self._secret(), status=401)
        self._users["olga"].does("GET /api/servers")

    def locked_out(self) -> None:
        """Guess a new user's password too often; have an administrator help."""
        name, password = self._new("guest"), self._secret()
        body = {"name": name, "password": password, "role": "auditor", "reason": "joined"}
        self._admin.does("POST /api/users", events.PRIVILEGE_CHANGE, body=body, status=201)
        guest = self._enter()
        for attempt in range(1, 6):
            guest.signs_in(name, self._secret(), status=401, locks=attempt == 5)  # noqa: PLR2004 - the hub's limit
        guest.signs_in(name, password, status=401)
        body = {"reason": "called in"}
        self._admin.does(f"POST /api/users/{name}/unlock", events.ADMIN_ACTION, body=body)
        guest.signs_in(name, password)
        guest.does("POST /api/logout", events.AUTHENTICATION)

    def promoted(self) -> None:
        """Give a user another role, with which they may do more."""
        name, password = self._new("clerk"), self._secret()
        body = {"name": name, "password": password, "role": "auditor", "reason": "joined"}
        self._admin.does("POST /api/users", events.PRIVILEGE_CHANGE, body=body, status=201)
        clerk = self._enter()
        clerk.signs_in(name, password)
        body = {"name": self._new("server"), "toolset": "clock"}
        clerk.does("POST /api/servers", "access_denied", body=body, status=403)
        role = {"role": "operator", "reason": "new duties"}
        self._admin.does(f"PUT /api/users/{name}/role", events.PRIVILEGE_CHANGE, body=role)
        clerk.does("POST /api/servers", "mcp_server_registered", body=body, status=201)
        clerk.does("POST /api/servers", "mcp_server_registered", body=body, status=409)

    def credential_kept(self) -> None:
        """Store a credential, read it, delete it, and miss it."""
        server = self._server("text")
        path = f"/api/servers/{server}/credential"
        body = {"value": self._secret()}
        why = {"purpose": "rotation"}
        self._operator.does(f"PUT {path}", events.CREDENTIAL_ACCESS, body=body)
        read = self._operator.does(f"GET {path}", events.CREDENTIAL_ACCESS, query=why).json()
        if read != body:
            message = f"{path} returned another credential than was stored"
            raise UnexpectedAnswerError(message)
        self._operator.does(f"DELETE {path}", events.CREDENTIAL_ACCESS)
        self._operator.does(f"GET {path}", events.CREDENTIAL_ACCESS, query=why, status=404)

    def credential_denied(self) -> None:
        """Ask for a credential without the permission, and without an account."""
        path = "/api/servers/text/credential"
        why = {"purpose": "curiosity"}
        self._auditor.does(f"GET {path}", events.CREDENTIAL_ACCESS, query=why, status=403)
        with Visitor(self._url, self._played) as stranger:
            stranger.does(f"GET {path}", query=why, status=401)

    def server_used(self) -> None:
        """Start a server with a credential, use it, and stop it."""
        server = self._server("text")
        path = f"/api/servers/{server}"
        self._operator.does(
            f"PUT {path}/credential", events.CREDENTIAL_ACCESS, body={"value": self._secret()}
        )
        self._credentials.add(server)
        self._operator.does(f"POST {path}/start", "mcp_server_start", events.CREDENTIAL_ACCESS)
        self._operator.does(f"POST {path}/start", "mcp_server_start", status=409)
        text = {"text": "to be or not to be"}
        for tool, arguments, status in (
            ("count_words", text, 200),
            ("sign", text, 200),
            ("count_words", {"txet": 1}, 422),
            ("no_such_tool", {}, 502),
        ):
            body = {"tool": tool, "arguments": arguments}
            self._operator.does(f"POST {path}/call", "mcp_tool_call", body=body, status=status)
        self._operator.does(f"POST {path}/stop", "mcp_server_stop")
        self._operator.does(f"POST {path}/stop", "mcp_server_stop", status=409)

    def server_crashes(self) -> None:
        """Have a server end in the middle of a call."""
        server = self._server("numbers")
        path = f"/api/servers/{server}"
        self._operator.does(f"POST {path}/start", "mcp_server_start")
        body = {"tool": "summarize", "arguments": {"numbers": [1, 2, self._random.random()]}}
        self._operator.does(f"POST {path}/call", "mcp_tool_call", body=body)
        body = {"tool": "crash", "arguments": {"code": 3}}
        self._operator.does(f"POST {path}/call", "mcp_tool_call", body=body, status=502)
        self._crashed.add(server)

    def member_joins(self) -> None:
        """Add a member, look them up, and read their health note."""
        member = self._member()
        path = f"GET /api/members/{member}"
        self._steward.does(path, events.DATA_ACCESS, query={"purpose": "support"})
        self._steward.does(f"{path}/health", events.PHI_ACCESS, query={"purpose": "first aid"})

    def member_leaves(self) -> None:
        """Delete a member, and find them gone."""
        member = self._member()
        path = f"/api/members/{member}"
        self._deletes(member)
        self._deletes(member, status=404)
        self._members.discard(member)
        why = {"purpose": "support"}
        self._steward.does(f"GET {path}", events.DATA_ACCESS, query=why, status=404)

    def members_denied(self) -> None:
        """Ask as an operator for a member's health note."""
        path = "/api/members/1/health"
        why = {"purpose": "curiosity"}
        self._operator.does(f"GET {path}", "access_denied", query=why, status=403)

    def consent_and_export(self) -> None:
        """Give consent, use it for an export, and withdraw it."""
        consent = f"PUT /api/members/{self._member()}/consents/newsletter"
        self._steward.does(consent, events.CONSENT_CHANGE, body={"granted": True})
        body = {"purpose": "newsletter", "recipient": "Print Ltd"}
        self._steward.does("POST /api/members/export", events.DATA_EXPORT, body=body)
        self._steward.does(consent, events.CONSENT_CHANGE, body={"granted": False})

    def auditor_looks(self) -> None:
        """Read the records as the auditor, and have the trail verified."""
        self._auditor.does("GET /", query={"requests": "true"})
        self._auditor.does("GET /verify")

    def _deletes(self, member: int, status: int = 200) -> None:
        why = {"reason": "asked for it"}
        self._steward.does(
            f"DELETE /api/members/{member}", events.DATA_DELETION, query=why, status=status
        )

    def _restores(self, server: str) -> None:
        """Start a crashed server again and stop it, so that it is no trouble to anybody."""
        deadline = time.monotonic() + CRASH_SECONDS
        while self._state(server) == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        self._operator.does(f"POST /api/servers/{server}/start", "mcp_server_start")
        self._operator.does(f"POST /api/servers/{server}/stop", "mcp_server_stop")

    def _state(self, server: str) -> str:
        known = self._operator.does("GET /api/servers").json()
        return next(str(one["state"]) for one in known if one["name"] == server)

    def _enter(self) -> Visitor:
        return self._rooms.enter_context(Visitor(self._url, self._played))

    def _server(self, toolset: str) -> str:
        body = {"name": self._new(toolset), "toolset": toolset}
        self._operator.does("POST /api/servers", "mcp_server_registered", body=body, status=201)
        return body["name"]

    def _member(self) -> int:
        number = self._new("Member")
        body = {
            "name": number,
            "email": f"{number}@example.org",
            "phone": "+44 20 7946 0999",
            "health": self._random.choice(["None known", "Asthma", "Allergic to nuts"]),
        }
        added = self._steward.does("POST /api/members", events.DATA_ACCESS, body=body, status=201)
        member = int(added.json()["id"])
        self._members.add(member)
        return member

    def _new(self, kind: str) -> str:
        """Make a name that nobody has, in this run or in another one."""
        self._number += 1
        return f"{kind}-{self._number:x}-{os.urandom(3).hex()}"

    def _secret(self) -> str:
        secret = f"{self._random.getrandbits(80):020x}"
        self._played.secrets.add(secret)
        return secret


def wait_for(url: str, seconds: float) -> bool:
    """Return once the hub answers, or when the time is up; whether it answers."""
    deadline = time.monotonic() + seconds
    while not (answered := _answers(url)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answered


def _answers(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.HTTPError:
        return False
    return True


def play(
    url: str, password: str, *, rounds: int, seed: int, console: Console | None = None
) -> Played:
    """Play the rounds, and tidy up.

    Raises `UnexpectedAnswerError` when the hub errs, `WrongPasswordError`, and
    `HubLostError` when it has answered something and then answers no more.
    """
    played = Played()
    try:
        with ExitStack() as rooms:
            scenes = Scenes(url, password, seed, played, rooms)
            script = [scene for _ in range(rounds) for scene in scenes.all()]
            # Not `track`: the thread that it starts ends with its generator, which an error leaves to
            # the end of the process, where Python 3.13 waits for that thread for ever.
            with Progress(console=console, transient=True, disable=console is None) as bar:
                playing = bar.add_task("Playing", total=len(script))
                for scene in script:
                    scene()
                    bar.advance(playing)
            scenes.tidy_up()
    except httpx.TransportError as error:
        if not played.answered:
            raise
        raise HubLostError(played, f"{type(error).__name__}: {error}") from error
    return played


def missing(played: Played, directory: Path) -> list[str]:
    """Name the answered requests whose records are not in the trail."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    activity = False
    with TrailReader(directory) as reader:
        for leaf in reader.leaves():
            record = json.loads(leaf.record)
            found[record.get("request_id", "")].add(record["event"])
            activity = activity or record["event"] == REQUEST
    return [
        f"{answered.what} ({answered.request_id}): no {event}"
        for answered in played.answered
        for event in answered.events
        # Activity records can be turned off (OTEL_AUDIT_HTTP_ACTIVITY); evidence cannot.
        if event not in found[answered.request_id] and (activity or event != REQUEST)
    ]


def main() -> int:
    """Play, sum up, check."""
    arguments = _arguments()
    console = Console()
    try:
        return _run(arguments, console)
    except EOFError:
        trouble = "nobody is there to type the password: set AGENTHUB_PASSWORD to it"
    except WrongPasswordError:
        trouble = (
            f"{_named()} is not the hub's, or was wrong too often and has to wait a minute. The "
            f"hub's first start printed it; {sys.executable} -m examples.agenthub --new-password makes "
            "another"
        )
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        trouble = f"nobody answers at {arguments.url}: is the hub running? ({error})"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        trouble = f"{arguments.url} cannot be asked: {type(error).__name__}: {error}"
    except UnexpectedAnswerError as error:
        trouble = f"the hub erred: {error}"
    except OtelAuditError as error:
        trouble = f"the trail cannot be read: {error}"
    console.print(trouble, style="red", highlight=False, markup=False, soft_wrap=True)
    return 2


def _run(arguments: argparse.Namespace, console: Console) -> int:
    password = os.environ.get("AGENTHUB_PASSWORD") or getpass.getpass("Demo users' password: ")
    wait_for(arguments.url, arguments.wait)
    try:
        played = play(
            arguments.url, password, rounds=arguments.rounds, seed=arguments.seed, console=console
        )
    except HubLostError as error:
        return _without_hub(error, arguments, console)
    _sum_up(played, console, ids=arguments.ids)
    console.print(
        "Members and credentials that were made are deleted again; servers and users stay, as the "
        "hub deletes none.",
        highlight=False,
    )
    if arguments.check is None:
        return 0
    return _check(played, arguments.check, console)


def _without_hub(lost: HubLostError, arguments: argparse.Namespace, console: Console) -> int:
    """Wait for a hub that was lost in the middle, and check what it had answered."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    say(f"The hub was lost in the middle ({lost}).", "yellow")
    say(f"Waiting up to {arguments.wait:g} s for it to come back (--wait).")
    is_back = wait_for(arguments.url, arguments.wait)
    say("It is back." if is_back else "It is not back.", "" if is_back else "red")
    _sum_up(lost.played, console, ids=arguments.ids)
    say("Nothing was tidied up: what was made until then stays.")
    if arguments.check is None:
        say("Nothing was checked: --check DIR looks for all of it in the trail.", "yellow")
        return 2
    code = _check(lost.played, arguments.check, console)
    return code if is_back else code or 2


def _check(played: Played, directory: Path, console: Console) -> int:
    absent = missing(played, directory)
    for line in absent:
        console.print(f"[red]missing[/red] {line}", highlight=False)
    if not absent:
        console.print(
            f"[green]All {len(played.answered)} answered requests are in the trail.[/green]"
        )
    return 1 if absent else 0


def _named() -> str:
    """Say where the password came from."""
    named = os.environ.get("AGENTHUB_PASSWORD")
    return "the password in AGENTHUB_PASSWORD" if named else "that password"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.agenthub.driver",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the hub's address")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long the hub may take to start, and to come back when it is lost",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each scene is played")
    parser.add_argument("--seed", type=int, default=1, help="the same seed plays the same traffic")
    parser.add_argument(
        "--ids", action="store_true", help="list the request ids that were answered"
    )
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="look for all of it in this trail"
    )
    return parser.parse_args()


def _sum_up(played: Played, console: Console, *, ids: bool) -> None:
    table = Table(title="What should be in the trail", title_justify="left")
    table.add_column("event")
    table.add_column("at least", justify="right")
    for event, count in sorted(played.counts().items()):
        table.add_row(event, str(count))
    console.print(table)
    console.print(f"{len(played.answered)} requests were answered.", highlight=False)
    if ids:
        for one in played.answered:
            console.print(f"{one.request_id}  {one.what}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
