"""The OTel Resource that records name: whatever the environment says, it can be stored."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

from otel_audit.trail.reader import TrailReader

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
from otel_audit import AuditLogger, configure
configure(agent="off")
AuditLogger().audit_event("order", "create")
"""


@pytest.mark.parametrize(
    ("variable", "value", "service"),
    [
        ("OTEL_SERVICE_NAME", b"shop", "shop"),
        ("OTEL_SERVICE_NAME", b"caf\xe9", "caf\\udce9"),
        ("OTEL_SERVICE_NAME", "Größe".encode(), "Größe"),
        ("OTEL_RESOURCE_ATTRIBUTES", b"service.name=shop,zone=\xe9", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", b"service.name=shop,host.name=h%20x", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", b"nonsense", "unknown_service"),
    ],
)
def test_a_name_that_is_not_utf_8_keeps_no_service_from_auditing(
    tmp_path: Path, variable: str, value: bytes, service: str
) -> None:
    environ = {**os.environb, variable.encode(): value, b"OTEL_AUDIT_DIR": os.fsencode(tmp_path)}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environ, check=True, timeout=30)
    with TrailReader(tmp_path) as reader:
        leaf = reader.leaf(0)
        assert leaf is not None
        record = orjson.loads(leaf.record)
        resource = orjson.loads(reader.resource(record["resource"]) or b"{}")
    assert record["service_name"].split(":")[0] == service
    assert resource["service.name"] == record["service_name"]
    assert "coerced" not in record
