"""What runs beside the agent, as the settings say: the index, shipping, and reconciliation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.readers.index.writer import following
from otel_audit.readers.reconciliation.schedule import Reconciler, destination_to
from otel_audit.readers.shipping.schedule import Shipping

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.readers.agent import Attendant
    from otel_audit.readers.pace import Share
    from otel_audit.record.event import AuditEvent
    from otel_audit.settings import Settings
    from otel_audit.trail.reader import TrailReader


def attendants(
    settings: Settings,
    reader_factory: Callable[[], TrailReader],
    tell: Callable[[AuditEvent], object],
    *,
    share: Share | None = None,
) -> list[Attendant]:
    """Make what is configured; ``tell`` emits audit records.

    ``share`` is what each may take of a processor to catch up, if not its own.
    """
    made: list[Attendant] = []
    directory = settings.trail_directory
    if settings.index:
        made.append(following(directory, reader_factory, full_text=settings.full_text, share=share))
    if settings.destinations:
        made.append(Shipping(directory, settings.destinations, reader_factory, share=share))
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
