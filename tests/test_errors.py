"""The exception tree is the one that its module draws, and each is the builtin one expects."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from otel_audit import errors
from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditTimeoutError,
    AuditUnavailableError,
    OtelAuditError,
)

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException)
}
# One line of the drawing: how deep, the name, and the builtins in brackets.
DRAWN = re.compile(r"^ {4}(?P<branches>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<builtin>\w+)\))?")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Read the drawing: each class with its parent and its builtin."""
    found: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = DRAWN.match(line)
        if match is None:
            continue
        depth = len(match["branches"]) // 4
        path[depth:] = [match["name"]]
        found[match["name"]] = (path[depth - 1] if depth else None, match["builtin"])
    return found


def test_the_drawing_shows_every_class_and_no_other() -> None:
    assert set(drawn()) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_drawing_tells_the_parent_and_the_builtin(name: str) -> None:
    parent, builtin = drawn()[name]
    bases = [base.__name__ for base in CLASSES[name].__bases__]
    assert bases == [base for base in (parent or "Exception", builtin) if base]


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_says_when_it_is_raised(name: str) -> None:
    assert CLASSES[name].__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_one_except_catches_them_all(name: str) -> None:
    assert issubclass(CLASSES[name], OtelAuditError)


UNAVAILABLE = [
    AuditUnavailableError,
    AuditBackpressureError,
    AuditTimeoutError,
    AuditClosedError,
]


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_an_unavailable_trail_names_reason_and_record(kind: type[AuditUnavailableError]) -> None:
    error = kind("the disk is full", record_id="abc")
    assert error.reason == "the disk is full"
    assert error.record_id == "abc"
    assert str(error) == "the disk is full (record abc is not confirmed)"


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_without_a_record_none_is_made_up(kind: type[AuditUnavailableError]) -> None:
    error = kind("the disk is full")
    assert error.record_id is None
    assert str(error) == "the disk is full"


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_it_never_claims_that_a_record_was_not_stored(kind: type[AuditUnavailableError]) -> None:
    text = f"{kind('why', record_id='abc')} {kind.__doc__}"
    assert "not recorded" not in text
    assert "lost" not in text


@pytest.mark.parametrize("kind", UNAVAILABLE)
def test_it_survives_a_trip_to_another_process(kind: type[AuditUnavailableError]) -> None:
    # concurrent.futures sends exceptions by pickle, and must bring back the same facts.
    error = pickle.loads(pickle.dumps(kind("the disk is full", record_id="abc")))  # noqa: S301 - our own bytes
    assert type(error) is kind
    assert (error.reason, error.record_id) == ("the disk is full", "abc")
    assert str(error) == "the disk is full (record abc is not confirmed)"
