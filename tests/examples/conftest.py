"""A trail for the parts of the example that are tested in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from examples.agenthub.store import Store
from otel_audit import configure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Records = list[dict[str, Any]]


@pytest.fixture
def records(tmp_path: Path) -> Callable[[], Records]:
    """Open a trail; the function gives what has been recorded so far."""
    provider = configure(directory=tmp_path / "trail", agent="off", service_name="agenthub")

    def read() -> Records:
        with provider.reader() as reader:
            return [json.loads(leaf.record) for leaf in reader.leaves()]

    return read


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "hub.db")
