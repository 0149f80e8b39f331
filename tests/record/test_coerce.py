"""Any value becomes plain JSON, nothing raises, and what lost something is named."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import math
import subprocess
import sys
import threading
import traceback
from collections import (
    ChainMap,
    Counter,
    OrderedDict,
    UserDict,
    UserList,
    UserString,
    deque,
    namedtuple,
)
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address, ip_network
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit.record import coerce
from otel_audit.record.coerce import plain


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    YES = "yes"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError


class Number(int):
    def __int__(self) -> int:
        raise RuntimeError


class Ratio(float):
    pass


Old = namedtuple("Old", ["a"])  # noqa: PYI024 - the old form too


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Order:
    number: int
    lines: tuple[str, ...]


@dataclasses.dataclass(slots=True)
class Slotted:
    at: date


class Model(pydantic.BaseModel):
    name: str
    when: datetime
    password: pydantic.SecretStr = pydantic.SecretStr("x")
    internal: str = pydantic.Field(default="kept out", exclude=True)


class Tags(pydantic.RootModel[list[str]]):
    pass


class Attr(NamedTuple):
    name: str


class LikeAttrs:
    """What attrs leaves on a class; attrs itself is no dependency."""

    __attrs_attrs__ = (Attr("a"), Attr("b"))

    def __init__(self) -> None:
        self.a = 1
        self.b = [2]


class Signs(Sequence["Signs"]):
    """A text of a library's own, whose items are texts of one character, as a str's are."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, at: Any) -> Any:
        return Signs(self.text[at])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signs) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text


OBVIOUS: list[tuple[Any, Any]] = [
    ("text", "text"),
    ("grün 🌱", "grün 🌱"),
    ("", ""),
    (None, None),
    (True, True),
    (0, 0),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (1.5, 1.5),
    (-0.0, -0.0),
    ([1, "a", None], [1, "a", None]),
    ({"a": {"b": []}}, {"a": {"b": []}}),
    ((1, (2,)), [1, [2]]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", "a"}), ["a", "b"]),
    ({1, "1"}, ["1", 1]),
    (deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    (UserList([1]), [1]),
    (UserList([UserList(["a"])]), [["a"]]),
    (UserString("the evidence"), "the evidence"),
    (UserString(""), ""),
    ([UserString("a")], ["a"]),
    (Signs("the evidence"), "the evidence"),
    (Signs("a"), "a"),
    ({"a": 1}.keys(), ["a"]),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (Counter("aab"), {"a": 2, "b": 1}),
    (UserDict({"a": 1}), {"a": 1}),
    (ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc), "2026-01-02T03:04:05.000006+00:00"),
    (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),  # noqa: DTZ001 - naive on purpose
    (date(2026, 1, 2), "2026-01-02"),
    (time(3, 4, tzinfo=timezone(timedelta(hours=2))), "03:04:00+02:00"),
    (timedelta(hours=1, milliseconds=500), 3600.5),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Path("/srv/a"), "/srv/a"),
    (PurePosixPath("a/b"), "a/b"),
    (Decimal("1.10"), "1.10"),
    (Decimal("NaN"), "NaN"),
    (Fraction(1, 3), "1/3"),
    (ip_address("2001:db8::1"), "2001:db8::1"),
    (ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Word.YES, "yes"),
    (Access.READ | Access.WRITE, 3),
    (Text("kept"), "kept"),
    (Number(7), 7),
    (Ratio(0.5), 0.5),
    (Point(1, 2), {"x": 1, "y": 2}),
    (Old(1), {"a": 1}),
    (Order(1, ("a",)), {"number": 1, "lines": ["a"]}),
    (Slotted(date(2026, 1, 2)), {"at": "2026-01-02"}),
    (Tags(["a"]), ["a"]),
    (LikeAttrs(), {"a": 1, "b": [2]}),
    (ValueError("not that"), "ValueError: not that"),
    (KeyError(), "KeyError"),
    (asyncio.CancelledError(), "CancelledError"),
]


@pytest.mark.parametrize(
    ("value", "expected"), OBVIOUS, ids=lambda value: type.__repr__(type(value))[8:-2]
)
def test_obvious_forms_are_taken_and_not_flagged(value: Any, expected: Any) -> None:
    result, altered = plain({"field": value})
    assert result == {"field": expected}
    assert type(result["field"]) is type(expected)
    assert altered == []


def test_a_pydantic_model_keeps_its_own_rules() -> None:
    model = Model(name="a", when=datetime(2026, 1, 2, tzinfo=timezone.utc))
    result, altered = plain({"model": model})
    assert result == {
        "model": {
            "name": "a",
            "when": "2026-01-02T00:00:00+00:00",
            "password": "SecretStr('**********')",
        }
    }
    assert altered == ["model"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (-math.inf, "-Infinity"),
        (2**64, "18446744073709551616"),
        (-(2**63) - 1, "-9223372036854775809"),
        (10**10_000, "[integer of 33220 bits]"),
        (b"text", "text"),
        (b"", ""),
        (bytearray("grün".encode()), "grün"),
        (memoryview(b"abc"), "abc"),
        (b"\xff\x00", "base64:/wA="),
        (b"a\x00b", "base64:YQBi"),
        ("a\ud800b", "a\\ud800b"),
        (Text("\udfff"), "\\udfff"),
        ({1: "a"}, {"1": "a"}),
        ({None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}),
        ({("a", 1): 1}, {'["a",1]': 1}),
        ({Colour.RED: 1}, {"red": 1}),
        ({"\ud800": 1}, {"\\ud800": 1}),
        ({1: "a", "1~2": "b", "1": "c"}, {"1": "a", "1~2": "b", "1~3": "c"}),
        ({1: "number", "1": "text"}, {"1": "number", "1~2": "text"}),
        (int, "<class 'int'>"),
        (..., "Ellipsis"),
        (1 + 2j, "(1+2j)"),
    ],
    ids=lambda value: type.__repr__(type(value))[8:-2],
)
def test_what_loses_something_is_flagged(value: Any, expected: Any) -> None:
    assert plain({"field": value, "other": 1}) == ({"field": expected, "other": 1}, ["field"])


def test_unknown_objects_are_shown_without_addresses() -> None:
    assert plain({"a": object()}) == ({"a": "<object object>"}, ["a"])
    assert plain({"a": (i for i in [1])})[0]["a"] == (
        "<generator object test_unknown_objects_are_shown_without_addresses.<locals>.<genexpr>>"
    )


def test_a_generator_is_not_consumed() -> None:
    generator = iter([1, 2, 3])
    plain({"rows": generator})
    assert list(generator) == [1, 2, 3]


def test_numbers_of_other_libraries_become_numbers() -> None:
    class Int64:
        def __int__(self) -> int:
            return 5

    class Float32:
        def __float__(self) -> float:
            return 0.25

    Integral.register(Int64)
    Real.register(Float32)
    assert plain({"a": Int64(), "b": Float32()}) == ({"a": 5, "b": 0.25}, [])


def test_a_long_repr_is_cut() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 1_000_000

    result, altered = plain({"a": Long()})
    assert result["a"] == "x" * coerce.MAX_REPR + "…"
    assert altered == ["a"]


def test_cycles_end() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    assert plain({"a": loop}) == ({"a": [1, {"again": "[cycle]"}]}, ["a"])


def test_the_same_value_twice_is_no_cycle() -> None:
    shared = [1]
    assert plain({"a": [shared, shared]}) == ({"a": [[1], [1]]}, [])


def test_sixteen_levels_are_kept_and_the_next_is_cut() -> None:
    def nested(levels: int) -> Any:
        value: Any = "core"
        for _ in range(levels):
            value = [value]
        return value

    assert plain({"a": nested(coerce.MAX_DEPTH)}) == ({"a": nested(coerce.MAX_DEPTH)}, [])
    result, altered = plain({"a": nested(coerce.MAX_DEPTH + 1)})
    assert b'["[cut: deeper than 16 levels]"]' in orjson.dumps(result)
    assert altered == ["a"]


def test_a_chain_of_models_that_never_ends_is_cut() -> None:
    class Endless:
        def model_dump(self, **_: Any) -> Any:
            return Endless()

    assert plain({"a": Endless()}) == ({"a": "[cut: deeper than 16 levels]"}, ["a"])


class Endless(Sequence[int]):
    """A sequence that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: Any) -> Any:
        self.asked += 1
        return index


def test_huge_containers_cost_bounded_work() -> None:
    endless = Endless()
    result, altered = plain({"a": endless, "b": "kept"})
    rows = result["a"]
    assert isinstance(rows, list)
    assert len(rows) == coerce.MAX_ELEMENTS + 1
    assert rows[-1] == "…[cut 999999990000 elements]"
    assert endless.asked == coerce.MAX_ELEMENTS
    assert (altered, result["b"]) == (["a"], "kept")


def test_elements_are_counted_over_all_levels() -> None:
    level: Any = [0] * 10
    for _ in range(5):
        level = [level] * 10
    result, altered = plain({"a": level})
    assert len(orjson.dumps(result)) < 10 * coerce.MAX_ELEMENTS
    assert altered == ["a"]
    tree: Any = {}
    for _ in range(5):
        tree = {str(number): tree for number in range(10)}
    result, altered = plain({"a": tree})
    assert orjson.dumps(result).count(b":") < 2 * coerce.MAX_ELEMENTS
    assert altered == ["a"]


def test_elements_are_counted_over_all_fields() -> None:
    result, altered = plain({str(number): [0] * 10_000 for number in range(500)})
    rows = [value for value in result.values() if isinstance(value, list)]
    assert 50_000 < sum(map(len, rows)) < 150_000
    assert len(set(map(len, rows))) == 1
    assert len(altered) == 500


def test_one_huge_field_leaves_room_for_the_others() -> None:
    fields = {f"huge{i}": list(range(100_000)) for i in range(5)}
    result, _ = plain({**fields, "last": {"a": [1, 2, 3]}})
    assert result["last"] == {"a": [1, 2, 3]}


def test_long_texts_are_cut() -> None:
    result, altered = plain({"a": "x" * 100_000, "b": "y" * coerce.MAX_CHARACTERS})
    assert result["a"] == "x" * coerce.MAX_CHARACTERS + "…[cut 34464 characters]"
    assert result["b"] == "y" * coerce.MAX_CHARACTERS
    assert altered == ["a"]


@pytest.mark.parametrize("tail", [b"", "ü".encode(), b"\xff"])
def test_long_bytes_are_cut(tail: bytes) -> None:
    raw = b"x" * (coerce.MAX_CHARACTERS - 1) + tail + b"y" * 1_000
    result, altered = plain({"a": raw})
    text = result["a"]
    assert isinstance(text, str)
    assert text.endswith(f"…[cut {len(raw) - coerce.MAX_CHARACTERS} bytes]")
    assert text.startswith("base64:" if tail == b"\xff" else "xxx")
    assert altered == ["a"]


def test_mappings_of_very_many_keys_are_cut() -> None:
    result, altered = plain({"a": {str(i): i for i in range(20_000)}})
    inner = result["a"]
    assert isinstance(inner, dict)
    assert len(inner) == coerce.MAX_ELEMENTS + 1
    assert inner["…"] == "…[cut 10000 elements]"
    assert altered == ["a"]


def test_very_many_fields_are_cut() -> None:
    result, altered = plain({f"f{i}": i for i in range(12_000)})
    assert len(result) == coerce.MAX_ELEMENTS + 1
    assert result["…"] == "…[cut 2000 elements]"
    assert altered == ["…"]


def test_long_names_are_cut_without_losing_a_value() -> None:
    long = "k" * 1_000
    result, altered = plain({long + "a": 1, long + "b": 2, "c": {long: 3}})
    assert sorted(map(str, result.values())) == sorted(map(str, [1, 2, result["c"]]))
    assert all(len(name) < 300 for name in result)
    assert set(altered) == set(result)


def test_all_keys_that_collide_keep_their_value() -> None:
    class Same:
        def __repr__(self) -> str:
            return "same"

    result, _ = plain({"a": {Same(): i for i in range(500)}})
    inner = result["a"]
    assert isinstance(inner, dict)
    assert list(inner.values()) == list(range(500))
    assert list(inner)[:3] == ["same", "same~2", "same~3"]


def test_fields_that_are_no_mapping_are_kept() -> None:
    assert plain([1, 2]) == ({"fields": [1, 2]}, ["fields"])  # type: ignore[arg-type]  # on purpose
    assert plain(None) == ({"fields": None}, ["fields"])  # type: ignore[arg-type]  # on purpose


def test_names_that_are_no_text_are_named() -> None:
    assert plain({1: "a", "b": 2}) == ({"1": "a", "b": 2}, ["1"])
    assert plain({"größe": 3}) == ({"größe": 3}, [])
    result, altered = plain({Text("name"): 1})
    assert (result, altered) == ({"name": 1}, [])
    assert type(next(iter(result))) is str


def test_the_callers_values_are_not_changed() -> None:
    inner = {"a": [1, {2}], 3: float("nan")}
    fields = {"field": inner, "x": 1}
    plain(fields)
    assert fields == {"field": inner, "x": 1}
    assert list(inner) == ["a", 3]


class Hostile:
    """Raises wherever it is touched."""

    def __init__(self, error: type[BaseException]) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")

    def _raise(self, *_: Any) -> Any:
        raise object.__getattribute__(self, "error")

    __repr__ = __str__ = __iter__ = __len__ = __bool__ = __eq__ = __getitem__ = _raise
    __index__ = __int__ = __float__ = __format__ = __bytes__ = __contains__ = _raise

    def __hash__(self) -> int:
        return 1


class HostileMapping(Hostile, Mapping[Any, Any]):
    items = keys = values = Hostile._raise


class HostileList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class HostileText(str):
    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class HostileEnum(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        return self


class HostileMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # this is the attack
        raise RuntimeError

    def __getattr__(cls, name: str) -> Any:
        raise RuntimeError

    def __instancecheck__(cls, instance: Any) -> bool:
        raise RuntimeError


class OfHostileMeta(metaclass=HostileMeta):
    def __repr__(self) -> str:
        raise RuntimeError


@dataclasses.dataclass
class HalfHostile:
    good: int

    @property
    def bad(self) -> int:
        raise RuntimeError


HalfHostile.__dataclass_fields__["bad"] = HalfHostile.__dataclass_fields__["good"]


class Liar:
    """Says that it is a text, and is none."""

    @property  # type: ignore[misc]  # this is the attack
    def __class__(self) -> type:
        return str


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


ERRORS = (RuntimeError, RecursionError, MemoryError, asyncio.CancelledError, GeneratorExit)
HOSTILE: list[Any] = [
    *(Hostile(error) for error in ERRORS),
    *(HostileMapping(error) for error in ERRORS),
    HostileList([1]),
    HostileText("abc"),
    HostileEnum.A,
    OfHostileMeta(),
    OfHostileMeta,
    HalfHostile(1),
    Liar(),
    HostileError("x"),
    datetime.max.replace(tzinfo=timezone.utc),
    type("Ä" * 100_000, (), {"__repr__": Hostile._raise})(),
    type("x" * 100_000, (), {})(),
    memoryview(bytearray(12)).cast("B", (3, 4)),
    memoryview(b"abcdef")[::2],
    threading.Lock(),
    lambda: None,
    sys,
    asyncio,
    Hostile,
]


# By number: pytest itself looks at values, which these do not survive.
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_objects_cannot_raise_or_stop_the_other_fields(number: int) -> None:
    value = HOSTILE[number]
    result, _ = plain({"before": 1, "field": value, "nested": [{"a": value}], "after": 2})
    assert orjson.loads(orjson.dumps(result)).items() >= {"before": 1, "after": 2}.items()
    if type(value).__hash__ is not None and type(value) is not memoryview:
        orjson.dumps(plain({value: 1})[0])


def test_hostile_fields_cannot_raise() -> None:
    class NotPairs(dict[str, Any]):
        def items(self) -> Any:
            return [1, 2]

    class Wrong(UserDict[str, Any]):
        def __len__(self) -> int:
            raise RuntimeError

    for fields in (*(HostileMapping(error) for error in ERRORS), NotPairs(a=1), Wrong(a=1)):
        orjson.dumps(plain(fields)[0])


def test_one_bad_attribute_does_not_cost_the_good_ones() -> None:
    class Model:
        __attrs_attrs__ = (Attr("good"), Attr("bad"))
        good = 1

        @property
        def bad(self) -> int:
            raise RuntimeError

    assert plain({"a": Model()}) == ({"a": {"good": 1, "bad": "[unreadable: RuntimeError]"}}, ["a"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_end_the_program_may(error: type[BaseException]) -> None:
    for value in (Hostile(error), {"a": Hostile(error)}):
        with pytest.raises(error):
            plain({"field": value})
    with pytest.raises(error):
        plain(HostileMapping(error))
    with pytest.raises(error):
        plain({"field": type("M", (), {"__repr__": lambda _: Hostile(error).x})()})
    model = LikeAttrs()
    model.a = 1
    with pytest.raises(error):
        plain(
            {
                "field": type(
                    "M",
                    (),
                    {"__attrs_attrs__": (Attr("a"),), "a": property(lambda _: Hostile(error).x)},
                )()
            }
        )


def test_near_the_end_of_the_stack_nothing_raises() -> None:
    def deep(levels: int) -> list[str]:
        if levels:
            return deep(levels - 1)
        return plain({"a": [[1]], "b": 1})[1]

    limit = sys.getrecursionlimit()
    outcomes: list[list[str]] = []
    try:
        outcomes.extend(deep(levels) for levels in range(limit - 150, limit))
    except RecursionError as error:
        # There was not even room to begin; once the conversion runs, it ends.
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert "value" not in frames
    assert [] in outcomes
    assert ["a"] in outcomes


def test_a_mapping_that_another_thread_changes() -> None:
    shared: dict[str, Any] = {str(i): i for i in range(100)}
    done = threading.Event()

    def change() -> None:
        i = 100
        while not done.is_set():
            shared[str(i)] = i
            shared.pop(str(i - 100), None)
            i += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            result, _altered = plain({"shared": shared})
            assert isinstance(result["shared"], dict)
            orjson.dumps(plain(shared)[0])
    finally:
        done.set()
        thread.join()


def test_sets_are_the_same_in_every_process() -> None:
    code = (
        "from otel_audit.record.coerce import plain; import orjson;"
        "print(orjson.dumps(plain({'a': {'x', 'y', 'z', 'w', 3, None, (1, 2)}})[0]).decode())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cs", "Lu", "Cc"])),
    st.binary(),
    st.decimals(),
    st.fractions(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(),
    st.ip_addresses(),
    st.sampled_from(range(len(OBVIOUS))).map(lambda number: OBVIOUS[number][0]),
)
KEYS = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cs", "Lu"])),
    st.integers(),
    st.none(),
    st.floats(),
    st.binary(),
    st.tuples(st.text(), st.integers()),
    st.sampled_from([Colour.RED, Text("a")]),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(
        st.lists(below),
        st.lists(below).map(tuple),
        st.lists(below).map(deque),
        st.dictionaries(st.integers() | st.text(), below),
        st.dictionaries(st.text(), below).map(UserDict),
        st.builds(Order, st.integers(), below),
        st.frozensets(st.one_of(st.integers(), st.text(), st.none(), st.floats())),
    ),
    max_leaves=15,
)


@pytest.mark.usefixtures("unmeasured")
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(KEYS, VALUES), max_size=8),
    # By number: Hypothesis looks at what it draws, which hostile objects do not survive.
    st.lists(st.integers(0, len(HOSTILE) - 1), max_size=2),
)
def test_whatever_is_passed_the_result_is_plain_json(
    pairs: list[tuple[Any, Any]], hostile: list[int]
) -> None:
    fields = dict(pairs)
    for number in hostile:
        fields[number] = [{"a": HOSTILE[number]}, HOSTILE[number], *fields.values()]
    result, altered = plain(fields)
    assert len(result) == len(fields)
    assert set(altered) <= set(result)
    again = orjson.loads(orjson.dumps(result))
    assert again == result
    # What is plain stays as it is, and nothing of it is flagged.
    assert plain(again) == (again, [])
