"""Reconciliation: what is missing, altered or foreign in Loki is found, and nothing else."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from otel_audit.destinations import Destination
from otel_audit.errors import TrailError
from otel_audit.readers.loki import Loki
from otel_audit.readers.reconciliation.compare import reconcile
from otel_audit.readers.reconciliation.schedule import (
    CURSOR,
    Reconciler,
    compare,
    destination_to,
    send_again,
)
from otel_audit.readers.shipping.aside import Quarantine
from otel_audit.readers.shipping.standing import first_at, replay, standing
from otel_audit.trail.reader import TrailReader
from tests.readers.bench import wait_for
from tests.readers.fakeloki import FakeLoki
from tests.readers.farend import Reply
from tests.readers.place import record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.readers.reconciliation.compare import Findings
    from otel_audit.readers.shipping.shipper import Shipper
    from otel_audit.record.event import AuditEvent
    from tests.readers.fakeloki import Entry
    from tests.readers.place import Place


@pytest.fixture
def loki() -> Iterator[FakeLoki]:
    with FakeLoki() as loki:
        yield loki


def where(loki: FakeLoki) -> Destination:
    return Destination("loki", loki.url, "X")


def shipper(place: Place, loki: FakeLoki) -> Shipper:
    return place.shipper("loki", endpoint=f"{loki.url}/otlp/v1/logs")


def shipped(place: Place, loki: FakeLoki, count: int) -> list[bytes]:
    records = place.fill(count)
    place.trail.signer.sign()
    one = shipper(place, loki)
    while one.step().more:
        pass
    return records


def compared(place: Place, loki: FakeLoki, *bounds: int) -> Findings:
    with TrailReader(place.directory) as reader:
        return reconcile(reader, Loki(where(loki)), *bounds)


def test_what_was_shipped_is_found_page_by_page(place: Place, loki: FakeLoki) -> None:
    shipped(place, loki, 1_200)
    findings = compared(place, loki)
    assert findings.ok
    assert (findings.checked, findings.found) == (1_200, 1_200)
    assert len(loki.queries) >= 3


def test_entries_of_one_moment_are_all_read(place: Place, loki: FakeLoki) -> None:
    place.append(*(record(7, m=number) for number in range(1_300)))
    shipped(place, loki, 5)
    findings = compared(place, loki)
    assert findings.ok
    assert findings.found == 1_305


def test_what_is_missing_is_named(place: Place, loki: FakeLoki) -> None:
    shipped(place, loki, 30)
    loki.view = lambda entries: [
        entry for entry in entries if entry[2].get("audit_sequence_number") not in ("0", "7", "29")
    ]
    findings = compared(place, loki)
    assert findings.missing == [0, 7, 29]
    assert findings.found == 27
    assert not findings.ok
    assert compared(place, loki, 8, 20).ok
    assert compared(place, loki, 8, 20).checked == 12


def change(entries: list[Entry], number: str, **how: Any) -> list[Entry]:
    changed = []
    for at, line, labels in entries:
        if labels.get("audit_sequence_number") == number:
            changed.append(
                (how.get("at", at), how.get("line", line), labels | how.get("labels", {}))
            )
        else:
            changed.append((at, line, labels))
    return changed


def test_a_changed_body_is_altered_and_the_right_one_is_missing(
    place: Place, loki: FakeLoki
) -> None:
    shipped(place, loki, 10)
    loki.view = lambda entries: change(entries, "4", line='{"event":"nothing"}')
    findings = compared(place, loki)
    assert (findings.altered_count, findings.missing) == (1, [4])
    assert findings.altered[0]["sequence"] == "4"


def test_a_record_in_another_ones_place_is_altered(place: Place, loki: FakeLoki) -> None:
    shipped(place, loki, 10)
    loki.view = lambda entries: change(entries, "4", labels={"audit_sequence_number": "5"})
    findings = compared(place, loki)
    assert (findings.altered_count, findings.missing) == (1, [4])


@pytest.mark.parametrize("number", ["10", "999999999999", "-1", "four", ""])
def test_a_record_that_the_trail_never_had_is_foreign(
    place: Place, loki: FakeLoki, number: str
) -> None:
    shipped(place, loki, 10)

    def add(entries: list[Entry]) -> list[Entry]:
        at, line, labels = next(e for e in entries if e[2].get("audit_sequence_number") == "3")
        return [*entries, (at + 1, line, labels | {"audit_sequence_number": number})]

    loki.view = add
    findings = compared(place, loki)
    assert (findings.foreign_count, findings.altered_count, findings.missing) == (1, 0, [])
    assert not findings.ok


def fakes(place: Place, loki: FakeLoki, *times: int) -> None:
    """Let Loki show an entry that the trail never had at each of these times, too."""
    with TrailReader(place.directory) as reader:
        labels = {"audit_sequence_stream_id": reader.origin, "audit_sequence_number": "9999"}
    loki.view = lambda entries: [
        *entries,
        *((at, "{}", {**labels, "event_name": "x"}) for at in times),
    ]


def test_what_is_not_due_is_not_missing_and_judged_all_the_same(
    place: Place, loki: FakeLoki
) -> None:
    shipped(place, loki, 10)
    loki.view = lambda entries: change(entries, "7", line="{}")
    with TrailReader(place.directory) as reader:
        findings = reconcile(reader, Loki(where(loki)), due=5)
        assert (findings.stop, findings.checked, findings.found) == (5, 5, 5)
        assert (findings.altered_count, findings.missing) == (1, [])
        fakes(place, loki, time.time_ns())
        assert reconcile(reader, Loki(where(loki)), due=0).foreign_count == 1


def test_what_the_trail_never_had_is_found_far_before_and_ahead_of_it(
    place: Place, loki: FakeLoki
) -> None:
    """Loki takes entries of any time in the past, and from 15 hours ahead."""
    shipped(place, loki, 10)
    day = 86_400_000_000_000
    now = time.time_ns()
    fakes(place, loki, now - 300 * day, now - day // 8, now + day // 8, now + day * 15 // 24)
    assert compared(place, loki).foreign_count == 4
    # Not around a part of it: entries of the other records' times stand there.
    assert compared(place, loki, 0, 5).foreign_count == 2
    assert compared(place, loki, 5).foreign_count == 2
    assert compared(place, loki, 5, 6).foreign_count == 0


def test_entries_of_another_trail_do_not_matter(place: Place, loki: FakeLoki) -> None:
    shipped(place, loki, 3)
    loki.view = lambda entries: [
        *entries,
        *((at, "x", {"audit_sequence_stream_id": "other"}) for at, _, _ in entries),
    ]
    assert compared(place, loki).ok


def test_a_checkpoint_that_the_tree_contradicts_shows_a_rollback(
    place: Place, loki: FakeLoki
) -> None:
    shipped(place, loki, 3)

    def forge(entries: list[Entry]) -> list[Entry]:
        forged = []
        for at, line, labels in entries:
            if labels["event_name"] == "audit.checkpoint":
                said = orjson.loads(line)
                for size, root in ((2, said["root"]), (9, said["root"])):
                    other = orjson.dumps({**said, "size": size, "root": root}).decode()
                    forged.append((at, other, labels))
        return [*entries, *forged]

    assert compared(place, loki).ok
    loki.view = forge
    findings = compared(place, loki)
    assert [each["size"] for each in findings.contradicted] == [2, 9]
    assert findings.contradicted[1]["trail"] is None
    assert not findings.ok


def test_a_record_that_only_says_to_be_a_checkpoint_is_judged_as_a_record(
    place: Place, loki: FakeLoki
) -> None:
    place.append(record(0, event="audit.checkpoint"))
    shipped(place, loki, 1)
    findings = compared(place, loki)
    assert findings.ok
    assert findings.found == 2


def test_what_retention_has_deleted_is_not_missed(place: Place, loki: FakeLoki) -> None:
    # No longer ago than it has to be: Loki is asked for each window since.
    then = datetime.now(timezone.utc) - timedelta(days=100)
    old = f"{then:%Y-%m-%dT%H:%M:%SZ}"
    place.append(
        record(0, timestamp=old, retention="90d"),
        record(1, timestamp=old, retention="90y"),
        record(2, timestamp=old, retention="for ever"),
        record(3, timestamp=old),
    )
    findings = compared(place, loki)
    assert findings.expired == 1
    assert findings.missing == [1, 2, 3]


def test_what_is_no_record_is_not_looked_for(place: Place, loki: FakeLoki) -> None:
    place.append(b"\xff", b"[]", b"{}", b'{"timestamp":3}')
    assert compared(place, loki).checked == 0


def test_an_empty_trail_misses_nothing_and_whatever_is_there_is_foreign(
    place: Place, loki: FakeLoki
) -> None:
    assert compared(place, loki).ok
    fakes(place, loki, time.time_ns())
    assert compared(place, loki).foreign_count == 1
    assert compared(place, loki, 0, 0).foreign_count == 1


def test_nothing_that_should_be_there_is_not_asked_for(place: Place, loki: FakeLoki) -> None:
    place.fill(3)
    assert compared(place, loki, 2, 2).ok
    assert loki.queries == []


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_loki_that_does_not_answer_is_an_error(place: Place, loki: FakeLoki, status: int) -> None:
    shipped(place, loki, 1)
    loki.status = status
    with pytest.raises(TrailError, match=f"answered {status}: too many outstanding requests"):
        compared(place, loki)


def test_something_else_that_answers_is_an_error(place: Place, loki: FakeLoki) -> None:
    shipped(place, loki, 1)
    loki.page = Reply(200, {"content-type": "text/html"}, b"<html>")
    with pytest.raises(TrailError, match="not Loki's"):
        compared(place, loki)


def test_only_what_was_delivered_is_expected_and_what_was_set_aside_is_not(
    place: Place, loki: FakeLoki
) -> None:
    records = place.fill(10)
    loki.refuses = lambda bodies: _refusal(bodies, records[4])
    shipper(place, loki).step()
    place.fill(3)
    with TrailReader(place.directory) as reader:
        findings = compare(reader, where(loki), "loki", 0, None)
    assert findings.ok
    assert (findings.stop, findings.checked, findings.found) == (10, 9, 9)


def _refusal(bodies: list[bytes], bad: bytes) -> Reply | None:
    return Reply(400) if bad in bodies else None


def test_what_is_missing_is_sent_again(place: Place, loki: FakeLoki) -> None:
    records = shipped(place, loki, 20)
    del loki.stored[3:6]
    with TrailReader(place.directory) as reader:
        findings = compare(reader, where(loki), "loki", 0, None)
        assert findings.missing == [3, 4, 5]
        assert send_again(reader, "loki", findings) == 3
        assert standing(reader, "loki").to_be_sent_again == 3
        shipper(place, loki).step()
        assert compare(reader, where(loki), "loki", 0, None).ok
        assert standing(reader, "loki").to_be_sent_again == 0
    assert loki.records[-3:] == records[3:6]


def test_which_destination_leads_to_loki() -> None:
    assert destination_to(["siem", "otlp", "loki"]) == "loki"
    assert destination_to(["siem", "otlp"]) == "otlp"
    assert destination_to(["siem"]) == "siem"
    assert destination_to([]) == "otlp"


def test_a_replay_only_goes_back(place: Place, loki: FakeLoki) -> None:
    records = shipped(place, loki, 4)
    records += shipped(place, loki, 4)
    with TrailReader(place.directory) as reader:
        assert replay(reader, "loki", 9) == 8
        assert standing(reader, "loki").position == 8
        assert replay(reader, "loki", 4) == 8
        assert replay(reader, "never", 0) == 0
        assert standing(reader, "loki").position == 4
    loki.stored.clear()
    one = shipper(place, loki)
    while one.step().more:
        pass
    assert loki.records == records[4:]
    assert len(loki.bodies) == 5  # the checkpoint of eight records, not that of four


def test_a_time_finds_its_record(place: Place) -> None:
    before = time.time_ns()
    place.fill(3)
    between = time.time_ns()
    place.fill(3)
    with TrailReader(place.directory) as reader:
        assert first_at(reader, before) == 0
        assert first_at(reader, between) == 3
        assert first_at(reader, time.time_ns()) == 6


def test_the_schedule_tells_repairs_and_does_not_begin_too_early(
    place: Place, loki: FakeLoki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit.readers.reconciliation.schedule._SETTLED_SECONDS", 0)
    shipped(place, loki, 10)
    del loki.stored[3]
    told: list[AuditEvent] = []
    reconciler = Reconciler(
        lambda: TrailReader(place.directory), where(loki), "loki", told.append, repair=True
    )
    reconciler.start()
    reconciler.start()
    wait_for(lambda: place.cursors.row(CURSOR) is not None)
    gauges = {name: value for name, value, _ in reconciler.observe()}
    reconciler.stop(5.0)
    [event] = told
    assert (event.event, event.status, event.level) == ("audit.reconciled", "failed", "error")
    assert (event.fields["missing"], event.fields["sent_again"]) == (1, 1)
    assert gauges["otel_audit.reconcile.missing"] == 1
    assert gauges["otel_audit.reconcile.checked"] == 10
    assert gauges["otel_audit.reconcile.age"] < 60
    assert list(reconciler.observe()) == []
    assert Quarantine(place.cursors, "loki").count(wanted=True) == 1
    row = place.cursors.row(CURSOR)
    assert row is not None
    assert (row.position, row.state["missing"]) == (10, 1)
    reconciler.start()
    time.sleep(0.05)
    reconciler.stop(5.0)
    assert len(told) == 1


def test_the_schedule_finds_at_once_what_is_not_the_trails(place: Place, loki: FakeLoki) -> None:
    """Only what is missing may still be on its way."""
    place.fill(5)
    fakes(place, loki, time.time_ns())
    told: list[AuditEvent] = []
    reconciler = Reconciler(lambda: TrailReader(place.directory), where(loki), "loki", told.append)
    reconciler.start()
    wait_for(lambda: told)
    reconciler.stop(5.0)
    counts = [told[0].fields[name] for name in ("checked", "missing", "foreign")]
    assert (told[0].status, counts) == ("failed", [0, 0, 1])


def test_a_loki_that_is_away_is_asked_again(
    place: Place, loki: FakeLoki, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("otel_audit.readers.reconciliation.schedule._SETTLED_SECONDS", 0)
    monkeypatch.setattr("otel_audit.readers.reconciliation.schedule._RETRY_SECONDS", 0.02)
    shipped(place, loki, 2)
    loki.status = 500
    told: list[AuditEvent] = []
    attempts = []

    def reader() -> TrailReader:
        attempts.append(time.monotonic())
        return TrailReader(place.directory)

    reconciler = Reconciler(reader, where(loki), "loki", told.append)
    reconciler.start()
    wait_for(lambda: len(attempts) > 3)
    loki.status = 200
    wait_for(lambda: told)
    reconciler.stop(5.0)
    assert told[0].status == "success"
    said = [record.getMessage() for record in caplog.records if "comparison" in record.getMessage()]
    assert len(said) == 2  # not one each attempt
    assert "failed (1 in a row" in said[0]
    assert "works again, after" in said[1]
