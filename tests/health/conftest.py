"""Checkers that are stopped afterwards, and a way to wait for what threads do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from otel_audit.api.provider import AuditProvider
from otel_audit.health.checker import HealthChecker, set_health_checker
from otel_audit.settings import Settings
from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from otel_audit.health.component import ComponentState

    Records = Callable[[], list[dict[str, Any]]]


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def state(checker: HealthChecker, name: str) -> ComponentState:
    return next(state for state in checker.states if state.name == name)


@pytest.fixture
def checker() -> Iterator[HealthChecker]:
    """Give a checker of this test's own, which watches no trail."""
    made = HealthChecker(watch_trail=False)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _no_global_checker() -> Iterator[None]:
    yield
    set_health_checker(None)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[AuditProvider]:
    """Give a provider with a trail, and without an agent."""
    settings = Settings.from_env({}, directory=tmp_path / "trail", agent="off", service_name="shop")
    made = AuditProvider(settings)
    yield made
    made.close()


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Read what the trail holds now, oldest first."""

    def read() -> list[dict[str, Any]]:
        with TrailReader(tmp_path / "trail") as reader:
            return [orjson.loads(leaf.record) for leaf in reader.leaves()]

    return read
