"""The shipper: the cursor moves after success only, and one bad record stops nobody."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.readers.shipping.standing import cursor_name
from tests.readers.farend import HttpFarEnd, Reply, partial
from tests.readers.place import record

if TYPE_CHECKING:
    from tests.readers.place import Place


def test_all_records_arrive_byte_for_byte_and_in_order(place: Place) -> None:
    records = place.fill(2_500)
    shipper = place.shipper()
    steps = 1
    while shipper.step().more:
        steps += 1
    assert place.far_end.records == records
    assert place.position() == 2_500
    assert steps == 3
    assert shipper.step().delivered == 0
    assert len(place.far_end.requests) == 3


def test_a_request_says_who_and_how(place: Place) -> None:
    place.fill(1)
    place.shipper(headers=(("authorization", "Bearer secret"),)).step()
    headers = place.far_end.headers[0]
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["content-encoding"] == "gzip"
    assert headers["authorization"] == "Bearer secret"
    assert headers["user-agent"].startswith("otel-audit/")
    [resource] = place.far_end.requests[0].resource_logs
    assert [(each.key, each.value.string_value) for each in resource.resource.attributes] == [
        ("service.name", "shop"),
        ("host.name", "a"),
    ]
    assert resource.scope_logs[0].scope.name == "otel_audit"


def test_a_checkpoint_travels_as_a_record_that_holds_the_note(place: Place) -> None:
    place.fill(3)
    note = place.trail.signer.sign()
    shipper = place.shipper()
    shipper.step()
    shipper.step()
    [checkpoint] = [each for each in place.far_end.stored if each.event_name == "audit.checkpoint"]
    body = json.loads(checkpoint.body.string_value)
    assert body["note"] == note
    assert body["size"] == 3
    assert body["root"] == place.trail.reader.tree().root.hex()
    attributes = {each.key: each.value for each in checkpoint.attributes}
    assert attributes["audit.sequence.stream_id"].string_value == place.trail.reader.origin
    assert attributes["audit.retention"].string_value == "3y"
    assert attributes["otel_audit.checkpoint.size"].int_value == 3
    place.trail.signer.sign()
    place.shipper().step()
    assert len(place.far_end.stored) == 5


LATER = {
    "401": Reply(401),
    "403": Reply(403),
    "404": Reply(404, {"content-type": "text/plain"}, b"404 page not found"),
    "405": Reply(405),
    "408": Reply(408),
    "409": Reply(409),
    "422": Reply(422),
    "429": Reply(429, {"retry-after": "7"}),
    "500": Reply(500),
    "501": Reply(501),
    "502": Reply(502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>"),
    "503": Reply(503),
    "a redirect": Reply(307, {"location": "https://elsewhere.example/v1/logs"}),
    "a page": Reply(200, {"content-type": "text/html"}, b"<html>Please log in</html>"),
    "a damaged success": Reply(200, {"content-type": "application/x-protobuf"}, b"\xff\xff"),
    "half an answer": Reply(200, {"content-type": "text/plain"}, b"", store=True, cut=True),
    "too late an answer": Reply(200, wait=1.0, store=True),
    "json that is none": Reply(200, {"content-type": "application/json"}, b"[]"),
    "an error in JSON": Reply(
        200, {"content-type": "application/json"}, b'{"error":"session expired, log in"}'
    ),
}


@pytest.mark.parametrize("reply", LATER.values(), ids=LATER)
def test_what_says_nothing_about_the_records_is_tried_again(place: Place, reply: Reply) -> None:
    records = place.fill(3)
    shipper = place.shipper(timeout=0.3)
    place.far_end.answers.append(reply)
    progress = shipper.step()
    assert progress.trouble is not None
    assert progress.trouble.verdict == "later"
    assert progress.trouble.reason
    assert progress.trouble.wait == (7.0 if reply.status == 429 else 0.0)
    assert place.position() == 0
    assert shipper.quarantine.count() == 0
    row = place.cursors.row(cursor_name("otlp"))
    assert row is not None
    assert row.state["trouble"]["reason"] == progress.trouble.reason
    assert shipper.step().trouble is None
    assert place.position() == 3
    assert place.far_end.records[-3:] == records
    row = place.cursors.row(cursor_name("otlp"))
    assert row is not None
    assert "trouble" not in row.state


def test_a_server_that_is_not_there_is_named(place: Place) -> None:
    place.fill(1)
    place.far_end.close()
    trouble = place.shipper().step().trouble
    assert trouble is not None
    assert f"http://127.0.0.1:{place.far_end.port}" in trouble.reason
    assert "refused" in trouble.reason
    assert place.position() == 0


SUCCESSES = {
    "nothing": Reply(200, {}, b"", store=True),
    "no content": Reply(204, {}, b"", store=True),
    "json": Reply(200, {"content-type": "application/json; charset=utf-8"}, b"{}", store=True),
    "a warning": Reply(
        200,
        {"content-type": "application/json"},
        b'{"partialSuccess":{"errorMessage":"slow down"}}',
        store=True,
    ),
}


@pytest.mark.parametrize("reply", SUCCESSES.values(), ids=SUCCESSES)
def test_success_has_several_forms(place: Place, reply: Reply) -> None:
    records = place.fill(2)
    place.far_end.answers.append(reply)
    assert place.shipper().step() == (2, 0, False, None)
    assert place.far_end.records == records


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(400, {"content-type": "text/plain"}, b"entry too far behind"),
        Reply(413),
        partial(1, "not this one"),
        Reply(
            200,
            {"content-type": "application/json"},
            b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"not this one"}}',
        ),
    ],
    ids=["400", "413", "partial success", "partial success in JSON"],
)
def test_only_the_record_that_is_refused_is_set_aside(place: Place, refusal: Reply) -> None:
    records = place.fill(100)
    bad = records[37]
    place.far_end.refuses = lambda bodies: refusal if bad in bodies else None
    shipper = place.shipper()
    progress = shipper.step()
    assert (progress.delivered, progress.set_aside, progress.trouble) == (99, 1, None)
    assert place.far_end.records == [each for each in records if each != bad]
    assert place.position() == 100
    [item] = shipper.quarantine.items(wanted=False, limit=10)
    assert (item.kind, item.number) == ("record", 37)
    assert item.reason
    assert len(place.far_end.requests) < 20


def test_what_was_set_aside_is_sent_again_when_asked(place: Place) -> None:
    records = place.fill(10)
    place.far_end.refuses = lambda bodies: (
        Reply(400) if any(each in bodies for each in records[2:4]) else None
    )
    shipper = place.shipper()
    shipper.step()
    assert shipper.quarantine.count() == 2
    assert shipper.quarantine.want([3]) == 1
    place.far_end.refuses = lambda _: None
    place.shipper().step()
    assert place.far_end.records[-1] == records[3]
    assert shipper.quarantine.count() == 1
    assert shipper.quarantine.want() == 1
    place.shipper().step()
    assert shipper.quarantine.count() == 0
    assert shipper.quarantine.count(wanted=True) == 0
    assert sorted(place.far_end.records) == sorted(records)


def test_what_is_refused_again_is_set_aside_again(place: Place) -> None:
    records = place.fill(2)
    place.far_end.refuses = lambda bodies: Reply(400) if records[1] in bodies else None
    shipper = place.shipper()
    shipper.step()
    shipper.quarantine.want()
    progress = place.shipper().step()
    assert progress.set_aside == 1
    assert shipper.quarantine.count() == 1


def test_a_far_end_that_refuses_everything_is_to_blame_itself(place: Place) -> None:
    place.fill(4)
    place.far_end.refuses = lambda _: Reply(400, {"content-type": "text/plain"}, b"speak TLS")
    shipper = place.shipper()
    progress = shipper.step()
    assert progress.trouble is not None
    assert "even an empty request" in progress.trouble.reason
    assert place.position() == 0
    assert shipper.quarantine.count() == 0


def test_nothing_is_set_aside_while_the_far_end_is_away(place: Place) -> None:
    place.fill(1)
    place.far_end.answers.extend([Reply(400), Reply(503)])
    shipper = place.shipper()
    progress = shipper.step()
    assert progress.trouble is not None
    assert progress.trouble.kind == "503"
    assert shipper.quarantine.count() == 0
    assert place.position() == 0


def test_the_cursor_follows_each_part_of_a_batch(place: Place) -> None:
    records = place.fill(8)
    # All, the first half, its halves, then the far end goes away.
    place.far_end.answers.extend([Reply(413), Reply(413), Reply(200, store=True), Reply(503)])
    assert place.shipper().step().trouble is not None
    assert place.position() == 2
    assert place.shipper().step().trouble is None
    assert place.far_end.records == records


def test_a_record_that_is_none_is_set_aside_and_the_rest_goes_on(place: Place) -> None:
    records = place.fill(2)
    place.append(b"\xff no record")
    records += place.fill(1)
    shipper = place.shipper()
    progress = shipper.step()
    assert (progress.delivered, progress.set_aside) == (3, 1)
    assert place.far_end.records[:2] == records[:2]
    [item] = shipper.quarantine.items(wanted=False, limit=10)
    assert "cannot be mapped" in item.reason


def test_a_request_stays_below_what_servers_take(place: Place) -> None:
    for _ in range(8):
        first = place.trail.reader.tree().size
        place.append(*(record(number, pad="x" * 60_000) for number in range(first, first + 10)))
    shipper = place.shipper()
    while shipper.step().more:
        pass
    sizes = [len(request.SerializeToString()) for request in place.far_end.requests]
    assert len(sizes) > 1
    assert max(sizes) < 3 << 20
    assert len(place.far_end.records) == 80


def test_destinations_do_not_know_each_other(place: Place) -> None:
    records = place.fill(5)
    with HttpFarEnd() as other:
        place.far_end.answers.append(Reply(503))
        assert place.shipper().step().trouble is not None
        assert place.shipper("siem", endpoint=f"{other.url}/v1/logs").step().trouble is None
        assert other.records == records
    assert (place.position(), place.position("siem")) == (0, 5)


def test_a_cursor_that_somebody_moved_meanwhile_is_obeyed(place: Place) -> None:
    records = place.fill(6)
    shipper = place.shipper()
    shipper.step()
    records += place.fill(1)

    def replay(_: object) -> None:
        if place.position() == 6:
            place.cursors.set(cursor_name("otlp"), 2)

    place.far_end.refuses = replay
    assert shipper.step().more
    assert place.position() == 2
    shipper.step()
    assert place.far_end.records == [*records, *records[2:]]


def test_another_trail_begins_at_its_first_record(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.cursors.set(cursor_name("otlp"), 2, {"origin": "another.example/trail"})
    records = place.fill(3)
    place.shipper().step()
    assert place.far_end.records == records
    assert "all is sent again" in caplog.text


def test_a_trail_that_became_shorter_is_sent_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.cursors.set(cursor_name("otlp"), 9, {"origin": place.trail.reader.origin})
    records = place.fill(3)
    place.shipper().step()
    assert place.far_end.records == records
    assert "all is sent again" in caplog.text


@pytest.mark.parametrize("kept", [0, 2])
def test_checkpoints_are_shipped_also_after_others_were_removed(
    place: Place, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    place.fill(3)
    for _ in range(4):
        place.trail.signer.sign()
    shipper = place.shipper()
    shipper.step()
    # By the trail's own SQLite: another one in this process would take its locks away.
    database = apsw.Connection(str(place.directory / "trail.db"))
    database.execute("DELETE FROM checkpoint WHERE id > ?", (kept,))
    database.close()
    sent = len(place.far_end.stored)
    note = place.trail.signer.sign()
    assert shipper.step().trouble is None
    again = [json.loads(each.body.string_value)["note"] for each in place.far_end.stored[sent:]]
    assert len(again) == kept + 1
    assert again[-1] == note
    assert place.position() == 3
    assert "was sent checkpoint 4" in caplog.text
    assert shipper.step().delivered == 0
    assert len(place.far_end.requests) == 2


def test_what_was_removed_before_it_was_shipped_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    records = place.fill(6)
    with sqlite3.connect(place.directory / "trail.db") as database:
        database.execute("DELETE FROM leaf WHERE seq < 2 OR seq = 4")
    database.close()
    place.shipper().step()
    assert place.far_end.records == [records[2], records[3], records[5]]
    assert "records 0 to 1 were removed" in caplog.text
    assert "records 4 to 4 were removed" in caplog.text
    assert place.position() == 6


def test_a_checkpoint_that_is_refused_is_set_aside_and_sent_again(place: Place) -> None:
    records = place.fill(2)
    place.trail.signer.sign()
    place.far_end.refuses = lambda bodies: (
        Reply(400) if any(b"audit.checkpoint" in body for body in bodies) else None
    )
    shipper = place.shipper()
    shipper.step()
    assert place.far_end.records == records
    assert shipper.step() == (0, 0, False, None)
    [item] = shipper.quarantine.items(wanted=False, limit=9)
    assert (item.kind, item.number) == ("checkpoint", 1)
    place.far_end.refuses = lambda _: None
    assert shipper.quarantine.want() == 1
    place.shipper().step()
    assert json.loads(place.far_end.bodies[-1])["size"] == 2
    assert shipper.quarantine.count() == 0


def test_a_checkpoint_that_is_none_is_set_aside(place: Place) -> None:
    place.fill(1)
    place.trail.store.add_checkpoint(1, 5, "no checkpoint")
    progress = place.shipper().step()
    assert (progress.delivered, progress.set_aside) == (1, 1)


def test_a_checkpoint_of_an_empty_trail_has_a_resource(place: Place) -> None:
    place.trail.signer.sign()
    place.shipper().step()
    [resource] = place.far_end.requests[0].resource_logs
    assert resource.resource.attributes[0].value.string_value == "unknown_service"


def test_what_is_to_be_sent_again_but_gone_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill(1)
    shipper = place.shipper()
    shipper.quarantine.add([("record", 99), ("checkpoint", 7)], "refused", wanted=True)
    shipper.step()
    assert shipper.quarantine.count(wanted=True) == 0
    assert "before they could be sent again" in caplog.text


def test_resources_of_many_processes_are_told_apart(place: Place) -> None:
    for number in range(70):
        entry = record(number, resource=f"r{number}")
        place.trail.store.append([entry], {f"r{number}": b'{"service.name":"s%d"}' % number})
    place.append(record(70, resource="unknown", service_name="known"))
    place.shipper().step()
    [request] = place.far_end.requests
    found = [each.resource.attributes[0].value.string_value for each in request.resource_logs]
    assert found == [*(f"s{number}" for number in range(70)), "known"]
