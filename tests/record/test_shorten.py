"""What is too long is cut: longest first, marked, and by as much as was asked for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.record.shorten import MARK_KEY, shorten

if TYPE_CHECKING:
    from otel_audit.record.shorten import JsonValue

# A text of its mark alone: "…[cut 123456789 characters]" in quotes.
SHORTEST = 48


def size(value: JsonValue) -> int:
    return len(orjson.dumps(value))


def test_the_longest_is_cut_and_the_others_stay_whole() -> None:
    fields: dict[str, JsonValue] = {"short": "s" * 500, "long": "x" * 5_000, "count": 7}
    before = size(fields)
    assert shorten(fields, 1_000) == ["long"]
    assert size(fields) <= before - 1_000
    assert fields["long"] == "x" * 3_976 + "…[cut 1024 characters]"
    assert (fields["short"], fields["count"]) == ("s" * 500, 7)


def test_no_more_is_cut_than_is_needed() -> None:
    fields: dict[str, JsonValue] = {"a": "x" * 10_000}
    before = size(fields)
    shorten(fields, 3_000)
    assert before - 3_000 - 8 <= size(fields) <= before - 3_000


def test_of_equally_long_ones_the_first_is_cut_first() -> None:
    fields: dict[str, JsonValue] = {"b": "x" * 1_000, "a": "x" * 1_000}
    assert shorten(fields, 100) == ["b"]


def test_several_are_cut_where_one_is_not_enough() -> None:
    fields: dict[str, JsonValue] = {"a": "x" * 1_000, "b": "y" * 900, "c": "z" * 100}
    assert shorten(fields, 1_500) == ["a", "b"]
    assert fields["c"] == "z" * 100


def test_nothing_is_cut_for_nothing() -> None:
    fields: dict[str, JsonValue] = {"a": "x" * 1_000}
    assert shorten(fields, 0) == []
    assert shorten(fields, -5) == []
    assert fields == {"a": "x" * 1_000}


def test_within_a_container_the_longest_is_cut_too() -> None:
    fields: dict[str, JsonValue] = {"a": {"id": 5, "note": "x" * 5_000, "tags": ["t", "u"]}}
    assert shorten(fields, 4_000) == ["a"]
    inner = fields["a"]
    assert isinstance(inner, dict)
    assert (inner["id"], inner["tags"]) == (5, ["t", "u"])
    assert str(inner["note"]).endswith(" characters]")


def test_of_many_small_elements_the_first_are_kept() -> None:
    fields: dict[str, JsonValue] = {
        "rows": list(range(1_000)),
        "map": {str(i): i for i in range(9)},
    }
    shorten(fields, 2_000)
    rows = fields["rows"]
    assert isinstance(rows, list)
    kept = len(rows) - 1
    assert rows[:-1] == list(range(kept))
    assert rows[-1] == f"…[cut {1_000 - kept} elements]"
    assert fields["map"] == {str(i): i for i in range(9)}


def test_of_a_large_object_the_first_entries_are_kept() -> None:
    fields: dict[str, JsonValue] = {"map": {f"key{i}": i for i in range(1_000)}}
    shorten(fields, 5_000)
    inner = fields["map"]
    assert isinstance(inner, dict)
    assert inner["key0"] == 0
    assert inner[MARK_KEY] == f"…[cut {1_001 - len(inner)} elements]"


def test_what_is_cut_twice_carries_one_mark_with_the_sum() -> None:
    fields: dict[str, JsonValue] = {"text": "x" * 9_000, "rows": [1] * 5_000}
    for _ in range(4):
        assert shorten(fields, 3_000)
    text, rows = fields["text"], fields["rows"]
    assert isinstance(text, str)
    assert isinstance(rows, list)
    assert text.count("[cut") == 1
    kept = len(text.partition("…")[0])
    assert text == "x" * kept + f"…[cut {9_000 - kept} characters]"
    assert rows[-1] == f"…[cut {5_001 - len(rows)} elements]"
    assert rows[:-1] == [1] * (len(rows) - 1)


@pytest.mark.parametrize("text", ["ü" * 3_000, "🌱" * 2_000, '"\n\\' * 2_000, "\x00" * 1_000])
def test_bytes_count_and_not_characters(text: str) -> None:
    fields: dict[str, JsonValue] = {"a": text}
    before = size(fields)
    shorten(fields, 2_000)
    assert before - 2_060 <= size(fields) <= before - 2_000


def test_the_callers_containers_are_not_changed() -> None:
    inner: list[JsonValue] = ["x" * 1_000, [1] * 1_000]
    outer: dict[str, JsonValue] = {"inner": inner, "text": "y" * 1_000}
    fields: dict[str, JsonValue] = {"a": outer}
    shorten(fields, 3_500)
    assert inner == ["x" * 1_000, [1] * 1_000]
    assert outer == {"inner": inner, "text": "y" * 1_000}


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=300),
        st.builds(lambda text, times: text * times, st.text(max_size=5), st.integers(0, 500)),
        st.sampled_from(["…[cut 7 characters]", "…[cut 7 elements]"]),
    ),
    lambda below: st.lists(below, max_size=30) | st.dictionaries(st.text(max_size=20), below),
    max_leaves=30,
)


@pytest.mark.usefixtures("unmeasured")
@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=12), st.integers(0, 5_000))
def test_as_much_goes_as_was_asked_for(fields: dict[str, JsonValue], excess: int) -> None:
    original = copy.deepcopy(fields)
    again = copy.deepcopy(fields)
    names = shorten(fields, excess)
    assert size(fields) <= size(original) - excess or all(
        size(value) <= SHORTEST + len(MARK_KEY) + 8 for value in fields.values()
    )
    assert list(fields) == list(original)
    assert {name for name in fields if fields[name] != original[name]} == set(names)
    assert all(type(fields[name]) is type(original[name]) for name in fields)
    shorten(again, excess)
    assert fields == again
