"""Something that speaks HTTP: an AI provider, an integration, another service.

Promises: neither the address's query and user information nor a header is ever
in a message; a response's body is not read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from otel_audit.health.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    import httpx

_WORKS_BELOW: Final = 400
_TOO_MANY: Final = 429


def http_probe(
    url: str,
    *,
    method: str = "HEAD",
    expect: Collection[int] | None = None,
    headers: Mapping[str, str] | None = None,
    client: httpx.AsyncClient | None = None,
) -> Callable[[], Coroutine[None, None, ProbeResult]]:
    """Ask ``url`` and look at the status of the answer; needs httpx.

    Healthy: a status in ``expect``, by default everything below 400. 429 (we
    ask too often, or have used up a quota) is degraded, everything else
    unhealthy. Redirects are not followed. ``client`` is one of the
    application's; without it the probe keeps one of its own, and its
    connection. For services that refuse HEAD say ``method="GET"``.
    """
    import httpx  # noqa: PLC0415 - optional, the extra `health`

    shown = _without_secrets(url)
    made: list[Any] = [client] if client is not None else []

    async def probe() -> ProbeResult:
        if not made:
            # Made in the loop that uses it.
            made.append(httpx.AsyncClient(timeout=None))  # noqa: S113 - the checker limits the time
        begun = time.monotonic()
        try:
            request = made[0].build_request(method, url, headers=headers)
            response = await made[0].send(request, stream=True)
            await response.aclose()
        except httpx.HTTPError as error:
            # Its text may quote the whole address.
            reason = type(error).__name__
            return ProbeResult.unhealthy(f"{method} {shown} failed: {reason}")
        status = response.status_code
        details = {"http_status": status, "latency_ms": round((time.monotonic() - begun) * 1e3, 3)}
        said = f"{method} {shown} answers {status}"
        if status < _WORKS_BELOW if expect is None else status in expect:
            return ProbeResult.healthy(said, **details)
        if status == _TOO_MANY:
            return ProbeResult.degraded(said, **details)
        return ProbeResult.unhealthy(said, **details)

    return probe


def _without_secrets(url: str) -> str:
    """Return scheme, host, port and path: keys are in the rest."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
