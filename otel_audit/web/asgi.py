"""The shapes of ASGI 3.0 (https://asgi.readthedocs.io), what we add to them, and nothing that does anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

REQUEST_KEY: Final = "otel_audit"
"""Where a scope holds the `RequestScope`; who finds one there is nested in another middleware."""
