"""When a component changes its state, and what that makes of the whole."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import AuditSettingsError
from otel_audit.health.component import Component, ComponentState
from otel_audit.health.overview import overview_of
from otel_audit.health.probe import HealthStatus, ProbeResult

H, D, U, X = HealthStatus
LETTERS = {"H": H, "D": D, "U": U, "X": X}


def nothing() -> None:
    """Be a probe."""


def run(seen: str, **options: Any) -> str:
    """Return the states after each observation, as letters."""
    component = Component("db", nothing, **options)
    state = ComponentState("db", critical=True)
    states = []
    for number, letter in enumerate(seen):
        result = ProbeResult(LETTERS[letter])
        state = state.after(component, result, 0.001, now=float(number), unix=float(number))
        states.append({status: letter for letter, status in LETTERS.items()}[state.status])
    return "".join(states)


@pytest.mark.parametrize(
    ("seen", "states"),
    [
        ("H", "H"),
        ("D", "D"),
        ("UUU", "XXU"),
        ("UUH", "XXH"),
        ("HUUU", "HHHU"),
        ("HUUHUUH", "HHHHHHH"),
        ("HUUUHH", "HHHUUH"),
        ("HUUUHUHH", "HHHUUUUH"),
        ("HUUUHUHUHU", "HHHUUUUUUU"),
        ("HDDD", "HHHD"),
        ("HUDU", "HHHD"),
        ("HUUUDD", "HHHUUD"),
        ("HUUUDH", "HHHUUD"),
        ("DHH", "DDH"),
        ("DHUHUHU", "DDDDDDD"),
        ("DUUU", "DDDU"),
    ],
)
def test_a_state_changes_as_the_thresholds_say(seen: str, states: str) -> None:
    assert run(seen) == states


def test_thresholds_of_one_believe_at_once() -> None:
    assert run("HUHD", failure_threshold=1, success_threshold=1) == "HUHD"


@given(st.text("HDU", max_size=60), st.integers(2, 4), st.integers(2, 4))
def test_a_flapping_probe_changes_nothing(seen: str, down: int, up: int) -> None:
    """No change without the threshold's number of observations that contradict the state."""
    states = run(seen, failure_threshold=down, success_threshold=up)
    for index in range(1, len(states)):
        before, after = LETTERS[states[index - 1]], LETTERS[states[index]]
        if before is after or before is X:
            continue
        worse = after.severity > before.severity
        last = [LETTERS[letter] for letter in seen[: index + 1]][-(down if worse else up) :]
        assert all((one.severity > before.severity) is worse and one is not before for one in last)


def test_a_slow_success_is_degraded_and_a_slow_failure_stays_one() -> None:
    component = Component("db", nothing, degraded_after_ms=100)
    slow = component.judge(ProbeResult(), 0.25)
    assert slow == ProbeResult(D, "it took 250 ms, more than 100 ms")
    assert component.judge(ProbeResult(), 0.05) == ProbeResult()
    assert component.judge(ProbeResult.unhealthy("gone"), 0.25).status is U
    assert Component("db", nothing).judge(ProbeResult(), 60).status is H


def test_counts_and_times_are_kept() -> None:
    component = Component("db", nothing)
    state = ComponentState("db", critical=True)
    state = state.after(component, ProbeResult(), 0.0123, now=5, unix=100)
    assert (state.checks, state.failures, state.response_time_ms) == (1, 0, 12.3)
    assert (state.last_success, state.since, state.succeeded) == (100, 100, True)
    state = state.after(component, ProbeResult.unhealthy("gone"), None, now=10, unix=105)
    assert (state.checks, state.failures, state.response_time_ms) == (2, 1, None)
    assert (state.last_success, state.since, state.message) == (100, 100, "gone")


def test_a_result_that_is_too_old_is_unknown() -> None:
    component = Component("db", nothing, interval=5, timeout=3)
    state = ComponentState("db", critical=True)
    assert state.at(1e9) is X
    state = state.after(component, ProbeResult(), 0.001, now=100, unix=0)
    assert state.at(100 + component.max_age) is H
    assert state.at(100.5 + component.max_age) is X
    assert "no result" in state.message_at(101 + component.max_age)
    assert state.message_at(101) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": None},
        {"name": 5},
        {"probe": "SELECT 1"},
        {"interval": 0},
        {"interval": 86_401},
        {"interval": "5"},
        {"timeout": -1},
        {"timeout": None},
        {"timeout": float("nan")},
        {"failure_threshold": 0},
        {"success_threshold": 1.5},
        {"degraded_after_ms": 0},
        {"degraded_after_ms": "x"},
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AuditSettingsError):
        Component(**{"name": "db", "probe": nothing, **options})


def states(critical: str, others: str) -> list[ComponentState]:
    made = []
    for letters, is_critical in ((critical, True), (others, False)):
        for letter in letters:
            state = ComponentState("c", critical=is_critical, status=LETTERS[letter])
            made.append(state._replace(succeeded=letter in "HD"))
    return made


@pytest.mark.parametrize(
    ("critical", "others", "whole"),
    [
        ("", "", H),
        ("HH", "H", H),
        ("HD", "H", D),
        ("HHU", "H", U),
        ("UX", "", U),
        ("XU", "", U),
        ("HXD", "H", X),
        ("H", "D", D),
        ("H", "U", D),
        ("H", "X", D),
        ("U", "U", U),
    ],
)
def test_the_whole_is_as_the_table_says(critical: str, others: str, whole: HealthStatus) -> None:
    overview = overview_of(states(critical, others), 0.0)
    assert overview.status is whole
    assert overview.started is (set(critical) <= {"H", "D"})


def test_an_overview_knows_how_long_it_holds() -> None:
    fresh = states("HH", "H")
    fresh[1] = fresh[1]._replace(fresh_until=50.0)
    assert overview_of(fresh, 10.0).fresh_until == 50.0
    aged = overview_of(fresh, 51.0)
    assert (aged.status, aged.fresh_until) == (X, inf)
