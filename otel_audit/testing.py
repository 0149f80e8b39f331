"""Helpers for the tests of applications that audit.

`audit_trail` promises a real trail, in a directory that is gone afterwards,
with a clock and ids that are the same in every run, as the global provider for
the length of a block; the environment of whoever runs the test does not reach
it. What is looked at is what is durable, as anybody would read it.

    from otel_audit.testing import audit_trail


    def test_a_log_in_is_audited(client):
        with audit_trail() as trail:
            client.post("/login", data={"user": "ann", "password": "wrong"})
            assert trail.record(event="login")["outcome"] == "failure"
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import orjson
from opentelemetry import context as otel_context

from otel_audit.api.current import get_audit_provider, is_configured, set_audit_provider
from otel_audit.api.logger import AuditLogger
from otel_audit.api.provider import AuditProvider
from otel_audit.settings import Settings
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.api.policy import Policy
    from otel_audit.record.redact import Redactor

__all__ = [
    "AuditRecords",
    "AuditTrail",
    "FixedClock",
    "FixedIds",
    "assert_audited",
    "audit_trail",
]

_SECOND: Final = 1_000_000_000


class FixedClock:
    """A clock that begins at a known time and goes on by ``step`` seconds at each look.

    Gives nanoseconds since 1970. Safe for threads.
    """

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=timezone.utc),
        *,
        step: float = 0.001,
    ) -> None:
        """Begin at ``start``, which must have a time zone."""
        seconds, rest = divmod((start - _EPOCH) // _MICROSECOND, 1_000_000)
        self._now = seconds * _SECOND + rest * 1_000
        self._step = round(step * _SECOND)
        self._looks = count()

    def __call__(self) -> int:
        """Return the time, and go on."""
        return self._now + next(self._looks) * self._step

    def advance(self, seconds: float) -> None:
        """Let time pass; a negative number sets the clock back."""
        self._now += round(seconds * _SECOND)


class FixedIds:
    """Record ids that are numbered from 1, in the form of a UUIDv4. Safe for threads.

    Those of a forked process, which goes on from the same number, end in its
    process id.
    """

    def __init__(self) -> None:
        """Begin with 00000001-0000-4000-8000-000000000000."""
        self._numbers = count(1)
        self._process = os.getpid()

    def __call__(self) -> str:
        """Return the next id."""
        process = os.getpid()
        forked = 0 if process == self._process else process
        return f"{next(self._numbers):08x}-0000-4000-8000-{forked:012x}"


class AuditTrail:
    """A trail that a test looks at; ``provider`` and ``logger`` write to it."""

    def __init__(self, provider: AuditProvider) -> None:
        """Take the provider whose trail it is."""
        self.provider = provider
        self.logger = AuditLogger(provider=provider)

    @property
    def directory(self) -> Path:
        """The trail's directory, for the command line and for readers."""
        return self.provider.directory

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return what was recorded, oldest first: all, or those whose keys have these values.

        Waits for what was emitted before. Raises `TimeoutError` if that does
        not become durable.
        """
        refused = self.provider.statistics["failed"]
        if not self.provider.flush() or self.provider.statistics["failed"] > refused:
            message = "what was emitted did not become durable; is the disk full, or the lock held?"
            raise TimeoutError(message)
        with self.provider.reader() as reader:
            records = [orjson.loads(leaf.record) for leaf in reader.leaves()]
        return [
            record
            for record in records
            if all(name in record and record[name] == value for name, value in wanted.items())
        ]

    def record(self, **wanted: Any) -> dict[str, Any]:
        """Return the only record whose keys have these values.

        Raises `AssertionError`, which says what was recorded instead, when there
        is none or more than one.
        """
        __tracebackhide__ = True
        found = self.records(**wanted)
        if len(found) != 1:
            sought = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
            lines = [orjson.dumps(record).decode() for record in found or self.records()]
            message = (
                f"{len(found)} records, not one, have {sought or 'anything at all'}; "
                f"{'these' if found else 'recorded was'}:\n"
            )
            raise AssertionError(message + ("\n".join(lines) or "nothing"))
        return found[0]

    def verify(self) -> None:
        """Raise `AssertionError` with what is wrong, if anything in the trail is."""
        __tracebackhide__ = True
        self.provider.checkpoint()
        with self.provider.reader() as reader:
            report = verify(reader)
        if not report.ok:
            raise AssertionError("\n".join(finding.message for finding in report.findings))


class AuditRecords(Sequence[dict[str, Any]]):
    """The records of a trail, as they are at each look; what `audit_records` gives.

    Equal to a list of the same records.
    """

    __hash__ = None  # type: ignore[assignment]  # what it is equal to changes, as a list's

    def __init__(self, trail: AuditTrail) -> None:
        """Look at a trail."""
        self.trail = trail

    def __len__(self) -> int:
        return len(self.trail.records())

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self.trail.records()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (AuditRecords, list)):
            return self.trail.records() == list(other)
        return NotImplemented

    def __repr__(self) -> str:
        return f"<AuditRecords {[record['event'] for record in self.trail.records()]}>"


@overload
def assert_audited(event: str, *, times: int | None = ..., **wanted: Any) -> dict[str, Any]: ...


@overload
def assert_audited(
    event: AuditRecords, *of_records: str, times: int | None = ..., **wanted: Any
) -> dict[str, Any]: ...


def assert_audited(
    event: str | AuditRecords, *of_records: str, times: int | None = None, **wanted: Any
) -> dict[str, Any]:
    """Return the last record of an event whose keys have these values.

    Looks at the global provider's trail: that of `audit_trail` or of the
    fixture `audit_records`, or the application's own; or into the records that
    stand before the event. ``times`` is how many there have to be, by default
    at least one; 0 is for what must not be recorded, and returns an empty
    record. Raises `AssertionError`, which says what was recorded instead, or
    that there is no trail.
    """
    __tracebackhide__ = True
    if isinstance(event, AuditRecords):
        trail, (event,) = event.trail, of_records
    elif is_configured():
        trail = AuditTrail(get_audit_provider())
    else:
        message = (
            f"nothing has a trail in which {event!r} could be: let the test ask for the fixture "
            "`audit_records`, or look inside `with audit_trail():`"
        )
        raise AssertionError(message)
    found = trail.records(event=event, **wanted)
    if (len(found) == times) if times is not None else found:
        return found[-1] if found else {}
    sought = "".join(f", {name}={value!r}" for name, value in wanted.items())
    number = "at least one" if times is None else times
    there = trail.records(event=event) or trail.records()
    lines = [orjson.dumps(record).decode() for record in there] or ["nothing"]
    message = (
        f"{number} of {event!r}{sought} should be in the trail, and {len(found)} are; "
        "recorded was:\n" + "\n".join(lines)
    )
    raise AssertionError(message)


@contextmanager
def audit_trail(
    *,
    policy: Policy | None = None,
    redactor: Redactor | None = None,
    clock: Callable[[], int] | None = None,
    new_id: Callable[[], str] | None = None,
    **settings: Any,
) -> Iterator[AuditTrail]:
    """Give a trail of its own to a block, in which all loggers and middlewares write to it.

    ``clock`` and ``new_id`` are a `FixedClock` and `FixedIds` unless said;
    ``settings`` are attributes of `Settings` (``timeout=1``). There is no agent
    and no mirror unless ``agent="thread"`` says so. The global provider of before
    is back afterwards, and so is who acts. Raises `AuditSettingsError`.
    """
    logger = logging.getLogger("otel_audit.trail")
    with tempfile.TemporaryDirectory(prefix="otel-audit-") as place:
        chosen = {
            "directory": Path(place) / "trail",
            "service_name": "test",
            "agent": "off",
            **settings,
        }
        logger.addFilter(_is_news)
        try:
            provider = AuditProvider(
                Settings.from_env({}, **chosen),
                policy=policy,
                redactor=redactor,
                clock=clock or FixedClock(),
                new_id=new_id or FixedIds(),
            )
        finally:
            logger.removeFilter(_is_news)
        token = otel_context.attach(otel_context.get_current())
        before = set_audit_provider(provider)
        try:
            yield AuditTrail(provider)
        finally:
            set_audit_provider(before)
            otel_context.detach(token)
            provider.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a test's log should have it: that a temporary directory forgets is no news."""
    return "gone after a restart" not in record.getMessage()


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = datetime.resolution
