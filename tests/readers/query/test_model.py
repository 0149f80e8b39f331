"""Parameters: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import pytest

from otel_audit.errors import QueryError
from otel_audit.readers.query.model import MOST, Condition, Query, check_buckets
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import duration, moment, stamp

NOW = 1_770_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", 0),
        ("-15m", -900),
        ("+1h30m", 5_400),
        ("-2w", -1_209_600),
        ("2026-02-02T02:40:00Z", 0),
        ("2026-02-02t02:40:00z", 0),
        ("2026-02-02 02:40:00Z", 0),
        ("2026-02-02T03:40:00+01:00", 0),
        ("2026-02-02T03:40:00 01:00", 0),
        ("2026-02-02T02:40", 0),
        ("2026-02-02", -9_600),
        ("today", -9_600),
        ("yesterday", -9_600 - 86_400),
    ],
)
def test_times_are_rfc_3339_or_relative(text: str, expected: int) -> None:
    assert moment("start", text, NOW) == NOW + expected * 10**9


def test_a_time_has_nanoseconds() -> None:
    assert moment("start", "2026-02-02T02:40:00.000000001Z", NOW) == NOW + 1
    assert stamp(NOW + 1) == "2026-02-02T02:40:00.000000001Z"


@pytest.mark.parametrize(
    "text",
    ["tomorrow", "Today", "-15", "15m", "-m", "2026-13-01", "2026-02-30", "2026-02-02T25:00:00Z", "-", "+",
     "9999999999999", "2026-02-02T02:40:00+99:99", "0000-00-00", "-999999999w", "\u0661"],
)  # fmt: skip
def test_a_time_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(QueryError, match=r"start is .*") as caught:
        moment("start", text, NOW)
    assert caught.value.parameter == "start"


def test_what_a_time_can_be_is_said() -> None:
    with pytest.raises(QueryError, match=r"2026-01-31, today or yesterday \(UTC\), or relative"):
        moment("end", "tomorrow", NOW)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([("acton", "x")], "did you mean action"),
        ([("server", "x")], "asked for as field.server"),
        ([("", "x")], "no parameter"),
        ([("field.", "x")], "no parameter"),
        ([("limit", "0")], f"1 to {MOST}"),
        ([("limit", "1001")], f"1 to {MOST}"),
        ([("limit", "-1")], "whole number"),
        ([("limit", "9" * 500)], "whole number"),
        ([("limit", "1e3")], "whole number"),
        ([("limit", "\u0663")], "whole number"),
        ([("limit", "1"), ("limit", "2")], "said twice"),
        ([("order", "random")], "newest or oldest"),
        ([("start", "-1h"), ("end", "-2h")], "ends before it starts"),
        ([("q", "!!! ...")], "no word"),
        ([("q", "")], "no word"),
        ([("q", " ")], "no word"),
        ([("actor", "x" * 5_000)], "at most 4096"),
        ([("x" * 10_000_000, "x")], "no parameter"),
        ([("outcome", "failed")], "only be success, failure, unknown; .* ask for status=failed"),
        ([("outcome!", "bad")], "'bad', but it can only be"),
        ([("field.timestamp", "2026*")], "use start, end and per"),
        ([("level", "warn")], "only be debug, info, warning, error, critical$"),
    ],
)
def test_what_cannot_be_asked_is_explained(parameters: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        parse(parameters)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["trace_id", "span_id", "record_id"])
def test_ids_of_ours_are_found_in_upper_case_too(name: str) -> None:
    """A tool that shows them so is where they are copied from; a request's id is its sender's."""
    query, _ = parse([(name, "0123ABCD*"), ("request_id", "Req-1")])
    assert query.matches({name: "0123abcdef", "request_id": "Req-1"}, NOW)
    assert not query.matches({name: "0123abcdef", "request_id": "req-1"}, NOW)


def test_parameters_become_conditions() -> None:
    query, cursor = parse(
        [("client", "c"), ("field.server_name", "s"), ("outcome", "success"),
         ("outcome", "failure"), ("level!", "info"), ("resource", "r"), ("field.resource", "hash"),
         ("q", "Some words some 0123456789abcdef")]
    )  # fmt: skip
    assert cursor is None
    assert set(query.conditions) == {
        Condition(("client_id",), ("c",)),
        Condition(("server_name",), ("s",)),
        Condition(("outcome",), ("success", "failure")),
        Condition(("resource_name",), ("r",)),
        Condition(("resource",), ("hash",)),
        Condition(("level",), ("info",), wanted=False),
        Condition(("record_id", "request_id", "trace_id", "span_id"), ("0123456789abcdef",)),
    }
    assert query.words == ("some", "words")


def test_lengths_of_time_are_understood() -> None:
    assert duration("per", "1h30m") == 5_400 * 10**9
    with pytest.raises(QueryError, match="length of time"):
        duration("per", "an hour")
    with pytest.raises(QueryError, match="a second or longer"):
        check_buckets(Query(), 10**6)
    with pytest.raises(QueryError, match="time buckets"):
        check_buckets(Query(start=0), 10**9)
    check_buckets(Query(start=NOW, end=NOW + 10**12), 10**9)
