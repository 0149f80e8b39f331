"""Patterns that take exponential time are found before a caller's text meets them."""

from __future__ import annotations

import pytest

from otel_audit.api.slow_patterns import length_that_takes_too_long


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a*)*b", r"(\w+\s*)+$", r"(.+,)+$", "(a|a|a)+$", "(?:a|aa)+$", r"(x+x+)+y",
        r"^(([a-z])+.)+[A-Z]([a-z])+$", "(?P<kind>(?:%+)*)=",
    ],
)  # fmt: skip
def test_what_takes_exponential_time_is_found(pattern: str) -> None:
    length = length_that_takes_too_long(pattern)
    assert length is not None
    assert length < 26


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b(?P<case_number>CASE-\d{6})\b", r"(?:\w+\.)+\w+", r"(?:\d{4}[- ]?){3}\d{4}", "x+", ".*.*=",
        r"[\w.]+@(?:[\w-]+\.)+[a-z]{2,}", "secret",
    ],
)  # fmt: skip
def test_what_is_fast_is_not(pattern: str) -> None:
    assert length_that_takes_too_long(pattern) is None
