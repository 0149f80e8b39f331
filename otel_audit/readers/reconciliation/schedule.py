"""When to reconcile: on a schedule, while this process serves the trail.

`Reconciler` promises: each comparison covers all that was committed and
delivered since the last one, and the last day again. What is altered or
foreign is found up to now; only that which was committed a moment ago is not
missed yet, and comes again in the next one. The result is an audit record, gauges, and a row that `doctor` reads; with ``repair``, what is missing
is asked to be sent again. A Loki that cannot be asked is logged, shows in the
age of the last comparison, and is asked again within minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from otel_audit.destinations import LOKI, STANDARD, shown_address
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.failures import Failures
from otel_audit.readers.loki import Loki
from otel_audit.readers.reconciliation.compare import Findings, reconcile
from otel_audit.readers.shipping import instruments
from otel_audit.readers.shipping.aside import Quarantine
from otel_audit.readers.shipping.standing import first_at, standing
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from otel_audit.destinations import Destination
    from otel_audit.trail.reader import TrailReader

CURSOR: Final = "reconcile"

_SETTLED_SECONDS: Final = 120
"""What was committed later may still be on its way through a Collector."""
_AGAIN_SECONDS: Final = 86_400
_RETRY_SECONDS: Final = 300.0
_MOST_PASSED: Final = 1_000_000
_SECOND: Final = 1_000_000_000

_logger = logging.getLogger("otel_audit.reconcile")


def destination_to(names: Sequence[str]) -> str:
    """Guess which destination leads to Loki: the one straight to it, else the standard one."""
    for name in (LOKI, STANDARD, *names):
        if name in names:
            return name
    return STANDARD


def event(findings: Findings, url: str, *, repaired: int = 0) -> AuditEvent:
    """Make the audit record of a comparison."""
    counts = counted(findings)
    return AuditEvent(
        "audit.reconciled",
        "reconcile",
        event_type="admin_action",
        status="success" if findings.ok else "failed",
        level="info" if findings.ok else "error",
        resource_type="loki",
        resource_name=shown_address(url),
        error=None if findings.ok else "Loki differs from the trail",
        fields={**counts, "sent_again": repaired, "reason": "comparison of trail and Loki"},
    )


def counted(findings: Findings) -> dict[str, int]:
    """Return the numbers of a comparison by name."""
    return {
        "first": findings.start,
        "end": findings.stop,
        "checked": findings.checked,
        "found": findings.found,
        "expired": findings.expired,
        "missing": findings.missing_count,
        "altered": findings.altered_count,
        "foreign": findings.foreign_count,
        "contradicted": len(findings.contradicted),
    }


def compare(
    reader: TrailReader,
    where: Destination,
    destination: str,
    start: int,
    stop: int | None,
    *,
    due: int | None = None,
) -> Findings:
    """Compare a range; what was not delivered to ``destination`` yet is not missing.

    Nor are records from ``due`` on, and those that were set aside or wait to be
    sent again. Raises `TrailError`.
    """
    now = standing(reader, destination)
    if now.delivered_unix_nano:
        due = now.position if due is None else min(due, now.position)
    with closing(Loki(where)) as loki:
        return reconcile(reader, loki, start, stop, due=due, passed=_passed(reader, destination))


def send_again(reader: TrailReader, destination: str, findings: Findings) -> int:
    """Ask the shipper of ``destination`` to send what is missing; return how many records."""
    cursors = Cursors(reader.directory)
    try:
        items = [("record", number) for number in findings.missing]
        Quarantine(cursors, destination).add(items, "it is missing in Loki", wanted=True)  # type: ignore[arg-type]  # mypy takes "record" for any text
    finally:
        cursors.close()
    return len(findings.missing)


class Reconciler:
    """Compares the trail with a Loki, each time the interval is over."""

    def __init__(
        self,
        reader_factory: Callable[[], TrailReader],
        where: Destination,
        destination: str,
        tell: Callable[[AuditEvent], object],
        *,
        interval: float = 3_600.0,
        repair: bool = False,
    ) -> None:
        """Remember whom to ask and whom to tell; nothing runs yet.

        ``destination`` is the one whose records are in that Loki; ``tell``
        emits an audit record; ``interval`` is in seconds.
        """
        self._reader_factory = reader_factory
        self._where = where
        self._destination = destination
        self._tell = tell
        self._interval = interval
        self._repair = repair
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._last: tuple[int, Findings] | None = None
        self._failures = Failures("the comparison of Loki with the trail", _logger)
        instruments.watch(self)

    @property
    def follows(self) -> tuple[str, ...]:
        """No row of `cursors.db`: it looks from time to time."""
        return ()

    def start(self) -> None:
        """Begin; harmless when it runs."""
        if self._thread is None:
            self._stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(self._stop,), name="otel-audit-reconcile", daemon=True
            )
            thread.start()
            self._thread = thread

    def drain(self, timeout: float) -> None:
        """Do nothing: what is compared is what has been there for a while."""

    def stop(self, timeout: float) -> None:
        """End; a comparison under way is not waited for longer than ``timeout`` seconds."""
        thread, self._thread = self._thread, None
        self._stop.set()
        self._last = None
        if thread is not None:
            thread.join(timeout)

    def forget(self) -> None:
        """Leave the thread to the parent: in a forked child."""
        self._thread = None

    def observe(self) -> Iterator[tuple[str, float, Mapping[str, str]]]:
        """Tell what the last comparison found."""
        last = self._last
        if last is None:
            return
        when, findings = last
        yield "otel_audit.reconcile.age", instruments.age(when), {}
        yield "otel_audit.reconcile.checked", findings.checked, {}
        yield "otel_audit.reconcile.missing", findings.missing_count, {}
        altered = findings.altered_count + len(findings.contradicted)
        yield "otel_audit.reconcile.altered", altered, {}
        yield "otel_audit.reconcile.foreign", findings.foreign_count, {}

    def _run(self, stop: threading.Event) -> None:
        pause = 0.0
        while not stop.wait(pause):
            pause = self._attempt()

    def _attempt(self) -> float:
        try:
            with self._reader_factory() as reader:
                pause = self._turn(reader)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            pause = min(self._interval, _RETRY_SECONDS)
            self._failures.add(error, pause)
        else:
            self._failures.end()
        return pause

    def _turn(self, reader: TrailReader) -> float:
        """Compare if it is time; return how long to wait."""
        cursors = Cursors(reader.directory)
        try:
            row = cursors.row(CURSOR)
            due = 0.0 if row is None else self._interval - instruments.age(row.updated_unix_nano)
            if due > 0:
                return due
            now = time.time_ns()
            settled = first_at(reader, now - _SETTLED_SECONDS * _SECOND)
            start = min(
                0 if row is None else row.position,
                first_at(reader, now - _AGAIN_SECONDS * _SECOND),
            )
            findings = compare(reader, self._where, self._destination, start, None, due=settled)
            self._conclude(reader, findings)
            cursors.set(CURSOR, findings.stop, counted(findings))
        finally:
            cursors.close()
        return self._interval

    def _conclude(self, reader: TrailReader, findings: Findings) -> None:
        self._last = time.time_ns(), findings
        repaired = send_again(reader, self._destination, findings) if self._repair else 0
        if not findings.ok:
            _logger.error(
                "Loki differs from the trail: %s (otel-audit reconcile says which)",
                ", ".join(f"{name} {count}" for name, count in counted(findings).items()),
            )
        self._tell(event(findings, self._where.endpoint, repaired=repaired))


def _passed(reader: TrailReader, destination: str) -> frozenset[int]:
    cursors = Cursors(reader.directory)
    try:
        quarantine = Quarantine(cursors, destination)
        items: list[Any] = [
            item
            for wanted in (False, True)
            for item in quarantine.items(wanted=wanted, limit=_MOST_PASSED)
        ]
    finally:
        cursors.close()
    return frozenset(item.number for item in items if item.kind == "record")
