"""`doctor` warns of a trail that does not say which service it is of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from otel_audit import AuditProvider, Settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.cli.conftest import Cli


def services(cli: Cli) -> list[dict[str, str]]:
    found = json.loads(cli.bare("doctor", "--json").out)["checks"]
    return [check for check in found if check["name"] == "service"]


def test_a_service_without_a_name_is_in_the_trails_origin(
    directory: Path, fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ever: every checkpoint signs it."""
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(directory))
    (before,) = services(fresh)
    assert before["state"] == "warn"
    assert before["message"].startswith("the service has no name here, ")
    assert "OTEL_SERVICE_NAME" in before["remedy"]
    for variable, said in {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=shop",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(variable, said)
            assert services(fresh) == []
    AuditProvider(Settings.from_env(agent="off")).close()
    # What the environment says now changes nothing for this trail.
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    (after,) = services(fresh)
    assert after["state"] == "warn"
    assert "begun as otel-audit.local/unknown_service" in after["message"]


def test_a_trail_of_a_named_service(trail: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the service has no name here says nothing: it may name itself in code."""
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(trail))
    assert services(cli) == []
