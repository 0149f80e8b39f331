"""Whether the trail says for ever which service it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.cli.diagnosis.check import Check, warn
from otel_audit.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.cli.diagnosis.check import Subject

_NOBODY: Final = "unknown_service"
"""What OpenTelemetry calls a service that nobody has named, with or without its program."""

_SET: Final = "set OTEL_SERVICE_NAME (or service_name= in code)"


def service(subject: Subject) -> Iterator[Check]:
    """Whether a service was named when the trail was begun, or is before it begins."""
    if subject.reader is not None:
        origin = visible(subject.reader.origin)
        if f"/{_NOBODY}" in origin:
            yield warn(
                "service",
                f"nobody had named the service when the trail was begun as {origin}, which "
                "every checkpoint has signed since",
                f"{_SET}: new records say it, and so does a trail that begins anew",
            )
        return
    if subject.closed is not None:
        return
    from otel_audit.api.resource import resource_of

    _, name = resource_of(subject.settings)
    if name.startswith(_NOBODY):
        yield warn(
            "service",
            f"the service has no name here, and a trail would begin as {name}'s for ever",
            f"{_SET} before the first start",
        )
