"""The ``identify=`` hook: from a request to a verified actor.

Promises: whatever the hook does, the request goes on. A hook that fails, or
that returns something that is no identity (what `set_actor` refuses is none
either), leaves the request anonymous, and the log says so; it is never a
reason to believe anybody. To refuse a request is the application's business.
Only when the request itself is cancelled, it ends in the hook.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from otel_audit.api.context import Actor, checked_actor
from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from otel_audit.api.context import RequestScope

_logger: Final = logging.getLogger("otel_audit.web")

_FAILED: Final = "identify= failed, so the request is recorded as anonymous"

Identity: TypeAlias = str | Actor | None
IdentityHook: TypeAlias = Callable[[Any], Identity | Awaitable[Identity]]
"""Takes the request and says who it is from, or None; a coroutine function or a plain one.

The request is the ASGI scope, and for FastAPI and Starlette applications a
`starlette.requests.HTTPConnection`, which is the same mapping with ``headers``
and ``cookies`` read. A plain function runs in the event loop: it must not block.
"""


def checked_hook(identify: IdentityHook) -> IdentityHook:
    """Return the hook if it can be called. Raises `AuditSettingsError`."""
    given: object = identify
    if not callable(given):
        message = (
            f"identify={identify!r} cannot be used: give a function that takes the request and "
            "returns the authenticated user's id, an Actor or None"
        )
        raise AuditSettingsError(message)
    return identify


class Identify:
    """Asks the hook once a request."""

    __slots__ = ("_hook",)

    def __init__(self, hook: IdentityHook) -> None:
        self._hook = checked_hook(hook)

    async def __call__(self, scope: Mapping[str, Any], request: RequestScope) -> None:
        """Set the request's actor to what the hook says; an actor that is set already stays."""
        if request.actor is not None:
            return
        try:
            found = self._hook(scope)
            if isawaitable(found):
                found = await found
            request.actor = _actor(found)
        except (Exception, asyncio.CancelledError) as error:
            # A hook may have cancelled a task of its own, and awaited it.
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            _logger.exception(_FAILED)


def actor_from(hook: IdentityHook, request: Any) -> Actor | None:  # noqa: ANN401 - what the hook takes
    """Ask a hook that is no coroutine function; nobody, when it fails."""
    try:
        return _actor(hook(request))
    except (
        Exception,
        asyncio.CancelledError,
    ):  # threads are not cancelled: a task of the hook's was
        _logger.exception(_FAILED)
        return None


def _cancelled() -> bool:
    """Whether the task of the request was cancelled, as far as Python can tell (from 3.11 on)."""
    task: Any = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)
    return cancelling is None or cancelling() > 0


def _actor(found: object) -> Actor | None:
    if found is None or found == "":
        return None
    if isinstance(found, Actor):
        return checked_actor(found.id, found.type, verified=found.verified)
    if isinstance(found, str):
        return Actor(found)
    message = (
        f"identify= returned {type(found).__name__}, but only str, Actor or None say who it is: "
        "return the authenticated user's id"
    )
    raise TypeError(message)
