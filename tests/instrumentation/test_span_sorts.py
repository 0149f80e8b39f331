"""What is remembered of a span is what the rules would say of the next one that is alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode

from otel_audit.api.policy_file import parse_policy
from otel_audit.instrumentation.span_sorts import SpanSort

RULES = parse_policy(
    """
spans:
  - match: {attributes: {statement: "*"}}
    event: change
    action: "{statement:word}"
    fields: {flag: "{flag}", took: "{duration_ms}", again: "{duration_ms}", tags: "{tags}"}
  - match: {attributes: {statement: "delete *"}, status: error}
    event: refused
    fields: {why: "{error}"}
  - match: {name: "slow *"}
    event: slow
    fields: {text: "after {duration_ms} ms"}
  - match: {name: "chat *"}
    event: chat
    fields: {tokens: "{total_tokens}"}
""",
    "rules",
).policy.spans


def sort_of_spans() -> SpanSort:
    return SpanSort("db", "client", RULES)


def ended(
    attributes: dict[str, Any], name: str = "query", status: Status | None = None, took: int = 1
) -> ReadableSpan:
    return ReadableSpan(
        name, attributes=attributes, status=status or Status(), start_time=7, end_time=7 + took
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["query", "slow query"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "statement": st.sampled_from(["INSERT 1", "DELETE 1", "x" * 1_001]),
                    "flag": st.sampled_from([0, 1, True, False, 1.0, "1"]),
                    "tags": st.sampled_from([("a",), ("a", "b"), (1,), (True,), ["a"], {"a": 1}]),
                },
            ),
            st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR, "E: no")]),
            st.integers(0, 10**10),
        ),
        max_size=12,
    )
)
def test_what_is_remembered_of_a_span_is_what_the_rules_say_of_the_next_one(
    drawn: list[tuple[str, dict[str, Any], Status, int]],
) -> None:
    remembering = sort_of_spans()
    for name, attributes, status, took in drawn:
        span = ended(attributes, name, status, took)
        said = []
        for sort in (remembering, sort_of_spans()):
            events = sort.events_of(span, dict(attributes))
            said.append([(event, [*map(type, event.fields.values())]) for event in events])
        assert said[0] == said[1]
    assert not any("x" * 1_001 in alike for alike in remembering._said)


def test_values_that_are_equal_and_not_the_same_are_told_apart() -> None:
    sort = sort_of_spans()
    for flag in (1, True, 1.0, (1,), (True,)):
        attributes: dict[str, Any] = {"statement": "INSERT 1", "flag": flag}
        (event,) = sort.events_of(ended(attributes), attributes)
        assert repr(event.fields["flag"]) == repr(flag)


def test_only_so_many_spans_are_remembered() -> None:
    sort = sort_of_spans()
    for number in range(1_000):
        attributes = {"statement": f"INSERT {number}"}
        (event,) = sort.events_of(ended(attributes, took=number), attributes)
        assert event.fields["took"] == round(number / 1e6, 3)
        assert len(sort._said) <= 256


def test_spans_that_no_rule_asks_for_take_no_place_of_others() -> None:
    """A rule that names no attribute asks for all spans, so here is none of that kind."""
    sort = SpanSort("db", "client", RULES[:2])
    attributes = {"statement": "INSERT 1"}
    sort.events_of(ended(attributes), attributes)
    for number in range(1_000):
        assert sort.events_of(ended({"url": f"/{number}"}), {"url": f"/{number}"}) == []
    assert len(sort._said) == 1


def test_a_span_that_was_never_timed_is_recorded() -> None:
    sort = sort_of_spans()
    attributes = {"statement": "INSERT 1"}
    timed = ended(attributes)
    never = ReadableSpan("query", attributes=attributes)
    for span in (timed, never, timed):
        (event,) = sort.events_of(span, attributes)
        assert event.fields.get("took") == (None if span is never else 0.0)


@pytest.mark.parametrize(
    ("attributes", "tokens"),
    [
        ({"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 4}, 7),
        ({"gen_ai.usage.output_tokens": 4}, 4),
        ({"gen_ai.usage.input_tokens": "3", "gen_ai.usage.output_tokens": 4}, 4),
        ({"gen_ai.usage.input_tokens": "3"}, None),
        ({}, None),
    ],
)
def test_tokens_are_summed_as_far_as_they_are_numbers(
    attributes: dict[str, Any], tokens: int | None
) -> None:
    """An instrumentation's mistake must not come back as an exception where its span ends."""
    (event,) = sort_of_spans().events_of(ended(attributes, "chat gpt"), attributes)
    assert event.fields.get("tokens") == tokens
