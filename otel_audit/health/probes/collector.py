"""An OpenTelemetry Collector, by its own health endpoint (the extension ``health_check``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.health.probes.http import http_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import httpx

    from otel_audit.health.probe import ProbeResult

DEFAULT: Final = "http://127.0.0.1:13133/"


def collector_probe(
    url: str = DEFAULT, *, client: httpx.AsyncClient | None = None
) -> Callable[[], Coroutine[None, None, ProbeResult]]:
    """Ask the Collector: 200 while its pipelines run, 503 while they do not. Needs httpx.

    The trail keeps what the Collector cannot take, so register it with
    ``critical=False``.
    """
    return http_probe(url, method="GET", expect=(200,), client=client)
