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


def distribution(place: Path, name: str, *instruments: str) -> None:
    """Leave what pip leaves of a distribution, if need be of an instrumentation of some libraries."""
    metadata = place / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    extra = "instruments" if len(instruments) == 1 else "instruments-any"
    wanted = [f"Requires-Dist: {one}; extra == '{extra}'\n" for one in instruments]
    said = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nProvides-Extra: {extra}\n"
    (metadata / "METADATA").write_text(said + "".join(wanted))


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


def test_an_instrumentation_of_another_version_of_its_library_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of SQLAlchemy 2.1, for example, which the one of OpenTelemetry 0.66 does not take."""
    rules = rule_set("sql", "test").policy.spans
    package = "opentelemetry-instrumentation"
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    distribution(tmp_path, f"{package}-sqlalchemy", "sqlalchemy<2,>=1.0")
    (silent,) = silent_rules(rules)
    assert silent.finding == (
        f"rule set sql: {package}-sqlalchemy makes no spans, as it takes 'sqlalchemy<2,>=1.0' and "
        f"sqlalchemy {version('sqlalchemy')} is installed"
    )
    assert silent.remedy.startswith("pip install 'sqlalchemy<2,>=1.0', or pip install ")
    assert silent.remedy.endswith(f"{package}-sqlite3=={version(package)}")
    assert f"{package}-sqlalchemy" not in silent.remedy
    distribution(tmp_path, f"{package}-sqlite3")
    (silent,) = silent_rules(rules)
    assert silent.remedy == (
        "pip install 'sqlalchemy<2,>=1.0', or pip uninstall opentelemetry-instrumentation-sqlalchemy, "
        "where opentelemetry-instrumentation-sqlite3 sees the same"
    )


def test_either_of_two_libraries_will_do_and_one_that_is_absent_is_missed_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, http = (rule_set(name, "test").policy.spans for name in ("redis", "http"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    distribution(tmp_path, "opentelemetry-instrumentation-redis", "no-such-library>=2.6")
    assert silent_rules(redis) == []
    one, other = tmp_path / "one", tmp_path / "other"
    distribution(one, "opentelemetry-instrumentation-httpx", "rich<1", "no-such-library")
    distribution(other, "opentelemetry-instrumentation-httpx", "rich<1", "rich>=1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(one)])
        (silent,) = silent_rules(http)
        assert "takes 'rich<1' or 'no-such-library' and rich " in silent.why
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    assert silent_rules(http) == []


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
