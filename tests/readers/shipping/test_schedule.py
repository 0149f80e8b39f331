"""Threads of shipping: each destination by itself, for ever, patiently, and bounded at the end."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.destinations import Destination
from otel_audit.readers.pace import ALL, Pace, Share
from otel_audit.readers.shipping import instruments, schedule
from otel_audit.readers.shipping.schedule import Backoff, Shipping
from otel_audit.readers.shipping.standing import standing
from otel_audit.trail.reader import TrailReader
from tests.readers.bench import wait_for
from tests.readers.farend import HttpFarEnd, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.readers.place import Place


def to(far_end: HttpFarEnd, name: str = "otlp", timeout: float = 5.0) -> Destination:
    return Destination(name, f"{far_end.url}/v1/logs", "X", timeout=timeout)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01, 0.05))


def served(place: Place, *destinations: Destination) -> Shipping:
    return Shipping(place.directory, destinations, lambda: TrailReader(place.directory))


def test_pauses_grow_to_a_minute_and_begin_anew() -> None:
    backoff = Backoff()
    pauses = [backoff.failed() for _ in range(100)]
    assert 0.25 <= pauses[0] <= 0.5
    assert 30 <= pauses[-1] <= 60
    assert len(set(pauses[20:])) > 1
    assert all(0.25 <= pause <= 60 for pause in pauses)
    assert backoff.failed(asked=300.0) == 300.0
    backoff.succeeded()
    assert backoff.failed() <= 0.5


@pytest.mark.usefixtures("quick")
def test_a_destination_that_is_down_does_not_hold_up_another_one(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    records = place.fill(10)
    with HttpFarEnd() as other:
        port = place.far_end.port
        place.far_end.close()
        both = served(place, to(place.far_end), to(other, "other"))
        both.start()
        both.start()
        wait_for(lambda: other.records == records)
        wait_for(lambda: "shipping to 'otlp' failed" in caplog.text)
        with HttpFarEnd(port=port) as back:
            wait_for(lambda: back.records == records)
            wait_for(lambda: "shipping to 'otlp' works again" in caplog.text)
            records += place.fill(5)
            wait_for(lambda: back.records == records)
            both.stop(5.0)
    assert caplog.text.count("shipping to 'otlp' failed") == 1


@pytest.mark.usefixtures("quick")
def test_a_broken_trail_is_told_and_tried_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    records = place.fill(2)
    broken = [True]

    def reader() -> TrailReader:
        if broken:
            raise OSError(broken.pop(), "the disk is away")
        return TrailReader(place.directory)

    one = Shipping(place.directory, [to(place.far_end)], reader)
    one.start()
    wait_for(lambda: place.far_end.records == records)
    one.stop(5.0)
    assert "the disk is away" in caplog.text


def test_what_is_left_is_shipped_at_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_TICK", 60.0)
    one = served(place, to(place.far_end))
    one.start()
    wait_for(lambda: [name for worker in one._workers for name, _, _ in worker.observe()])
    records = place.fill(2_500)
    one.stop(10.0)
    assert place.far_end.records == records


def test_the_end_does_not_wait_for_a_far_end_that_does_not_answer(place: Place) -> None:
    place.fill(1)
    answers = threading.Event()
    place.far_end.answers.append(Reply(200, waits_for=answers))
    one = served(place, to(place.far_end, timeout=30.0))
    one.start()
    wait_for(lambda: place.far_end.requests)
    (worker,) = one._workers
    one.stop(0.1)
    assert worker._thread.is_alive()
    answers.set()


def test_a_far_end_that_asked_for_time_has_it_also_at_the_end(place: Place) -> None:
    place.fill(1)
    place.far_end.refuses = lambda _: Reply(429, {"retry-after": "30"})
    one = served(place, to(place.far_end))
    one.start()
    wait_for(lambda: place.far_end.requests)
    began = time.monotonic()
    one.drain(20.0)
    one.stop(20.0)
    assert time.monotonic() - began < 15.0  # it is not waited for either
    assert len(place.far_end.requests) == 1


@pytest.mark.usefixtures("quick")
def test_a_far_end_that_asked_for_time_is_asked_again_after_it(place: Place) -> None:
    records = place.fill(1)
    place.far_end.answers.append(Reply(503, {"retry-after": "0.3"}))
    one = served(place, to(place.far_end))
    one.start()
    wait_for(lambda: place.far_end.requests)
    began = time.monotonic()
    wait_for(lambda: place.far_end.records == records)
    assert time.monotonic() - began > 0.2
    one.stop(5.0)


def test_what_is_committed_can_be_handed_over_at_once_and_shipping_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_TICK", 60.0)
    one = served(place, to(place.far_end))
    one.drain(5.0)  # not started: nobody to wait for
    one.start()
    wait_for(lambda: [name for worker in one._workers for name, _, _ in worker.observe()])
    records: list[bytes] = []
    for count in (2_500, 1):
        records += place.fill(count)
        one.drain(60.0)
        assert place.far_end.records == records
    one.stop(10.0)


def test_handing_over_waits_for_no_far_end_that_does_not_answer(place: Place) -> None:
    place.fill(1)
    answers = threading.Event()
    place.far_end.answers.append(Reply(200, waits_for=answers))
    one = served(place, to(place.far_end, timeout=30.0))
    one.start()
    wait_for(lambda: place.far_end.requests)
    (worker,) = one._workers
    one.drain(0.1)
    assert not worker.done_since
    answers.set()
    one.stop(10.0)


def gauge(gauges: instruments.Gauges, name: str) -> float:
    return next((value for found, value, _ in gauges.observe() if found == name), -1.0)


@pytest.mark.usefixtures("quick")
def test_gauges_tell_what_waits(place: Place) -> None:
    place.fill(3)
    place.far_end.refuses = lambda _: Reply(503)
    one = served(place, to(place.far_end))
    one.start()
    wait_for(lambda: place.far_end.requests)
    [worker] = one._workers
    wait_for(lambda: gauge(worker, "audit.queue.depth") == 3)
    assert {attributes[instruments.DESTINATION] for _, _, attributes in worker.observe()} == {
        "otlp"
    }
    assert gauge(worker, "otel_audit.queue.age") >= 0
    place.far_end.refuses = lambda _: None
    wait_for(lambda: gauge(worker, "audit.queue.depth") == 0)
    one.stop(5.0)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[AuditProvider, HttpFarEnd]]:
    with HttpFarEnd() as far_end:
        settings = Settings.from_env(
            {
                "OTEL_AUDIT_DIR": str(tmp_path / "trail"),
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": far_end.url,
            }
        )
        provider = AuditProvider(settings)
        yield provider, far_end
        provider.close()


def stored(provider: AuditProvider) -> list[bytes]:
    with provider.reader() as reader:
        return [leaf.record for leaf in reader.leaves()]


def test_an_application_ships_by_itself_and_its_last_checkpoint_too(
    shop: tuple[AuditProvider, HttpFarEnd],
) -> None:
    provider, far_end = shop
    audit = AuditLogger(provider=provider)
    for number in range(20):
        audit.audit_event("document", "read", "document", f"d-{number}")
    wait_for(lambda: len(far_end.records) == 20)
    audit.audit_event("document", "read", "document", "last")
    provider.close()
    assert far_end.records == stored(provider)
    last = [each for each in far_end.stored if each.event_name == "audit.checkpoint"][-1]
    attributes = {each.key: each.value for each in last.attributes}
    assert attributes["otel_audit.checkpoint.size"].int_value == 21
    with provider.reader() as reader:
        assert standing(reader, "otlp").waiting == 0


def test_an_application_that_ends_without_closing_has_shipped(
    shop: tuple[AuditProvider, HttpFarEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uvicorn raises SIGTERM again after the lifespan's end, and nothing runs after that."""
    monkeypatch.setattr(schedule, "_TICK", 60.0)
    provider, far_end = shop
    audit = AuditLogger(provider=provider)
    audit.audit_event("document", "read", "document", "first")
    provider.settle_down()  # the thread may be resting by now
    wait_for(lambda: len(far_end.records) == 1)
    for number in range(20):
        audit.audit_event("document", "read", "document", f"d-{number}")
    provider.settle_down()
    assert far_end.records == stored(provider)
    last = [each for each in far_end.stored if each.event_name == "audit.checkpoint"][-1]
    attributes = {each.key: each.value for each in last.attributes}
    assert attributes["otel_audit.checkpoint.size"].int_value == 21


def test_a_forked_child_ships_when_it_serves_the_trail(
    shop: tuple[AuditProvider, HttpFarEnd],
) -> None:
    provider, far_end = shop
    audit = AuditLogger(provider=provider)
    audit.audit_event("document", "read", "document", "parent")
    wait_for(lambda: len(far_end.records) == 1)
    child = os.fork()
    if child == 0:
        audit.audit_event("document", "read", "document", "child")
        os._exit(0)
    os.waitpid(child, 0)
    wait_for(lambda: len(far_end.records) == 2)
    assert far_end.records == stored(provider)


def test_catching_up_takes_a_tenth_beside_an_application_that_works() -> None:
    now = [0.0, 0.0, 1_000.0]

    def goes_by(own: float, others: float, wall: float) -> None:
        for index, seconds in enumerate((own, own + others, wall)):
            now[index] += seconds

    def rested(share: Share, others: float) -> float:
        rest = Pace(share, lambda: (now[0], now[1], now[2]))
        rest.begin()
        goes_by(0.0, others, 1.0)
        rest.begin()
        goes_by(0.01, others, 0.05)
        return rest.due()

    tenth = Share(0.1, least=0.02)
    assert rested(tenth, others=0.5) == pytest.approx(0.09)
    assert rested(tenth, others=0.1) == pytest.approx(0.01)
    # Where it takes nearly all of a processor: half of the rest, and more than that at least.
    assert rested(tenth, others=0.9) == pytest.approx(0.01 * 0.95 / 0.05)
    assert rested(tenth, others=1.7) == pytest.approx(0.01 * 0.98 / 0.02)
    assert rested(ALL, others=0.5) == 0.0
    real = Pace(tenth)
    real.begin()
    assert 0 <= real.due() < 1
