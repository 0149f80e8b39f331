"""Whether the destinations have what the trail has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.cli.diagnosis.check import Check, fail, ok, warn
from otel_audit.cli.output import count, span
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.shipping.standing import known, standing
from otel_audit.trail.layout import CURSORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.cli.diagnosis.check import Subject
    from otel_audit.readers.shipping.standing import Standing

_SECOND: Final = 1_000_000_000
_LATE: Final = 60 * _SECOND
_RECONCILED: Final = "reconcile"
_FAR_END: Final = (
    "see to the far end or its settings; records stay in the trail, and are sent by themselves"
)
_WRONG: Final = ("missing", "altered", "foreign", "contradicted")


def shipping(subject: Subject) -> Iterator[Check]:
    """Whether each destination follows, and has refused nothing."""
    reader = subject.reader
    if reader is None:
        return
    configured = {each.name for each in subject.settings.destinations}
    names = known(subject.directory, sorted(configured))
    if not names:
        yield ok("shipping", "records are shipped nowhere: no endpoint is set")
    for name in names:
        row = standing(reader, name)
        if name not in configured:
            yield ok("shipping", f"{name} was shipped to, and is not configured here")
            continue
        yield _lag(subject, row)
        if row.set_aside:
            yield warn(
                "shipping",
                f"{name} refused {count(row.set_aside, 'record')}, which {_are(row)} set aside",
                "find the reason in the agent's log, then run `otel-audit ship requeue`",
            )


def reconciled(subject: Subject) -> Iterator[Check]:
    """Whether Loki had what the trail has when they were last compared."""
    settings = subject.settings
    if settings.reconcile_loki is None or not (subject.directory / CURSORS).exists():
        return
    cursors = Cursors(subject.directory, read_only=True)
    try:
        row = cursors.row(_RECONCILED)
    finally:
        cursors.close()
    if row is None:
        yield warn(
            "reconciled", "Loki was never compared with the trail", "look at the agent's log"
        )
        return
    since = (subject.now - row.updated_unix_nano) / _SECOND
    wrong = [f"{row.state[name]} {name}" for name in _WRONG if row.state.get(name)]
    if wrong:
        message = f"{span(since)} ago Loki differed from the trail: {', '.join(wrong)}"
        yield fail("reconciled", message, "run `otel-audit reconcile`, which says which")
    elif since > 3 * settings.reconcile_interval:
        message = f"Loki was last compared {span(since)} ago"
        yield warn("reconciled", message, "look at the agent's log")
    elif not row.state.get("checked"):
        message = f"{span(since)} ago there was nothing to compare yet"
        remedy = "wait: records are looked for two minutes after they were committed and delivered"
        yield warn("reconciled", message, remedy)
    else:
        yield ok("reconciled", f"{span(since)} ago Loki had what the trail has")


def _lag(subject: Subject, row: Standing) -> Check:
    shown = f"{row.destination} is {count(row.waiting, 'record')} behind"
    if row.trouble:
        since = span((subject.now - row.trouble_since_unix_nano) / _SECOND)
        return warn("shipping", f"{shown}; for {since}: {row.trouble}", _FAR_END)
    late = row.oldest_unix_nano and subject.now - row.oldest_unix_nano > _LATE
    if late:
        since = span((subject.now - row.oldest_unix_nano) / _SECOND)
        return warn("shipping", f"{shown}, the first for {since}", "the agent ships: see its check")
    return ok("shipping", shown)


def _are(row: Standing) -> str:
    return "is" if row.set_aside == 1 else "are"
