"""The real Collector carries records to the real Loki, whatever happens to either."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from collector.stack.servers import Collector, Loki
from tests.stack import traffic
from tests.stack.sinks import HttpSink
from tests.stack.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from otel_audit.record.semconv import OtelLogRecord


def test_a_record_arrives_byte_for_byte_with_what_makes_it_easy_to_find(
    collector: Collector, loki: Loki
) -> None:
    with traffic.trail() as trail:
        trail.logger.audit_event(
            "phi_access", "read", resource_type="chart", resource_name="c-9", note="übung\u2028\t"
        )
        records = traffic.log_records(trail)
    traffic.send(collector.audit_endpoint, records, {"Authorization": collector.authorization})
    wait_until(lambda: len(loki.entries()) == 1)
    (entry,) = loki.entries()
    (sent,) = records
    assert entry.line == sent.body
    assert entry.unix_nano == sent.timestamp
    assert entry.labels["service_name"] == traffic.SERVICE
    assert entry.labels["audit_retention"] == "3y"
    assert entry.labels["event_name"] == sent.event_name
    assert entry.labels["audit_action"] == "READ"
    streams = loki.get(
        "/loki/api/v1/series",
        {"match[]": '{service_name=~".+"}'},
        {"X-Scope-OrgID": loki.tenant},
    )["data"]
    assert streams == [{"service_name": traffic.SERVICE, "audit_retention": "3y"}]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["none", "wrong"])
def test_nobody_sends_without_the_token(collector: Collector, headers: dict[str, str]) -> None:
    with traffic.trail() as trail:
        traffic.business(trail, 1)
        with pytest.raises(traffic.Refused) as refused:
            traffic.send(collector.audit_endpoint, traffic.log_records(trail), headers)
    assert refused.value.status == 401


def some_records(rounds: int = 10) -> list[OtelLogRecord]:
    with traffic.trail() as trail:
        traffic.business(trail, rounds)
        return traffic.log_records(trail)


def bodies(loki: Loki) -> list[str]:
    return sorted(entry.line for entry in loki.entries())


def test_the_token_can_be_changed_without_a_gap(collector: Collector, loki: Loki) -> None:
    old, new = some_records(1), some_records(1)
    before = collector.token
    collector.token_file.write_text(f"{before}\nfresh\n")
    wait_until(lambda: sends(collector, new, "fresh"))
    traffic.send(collector.audit_endpoint, old, {"Authorization": f"Bearer {before}"})
    collector.change_token("fresh")
    wait_until(lambda: not sends(collector, old, before))
    wait_until(lambda: bodies(loki) == sorted(one.body for one in (*old, *new)))


def sends(collector: Collector, records: list[OtelLogRecord], token: str) -> bool:
    try:
        traffic.send(collector.audit_endpoint, records, {"Authorization": f"Bearer {token}"})
    except traffic.Refused:
        return False
    return True


def test_what_was_answered_survives_sigkill_while_loki_is_down(
    collector: Collector, loki: Loki
) -> None:
    allowed = {"Authorization": collector.authorization}
    sent = []
    loki.stop()
    for _ in range(3):
        records = some_records()
        traffic.send(collector.audit_endpoint, records, allowed)
        sent += [one.body for one in records]
        collector.kill()
        collector.start()
    loki.start()
    wait_until(lambda: bodies(loki) == sorted(sent))


def test_what_was_answered_survives_an_ordinary_stop_while_loki_hangs(
    collector: Collector, loki: Loki
) -> None:
    loki.freeze()
    records = some_records()
    traffic.send(collector.audit_endpoint, records, {"Authorization": collector.authorization})
    collector.stop()
    loki.kill()  # what it may have taken, it has not answered
    loki.start()
    collector.start()
    wait_until(lambda: bodies(loki) == sorted(one.body for one in records))


def test_a_record_that_is_sent_again_is_there_once(collector: Collector, loki: Loki) -> None:
    records = some_records()
    for _ in range(3):
        traffic.send(collector.audit_endpoint, records, {"Authorization": collector.authorization})
    # Behind them, so that they have arrived when it has.
    traffic.send(
        collector.audit_endpoint,
        traffic.moved(records[-1:], 1),
        {"Authorization": collector.authorization},
    )
    wait_until(lambda: len(bodies(loki)) > len(records))
    assert len(bodies(loki)) == len(records) + 1


def test_time_is_no_reason_to_refuse_a_record(collector: Collector, loki: Loki) -> None:
    """Months old, hours behind its stream, hours ahead of the clock, in any order."""
    records = some_records(2)
    hour = 3_600
    sent = []
    for hours in (0, 14, -29 * 24, -5, 2, -20, -1, 0.1, -90):
        seconds = hours * hour
        part = traffic.moved(records, seconds)
        traffic.send(collector.audit_endpoint, part, {"Authorization": collector.authorization})
        sent += [one.body for one in part]
    wait_until(lambda: bodies(loki) == sorted(sent))
    loki.kill()
    loki.start()
    assert bodies(loki) == sorted(sent)


def test_a_full_queue_makes_senders_wait_and_loses_nothing(tmp_path: Path) -> None:
    with Loki(tmp_path / "loki") as loki:
        loki.stop()
        full = {"AUDIT_QUEUE_BYTES": "300000"}
        with Collector(tmp_path / "collector", loki=loki, settings=full) as collector:
            waiting = [some_records(20) for _ in range(8)]
            taken: list[str] = []

            def deliver() -> None:
                for part in waiting:
                    while not sends(collector, part, collector.token):
                        time.sleep(0.2)
                    taken.extend(one.body for one in part)

            sender = threading.Thread(target=deliver, daemon=True)
            sender.start()
            sender.join(5)
            assert sender.is_alive()
            assert len(taken) < sum(map(len, waiting))
            loki.start()
            sender.join(60)
            assert not sender.is_alive()
            wait_until(lambda: bodies(loki) == sorted(taken))
            assert len(taken) == sum(map(len, waiting))


def test_traces_are_passed_on(tmp_path: Path) -> None:
    span = Span(name="read chart", trace_id=bytes(range(16)), span_id=bytes(range(8)))
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[span])])]
    )
    with (
        HttpSink().serving() as store,
        Collector(tmp_path, settings={"TRACES_OTLP_ENDPOINT": store.url}) as collector,
    ):
        httpx.post(
            collector.otlp_endpoint + "/v1/traces",
            content=request.SerializeToString(),
            headers={"Content-Type": "application/x-protobuf"},
            trust_env=False,
        ).raise_for_status()
        wait_until(lambda: bool(store.requests))
    ((path, _, body),) = store.requests
    assert path == "/v1/traces"
    ((passed,),) = [
        scope.spans
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
    ]
    assert (passed.name, passed.trace_id) == (span.name, span.trace_id)


def test_audit_records_do_not_get_in_without_the_token_by_the_other_port(
    collector: Collector,
) -> None:
    with pytest.raises(traffic.Refused, match="404"):
        traffic.send(collector.otlp_endpoint, some_records(1))
