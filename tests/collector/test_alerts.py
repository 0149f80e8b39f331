"""Each alert has a page that says what to do, and a test of its own."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from collector.stack.build import COLLECTOR

RUNBOOKS = COLLECTOR.parent / "docs" / "runbooks"
PROMETHEUS = COLLECTOR / "prometheus" / "rules" / "otel-audit.yml"
LOKI = COLLECTOR / "loki" / "rules" / "audit" / "otel-audit.yml"
ADDRESS = "https://github.com/otel-audit/otel-audit/blob/main/docs/runbooks/"


def rules(*files: Any) -> list[dict[str, Any]]:
    return [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = rules(PROMETHEUS, LOKI)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda one: one["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"{ADDRESS}{name}.md"
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for part in ("**At stake.**", "## Look", "## Do"):
        assert part in page, part


def test_there_is_no_page_without_an_alert() -> None:
    names = {rule["alert"] for rule in ALERTS}
    assert len(names) == len(ALERTS)
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == names


def test_pages_link_to_pages_that_are_there() -> None:
    for page in RUNBOOKS.glob("*.md"):
        for link in page.read_text().split("](")[1:]:
            assert (RUNBOOKS / link.partition(")")[0]).exists(), (page.name, link[:40])


def test_promtool_is_asked_about_each_alert_twice() -> None:
    """Once where it has to fire, once where it must not: tests/stack/test_rules.py runs them."""
    written = (COLLECTOR / "prometheus" / "tests" / "otel-audit.yml").read_text()
    asked: dict[str, list[bool]] = {}
    for case in yaml.safe_load(written)["tests"]:
        for test in case["alert_rule_test"]:
            asked.setdefault(test["alertname"], []).append(bool(test["exp_alerts"]))
    assert asked == {rule["alert"]: [True, False] for rule in rules(PROMETHEUS)}
