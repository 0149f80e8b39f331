"""The real Collector carries records to the real Loki, whatever happens to either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.stack import traffic
from tests.stack.waiting import wait_until

if TYPE_CHECKING:
    from collector.stack.servers import Collector, Loki


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
