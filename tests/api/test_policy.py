"""The first rule that says something counts; below all rules there is a default."""

from __future__ import annotations

import pytest

from otel_audit.api.policy import DEFAULT_RETENTION, HTTP_REQUEST, Decision, Policy, Rule
from otel_audit.errors import AuditSettingsError
from otel_audit.record.classes import CLASSES
from otel_audit.record.event import AuditEvent, Draft


def test_without_rules_everything_is_recorded_for_a_year_and_must_succeed() -> None:
    decision = Policy().decide("login", "login", "start")
    assert decision == Decision(record=True, level=None, retention="1y", on_failure="fail")
    assert DEFAULT_RETENTION == "1y"


@pytest.mark.parametrize("on_failure", ["fail", "continue", "shutdown"])
def test_on_failure_is_for_all_but_activity_which_never_costs_a_response(on_failure: str) -> None:
    policy = Policy(on_failure=on_failure)
    assert policy.decide("login", "login", "start").on_failure == on_failure
    assert policy.decide("GET /", HTTP_REQUEST, "get").on_failure == "continue"


def test_a_rule_may_make_activity_evidence() -> None:
    policy = Policy(rules=(Rule(event_type=HTTP_REQUEST, on_failure="fail"),))
    assert policy.decide("GET /", HTTP_REQUEST, "get").on_failure == "fail"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_event_classes_have_a_retention_of_their_own(name: str) -> None:
    assert Policy().decide("anything", name, "read").retention == CLASSES[name].retention


def test_for_each_matter_the_first_rule_that_says_something_counts() -> None:
    policy = Policy(
        rules=(
            Rule(event="login*", level="debug"),
            Rule(event="login", retention="3y", level="critical"),
            Rule(retention="90d", on_failure="continue"),
        )
    )
    assert policy.decide("login", "x", "y") == Decision(True, "debug", "3y", "continue")  # noqa: FBT003 - the tuple's order is its meaning
    assert policy.decide("other", "x", "y") == Decision(True, None, "90d", "continue")  # noqa: FBT003 - the tuple's order is its meaning


def test_false_is_something_that_a_rule_says() -> None:
    policy = Policy(rules=(Rule(event="hum", record=False), Rule(record=True)))
    assert policy.decide("hum", "hum", "hum").record is False
    assert policy.decide("login", "login", "start").record is True


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (Rule(), True),
        (Rule(event="server.*"), True),
        (Rule(event="SERVER.*"), False),
        (Rule(event="server"), False),
        (Rule(event="server.st[ao]*"), True),
        (Rule(event_type="admin_action"), True),
        (Rule(event_type="admin"), False),
        (Rule(action="start"), True),
        (Rule(action="stop"), False),
        (Rule(event="server.*", event_type="admin_*", action="st?rt"), True),
        (Rule(event="server.*", event_type="admin_*", action="stop"), False),
        (Rule(event="server.*", event_type="other", action="start"), False),
    ],
)
def test_a_rule_speaks_about_events_that_match_all_its_patterns(
    rule: Rule,
    matches: bool,  # noqa: FBT001 - a parameter of the table above
) -> None:
    assert rule.matches("server.start", "admin_action", "start") is matches


def test_as_a_stage_it_writes_its_decision_where_the_caller_said_nothing() -> None:
    rule = Rule(event="e", level="critical", retention="3y", on_failure="shutdown", record=False)
    policy = Policy(rules=(rule,))
    silent = Draft(AuditEvent("e", "a"), "id", "now")
    said = Draft(AuditEvent("e", "a", level="debug", retention="90d"), "id", "now")
    for draft in (silent, said):
        policy(draft)
        assert draft.wanted is False
        assert draft.on_failure == "shutdown"
    assert (silent.level, silent.retention) == ("critical", "3y")
    assert (said.level, said.retention) == ("debug", "90d")


def test_names_made_of_user_input_do_not_fill_the_memory() -> None:
    policy = Policy(rules=(Rule(event="e7", retention="3y"),))
    for number in range(10_000):
        draft = Draft(AuditEvent(f"e{number}", "a"), "id", "now")
        policy(draft)
        assert draft.retention == ("3y" if number == 7 else "1y")
    assert len(policy._decisions) <= 4_096
    again = Draft(AuditEvent("e7", "a"), "id", "now")
    policy(again)
    assert again.retention == "3y"


def test_the_second_time_it_is_one_look_up() -> None:
    policy = Policy()
    first = policy.decide("a", "b", "c")
    draft = Draft(AuditEvent("a", "c", event_type="b"), "id", "now")
    policy._decisions["a", "b", "c"] = first._replace(retention="remembered")
    policy(draft)
    assert draft.retention == "remembered"


def test_unknown_words_are_refused_with_the_choices() -> None:
    with pytest.raises(AuditSettingsError, match="level is 'loud'; it must be one of debug, info"):
        Rule(level="loud")
    with pytest.raises(AuditSettingsError, match="on_failure is 'ignore'; it must be one of fail"):
        Rule(on_failure="ignore")
    with pytest.raises(AuditSettingsError, match="on_failure is 'ignore'; it must be one of fail"):
        Policy(on_failure="ignore")
    with pytest.raises(AuditSettingsError, match="http_activity is 'some'; it must be one of all"):
        Policy(http_activity="some")


@pytest.mark.parametrize(
    ("earlier", "later", "overruled"),
    [
        ({"event": "*"}, {"event": "login"}, True),
        ({"event": "login"}, {"event": "*"}, False),
        ({"event": "log*"}, {"event": "login"}, True),
        ({"event": "log*"}, {"event": "login*"}, True),
        ({"event": "log*"}, {"event": "logi?"}, True),
        ({"event": "log*"}, {"event": "log[io]n"}, False),  # it does, but is not known to
        ({"event": "log?n"}, {"event": "login"}, True),
        ({"event": "log?n"}, {"event": "log*n"}, False),
        ({"event": "log[*]"}, {"event": "log*"}, False),
        ({"event": "login"}, {"event": "logout"}, False),
        ({"event": "login"}, {"event": "login", "actor": "u-1"}, True),
        ({"event": "login", "actor": "u-1"}, {"event": "login"}, False),
        ({"actor": "u-*"}, {"actor": "u-1", "route": "/x"}, True),
    ],
)
def test_a_rule_that_never_counts_is_known(
    earlier: dict[str, str],
    later: dict[str, str],
    overruled: bool,  # noqa: FBT001 - a parameter of the table above
) -> None:
    first, second = Rule(**earlier, record=False), Rule(**later, record=True)  # type: ignore[arg-type]
    assert second.overruled_by(first) == ("record" if overruled else None)
    assert first.overruled_by(Rule(**earlier, record=False)) is None  # type: ignore[arg-type]
    assert Rule(**later, level="info").overruled_by(first) is None  # type: ignore[arg-type]


def test_a_rule_takes_out_no_key_that_a_record_needs() -> None:
    for name in ("actor_id", "action", "trace_id", "resource_type", "timestamp"):
        with pytest.raises(AuditSettingsError, match=f"takes out '{name}', a key of the record"):
            Rule(event="e", redact=("diagnosis", name))
    Rule(event="e", redact=("diagnosis", "client_id", "request_id", "user_agent"))


def test_policies_do_not_share_what_they_remember() -> None:
    first, second = Policy(), Policy()
    first.decide("a", "b", "c")
    assert not second._decisions
    assert first == second
