"""Every query of every panel and alert returns data, from the real servers.

One scene is played to all of them: people's records, an application's metrics,
and the troubles that alerts are about. A panel whose query finds nothing then
asks for a name that nobody writes.
"""

from __future__ import annotations

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import yaml

from collector.stack.build import COLLECTOR
from collector.stack.servers import (
    HOST,
    Collector,
    Loki,
    Prometheus,
    Prometheus2,
    ServerError,
    free_port,
)
from tests.stack import measured, traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.record.semconv import OtelLogRecord

CHECKPOINT = "audit.checkpoint"
VARIABLES = {
    "$service": ".+",
    # Long enough for all questions to be asked, however slow the machine is.
    "$__rate_interval": "15m",
    "$__auto": "15m",
    "$__range": "15m",
}
MAY_BE_ZERO = {
    "Audit health: Degraded A",
    "Audit health: Unknown A",
    "Audit pipeline: Reconciliation C",
    "Audit pipeline: Reconciliation D",
    "Audit pipeline: Collector: refused, failed A",
    "AuditServerDown",
}
"""Here zero is what the scene has to show; everywhere else it would show that nothing came."""
HOUR_AHEAD = ("AuditServiceSilent",)
"""Asked for as of an hour later, when the service will have been silent for an hour."""


@dataclass(frozen=True)
class Question:
    """One query, and where it stands."""

    place: str
    source: str
    text: str
    ahead: float = 0


def panels() -> Iterator[Question]:
    for file in sorted((COLLECTOR / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                text = target["expr"]
                for variable, value in VARIABLES.items():
                    text = text.replace(variable, value)
                place = f"{dashboard['title']}: {panel['title']} {target['refId']}"
                yield Question(place, target["datasource"]["type"], text)


def alerts(source: str) -> Iterator[Question]:
    folder = {"prometheus": "prometheus/rules", "loki": "loki/rules/audit"}[source]
    for file in sorted((COLLECTOR / folder).glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                ahead = 3_630 if rule["alert"] in HOUR_AHEAD else 0
                yield Question(rule["alert"], source, rule["expr"], ahead)


PANELS = list(panels())
ALERTS = [*alerts("prometheus"), *alerts("loki")]


@dataclass(frozen=True)
class Scene:
    """The servers, after the scene was played."""

    loki: Loki
    prometheus: Prometheus
    prometheus2: Prometheus2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("scene")
    with (
        Prometheus(place / "prometheus") as prometheus,
        Prometheus2(place / "prometheus2") as prometheus2,
        Loki(place / "loki", prometheus=prometheus, rules_interval="2s") as loki,
        Collector(place / "collector", loki=loki, prometheus=prometheus) as collector,
        # Loki is away for this one: some records fit, and they stay.
        Collector(place / "full", settings={"AUDIT_QUEUE_BYTES": "16000"}) as full,
        # The disk of this one has no room.
        Collector(place / "stuck", storage_bytes=1 << 20) as stuck,
    ):
        collectors = (collector, full, stuck)
        scraped = {
            "otelcol-audit": [one.metrics_address for one in collectors],
            "loki": [loki.url.removeprefix("http://"), f"{HOST}:{free_port()}"],
            "applications": [collector.scrape_address],
        }
        prometheus.scrape(scraped)
        prometheus2.scrape(scraped)
        stop = threading.Event()
        with ThreadPoolExecutor() as others:
            metrics = others.submit(measured.report, collector.otlp_endpoint, traffic.SERVICE, stop)
            try:
                part = play(collector, full)
                going = others.submit(go_on, collector, part, stop)
                filling = others.submit(fill, stuck, part, stop)
                time.sleep(5)  # Loki's own metrics and the ruler's next turns
                yield Scene(loki, prometheus, prometheus2)
            finally:
                stop.set()
            metrics.result()
            going.result()
            filling.result()


def play(collector: Collector, full: Collector) -> list[OtelLogRecord]:
    """Let the Collectors carry what people do, and fail as they can; return some records."""
    allowed = {"Authorization": collector.authorization}
    with traffic.trail("mute") as trail:  # its checkpoints are lost on the way
        traffic.business(trail, 1)
        traffic.send(collector.audit_endpoint, traffic.log_records(trail), allowed)
    with traffic.trail() as trail:
        traffic.business(trail, 100)
        records = traffic.log_records(trail)
    some = records[:9]
    traffic.send(full.audit_endpoint, some, {"Authorization": full.authorization})
    checkpoint = some[0]._replace(
        event_name=CHECKPOINT,
        body=json.dumps({"event": CHECKPOINT}),
        attributes={"audit.event.type": CHECKPOINT, "audit.retention": "3y"},
    )
    third = len(records) // 3
    for number in range(3):
        part = records[number * third : (number + 1) * third]
        traffic.send(collector.audit_endpoint, [*part, checkpoint], allowed)
        traffic.send(collector.audit_endpoint, [hopeless(some[0])], allowed)
        time.sleep(2)
    return records[:third]


def hopeless(record: OtelLogRecord) -> OtelLogRecord:
    """Return a record that Loki refuses for good: nothing of ours is that long."""
    return record._replace(body="x" * 1_100_000)


def go_on(collector: Collector, records: list[OtelLogRecord], stop: threading.Event) -> None:
    """Send on and on, so that a server that scrapes late sees the counts rise."""
    allowed = {"Authorization": collector.authorization}
    while not stop.wait(1):
        for part in (records, [hopeless(records[0])]):
            traffic.send(collector.audit_endpoint, part, allowed)


def fill(stuck: Collector, records: list[OtelLogRecord], stop: threading.Event) -> None:
    """Send until the disk is full and on, so that a server that scrapes late sees the counts rise."""
    refusals = 0
    while not stop.wait(1 if refusals else 0):
        refusals += is_refused(stuck, records)
    assert refusals


def is_refused(stuck: Collector, records: list[OtelLogRecord]) -> bool:
    try:
        traffic.send(stuck.audit_endpoint, records, {"Authorization": stuck.authorization})
    except traffic.Refused as refused:
        assert refused.status == 503, refused  # noqa: PT017 - what it was refused with is the point
        return True
    return False


def has_data(scene: Scene, question: Question) -> bool:
    """Whether the server finds something within 20 seconds: lines, or a number other than 0."""
    # What stands in for "it never happened" is not what is looked for here.
    question = replace(question, text=question.text.replace(" or vector(0)", ""))
    deadline = time.monotonic() + 20
    while True:
        values = asked(scene, question)
        told = [one for one in values if not math.isnan(one)]
        if any(told) or (told and question.place in MAY_BE_ZERO):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(1)


def asked(scene: Scene, question: Question) -> list[float]:
    """Return the values of all samples; for lines, a 1 each."""
    if question.source != "loki":
        server = scene.prometheus if question.source == "prometheus" else scene.prometheus2
        return [value for _, value in server.query(question.text, at=time.time() + question.ahead)]
    try:
        return [value for _, value in scene.loki.query(question.text)]
    except ServerError as error:
        if "log queries are not supported as an instant query" not in str(error):
            raise
        return [1.0 for _ in scene.loki.entries(question.text)]


@pytest.mark.parametrize("question", PANELS, ids=lambda one: one.place)
def test_a_panel_has_data(scene: Scene, question: Question) -> None:
    assert has_data(scene, question), question.text


@pytest.mark.parametrize("question", ALERTS, ids=lambda one: one.place)
def test_an_alert_finds_what_it_is_about(scene: Scene, question: Question) -> None:
    assert has_data(scene, question), question.text


@pytest.mark.parametrize(
    "question",
    [one for one in (*PANELS, *ALERTS) if one.source == "prometheus"],
    ids=lambda one: one.place,
)
def test_so_it_does_in_prometheus_2(scene: Scene, question: Question) -> None:
    assert has_data(scene, replace(question, source="prometheus2")), question.text


def test_lokis_ruler_fires_and_prometheus_hears_of_it(scene: Scene) -> None:
    names = {rule.place for rule in ALERTS if rule.source == "loki"}
    assert {alert["labels"]["alertname"] for alert in scene.loki.alerts()} == names
    quick = names - {"AuditNoCheckpointInLoki"}  # that one waits for 10 minutes
    for name in sorted(quick):
        text = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
        assert has_data(scene, Question(name, "prometheus", text)), name


def test_both_versions_of_prometheus_have_loaded_every_rule(scene: Scene) -> None:
    names = {rule.place for rule in ALERTS if rule.source == "prometheus"}
    for server in (scene.prometheus, scene.prometheus2):
        groups = server.get("/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == names
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def test_nothing_is_found_for_a_service_that_is_not_there(scene: Scene) -> None:
    """Without this, a query that always returns something would pass."""
    absent = [one for one in PANELS if 'service_name=~".+"' in one.text]
    assert len(absent) > 40
    for one in absent:
        text = one.text.replace('service_name=~".+"', 'service_name=~"nobody"')
        assert not any(asked(scene, replace(one, text=text))), one.place
