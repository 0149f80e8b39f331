"""Rules whose spans nothing makes that is installed, by what is really installed here."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from otel_audit.api.policy_file import parse_policy, rule_set
from otel_audit.api.silent import Silent, makers_of, silent_rules

if TYPE_CHECKING:
    from pathlib import Path


def distribution(place: Path, name: str) -> None:
    """Leave what pip leaves of a distribution."""
    metadata = place / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_a_set_is_silent_until_one_of_the_instrumentations_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = rule_set("sql", "test").policy.spans
    package = "opentelemetry-instrumentation"
    (silent,) = silent_rules(rules)
    assert silent.rules == "rule set sql"
    # Of libraries that are here; tests/stack brings others than make test.
    assert f"{package}-sqlalchemy=={version(package)}, " in silent.remedy
    assert silent.remedy.endswith(f", {package}-sqlite3=={version(package)}")
    assert "tortoiseorm" not in silent.remedy
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    distribution(tmp_path, f"{package}-tortoiseorm")
    assert silent_rules(rules) == []


def test_rules_of_the_file_are_known_by_their_scope() -> None:
    rules = parse_policy(
        "spans:\n"
        "- {match: {scope: opentelemetry.instrumentation.fastapi}, event: here}\n"
        "- {match: {scope: opentelemetry.instrumentation.aiohttp_client}, event: absent}\n"
        "- {match: {scope: 'opentelemetry.instrumentation.*'}, event: any}\n"
        "- {match: {scope: my.own}, event: own}\n"
        "- {match: {kind: client}, event: all}\n",
        "p.yaml",
    ).policy.spans
    beside = version("opentelemetry-instrumentation")
    package = f"opentelemetry-instrumentation-aiohttp-client=={beside}"
    assert silent_rules(rules) == [Silent("the rule at p.yaml:3:3", f"pip install {package}")]


@pytest.mark.parametrize(
    ("scope", "makers"),
    [
        ("opentelemetry.instrumentation.redis", ("opentelemetry-instrumentation-redis",)),
        ("opentelemetry.instrumentation.openai_v2", ("opentelemetry-instrumentation-openai-v2",)),
        ("opentelemetry.instrumentation.redis.util", ("opentelemetry-instrumentation-redis",)),
        ("opentelemetry.instrumentation.re*", ()),
        ("opentelemetry.instrumentation", ()),
        ("redis", ()),
        (None, ()),
    ],
)
def test_makers(scope: str | None, makers: tuple[str, ...]) -> None:
    assert makers_of(scope) == makers
