"""The same questions to the trail and to a real Loki that has its records: the same answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel_audit.errors import QueryError
from otel_audit.readers.loki import AT_A_TIME, Line
from otel_audit.readers.loki import Loki as Client
from otel_audit.readers.query.model import Query
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import stamp
from otel_audit.readers.search.loki import LokiSearch
from otel_audit.readers.search.trail import TrailSearch
from otel_audit.record.semconv import to_log_record
from otel_audit.settings import Settings
from tests.readers.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.destinations import Destination
    from otel_audit.readers.query.model import Backend

COUNT = 2_500
SECOND = 1_000_000_000


class Loki(Protocol):
    """What is needed of the fixture `loki`: a real server, and its tenant."""

    url: str
    tenant: str


def where(loki: Loki) -> Destination:
    found = Settings.from_env({}, query_loki=loki.url, loki_tenant=loki.tenant).query_with
    assert found is not None
    return found


class Watched(Client):
    """Notes how many lines were transferred, and how many counts."""

    def __init__(self, loki: Loki) -> None:
        super().__init__(where(loki))
        self.transferred = self.counted = 0

    def lines(
        self, logql: str, start: int, end: int, *, oldest_first: bool, limit: int = AT_A_TIME
    ) -> list[Line]:
        found = super().lines(logql, start, end, oldest_first=oldest_first, limit=limit)
        self.transferred += len(found)
        return found

    def numbers(self, logql: str, at: int) -> list[tuple[dict[str, str], int]]:
        self.counted += 1
        return super().numbers(logql, at)


class Shipped(Ledger):
    """A ledger of the last hour, as Loki takes no older ones, with two records a moment."""

    began = (time.time_ns() - 3_600 * SECOND) // SECOND * SECOND

    def fields(self, number: int) -> dict[str, Any]:
        fields = super().fields(number)
        return {**fields, "timestamp": stamp(self.began + number // 2 * SECOND)}


@pytest.fixture
def shipped(tmp_path: Path, loki: Loki) -> Iterator[tuple[TrailSearch, LokiSearch]]:
    """Fill a trail, and send all of it to Loki, some of it twice."""
    ledger = Shipped(tmp_path / "trail")
    ledger.fill(COUNT)
    ledger.index()
    for first, last in ((0, COUNT), (100, 200)):
        send(loki, ledger, first, last)
    asked = LokiSearch(where(loki))
    query, _ = parse([("start", "-2h")])
    deadline = time.monotonic() + 60
    while sum(1 for _ in asked.stream(query)) < COUNT:
        assert time.monotonic() < deadline, "not all records arrived in Loki"
        time.sleep(0.5)
    yield TrailSearch(ledger.reader), asked
    ledger.close()


def send(loki: Loki, ledger: Ledger, first: int, last: int) -> None:
    records = []
    for leaf in ledger.reader.leaves(first, last):
        mapped = to_log_record(
            leaf.record,
            sequence_number=leaf.sequence,
            stream_id="ledger/1",
            leaf_hash=leaf.hash,
            committed_unix_nano=leaf.committed_unix_nano,
            resource=None,
        )
        attributes = [
            KeyValue(key=name, value=AnyValue(string_value=str(value)))
            for name, value in mapped.attributes.items()
        ]
        records.append(
            LogRecord(
                time_unix_nano=mapped.timestamp,
                body=AnyValue(string_value=mapped.body),
                attributes=attributes,
            )
        )
    named = [KeyValue(key="service.name", value=AnyValue(string_value="hub"))]
    request = ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=Resource(attributes=named), scope_logs=[ScopeLogs(log_records=records)]
            )
        ]
    )
    answer = httpx.post(
        f"{loki.url}/otlp/v1/logs",
        content=request.SerializeToString(),
        headers={"content-type": "application/x-protobuf", "X-Scope-OrgID": loki.tenant},
        timeout=30,
    )
    assert answer.status_code < 300, answer.text


QUERIES = [
    [("start", "-2h")],
    [("start", "-2h"), ("order", "oldest"), ("limit", "900")],
    [("start", "-2h"), ("outcome", "failure"), ("actor", "u-1")],
    [("start", "-2h"), ("action", "server_lifecycle_event"), ("server_name", "obsidian")],
    [("start", "-2h"), ("actor!", "u-1"), ("event", "authentication"), ("limit", "300")],
    [("start", "-2h"), ("event", "server_*")],
    [("start", "-2h"), ("event!", "*_*"), ("actor", "u-1"), ("actor", "u-2")],
    [("start", "-2h"), ("server_name", "*"), ("outcome!", "failure")],
    [("start", "-2h"), ("server_name!", "files"), ("action", "start")],
    [("start", "-2h"), ("field.tags", "t-3"), ("field.number", "3")],
    [("start", "-2h"), ("q", "HANDSHAKE 42")],
    [("start", "-2h"), ("q", "handsh*"), ("order", "oldest")],
    [("start", "-55m"), ("end", "-50m")],
    [("start", "-2h"), ("event", 'x" or `1`=`1`} | line_format "{{.}}"')],
    [("start", "-40d"), ("actor", "nobody")],
]


def ids(search: Backend, query: Query) -> list[str]:
    """Turn all pages; within one moment the order is nobody's promise."""
    found: list[tuple[str, str]] = []
    position: int | None = None
    while True:
        page = search.page(query, position)
        found += [(entry.fields["timestamp"], entry.fields["record_id"]) for entry in page.entries]
        position = page.next_position
        if position is None:
            return [name for _, name in sorted(found)]


def test_loki_gives_the_same_answers(shipped: tuple[TrailSearch, LokiSearch]) -> None:
    trail, loki = shipped
    now = time.time_ns()
    for parameters in QUERIES:
        query, _ = parse(parameters, now=now)
        expected = ids(trail, query)
        assert ids(loki, query) == expected, parameters
        streamed = [entry.fields["record_id"] for entry in loki.stream(query)]
        assert sorted(streamed) == sorted(expected)
        for by, per in ((None, None), ("event", None), ("outcome", 600 * SECOND)):
            assert loki.count(query, by=by, per=per) == trail.count(query, by=by, per=per)
    query, _ = parse([("start", "-2h"), ("limit", "10")])
    times = [entry.fields["timestamp"] for entry in loki.page(query).entries]
    assert times == sorted(times, reverse=True)
    [entry] = loki.page(parse([("start", "-2h"), ("field.number", "7")])[0]).entries
    assert entry.sequence == 7
    leaf = trail.reader.leaf(7)
    assert leaf is not None
    assert entry.record == leaf.record
    with pytest.raises(QueryError, match="too long"):
        loki.count(query, seconds=0)
    page = loki.page(parse([("start", "-2h"), ("event", "none")])[0], seconds=0)
    assert page.entries == []


def test_counts_transfer_two_records_at_most(
    shipped: tuple[TrailSearch, LokiSearch], loki: Loki
) -> None:
    """Those that say where a range begins and ends."""
    trail, asked = shipped
    site = asked._loki = Watched(loki)
    for parameters, by, per in (
        ([], None, None),
        ([("outcome", "failure")], "event", 60 * SECOND),
        ([("action", "server_lifecycle_event")], "server_name", 86_400 * SECOND),
        ([("actor!", "u-1"), ("client_ip", "10.0.0.1"), ("client_ip", "10.0.0.2")], "actor_id", None),
        ([("event", "server_*")], None, SECOND),
        ([("actor", "nobody")], None, None),
    ):  # fmt: skip
        query, _ = parse([("start", "-2h"), *parameters])
        site.transferred = site.counted = 0
        assert asked.count(query, by=by, per=per) == trail.count(query, by=by, per=per)
        assert site.transferred <= 2
        assert site.counted <= 3
    query, _ = parse([("start", "-2h"), ("outcome", "failure")])
    asked.count(query, by="tags")
    assert site.transferred > 100, "lists are read"


def test_ranges_begin_and_end_at_their_nanosecond(tmp_path: Path, loki: Loki) -> None:
    ledger = Shipped(tmp_path / "trail")
    began = Shipped.began
    moments = [0, 1, 300_000, 999_999, 1_000_000, 1_300_000, SECOND - 1, SECOND, 2 * SECOND + 7]
    ledger.write(
        {**ledger.fields(number), "timestamp": stamp(began + moment)}
        for number, moment in enumerate(moments)
    )
    send(loki, ledger, 0, len(moments))
    asked = LokiSearch(where(loki))
    everything(asked, len(moments))
    trail = TrailSearch(ledger.reader)
    for start in moments:
        for end in (*moments, 3 * SECOND):
            if end >= start:
                query = Query(start=began + start, end=began + end)
                assert asked.count(query, per=SECOND) == trail.count(query, per=SECOND)
    ledger.close()


def everything(asked: LokiSearch, size: int) -> Query:
    """Wait until Loki has all records; return what asks for them."""
    query, _ = parse([("start", "-2h")])
    deadline = time.monotonic() + 60
    while sum(asked.count(query).values()) < size:
        assert time.monotonic() < deadline, "not all records arrived in Loki"
        time.sleep(0.2)
    return query


def test_more_records_than_loki_tells_apart_at_once_are_counted_by_parts(
    tmp_path: Path, loki: Loki
) -> None:
    ledger = Shipped(tmp_path / "trail")
    ledger.fill(6_500)
    for first in range(0, 6_500, 2_500):
        send(loki, ledger, first, first + 2_500)
    send(loki, ledger, 3_000, 3_500)
    asked = LokiSearch(where(loki))
    query = everything(asked, 6_500)
    site = asked._loki = Watched(loki)
    trail = TrailSearch(ledger.reader)
    assert asked.count(query, by="event", per=600 * SECOND) == trail.count(
        query, by="event", per=600 * SECOND
    )
    assert site.transferred <= 2
    ledger.close()


ODD = [
    "plain", "\u00fc", 'q"uote', "back\\slash", "new\nline", " blank", "", "\ufffd", "\x01",
    "5", 5, 5.0, 1e22, 2.5, -0.0, 12_345_678_901_234_567, True, None, ["a", "a"], {"a": 1}, "[a", "{}",
]  # fmt: skip


def test_values_of_any_kind_are_counted_as_they_are_on_the_host(tmp_path: Path, loki: Loki) -> None:
    ledger = Shipped(tmp_path / "trail")
    counted = [v for v in ODD if not isinstance(v, (list, dict)) and v not in ("", "\ufffd")]
    ledger.write(
        {**ledger.fields(number), "odd": value, "even": "x" if number % 2 else value}
        for number, value in enumerate(counted)
    )
    send(loki, ledger, 0, ledger.size)
    asked = LokiSearch(where(loki))
    query = everything(asked, ledger.size)
    site = asked._loki = Watched(loki)
    trail = TrailSearch(ledger.reader)
    assert asked.count(query, by="odd") == trail.count(query, by="odd")
    for value in ("5", "5.0", "true", 'q"uote', "*", "?", "new*", "*\\*", "nothing"):
        for name in ("field.odd", "field.odd!"):
            query, _ = parse([("start", "-2h"), (name, value)])
            site.transferred = 0
            assert asked.count(query, by="even") == trail.count(query, by="even"), (name, value)
            assert site.transferred <= 2
    first = ledger.size
    ledger.write(
        {**ledger.fields(first + number), "odd": value} for number, value in enumerate(ODD)
    )
    send(loki, ledger, first, ledger.size)
    query = everything(asked, ledger.size)
    site.transferred = 0
    assert asked.count(query, by="odd") == trail.count(query, by="odd")
    assert site.transferred > len(ODD), "what Loki reads otherwise is read"
    ledger.close()
