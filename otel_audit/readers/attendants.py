"""What runs beside the agent, as the settings say: the index, shipping, and reconciliation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.readers.beside import SHARE as INDEX_SHARE
from otel_audit.readers.index.writer import following
from otel_audit.readers.reconciliation.schedule import Reconciler, destination_to
from otel_audit.readers.shipping.schedule import SHARE, Shipping

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.readers.agent import Attendant
    from otel_audit.record.event import AuditEvent
    from otel_audit.settings import Settings
    from otel_audit.trail.reader import TrailReader


def attendants(
    settings: Settings,
    reader_factory: Callable[[], TrailReader],
    tell: Callable[[AuditEvent], object],
    *,
    share: float | None = None,
) -> list[Attendant]:
    """Make what is configured; ``tell`` emits audit records.

    ``share`` is the part of one processor that each may take to catch up, if not its own.
    """
    made: list[Attendant] = []
    directory = settings.trail_directory
    if settings.index:
        made.append(
            following(
                directory,
                reader_factory,
                full_text=settings.full_text,
                share=INDEX_SHARE if share is None else share,
            )
        )
    if settings.destinations:
        part = SHARE if share is None else share
        made.append(Shipping(directory, settings.destinations, reader_factory, share=part))
    if settings.reconcile_with is not None:
        names = [destination.name for destination in settings.destinations]
        made.append(
            Reconciler(
                reader_factory,
                settings.reconcile_with,
                destination_to(names),
                tell,
                interval=settings.reconcile_interval,
                repair=settings.reconcile_repair,
            )
        )
    return made
