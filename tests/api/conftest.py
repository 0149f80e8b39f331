"""A real trail for each test of the interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otel_audit.api.current import configure
from otel_audit.api.logger import AuditLogger
from tests.api.desk import Desk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Give the global provider in a directory of its own; `tests/conftest.py` closes it."""
    provider = configure(
        log_dir=tmp_path, service_name="svc", mirror=False, agent="off", timeout=5.0
    )
    return Desk(provider, AuditLogger())
