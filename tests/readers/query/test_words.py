"""What of a record can be asked for, read two ways that have to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.readers.query.times import stamp
from otel_audit.readers.query.words import fields_of, moment_of, stamp_of

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMITTED = 7
"""The time that counts where the record's own does not."""


def written(said: Mapping[str, object]) -> bytes:
    return orjson.dumps({"schema": "otel-audit/1", **said})


@given(st.integers(0, 2**62 - 1))
def test_a_record_s_time_as_it_is_written_is_the_time_that_is_read_from_it(moment: int) -> None:
    record = written({"timestamp": stamp(moment), "event": "login"})
    seen = stamp_of(record)
    day = int(stamp(moment)[8:10])
    assert (seen is None) == (day > 28), "only the days that not every month has need a closer look"
    if seen is not None:
        assert seen.decode() == stamp(moment_of(fields_of(record), COMMITTED))


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1))
def test_times_in_order_are_texts_in_order(one: int, other: int) -> None:
    assert (stamp(one) < stamp(other)) == (one < other)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"timestamp": 1},
        {"timestamp": ""},
        {"timestamp": "2026-02-30T00:00:00.000000000Z"},
        {"timestamp": "2026-13-01T00:00:00.000000000Z"},
        {"timestamp": "2026-01-01T24:00:00.000000000Z"},
        {"timestamp": "2026-01-01T00:00:60.000000000Z"},
        {"timestamp": "2026-01-01T00:00:00.00000000Z"},
        {"timestamp": "2026-01-01T00:00:00Z"},
        {"timestamp": "2026-01-01T00:00:00.000000000+01:00"},
        {"event": "login", "timestamp": "2026-01-01T00:00:00.000000000Z"},
    ],
    ids=str,
)
def test_any_other_time_needs_a_closer_look(said: dict[str, object]) -> None:
    assert stamp_of(written(said)) is None


@pytest.mark.parametrize("record", [b"", b"{", b"\xff", b'{"schema":"otel-audit/1"'], ids=repr)
def test_what_is_no_record_needs_a_closer_look(record: bytes) -> None:
    assert stamp_of(record) is None
