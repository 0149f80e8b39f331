"""The console prints each record once, on one line, whatever is in it."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit import AuditLogger, AuditProvider, Settings, acting_as
from otel_audit.readers.console import Console, line
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from pathlib import Path


def test_records_are_printed_as_they_are_committed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.from_env({"OTEL_AUDIT_CONSOLE": "1"}, directory=tmp_path / "trail",
                                 agent="off")  # fmt: skip
    provider = AuditProvider(settings)
    with acting_as("ann", verified=False):
        AuditLogger(provider=provider).audit_event(
            "login", "log in", "account", "u-1", "failed", error="wrong password", attempts=3
        )
    assert provider.flush()
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("audit ")
    for part in ("error  ", "failure", "ann?", "login: log in", "account u-1", "attempts=3",
                 "error=wrong password"):  # fmt: skip
        assert part in shown
    provider.close()


def test_one_of_several_prints_and_another_takes_over() -> None:
    with audit_trail() as trail:
        streams = io.StringIO(), io.StringIO()
        first, second = (
            Console(trail.directory, trail.provider.reader, stream) for stream in streams
        )
        trail.logger.audit_event("before", "do")
        first.start()
        first.start()
        while not first._leading:
            os.sched_yield()
        second.start()
        trail.logger.audit_event("one", "do")
        assert first.flush(5)
        assert second.flush(5)
        first.close()
        while not second._leading:
            os.sched_yield()
        trail.logger.audit_event("two", "do")
        second.close()
    assert [stream.getvalue().count("\n") for stream in streams] == [1, 1]
    assert "one: do" in streams[0].getvalue()
    assert "two: do" in streams[1].getvalue()


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_stream_that_is_gone_does_no_harm() -> None:
    with audit_trail() as trail:
        console = Console(trail.directory, trail.provider.reader, Broken())
        console.start()
        while not console._leading:
            os.sched_yield()
        trail.logger.audit_event("one", "do")
        assert console.flush(5)
        console.close()


class Writes:
    """The least that people put in the place of stderr."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_a_stream_that_only_writes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Writes()
    with audit_trail() as trail:
        monkeypatch.setattr(sys, "stderr", stream)
        console = Console(trail.directory, trail.provider.reader)
        console.start()
        while not console._leading:
            os.sched_yield()
        for event in ("one", "two"):
            trail.logger.audit_event(event, "do")
        assert console.flush(5)
        console.close()
    assert stream.text.count("\n") == 2


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"event": "a\x1b[2Jb\n"}, "a\\x1b[2Jb\\n"),
        ({"resource_name": "\u202egpj"}, "\\u202egpj"),
        ({"field": {"a": 1}}, 'field={"a":1}'),
        ({"trace_id": "0123456789abcdef"}, "trace=01234567"),
        ({"actor_id": "anonymous", "actor_verified": False}, "anonymous  "),
    ],
)
def test_what_a_line_shows(record: dict[str, Any], part: str) -> None:
    assert part in line(record) + "  "


def test_colours_are_for_terminals() -> None:
    assert "\x1b[31m" in line({"outcome": "failure"}, colour=True)
    assert "\x1b" not in line({"outcome": "failure"})
