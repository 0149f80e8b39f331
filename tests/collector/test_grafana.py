"""The dashboards are what the code draws, and say enough to whoever looks at one."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from collector.grafana.__main__ import FOLDER, path, text
from collector.grafana.boards import DASHBOARDS
from collector.grafana.model import COLUMNS, Dashboard, Json, loki, number, row
from collector.stack.build import COLLECTOR

PROVISIONING = COLLECTOR / "grafana" / "provisioning"
EACH = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)


@EACH
def test_the_file_is_what_the_code_draws(dashboard: Dashboard) -> None:
    """Otherwise run ``python -m collector.grafana``."""
    assert path(dashboard).read_text() == text(dashboard)


def test_there_are_no_other_files() -> None:
    assert sorted(FOLDER.iterdir()) == sorted(path(one) for one in DASHBOARDS)


@EACH
def test_each_panel_says_what_it_shows(dashboard: Dashboard) -> None:
    for panel in dashboard.to_json()["panels"]:
        assert panel["title"], panel
        assert panel["description"].endswith((".", "/")), panel["title"]
        assert panel["targets"], panel["title"]


@EACH
def test_titles_are_found_once(dashboard: Dashboard) -> None:
    titles = Counter(panel["title"] for panel in dashboard.to_json()["panels"])
    # A number and the lines behind it may have one name.
    kinds = Counter((panel["title"], panel["type"]) for panel in dashboard.to_json()["panels"])
    assert max(kinds.values()) == 1
    assert max(titles.values()) <= 2


def overlapping(panels: list[Json]) -> bool:
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    return max(cells.values()) > 1 or max(x for x, _ in cells) >= COLUMNS


@EACH
def test_panels_do_not_overlap(dashboard: Dashboard) -> None:
    assert not overlapping(dashboard.to_json()["panels"])


def test_overlapping_panels_would_be_found() -> None:
    panel = number("One", "A number.", loki("vector(1)"))
    panels = Dashboard("x", "X", "", (), (row(4, panel, panel),)).to_json()["panels"]
    assert not overlapping(panels)
    panels[1]["gridPos"]["x"] -= 1
    assert overlapping(panels)


@EACH
def test_a_query_uses_no_variable_that_is_not_there(dashboard: Dashboard) -> None:
    names = {variable.name for variable in dashboard.variables}
    for panel in dashboard.to_json()["panels"]:
        for target in panel["targets"]:
            rest = target["expr"]
            for known in ("$__auto", "$__range", "$__rate_interval", *(f"${one}" for one in names)):
                rest = rest.replace(known, "")
            assert "$" not in rest, panel["title"]


def test_all_services_are_shown_unless_one_is_chosen() -> None:
    for dashboard in DASHBOARDS:
        (service,) = (one.to_json() for one in dashboard.variables)
        assert (service["includeAll"], service["allValue"]) == (True, ".+")
        assert service["current"]["value"] == ["$__all"]


def test_data_sources_link_records_to_traces_and_back() -> None:
    written = (PROVISIONING / "datasources" / "otel-audit.yaml").read_text()
    sources = {one["uid"]: one for one in yaml.safe_load(written)["datasources"]}
    assert set(sources) == {"audit-loki", "audit-prometheus", "audit-tempo"}
    fields = {one["name"]: one for one in sources["audit-loki"]["jsonData"]["derivedFields"]}
    # Grafana replaces $NAME in these files; $$ stands for one that it must leave.
    assert fields["trace"]["matcherRegex"] == "trace_id"
    assert fields["trace"]["url"] == "$${__value.raw}"
    assert fields["trace"]["datasourceUid"] in sources
    traces = sources["audit-tempo"]["jsonData"]["tracesToLogsV2"]
    assert traces["datasourceUid"] in sources
    assert "$${__trace.traceId}" in traces["query"]


def test_grafana_reads_the_dashboards_where_compose_mounts_them() -> None:
    written = (PROVISIONING / "dashboards" / "otel-audit.yaml").read_text()
    (provider,) = yaml.safe_load(written)["providers"]
    compose = yaml.safe_load((COLLECTOR / "compose.yaml").read_text())
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
