"""A real trail for each test, and a way to hold its commits back."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    Hold = Callable[[], AbstractContextManager[None]]
    Records = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def make_provider(tmp_path: Path) -> Iterator[Callable[..., AuditProvider]]:
    """Make providers of the test's trail; they are closed in the end."""
    made: list[AuditProvider] = []

    def make(vfs: str | None = None, **settings: Any) -> AuditProvider:
        said = {"directory": tmp_path / "trail", "agent": "off", "service_name": "shop", **settings}
        provider = AuditProvider(Settings.from_env({}, **said), vfs=vfs)
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


@pytest.fixture
def provider(make_provider: Callable[..., AuditProvider]) -> AuditProvider:
    """Give a provider with all defaults."""
    return make_provider()


@pytest.fixture
def impatient(make_provider: Callable[..., AuditProvider]) -> AuditProvider:
    """Give a provider that waits no longer than a fifth of a second for a confirmation."""
    return make_provider(timeout=0.2)


@pytest.fixture
def audit(provider: AuditProvider) -> AuditLogger:
    """Give the logger that the test's applications emit with."""
    return AuditLogger(provider=provider)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """Hold the trail's lock as another process would: until the block ends, nothing commits."""

    @contextmanager
    def held() -> Iterator[None]:
        with (tmp_path / "trail" / "lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return held


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Read what the trail holds now, oldest first."""
    from otel_audit.trail.reader import TrailReader

    def read() -> list[dict[str, Any]]:
        with TrailReader(tmp_path / "trail") as reader:
            return [orjson.loads(leaf.record) for leaf in reader.leaves()]

    return read
