"""The record that is measured: with these fields it has about 20 keys."""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, Any] = {
    "method": "PATCH",
    "changed": "email",
    "reason": "requested by the customer",
    "ticket": "SUP-20391",
    "attempt": 1,
    "duration_ms": 12.75,
    "notified": True,
}
"""The caller's."""
