"""The audit trail over HTTP: who gets what, and what becomes of bad input."""

from __future__ import annotations

import csv
import hmac
import io
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson
import pytest

from otel_audit import AuditEvent, AuditLogger, AuditProvider
from otel_audit.errors import AuditSettingsError
from otel_audit.readers.query.model import PERSONAL
from otel_audit.trail.layout import TOKENS
from otel_audit.trail.note import Verifier
from otel_audit.trail.proof import check
from otel_audit.web.access import Access, RefusedError
from otel_audit.web.answer import _TITLES
from otel_audit.web.events import AuditEvents
from otel_audit.web.events.admission import RateLimit
from otel_audit.web.problem import NOT_CONFIRMED, REFUSED, described
from otel_audit.web.tokens import TokenFile
from tests.readers.farend import HttpFarEnd, Reply
from tests.web.driving import Wire, http, request

if TYPE_CHECKING:
    from collections.abc import Callable

    Records = Callable[[], list[dict[str, Any]]]

EVERYTHING = ("read", "read:pii", "proof")
PAGE = Path(__file__).parents[3] / "docs" / "query.md"
KINDS: dict[str, list[int]] = {
    kind: [int(status) for status in statuses.split(", ")]
    for kind, statuses in re.findall(
        r"^\| \[`#([\w-]+)`\]\(#\1\) \| ([\d, ]+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}
"""Which statuses a type of problem has, as the document says."""


class Asker:
    """Asks one application, with a token of one's own."""

    def __init__(self, provider: AuditProvider, *scopes: str, **options: Any) -> None:
        self.file = TokenFile(provider.directory / TOKENS)
        self.token = self.file.create("ann", scopes)[0] if scopes else ""
        self.app = AuditEvents(provider=provider, **{"per_minute": 0, **options})

    async def __call__(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET", **query: Any
    ) -> Wire:
        given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        if self.token and "authorization" not in (headers or {}):
            given.append((b"authorization", f"Bearer {self.token}".encode()))
        scope = http(f"/audit{path}", method=method, headers=given)
        scope["query_string"] = urlencode(query, doseq=True).encode()
        return await request(self.app, scope)

    async def problem(self, status: int, path: str, **options: Any) -> str:
        """Ask for what is refused, and return why."""
        wire = await self(path, **options)
        document = orjson.loads(wire.body)
        assert wire.status == document["status"] == status, document
        assert wire.header(b"content-type") == [b"application/problem+json"]
        assert document["type"].startswith("https://")
        assert status in KINDS[document["type"].rpartition("#")[2]]
        assert document["title"]
        detail: str = document["detail"]
        return detail


def fill(provider: AuditProvider) -> None:
    audit = AuditLogger(provider=provider)
    for number in range(30):
        failed = number % 5 == 4
        audit.audit_event(
            "server_lifecycle_event" if number % 3 == 0 else "authentication",
            "start" if number % 3 == 0 else "login",
            "server",
            f"s-{number}",
            "failed" if failed else "success",
            server_name="obsidian" if number % 2 else "files",
            email=f"user{number}@example.org",
            user_id=f"account{number}",
            subject_id=f"patient{number}",
            number=number,
        )
    provider.flush()
    provider.checkpoint()


@pytest.fixture
def asker(provider: AuditProvider) -> Asker:
    """Give somebody who may see everything."""
    fill(provider)
    return Asker(provider, *EVERYTHING)


def found(wire: Wire) -> list[int]:
    assert wire.status == 200, wire.body
    return [item["record"]["number"] for item in orjson.loads(wire.body)["records"]]


# closed by default


async def test_without_configuration_nobody_is_let_in_and_the_answer_says_how(
    provider: AuditProvider,
) -> None:
    closed = Asker(provider)
    for path in ("/events", "/events/0", "/events/0/proof", "/checkpoint", "/stats", "/stream"):
        detail = await closed.problem(403, path)
        assert "otel-audit token create" in detail
        assert "authorize=" in detail
    assert "otel-audit token create" in await closed.problem(
        403, "/events", headers={"authorization": "Bearer anything"}
    )


async def test_a_token_file_that_is_not_believed_is_named_for_what_it_is(
    asker: Asker, caplog: pytest.LogCaptureFixture
) -> None:
    path = asker.file.path
    for mode, content, why in (
        (0o666, path.read_bytes(), "others can write it: chmod 600"),
        (0o600, b"{}", "cannot be used: "),
    ):
        path.write_bytes(content)
        path.chmod(mode)
        caplog.clear()
        said = await asker.problem(503, "/events")
        assert "file of tokens" in said
        assert "otel-audit token list" in said
        assert str(path) not in said
        assert "trail" not in said
        [logged] = caplog.records
        assert (logged.levelname, logged.exc_info) == ("ERROR", None)
        assert str(path) in logged.getMessage()
        assert why in logged.getMessage()


async def test_tokens_that_do_not_hold_are_refused(asker: Asker) -> None:
    wire = await asker("/events", headers={"authorization": ""})
    assert wire.status == 401
    assert wire.header(b"www-authenticate")[0].startswith(b"Bearer")
    asker.token = ""
    assert "Authorization: Bearer" in await asker.problem(401, "/events")
    expired, _ = asker.file.create("bob", ["read"], seconds=-1)
    revoked, entry = asker.file.create("eve", ["read"])
    asker.file.revoke(entry.id)
    good, _ = asker.file.create("joe", ["read"])
    other = "B" if good[-2] == "A" else "A"
    for token, why in {
        expired: "expired",
        revoked: "revoked",
        good[:-2] + other + good[-1]: "not known",
        good + "A": "not known",
        good.upper(): "not known",
        "oat_000000000000_" + "A" * 43: "not known",
        "null": "not known",
        "oat__": "not known",
        "\x00": "not known",
        "A" * 100_000: "not known",
    }.items():
        said = await asker.problem(401, "/events", headers={"authorization": f"Bearer {token}"})
        assert why in said
        assert token not in said
    for value in ("Basic YTpi", "Bearer", f"Token {good}", "bearer "):
        assert "send one header" in await asker.problem(
            401, "/events", headers={"authorization": value}
        )
    twice = [(b"authorization", f"Bearer {good}".encode())] * 2
    assert (await request(asker.app, http("/audit/events", headers=twice))).status == 401
    assert (await asker("/events", headers={"authorization": f"bEARER {good}"})).status == 200


async def test_a_token_of_another_scope_opens_nothing_else(provider: AuditProvider) -> None:
    fill(provider)
    prover, reader = Asker(provider, "proof"), Asker(provider, "read")
    for path in ("/events", "/events/0", "/stats", "/stream"):
        assert "lacks the scope read" in await prover.problem(403, path)
    assert "lacks the scope proof" in await reader.problem(403, "/events/0/proof")
    proof = await prover("/events/0/proof")
    assert proof.status == 200, proof.body
    assert (await prover("/checkpoint")).status == 200
    assert (await reader("/checkpoint")).status == 200


async def test_personal_fields_take_part_in_nothing_without_their_scope(asker: Asker) -> None:
    reader = Asker(asker.app.provider, "read")
    for form in ("application/json", "application/x-ndjson", "text/csv"):
        shown = (await reader("/events", headers={"accept": form})).body
        assert not [text for text in (b"example.org", b"account", b"patient") if text in shown]
        assert b"user_agent" not in shown or form == "text/csv"
        assert b"example.org" in (await asker("/events", headers={"accept": form})).body
    one = orjson.loads((await reader("/events/3")).body)
    assert not {"bytes", "leaf_hash"} & set(one)
    assert "email" not in one["record"]
    assert b"example.org" in (await asker("/events/3")).body
    for query in ({"field.email": "user3@example.org"}, {"actor": "x"}, {"client_ip!": "x"},
                  {"field.query_filter": "x"}, {"session_id": "x"},
                  {"field.user_id": "account3"}, {"field.subject_id!": "x"}):  # fmt: skip
        assert "hidden from you" in await reader.problem(400, "/events", **query)
        assert "hidden from you" in await reader.problem(400, "/stream", **query)
        assert "hidden from you" in await reader.problem(400, "/stats", **query)
    assert "hidden from you" in await reader.problem(400, "/stats", by="email")
    assert "hidden from you" in await reader.problem(400, "/stats", by="actor")
    theirs: dict[str, Any] = {"q": "user3", "event_type!": "audit.query"}
    assert found(await reader("/events", **theirs)) == []
    assert found(await asker("/events", **theirs)) == [3]
    assert orjson.loads((await reader("/stats", q="user3")).body)["counts"] == []
    prover = Asker(asker.app.provider, "proof")
    keys = provider_verifiers(asker.app.provider)
    assert b"\nextra " not in (await prover("/events/3/proof")).body
    proof = (await Asker(asker.app.provider, *EVERYTHING)("/events/3/proof")).body
    assert b"example.org" in check(proof, None, keys).record


async def test_the_application_may_hide_more(asker: Asker) -> None:
    more = PERSONAL | {"resource_name", "number"}
    reader = Asker(asker.app.provider, "read", personal=more)
    for form in ("application/json", "application/x-ndjson", "text/csv"):
        shown = (await reader("/events", headers={"accept": form}, event="authentication")).body
        assert not [text for text in (b"s-1", b"account", b'"number"') if text in shown]
    assert "hidden from you" in await reader.problem(400, "/events", resource="s-3")


class Shelf(HttpFarEnd):
    """A Loki that has one line, and counts nothing."""

    def asked(self, path: str) -> Reply:
        if "query_range" not in path:
            return Reply(400, {}, b"it cannot count")
        line = [str(time.time_ns() - 10**9), orjson.dumps({"record_id": "r", "number": 7}).decode()]
        streams = [{"stream": {"service_name": "hub"}, "values": [line]}]
        return Reply(200, {}, orjson.dumps({"data": {"result": streams}}))


async def test_loki_is_asked_where_the_settings_say_so(
    make_provider: Callable[..., AuditProvider],
) -> None:
    with Shelf() as loki:
        asker = Asker(make_provider(query_loki=loki.url, loki_tenant="shop"), *EVERYTHING)
        assert found(await asker("/events")) == [7]
        exported = await asker("/events", headers={"accept": "application/x-ndjson"})
        assert orjson.loads(exported.body)["record"]["number"] == 7
        assert {each["x-scope-orgid"] for each in loki.headers} == {"shop"}
    await asker.problem(503, "/events")


def provider_verifiers(provider: AuditProvider) -> list[Verifier]:
    with provider.reader() as reader:
        return [Verifier.parse(key) for key in reader.claimed_keys]


async def test_the_application_may_decide_who_asks(
    provider: AuditProvider, caplog: pytest.LogCaptureFixture
) -> None:
    fill(provider)

    def hook(scope: Any) -> Any:
        name = dict(scope["headers"]).get(b"x-user")
        if name == b"true":
            return True
        if name == b"broken":
            raise LookupError
        if name == b"misspelt":
            return Access.of("ann", ["write"])
        if name == b"gone":
            message = "you are gone"
            raise RefusedError(message)
        return Access.of(name.decode(), ["read"]) if name else None

    asker = Asker(provider, authorize=hook)
    assert (await asker("/events", headers={"x-user": "ann"})).status == 200
    assert "Send a token" in await asker.problem(401, "/events")
    assert "you are gone" in await asker.problem(401, "/events", headers={"x-user": "gone"})
    assert "server's log" in await asker.problem(503, "/events", headers={"x-user": "broken"})
    assert "Who you are" in await asker.problem(503, "/events", headers={"x-user": "misspelt"})
    assert "Who you are" in await asker.problem(503, "/events", headers={"x-user": "true"})
    assert "it returned bool, neither an Access nor None" in caplog.text
    with pytest.raises(AuditSettingsError, match="no scope"):
        Access.of("ann", ["write"])


async def test_each_query_is_a_record_of_who_asked_for_what(asker: Asker, records: Records) -> None:
    await asker("/events", outcome=["failure", "unknown"], limit=3)
    await asker("/events/3")
    await asker("/events/3/proof")
    await asker("/stats", by="event")
    await asker("/events", headers={"accept": "text/csv"}, actor="nobody")
    own = [record for record in records() if record["event_type"] == "audit.query"]
    assert [record["event"] for record in own] == [
        "audit.query", "audit.query", "audit.proof", "audit.count", "audit.export",
    ]  # fmt: skip
    assert [record["returned"] for record in own] == [3, 1, 1, 33, 0]
    assert {record["actor_id"] for record in own} == {"ann"}
    assert {record["actor_verified"] for record in own} == {True}
    assert orjson.loads(own[0]["query_filter"]) == {
        "outcome": ["failure", "unknown"],
        "limit": ["3"],
    }
    assert (own[1]["resource_type"], own[1]["resource_name"]) == ("record", "3")


async def test_a_query_whose_record_is_not_confirmed_is_not_answered(
    impatient: AuditProvider, hold: Any
) -> None:
    fill(impatient)
    asker = Asker(impatient, *EVERYTHING)
    with hold():
        for accept in ("application/json", "text/csv"):
            wire = await asker("/events", headers={"accept": accept})
            assert wire.status == 503
            assert b"obsidian" not in wire.body


def test_each_type_of_problem_has_its_heading_with_cause_and_remedy() -> None:
    root = PAGE.parent
    assert set(KINDS) == set(_TITLES)
    for kind in _TITLES:
        address = orjson.loads(described(400, kind, "", ""))["type"]
        assert address.endswith(f"/docs/query.md#{kind}")
    for kind, page in {
        **dict.fromkeys(_TITLES, "query.md"),
        **{address.rpartition("#")[2]: "fastapi.md" for address in (NOT_CONFIRMED, REFUSED)},
    }.items():
        text = (root / page).read_text(encoding="utf-8")
        found = re.findall(
            rf"^#+ {kind.replace('-', '[ -]')}\n\n(?=.)", text, re.MULTILINE | re.IGNORECASE
        )
        assert len(found) == 1, f"{page}#{kind}"


# what is asked


async def test_the_operators_example_is_answered(asker: Asker) -> None:
    wire = await asker("/events", action="server_lifecycle_event", server_name="obsidian", limit=10)
    assert found(wire) == [27, 21, 15, 9, 3]
    assert found(
        await asker("/events", action="start", server_name="obsidian", order="oldest")
    ) == [3, 9, 15, 21, 27]
    document = orjson.loads(wire.body)
    assert document["next"] is None
    assert document["complete"] is True
    assert document["index"]["size"] >= 30
    assert set(document["records"][0]) == {"sequence", "committed_at", "record"}


async def test_pages_are_linked(asker: Asker) -> None:
    wire = await asker("/events", event="authentication", limit=7, start="-1h")
    pages = [found(wire)]
    while (link := orjson.loads(wire.body)["next"]) is not None:
        assert wire.header(b"link") == [f'<{link}>; rel="next"'.encode()]
        path, _, query = link.partition("?")
        scope = http(path, headers=[(b"authorization", f"Bearer {asker.token}".encode())])
        wire = await request(asker.app, {**scope, "query_string": query.encode()})
        pages.append(found(wire))
    assert [len(page) for page in pages] == [7, 7, 6]
    assert [number for page in pages for number in page] == [n for n in range(29, -1, -1) if n % 3]
    assert wire.header(b"link") == []


async def test_links_lead_back_through_a_mount(asker: Asker) -> None:
    headers = [(b"authorization", f"Bearer {asker.token}".encode())]
    scope = http("/api/audit/events", headers=headers, root_path="/api", query_string=b"limit=2")
    wire = await request(asker.app, scope)
    assert orjson.loads(wire.body)["next"].startswith("/api/audit/events?limit=2&cursor=")


async def test_cursors_of_others_and_changed_ones_are_refused(asker: Asker) -> None:
    wire = await asker("/events", event="authentication", limit=5)
    cursor = orjson.loads(wire.body)["next"].partition("cursor=")[2]
    assert "another query" in await asker.problem(400, "/events", event="login", cursor=cursor)
    assert "another query" in await asker.problem(400, "/events", cursor=cursor)
    for bad in (cursor[:-3] + "AAA", "", "x", "' OR 1=1", cursor * 3):
        assert "no cursor of this trail" in await asker.problem(
            400, "/events", event="authentication", cursor=bad
        )
    reader = Asker(asker.app.provider, "read")
    assert "another query" in await reader.problem(
        400, "/events", event="authentication", limit="5", cursor=cursor
    )


async def test_forms_are_negotiated(asker: Asker) -> None:
    lines = (
        await asker("/events", headers={"accept": "application/x-ndjson"}, event="authentication")
    ).body
    assert [orjson.loads(line)["record"]["number"] for line in lines.splitlines()] == [
        n for n in range(29, -1, -1) if n % 3
    ]
    wire = await asker("/events", headers={"accept": "text/html;q=0.9, text/csv;q=0.5"}, limit=2)
    rows = list(csv.DictReader(io.StringIO(wire.body.decode())))
    assert len(rows) == 2
    assert wire.header(b"content-type") == [b"text/csv"]
    assert wire.header(b"link")
    for accept in ("*/*", "application/*", "text/csv;q=0, application/json", "text/csv;q=0.1, */*"):
        wire = await asker("/events", headers={"accept": accept})
        assert wire.header(b"content-type") == [b"application/json"]
    assert "text/csv" in await asker.problem(406, "/events", headers={"accept": "image/png"})


async def test_csv_is_safe_against_formulas(asker: Asker) -> None:
    provider = asker.app.provider
    event = AuditEvent("=cmd|' /C calc'!A0", "+1", resource_name="@sum(1)", error="-2\t")
    await AuditLogger(provider=provider).aemit(event)
    body = (await asker("/events", headers={"accept": "text/csv"}, action="?1")).body.decode()
    [row] = csv.DictReader(io.StringIO(body))
    assert (row["event"], row["action"]) == ("'=cmd|' /C calc'!A0", "'+1")
    assert (row["resource_name"], row["error"]) == ("'@sum(1)", "'-2\t")


async def test_entity_tags_spare_what_is_known(asker: Asker) -> None:
    wire = Wire()
    asked: dict[str, dict[str, Any]] = {"/events": {"event": "authentication"}, "/events/3": {}}
    for path, query in asked.items():
        wire = await asker(path, **query)
        [tag] = wire.header(b"etag")
        # What else the page has, such as how far the index is, may differ.
        assert tag.startswith(b'W/"') is (path == "/events")
        for given in (tag.decode(), f'"x", W/{tag.decode().removeprefix("W/")}', "*"):
            again = await asker(path, headers={"if-none-match": given}, **query)
            assert again.status == 304
            assert again.body == b""
            assert again.header(b"etag") == [tag]
        assert (await asker(path, headers={"if-none-match": '"x"'}, **query)).status == 200
    assert wire.header(b"cache-control") == [b"private, no-cache"]


async def test_one_record_its_proof_and_the_checkpoint(asker: Asker) -> None:
    listed = orjson.loads((await asker("/events", limit=1, event="authentication")).body)[
        "records"
    ][0]
    record_id = listed["record"]["record_id"]
    by_id = orjson.loads((await asker(f"/events/{record_id}")).body)
    by_number = orjson.loads((await asker(f"/events/{listed['sequence']}")).body)
    assert by_id == by_number
    assert by_id["record"] == listed["record"] == orjson.loads(by_id["bytes"])
    keys = provider_verifiers(asker.app.provider)
    checked = check((await asker(f"/events/{record_id}/proof")).body, None, keys)
    assert checked.record == by_id["bytes"].encode()
    assert checked.index == listed["sequence"]
    note = (await asker("/checkpoint")).body.decode()
    assert note.splitlines()[1] == "30"
    for path in ("/events/none", "/events/99999", f"/events/{'9' * 60}", "/events/nobody/proof"):
        assert "There is no record" in await asker.problem(404, path)
    await asker("/events", limit=1)
    newest = asker.app.provider.trail.reader.tree().size - 1
    assert "within about a second" in await asker.problem(503, f"/events/{newest}/proof")


async def test_a_trail_without_checkpoints_says_so(provider: AuditProvider) -> None:
    asker = Asker(provider, *EVERYTHING)
    with provider.trail.store._handle.use() as connection:
        connection.execute("DELETE FROM checkpoint")
    assert "no checkpoint yet" in await asker.problem(404, "/checkpoint")


async def test_stats_count_by_field_and_time(asker: Asker) -> None:
    document = orjson.loads(
        (
            await asker("/stats", event="authentication", outcome="failure", per="1h", start="-24h")
        ).body
    )
    assert sum(row["count"] for row in document["counts"]) == 4
    assert len(document["counts"]) == 25
    assert document["counts"][0]["start"].endswith(":00:00Z")
    nothing = await asker(
        "/stats", per="1h", start="2026-01-01T01:30:00Z", end="2026-01-01T03:00:00Z"
    )
    assert orjson.loads(nothing.body)["counts"] == [
        {"start": "2026-01-01T01:00:00Z", "value": None, "count": 0},
        {"start": "2026-01-01T02:00:00Z", "value": None, "count": 0},
    ]
    assert document["origin"]
    assert document["index"]["full_text"] in (True, False)
    document = orjson.loads((await asker("/stats", by="server_name")).body)
    assert [(row["value"], row["count"]) for row in document["counts"]] == [
        ("files", 15),
        ("obsidian", 15),
    ]
    by_alias = orjson.loads((await asker("/stats", by="field.server_name")).body)
    assert by_alias["counts"] == document["counts"]
    assert "length of time" in await asker.problem(400, "/stats", per="often")
    assert "time buckets" in await asker.problem(400, "/stats", per="1s", start="2001-01-01")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "3"}, "limit has no meaning for a count"),
        ({"order": "oldest"}, "order has no meaning for a count"),
        ({"cursor": "xx"}, "cursor has no meaning for a count"),
        ({"by": ""}, "by is empty"),
        ({"per": ""}, "per is empty"),
        ({"by": ["event", "outcome"]}, "by is said twice"),
        ({"per": ["1h", "1h"]}, "per is said twice"),
        ({"by!": "event"}, "no parameter of a query"),
        ({"servername": "x"}, "did you mean server_name"),
    ],
)
async def test_what_means_nothing_for_a_count_is_refused(
    asker: Asker, query: dict[str, Any], said: str
) -> None:
    assert said in await asker.problem(400, "/stats", **query)


async def test_every_route_says_which_forms_it_has(asker: Asker) -> None:
    asker.app.provider.checkpoint()
    for path, form, other in (
        ("/events/3", "application/json", "text/csv"),
        ("/stats", "application/json", "text/csv"),
        ("/events/3/proof", "text/plain", "application/json"),
        ("/checkpoint", "text/plain", "application/json"),
    ):
        said = await asker.problem(406, path, headers={"accept": other})
        assert said.endswith(f"this route answers with {form}.")
        for accept in (form, "*/*", f"{other}, {form.partition('/')[0]}/*;q=0.1"):
            assert (await asker(path, headers={"accept": accept})).status == 200
    said = await asker.problem(406, "/stream", headers={"accept": "application/json"})
    assert "text/event-stream" in said


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"servername": "x"}, "did you mean server_name"),
        ({"limit": "1000000"}, "1 to 1000"),
        ({"limit": "0"}, "1 to 1000"),
        ({"limit": "ten"}, "whole number"),
        ({"start": "-1h", "end": "-2h"}, "ends before it starts"),
        ({"start": "2026-99-99"}, "has to be a time"),
        ({"order": "sideways"}, "newest or oldest"),
        ({"event": ["x"] * 101}, "more than 100 parameters"),
        ({"event": "x" * 5_000}, "at most 4096"),
    ],
)  # fmt: skip
async def test_bad_queries_are_explained(asker: Asker, query: dict[str, Any], said: str) -> None:
    assert said in await asker.problem(400, "/events", **query)


@pytest.mark.parametrize(
    "name", ["event", "actor", "server_name", "q", "start", "limit", "cursor", "field.x' OR '1'='1"]
)
async def test_sql_in_every_field_finds_nothing_and_harms_nothing(asker: Asker, name: str) -> None:
    for text in (
        "x' OR '1'='1",
        "1; DROP TABLE leaf; --",
        '" UNION SELECT note FROM checkpoint --',
    ):
        asked: dict[str, Any] = {name: text}
        wire = await asker("/events", **asked)
        if wire.status == 200:
            assert orjson.loads(wire.body)["records"] == []
        else:
            assert wire.status == 400
    everything: dict[str, Any] = {"field.number": "*"}
    assert len(found(await asker("/events", **everything))) == 30


async def test_a_query_string_of_ten_megabytes_is_refused_at_once(asker: Asker) -> None:
    headers = [(b"authorization", f"Bearer {asker.token}".encode())]
    for text in (b"event=" + b"x" * 10_000_000, b"a=b&" * 2_500_000):
        began = time.thread_time()
        wire = await request(
            asker.app, {**http("/audit/events", headers=headers), "query_string": text}
        )
        assert wire.status == 414
        assert time.thread_time() - began < 1
    odd = b"event=%FF%00%zz&&=&event"
    wire = await request(asker.app, {**http("/audit/events", headers=headers), "query_string": odd})
    assert wire.status == 400


async def test_other_paths_and_methods_are_refused(asker: Asker) -> None:
    for path in (
        "",
        "/",
        "/event",
        "/events/a/b",
        "/events/%2e%2e",
        "/events/../x",
        "/events/a/proof/x",
    ):
        assert await asker.problem(404, path) == (
            "There are events, events/ID, events/ID/proof, checkpoint, stats, stream."
        )
    wire = await asker("/events", method="POST")
    assert wire.status == 405
    assert wire.header(b"allow") == [b"GET, HEAD"]
    assert orjson.loads(wire.body)["type"].endswith("#method-not-allowed")
    wire = await asker("/events", method="HEAD")
    assert (wire.status, wire.body) == (200, b"")
    assert int(wire.header(b"content-length")[0]) > 100
    assert "no parameters here" in await asker.problem(400, "/events/3", event="x")
    assert "no parameters here" in await asker.problem(400, "/checkpoint", event="x")


async def test_callers_are_limited_each_for_itself(provider: AuditProvider) -> None:
    asker = Asker(provider, *EVERYTHING, per_minute=12)
    assert [(await asker("/checkpoint")).status for _ in range(3)] == [404, 404, 429]
    wire = await asker("/checkpoint")
    assert int(wire.header(b"retry-after")[0]) in (4, 5)
    ann, asker.token = asker.token, asker.file.create("bob", ["read"])[0]
    assert (await asker("/checkpoint")).status == 404
    asker.token = "wrong"
    assert [(await asker("/checkpoint")).status for _ in range(3)] == [401, 401, 429]
    asker.token = ann
    unlimited = RateLimit(0)
    assert not any(unlimited.wait("x") for _ in range(1_000))
    limited = RateLimit(6)
    for number in range(20_000):
        limited.wait(str(number))
    assert len(limited._callers) == 10_000


async def test_a_trail_that_cannot_be_read_is_a_503(asker: Asker) -> None:
    provider = asker.app.provider
    with provider.trail.store._handle.use() as connection:
        connection.execute("ALTER TABLE leaf RENAME TO gone")
    assert "server's log says why" in await asker.problem(503, "/events")


async def test_other_protocols_are_closed() -> None:
    app = AuditEvents()
    wire = Wire({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await app({"type": "lifespan"}, wire.receive, wire.send)
    assert wire.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    wire = Wire()
    await app({"type": "websocket"}, wire.receive, wire.send)
    assert wire.types == ["websocket.close"]


# the tokens' file


def test_the_file_holds_hashes_only_and_is_closed_to_others(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    text, token = file.create("ann", ["read", "read"], seconds=60)
    content = file.path.read_text()
    assert text.split("_", 2)[2] not in content
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert token.scopes == ("read",)
    assert token.expires is not None
    assert token.expires - token.created == 60
    assert file.check(text) == Access("ann", frozenset({"read"}))
    assert TokenFile(file.path).check(text).name == "ann"
    assert [entry.state(time.time()) for entry in file.tokens()] == ["active"]
    second, _ = file.create("ann", ["proof"])
    assert len(file.revoke("ann")) == 2
    assert file.revoke("ann") == []
    for gone in (text, second):
        with pytest.raises(RefusedError, match="revoked"):
            file.check(gone)


def test_unusable_names_scopes_and_files_are_refused(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    for name in ("", " ", "a\nb", "x" * 200):
        with pytest.raises(AuditSettingsError, match="printable"):
            file.create(name, ["read"])
    for scopes in ([], ["write"], [""]):
        with pytest.raises(AuditSettingsError, match="scope"):
            file.create("ann", scopes)
    text, _ = file.create("ann", ["read"])
    file.path.chmod(0o620)
    with pytest.raises(AuditSettingsError, match="others can write it"):
        file.check(text)
    file.path.chmod(0o600)
    os.chown(file.path, 12_345, -1)
    if os.geteuid() == 0:
        with pytest.raises(AuditSettingsError, match="another user"):
            file.check(text)
    os.chown(file.path, os.geteuid(), -1)
    for content in (b"", b"{}", b"[]", b'{"tokens": [{"id": 1}]}', b"\xff"):
        file.path.write_bytes(content)
        with pytest.raises(AuditSettingsError, match="cannot be used"):
            file.check(text)
    with pytest.raises(AuditSettingsError, match="cannot be used"):
        TokenFile(tmp_path / "missing" / "tokens.json").create("ann", ["read"])


def test_an_unknown_token_costs_the_same_comparison_as_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    real: Callable[[str, str], bool] = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    file = TokenFile(tmp_path / "tokens.json")
    text, token = file.create("ann", ["read"])
    wrong = f"oat_{token.id}_" + "A" * 43
    unknown = "oat_ffffffffffff_" + "A" * 43
    file.check(text)
    for bad in (wrong, unknown, "nonsense"):
        with pytest.raises(RefusedError, match="this token is not known here"):
            file.check(bad)
    assert compared == [(64, 64)] * 4
