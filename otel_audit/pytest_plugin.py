"""The pytest plugin: ``audit_records``, in every project where otel-audit is installed.

Promises nothing but the fixture, and to load nothing until a test asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.testing import AuditRecords


@pytest.fixture
def audit_records() -> Iterator[AuditRecords]:
    """Give the test a trail of its own, and what is recorded in it, as a sequence."""
    from otel_audit.testing import AuditRecords, audit_trail  # noqa: PLC0415 - see above

    with audit_trail() as trail:
        yield AuditRecords(trail)
