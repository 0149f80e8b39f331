"""What both middlewares take as ``http_activity=`` and ``exclude=``, checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_audit.api.policy import HTTP_ACTIVITY
from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable


def checked_activity(http_activity: str | None) -> str | None:
    """Return the choice, None for none; ``on`` is ``all``. Raises `AuditSettingsError`."""
    if http_activity == "on":
        return "all"
    if http_activity is not None and http_activity not in HTTP_ACTIVITY:
        message = (
            f"http_activity={http_activity!r} cannot be used: say {', '.join(HTTP_ACTIVITY)}, or "
            "None for what the policy says"
        )
        raise AuditSettingsError(message)
    return http_activity


def checked_paths(exclude: Iterable[str]) -> frozenset[str]:
    """Return the paths without their last slash. Raises `AuditSettingsError`."""
    paths = {exclude} if isinstance(exclude, str) else set(exclude)
    for path in paths:
        if not path.startswith("/"):
            message = (
                f"exclude={path!r} cannot be used: a path begins with '/', and everything below "
                "it is excluded with it"
            )
            raise AuditSettingsError(message)
    return frozenset(path.rstrip("/") or "/" for path in paths)
