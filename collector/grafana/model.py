"""What a dashboard consists of, and how Grafana writes it down.

A dashboard is a list of rows of panels; each panel asks Loki or Prometheus.
Places are worked out here: panels of a row stand side by side, 24 columns
wide. Both data sources are variables of the dashboard, so that it works in
any Grafana. Reference: Grafana's JSON model, schema version 39 (Grafana 10.4
and newer).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

Json = dict[str, Any]
Source = Literal["loki", "prometheus"]

COLUMNS: Final = 24
SCHEMA: Final = 39


@dataclass(frozen=True)
class Query:
    """One query. ``instant`` asks for one value as of the end of the shown time."""

    source: Source
    text: str
    legend: str = ""
    instant: bool = False

    def to_json(self, number: int) -> Json:
        """Return it as a panel's target."""
        target: Json = {
            "refId": chr(ord("A") + number),
            "datasource": {"type": self.source, "uid": f"${{{self.source}}}"},
            "expr": self.text,
            "legendFormat": self.legend,
        }
        if self.source == "loki":
            return {**target, "queryType": "instant" if self.instant else "range"}
        return {
            **target,
            "instant": self.instant,
            "range": not self.instant,
            "exemplar": not self.instant,
        }


def loki(text: str, legend: str = "", *, instant: bool = False) -> Query:
    """Make a LogQL query."""
    return Query("loki", text, legend, instant)


def prometheus(text: str, legend: str = "", *, instant: bool = False) -> Query:
    """Make a PromQL query."""
    return Query("prometheus", text, legend, instant)


@dataclass(frozen=True)
class Panel:
    """One panel: what it is called, what it shows and what that means."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    transformations: tuple[Json, ...] = ()

    def to_json(self, number: int, x: int, y: int, width: int, height: int) -> Json:
        """Return it at its place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.meaning,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "datasource": self.queries[0].to_json(0)["datasource"],
            "targets": [query.to_json(place) for place, query in enumerate(self.queries)],
            "fieldConfig": {
                "defaults": {"unit": self.unit, "custom": self.custom, **self.defaults},
                "overrides": [],
            },
            "options": self.options,
            "transformations": list(self.transformations),
        }


def lines(
    title: str, meaning: str, *queries: Query, unit: str = "short", stacked: bool = False
) -> Panel:
    """Show values over time."""
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if stacked else {"fillOpacity": 8}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(title, meaning, queries, unit=unit, custom=custom, options=options)


def number(
    title: str,
    meaning: str,
    query: Query,
    *,
    unit: str = "short",
    bad_from: float | None = None,
) -> Panel:
    """Show one number, red from ``bad_from`` on."""
    steps: list[Json] = [{"color": "green", "value": None}]
    if bad_from is not None:
        steps.append({"color": "red", "value": bad_from})
    return Panel(
        title,
        meaning,
        (query,),
        kind="stat",
        unit=unit,
        options={"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"},
        defaults={"thresholds": {"mode": "absolute", "steps": steps}, "noValue": "0"},
    )


def ranking(title: str, meaning: str, query: Query) -> Panel:
    """Show who or what comes first, as bars."""
    return Panel(
        title,
        meaning,
        (query,),
        kind="bargauge",
        options={
            "orientation": "horizontal",
            "displayMode": "gradient",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        },
    )


def table(title: str, meaning: str, query: Query) -> Panel:
    """Show the labels of each sample, a row each."""
    return Panel(
        title,
        meaning,
        (query,),
        kind="table",
        transformations=({"id": "labelsToFields", "options": {}}, {"id": "merge", "options": {}}),
    )


def states(title: str, meaning: str, query: Query) -> Panel:
    """Show in which state something was when."""
    mappings = [
        {
            "type": "value",
            "options": {
                "0": {"text": "healthy", "color": "green"},
                "1": {"text": "degraded", "color": "yellow"},
                "2": {"text": "unhealthy", "color": "red"},
                "3": {"text": "unknown", "color": "purple"},
            },
        }
    ]
    return Panel(title, meaning, (query,), kind="state-timeline", defaults={"mappings": mappings})


def log(title: str, meaning: str, query: Query) -> Panel:
    """Show the records themselves, newest first."""
    options = {
        "showTime": True,
        "wrapLogMessage": True,
        "prettifyLogMessage": True,
        "enableLogDetails": True,
        "sortOrder": "Descending",
    }
    return Panel(title, meaning, (query,), kind="logs", options=options)


@dataclass(frozen=True)
class Row:
    """Panels side by side, equally wide."""

    height: int
    panels: tuple[Panel, ...]


def row(height: int, *panels: Panel) -> Row:
    """Put panels side by side."""
    return Row(height, panels)


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the dashboard, from a label's values; ``All`` is ``.+``."""

    name: str
    title: str
    source: Source
    query: str

    def to_json(self) -> Json:
        """Return it as Grafana writes it."""
        return {
            "type": "query",
            "name": self.name,
            "label": self.title,
            "datasource": {"type": self.source, "uid": f"${{{self.source}}}"},
            "query": self.query,
            "definition": self.query,
            "includeAll": True,
            "allValue": ".+",
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "sort": 1,
        }


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; ``uid`` is its address and the name of its file."""

    uid: str
    title: str
    meaning: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    since: str = "now-6h"
    refresh: str = "30s"

    def to_json(self) -> Json:
        """Return what Grafana reads."""
        panels: list[Json] = []
        y = 0
        for one in self.rows:
            width = COLUMNS // len(one.panels)
            for place, panel in enumerate(one.panels):
                panels.append(panel.to_json(len(panels) + 1, place * width, y, width, one.height))
            y += one.height
        sources = [
            {"type": "datasource", "name": name, "label": name.title(), "query": name}
            for name in ("loki", "prometheus")
        ]
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.meaning,
            "tags": ["otel-audit"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "time": {"from": self.since, "to": "now"},
            "refresh": self.refresh,
            "timezone": "browser",
            "templating": {"list": [*sources, *(one.to_json() for one in self.variables)]},
            "links": [
                {
                    "type": "dashboards",
                    "title": "otel-audit",
                    "tags": ["otel-audit"],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "annotations": {"list": []},
            "panels": panels,
        }
