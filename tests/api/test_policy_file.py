"""The policy file: what it says holds, and what it cannot say is refused by line and column."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.api.derived import FAILED, SPAN_STATUSES, Saying
from otel_audit.api.policy import Decision
from otel_audit.api.policy_file import (
    parse_policy,
    policy_for,
    read_policy,
    rule_set,
    rule_set_names,
)
from otel_audit.api.template import Template
from otel_audit.errors import AuditSettingsError
from otel_audit.settings import Settings
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = r"""
version: 1
on_failure: continue
http_activity: off
redact:
  keys: [patient_name]
  patterns: ['\b(?P<case>CASE-\d{3})\b']
rules:
  - match: {event: "cache.*"}
    record: false
  - match: {event_type: phi_access, actor: "u-*"}
    retention: 6y
    redact: [diagnosis, error]
  - match: {resource_type: server, resource_name: "db-?"}
    level: warning
    on_failure: shutdown
rule_sets: [logins]
routes:
  - match: ["GET /patients/{id}", "PUT,PATCH /patients/*"]
    outcome: success
    event: phi_access
    resource_name: "{id}"
spans:
  - match: {kind: [client, producer], status: error, attributes: {a|b: "X*"}}
    event: call
"""


@pytest.mark.parametrize(
    ("word", "meant"), [("all", "all"), ("on", "all"), ("mutating", "mutating"), ("off", "off")]
)
def test_activity_is_said_by_one_of_three_words_and_on_is_all(word: str, meant: str) -> None:
    assert parse_policy(f"http_activity: {word}\n", "p.yaml").policy.http_activity == meant


def test_a_whole_file() -> None:
    said = parse_policy(WHOLE, "p.yaml")
    policy = said.policy
    assert (said.on_failure, said.http_activity) == ("continue", "off")
    assert not policy.decide("cache.hit", "cache.hit", "read").record
    assert policy.decide("phi_access", "phi_access", "read").retention == "3y"
    assert policy.decide("x", "phi_access", "read", "chart", "c", "u-1", "") == Decision(
        record=True,
        level=None,
        retention="6y",
        on_failure="continue",
        redact=("diagnosis", "error"),
    )
    server = policy.decide("start", "start", "start", "server", "db-1", "", "")
    assert (server.level, server.on_failure) == ("warning", "shutdown")
    assert policy.decide("start", "start", "start", "server", "db-11", "", "").level is None
    route, *shipped = policy.routes
    assert route.matches("PATCH", "/patients/{id}/name", "success")
    assert not route.matches("PATCH", "/patients/{id}/name", "failure")
    assert not route.matches("PUT", "/users", "success")
    assert {rule.saying.event.text for rule in shipped} == {"authentication"}
    (span,) = policy.spans
    assert span.could_match("any.scope", "producer")
    assert not span.could_match("any.scope", "server")
    assert span.matches("n", "error", {"b": "  xyz"})
    assert not span.matches("n", "error", {"a": "abc", "b": "xyz"})
    assert not span.matches("n", "ok", {"b": "xyz"})
    assert not span.matches("n", "error", {})


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", "1:1", "the policy says nothing, as a file that was cut off or never filled; write at least `version: 1`"),
        ("# version: 1\n\n", "1:1", "the policy says nothing"),
        ("rules: [", "1:9", "this is not YAML"),
        ("- a", "1:1", "expected keys with values"),
        ("version: 2", "1:10", "version 1 only"),
        ("on_failure: stop", "1:13", "'stop' is not one of fail, continue, shutdown"),
        ("on_failur: fail", "1:1", "unknown key 'on_failur'; did you mean 'on_failure'?"),
        ("zzz: 1", "1:1", "unknown key 'zzz'; known are version, "),
        ("rules: {}", "1:8", "expected a list"),
        ("rules:\n  - match: {}\n    record: true", "2:12", "match: it is empty; name "),
        ("rules:\n  - match: {event: a}", "2:5", "says nothing"),
        ("rules:\n  - record: true", "2:5", "'match' is missing"),
        ("rules:\n  - match: {event: a}\n    record: maybe", "3:13", "neither true nor false"),
        ("rules:\n  - match: {event: a}\n    level: loud", "3:12", "not one of debug"),
        ("rules:\n  - match: {event: [a]}\n    record: no", "2:20", "expected a text"),
        ("http_activity:", "1:15", "expected a text"),
        ("version: 1\nversion: 1", "2:1", "'version' is said twice"),
        ("redact:\n  patterns: ['(']", "2:3", "pattern"),
        ("redact:\n  patterns: [ok, '(a+)+$']", "2:13", "'(a+)+$' takes twice as long"),
        ("rule_sets: [nothing]", "1:13", "name some of aws, "),
        ("routes:\n  - match: /x\n    event: e", "2:12", "no method and route"),
        ("routes:\n  - match: []\n    event: e", "2:12", "match: it is empty; name "),
        ("routes:\n  - match: GET /x", "2:5", "'event' is missing"),
        ("routes:\n  - match: GET /x/{id}\n    event: e\n    resource_name: '{di}'", "4:20",
         "the route has no parameter 'di'; did you mean 'id'?"),
        ("routes:\n  - match: GET /x/{id}\n    event: e\n    fields: {a: '{id}', b: '{user}'}", "4:28",
         "no parameter 'user'; known are id, method, path, route, status, status_code, duration_ms"),
        ("routes:\n  - match: ['GET /x/{id}', 'PUT /y/{id}']\n    event: 'x{di}'", "3:12",
         "the routes have no parameter 'di'; did you mean 'id'?"),
        ("routes:\n  - match: GET /x\n    event: '{rout}'", "3:12", "did you mean 'route'?"),
        ("routes:\n  - match: GET /x/<int:item>\n    event: '{itme}'", "3:12", "did you mean 'item'?"),
        ("routes:\n  - match: GET /x\n    event: '{a'", "3:12", "brace at character 1"),
        ("routes:\n  - match: GET /x\n    event: '{a:b}'", "3:12", "no filter 'b'"),
        ("routes:\n  - match: GET /x\n    event: '{}'", "3:12", "placeholder without a name"),
        ("routes:\n  - match: GET /x\n    event: e\n    level: loud", "4:12", "not one of"),
        ("spans:\n  - match: {}\n    event: e", "2:12", "every span"),
        ("spans:\n  - match: {kind: any}\n    event: e", "2:19", "not one of internal"),
        ("spans:\n  - match: {name: a}\n    event: e\n    fields: {level: x}", "4:13", "has that key"),
        (
            "rules:\n  - match: {event: a}\n    record: yes\n  - match: {event: a}\n    record: no",
            "4:5",
            "this rule says record: false, and the one at p.yaml:2:5 says record: true",
        ),
        (
            "rules:\n  - match: {event: a}\n    retention: 1y\n  - match: {event: a}\n    level: info\n  - match: {event: a}\n    level: error",
            "6:5",
            "this rule says level: error, and the one at p.yaml:4:5 says level: info",
        ),
        (
            "rules:\n  - match: {event: '*'}\n    record: no\n  - match: {event: login}\n    record: yes",
            "4:5",
            "this rule says record: true, and the one at p.yaml:2:5 says record: false of all these events before",
        ),
        (
            "routes:\n- {match: 'GET /{a}', event: x}\n- {match: ['PUT,GET /{a}', GET /b], outcome: success, event: x, level: info}",
            "3:3",
            "routes: this rule has the match, event, action and resource of the one at p.yaml:2:3",
        ),
        (
            "spans:\n- {match: {name: a, attributes: {x: [b, c]}}, event: e}\n- {match: {name: a, kind: client, attributes: {x: [c, b]}}, event: e}",
            "3:3",
            "spans: this rule has the match, event, action and resource of the one at p.yaml:2:3",
        ),
        ("rule_sets: [logins, sql, logins]", "1:26", "'logins' is named twice"),
        ("rules:\n  - match: {event: ''}\n    record: no", "2:20", "the text is empty"),
        ("rules:\n  - match: {event: a}\n    retention: ''", "3:16", "the text is empty"),
        ("rules:\n  - match: {event: a}\n    redact: []", "3:13", "the list is empty"),
        ("rules:\n  - match: {event: a}\n    redact: [error, actor_id]", "3:13", "'actor_id' is a key of the record itself"),
        ("redact: {keys: [error, actor_id]}", "1:16", "keys: 'actor_id' is a key of the record itself"),
        ("redact: {keys: []}", "1:16", "the list is empty"),
        ("spans:\n  - match: {attributes: {}}\n    event: e", "2:12", "every span"),
        ("spans:\n  - match: {kind: []}\n    event: e", "2:12", "every span"),
        ("spans:\n  - match: {kind: client, attributes: {}}\n    event: e", "2:39", "attributes: it is empty"),
        ("spans:\n  - match: {name: a, kind: []}\n    event: e", "2:28", "the list is empty"),
        ("spans:\n  - match: {attributes: {a: []}}\n    event: e", "2:29", "the list is empty"),
        ("spans:\n  - match: {attributes: {'a:b': x}}\n    event: e", "2:33", "no filter 'b'"),
        ("spans:\n  - match: {kind: client}\n    event: ''", "3:12", "the text is empty"),
        ("version: 1\nrules:" + " [" * 3_000, "2:106", "nested deeper than 50 levels"),
        ("version: 1\non_failure: f\0ail", "2:14", "cannot have the character U+0000"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_where_it_stands(text: str, place: str, what: str) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        parse_policy(text, "p.yaml")
    assert str(caught.value).startswith(f"p.yaml:{place}: ")
    assert str(caught.value).count(place) == 1
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on_failure:", "1:12: on_failure: expected a text, and nothing is said; say something, or leave it out"),
        ("on_failure: Fial", "1:13: on_failure: 'Fial' is not one of fail, continue, shutdown; did you mean 'fail'?"),
        ("version: 2", "1:10: version: this version of otel-audit reads version 1 only; write 1"),
        ("rules:\n- {match: {event: a}, record: maybe}", "2:31: record: 'maybe' is neither true nor false; write one of them"),
        ("rules:\n- match: {event: [a, b]}\n  record: no",
         "2:18: event: expected a text, not a list; write one rule for each, or a pattern such as 'log*'"),
        ("rules:\n- match: {event: {a: b}}\n  record: no",
         "2:18: event: expected a text, not keys with values; write one rule for each, or a pattern such as 'log*'"),
        ("rules:\n- {match: {event: a}, redact: [a, [b]]}", "2:35: redact: expected a text, not a list; write one"),
        ("rule_sets: [nothing]", "1:13: rule_sets: the list names 'nothing', which is no rule set; name some of"),
        ("spans:\n- {match: {attributes: {x: []}}, event: e}", "2:28: x: the list is empty; name something, or leave it out"),
        ("routes:\n- {match: [GET /x, x], event: e}", "2:20: match: 'x' is no method and route; write for example"),
    ],
)  # fmt: skip
def test_an_error_names_the_key_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        parse_policy(text, "p.yaml")
    assert str(caught.value).startswith(f"p.yaml:{said}")


@pytest.mark.parametrize(
    ("match", "template"),
    [
        ("GET /x/{id}", "{id} {query.di} {method} {path} {route} {status} {status_code} {duration_ms}"),
        ("GET /x/{id:int}/{rest:path}", "{id}{rest}"),
        ("'GET /x/{id:[0-9]{2}}'", "{id}"),
        ("GET /x/<int:item>/<any(a, b):kind>", "{item}{kind}"),
        ("GET /x/<id:int>", "{id}"),
        ("['GET /x/{id}', 'GET /y/{user}']", "{id|user}"),
        ("['GET /x/{id}', 'GET /y/*']", "{di}"),
        ("'* /x/*'", "{anything}"),
        ("GET /users/", "{page}"),
        ("GET /users/<name>", "{page}"),
    ],
)  # fmt: skip
def test_what_a_request_could_have_is_not_refused(match: str, template: str) -> None:
    """Flask and Django can give a view more than the route names: the last two."""
    text = f"routes:\n  - match: {match}\n    event: e\n    resource_name: '{template}'"
    (rule,) = parse_policy(text, "p.yaml").policy.routes
    assert rule.saying.words["resource_name"].text == template


@pytest.mark.parametrize(
    ("patterns", "matching", "others"),
    [
        ("[a*, b]", ["A1", " b", "a\nb"], ["c", "bb"]),
        ("['!a', '!b*']", ["c", "aa", ""], ["a", " A", "b", "bc"]),
        ("[a*, '!ab']", ["a", "abc"], ["ab", "b"]),
    ],
)
def test_patterns_of_attributes(patterns: str, matching: list[str], others: list[str]) -> None:
    text = f"spans: [{{match: {{attributes: {{x: {patterns}}}}}, event: e}}]"
    (rule,) = parse_policy(text, "p.yaml").policy.spans
    for value in matching:
        assert rule.matches("n", "ok", {"x": value})
    for value in others:
        assert not rule.matches("n", "ok", {"x": value})


def test_statements_are_no_commands_of_redis() -> None:
    for command in ("RENAME ? ?", "RESTORE ? ?", "EXEC"):
        for rule in rule_set("sql", "test").policy.spans:
            assert not rule.matches("n", "ok", {"db.system": "redis", "db.statement": command})


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditSettingsError, match="OTEL_AUDIT_POLICY_FILE"):
        read_policy(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("version: 1\n# für é".encode() + b"\xff")
    place = re.escape(f"{tmp_path / 'latin.yaml'}:2:8: this is not UTF-8 but the byte 0xff")
    with pytest.raises(AuditSettingsError, match=place):
        read_policy(tmp_path / "latin.yaml")


def settings(tmp_path: Path, text: str, **environment: str) -> Settings:
    (tmp_path / "p.yaml").write_text(text)
    return Settings.from_env({"OTEL_AUDIT_POLICY_FILE": str(tmp_path / "p.yaml"), **environment})


def test_a_variable_wins_over_the_file_and_sets_add_up(tmp_path: Path) -> None:
    policy, _ = policy_for(settings(tmp_path, WHOLE))
    assert (policy.on_failure, policy.http_activity) == ("continue", "off")
    chosen = {"OTEL_AUDIT_ON_FAILURE": "fail", "OTEL_AUDIT_HTTP_ACTIVITY": "all"}
    policy, _ = policy_for(settings(tmp_path, "http_activity: mutating", **chosen))
    assert (policy.on_failure, policy.http_activity) == ("fail", "all")
    policy, _ = policy_for(settings(tmp_path, "version: 1", OTEL_AUDIT_RULE_SETS="logins"))
    assert policy.routes
    with pytest.raises(
        AuditSettingsError, match="OTEL_AUDIT_RULE_SETS names 'x', which is no rule set"
    ):
        policy_for(settings(tmp_path, "version: 1", OTEL_AUDIT_RULE_SETS="x"))


def test_a_set_that_file_and_variable_name_counts_once(tmp_path: Path) -> None:
    """Else each request to a log-in would have two records."""
    once, _ = policy_for(settings(tmp_path, "rule_sets: [logins]"))
    both = {"OTEL_AUDIT_RULE_SETS": "logins,redis,redis"}
    twice, _ = policy_for(settings(tmp_path, "rule_sets: [logins]", **both))
    assert [rule.routes for rule in twice.routes] == [rule.routes for rule in once.routes]
    assert len(twice.spans) == 1


@pytest.mark.parametrize("name", rule_set_names())
def test_each_shipped_set_is_in_order(tmp_path: Path, name: str) -> None:
    policy, _ = policy_for(settings(tmp_path, "version: 1", OTEL_AUDIT_RULE_SETS=name))
    assert policy.routes or policy.spans


def test_the_provider_does_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(WHOLE)
    with audit_trail(policy_file=path) as trail:
        trail.logger.audit_event("cache.hit", "read")
        trail.logger.audit_event(
            "phi_access", "read", "chart", "c-1", note="of CASE-123", patient_name="Ann"
        )
        (record,) = trail.records()
    assert record["retention"] == "3y"
    assert record["note"] == "of [REDACTED:case]"
    assert record["patient_name"] == "[REDACTED]"


def test_a_rule_takes_fields_out(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("rules:\n- {match: {event: e}, redact: [diagnosis, error, absent]}")
    with audit_trail(policy_file=path) as trail:
        trail.logger.audit_event("e", "do", error="of Ann", diagnosis="flu", ward=3)
        record = trail.record(event="e")
    assert (record["diagnosis"], record["error"], record["ward"]) == ("[REDACTED]", "[REDACTED]", 3)


@pytest.mark.parametrize(
    "text",
    [
        "routes: [{match: GET /a, event: x, outcome: success}, {match: GET /a, event: x, outcome: failure}]",
        "routes: [{match: GET /a, event: x}, {match: PUT /a, event: x}, {match: GET /b, event: x}]",
        "routes: [{match: GET /a, event: x}, {match: GET /a, event: y}]",
        "routes: [{match: 'GET /{a}', event: x, resource_name: '{a}'}, {match: 'GET /{a}', event: x}]",
        "spans: [{match: {name: a, kind: client}, event: x}, {match: {name: a, kind: server}, event: x}]",
        "spans: [{match: {name: a}, event: x, action: b}, {match: {name: a}, event: x}]",
    ],
)  # fmt: skip
def test_what_makes_two_different_records_is_not_refused(text: str) -> None:
    policy = parse_policy(text, "p.yaml").policy
    assert len(policy.routes) + len(policy.spans) > 1


def test_keys_of_the_record_itself_are_taken_out_of_all(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "redact: {keys: [resource_name, error, name]}\nrules: [{match: {event: e}, redact: [ward]}]"
    )
    with audit_trail(policy_file=path) as trail:
        trail.logger.audit_event("e", "do", "patient", "Ann", "failed", error="of Ann", ward=3)
        trail.logger.audit_event("f", "do", "patient", "Ann", name="Ann", of={"error": "of Ann"})
        trail.logger.audit_event("f", "do")
        first, second, third = trail.records()
    gone = ("resource_name", "error", "ward")
    assert [first[name] for name in gone] == ["[REDACTED]"] * 3
    assert (first["resource_type"], first["status"]) == ("patient", "failed")
    assert (second["name"], second["of"]) == ("[REDACTED]", {"error": "[REDACTED]"})
    assert second["resource_name"] == "[REDACTED]"
    assert "error" not in third
    assert "resource_name" not in third


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("a{{b}}", "a{b}"),
        ("{n}", 7),
        ("{none}", None),
        ("{none|n}", 7),
        ("n={n}, {none}", "n=7, "),
        ("x{none}", None),
        ("{q:word}", "INSERT"),
        ("{q:table}", "shop.users"),
        ("{q:sql}", "INSERT INTO shop.users VALUES (?, ?)"),
        ("{q:lower}", "insert into shop.users values ('it''s', 42)"),
        ("{n:table}", None),
        ("{q:write} {q:write_table}", "INSERT shop.users"),
        ("{i:change} {i:change_table}", "CREATE users"),
        ("{r:redis_write}", "DEL"),
        ("{u:host}", "example.com"),
        ("{i:table}", "users"),
        ("{n:host}", "7"),
        ("{u:url}", "https://example.com:8443/a"),
        ("", None),
    ],
)
def test_templates(text: str, value: Any) -> None:
    facts = {
        "n": 7,
        "i": "CREATE INDEX by_name ON users (name)",
        "r": "GET ?\nDEL ?",
        "u": "https://me:pw@example.com:8443/a?token=1#x",
        "q": "INSERT INTO shop.users VALUES ('it''s', 42)",
    }
    template = Template(text)
    assert template.render(facts) == value
    narrow = template.narrowed(facts)
    assert (None if narrow is None else narrow.render(facts)) == value


_SHIPPED = [rule for name in rule_set_names() for rule in rule_set(name, "test").policy.spans]
_ATTRIBUTES = sorted(
    {name for rule in _SHIPPED for either in rule.attributes for name in either.names}
    | {
        "db.name",
        "db.namespace",
        "server.address",
        "server.port",
        "gen_ai.request.model",
        "foreign",
    }
)


@given(
    st.dictionaries(
        st.sampled_from(_ATTRIBUTES),
        st.sampled_from(["DELETE FROM users", "SET", "postgresql", "redis", "chat", 200, True]),
    ),
    st.sampled_from(SPAN_STATUSES),
)
def test_a_rule_for_spans_of_certain_attributes_does_what_the_rule_does(
    attributes: dict[str, Any], status: str
) -> None:
    facts = {"name": "DELETE users", "kind": "client", "status": status, "duration_ms": 1.5}
    for rule in _SHIPPED:
        if not rule.asks_for(attributes):
            assert not rule.matches("DELETE users", status, attributes)
            continue
        narrow = rule.narrowed(tuple(attributes), tuple(facts))
        matches = rule.matches("DELETE users", status, attributes)
        assert narrow.matches("DELETE users", status, attributes) == matches
        said = rule.saying.say({**attributes, **facts}, "success")
        assert narrow.saying.say({**attributes, **facts}, "success") == said


class Refusing:
    def __str__(self) -> str:
        message = "no text"
        raise RuntimeError(message)


def test_a_record_whose_name_is_not_known_is_marked() -> None:
    saying = Saying(Template("{kind_of_change}"), Template("{n:lower}"))
    event = saying.say({"n": "DO"}, "success")
    assert (event.event, event.action) == ("{kind_of_change}", "do")
    assert event.fields == {FAILED: ["event"]}


def test_a_rule_that_raises_leaves_a_marked_record() -> None:
    saying = Saying(
        Template("event"), Template("do"), {"resource_name": Template("x{bad}")},
        {"good": Template("{n}"), "worse": Template("{bad:lower}")},
    )  # fmt: skip
    event = saying.say({"n": 1, "bad": Refusing()}, "success")
    assert (event.event, event.status, event.resource_name) == ("event", "success", None)
    assert event.fields == {"good": 1, FAILED: ["resource_name", "worse"]}
