"""What is cut is judged first: neither a part of a secret is left, nor a value without its name."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_audit.api.policy import Policy
from otel_audit.api.stages import Stages
from otel_audit.record import coerce
from otel_audit.record.coerce import MAX_CHARACTERS, MAX_NAME, MAX_REPR, plain
from otel_audit.record.encode import encode
from otel_audit.record.event import AuditEvent
from otel_audit.record.redact import REDACTED, Redactor
from otel_audit.record.shorten import BEYOND
from tests.record.corpus import figures, secrets

if TYPE_CHECKING:
    from collections.abc import Callable

REDACTOR = Redactor()
stages = Stages(
    policy=Policy(),
    redactor=REDACTOR,
    service_name="svc",
    resource="0123456789abcdef",
    clock=lambda: 1_767_225_600_000_000_042,
    new_id=lambda: "00000000-0000-4000-8000-000000000000",
)
# Of a JWE the last parts count; a longer one is not known if it is cut.
SAMPLES = [sample for sample in secrets.samples() if len(sample.text) < BEYOND // 2]
GITHUB = "gh" + "p_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


class Shown:
    """Shows a text of any length as its repr."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Broken(Exception):  # noqa: N818 - what it is called does not matter
    pass


WAYS: dict[str, tuple[int, Callable[[str], dict[str, Any]]]] = {
    "a text": (MAX_CHARACTERS, lambda text: {"fields": {"a": text}}),
    "a text below": (MAX_CHARACTERS - 1, lambda text: {"fields": {"a": [{"b": text}]}}),
    "bytes": (MAX_CHARACTERS, lambda text: {"fields": {"a": text.encode()}}),
    "a view": (MAX_CHARACTERS, lambda text: {"fields": {"a": memoryview(text.encode())}}),
    "an exception": (MAX_CHARACTERS - 8, lambda text: {"fields": {"a": Broken(text)}}),
    "a repr": (MAX_REPR, lambda text: {"fields": {"a": Shown(text)}}),
    "a repr below": (MAX_REPR, lambda text: {"fields": {"a": [Shown(text)]}}),
    "a name": (MAX_NAME, lambda text: {"fields": {text: 1}}),
    "a name below": (MAX_NAME, lambda text: {"fields": {"a": {text: 1}}}),
    "a name of bytes": (MAX_NAME, lambda text: {"fields": {"a": {text.encode(): 1}}}),
    "the error": (MAX_CHARACTERS, lambda text: {"error": text}),
    "the error's text": (MAX_CHARACTERS, lambda text: {"error": Broken(text)}),
    "the resource": (MAX_CHARACTERS, lambda text: {"resource_name": text}),
}
"""How a text comes into a record, and how many of its characters."""


def prepared(said: dict[str, Any]) -> str:
    """Return what a record says before `encode` shortens it further."""
    draft = stages.prepare(AuditEvent(**{"event": "login", "action": "start", **said}))
    assert encode(draft)
    return orjson.dumps([draft.error, draft.resource_name, draft.fields, draft.coerced]).decode()


def filled(text: str, length: int) -> str:
    """Put words before a text until it begins so far behind the beginning."""
    return ("lorem " * (length // 6 + 1))[-length:] + " " + text if length > 0 else text


@pytest.mark.parametrize(("room", "said"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("left", [1, 5, 12, 31, 39])
def test_of_a_secret_that_is_cut_nothing_is_left(
    room: int, said: Callable[[str], dict[str, Any]], left: int
) -> None:
    record = prepared(said(filled(f"{GITHUB} and more" + " of it" * 2_000, room - left - 1)))
    assert "[REDACTED:github]" in record
    assert "ghp_" not in record
    assert "lorem" in record


@pytest.mark.usefixtures("unmeasured")
@settings(max_examples=150)
@given(st.sampled_from(SAMPLES), st.sampled_from(sorted(WAYS)), st.integers(0, 400))
@example(SAMPLES[0], "bytes", 20)
def test_wherever_a_secret_of_any_shape_is_cut(sample: secrets.Sample, way: str, left: int) -> None:
    room, said = WAYS[way]
    record = prepared(said(filled(sample.text + " of it" * 2_000, room - left)))
    assert not figures.leaks(sample.secret, record)


def test_bytes_are_cut_between_characters() -> None:
    raw = "é".encode() * MAX_CHARACTERS + GITHUB.encode()
    result, _ = plain({"a": b"x" + raw}, REDACTOR)
    text = result["a"]
    assert isinstance(text, str)
    assert text.startswith("x" + "é" * (MAX_CHARACTERS // 2 - 1) + "…[cut ")


def test_what_is_not_cut_is_left_to_the_redaction() -> None:
    fields = {"a": f"x {GITHUB}", GITHUB: Shown(GITHUB), "b": GITHUB.encode(), "c": ["é" + GITHUB]}
    assert plain(fields, REDACTOR) == plain(fields)


def test_what_is_cut_stays_as_it_is_where_there_is_no_secret() -> None:
    for room, said in WAYS.values():
        fields = said("nothing to hide, but many words; " * (room // 32 + 1)).get("fields", {})
        assert plain(fields, REDACTOR) == plain(fields)


LONG = {"at its end": "cfg." * 70 + "password", "at its beginning": "password_" + "cfg_" * 70}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
@pytest.mark.parametrize("value", ["hunter2secret", 1234, {"a": "b"}, b"hunter2", ["x"]])
def test_a_name_is_judged_before_it_is_cut(name: str, value: Any) -> None:
    for fields in ({name: value}, {"a": {name: value}}, {"é": 1, "a": [{name.encode(): value}]}):
        record = prepared({"fields": fields})
        assert REDACTED in record
        assert "hunter2" not in record
        assert "1234" not in record


def test_what_long_names_say_of_values_counts_as_for_short_ones() -> None:
    def shown(name: str, value: Any) -> Any:
        (only,) = plain({"cfg." * 70 + name: value}, REDACTOR)[0].values()
        return only

    assert shown("tokens", {"in": 5, "out": "x"}) == {"in": 5, "out": REDACTED}
    assert shown("authorization", "granted") == "granted"
    assert shown("authorization", "a1b2c3") == REDACTED
    assert shown("token_type", "x") == "x"
    assert shown("password", None) is None
    assert shown("user", "x") == "x"
    assert shown(GITHUB, "x") == "x"


def test_names_for_which_there_is_no_room_are_judged() -> None:
    text = "x" * MAX_CHARACTERS
    record = prepared({"fields": {"a": {"text": text, "pin": 1234, "user": "u"}, "b": 1}})
    assert "1234" not in record
    record = prepared({"fields": {"a": {"text": text, b"pin": 1234, b"my.pin": 1234}, "b": 1}})
    assert "1234" not in record


def test_names_without_end_cost_bounded_work() -> None:
    fields = {"a": {"word " * 20_000 + str(number): number for number in range(1_000)}}
    start = time.thread_time()
    result, altered = plain(fields, REDACTOR)
    assert time.thread_time() - start < 10
    assert altered == ["a"]
    inner = result["a"]
    assert isinstance(inner, dict)
    assert len(inner) == 1_000
    # What nobody read may mean a secret.
    assert set(inner.values()) == {REDACTED}


def test_more_long_names_than_are_remembered() -> None:
    redactor = Redactor()
    for number in range(300):
        name = "cfg." * 200 + f"password{number}"
        (value,) = plain({name: "x"}, redactor)[0].values()
        assert value == REDACTED
    assert len(redactor._names) == 0


def test_without_rules_the_beginning_is_kept() -> None:
    assert plain({"a": "x" * (coerce.MAX_CHARACTERS - 4) + GITHUB})[0]["a"] == (
        "x" * (coerce.MAX_CHARACTERS - 4) + "ghp_…[cut 36 characters]"
    )
