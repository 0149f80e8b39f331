"""Whether what an application gave as an object is one that can be used.

`check` promises that a text where an object belongs is refused at the call, by
an error that names the argument and what to write instead, and not by whatever
happens to it later.
"""

from __future__ import annotations

from otel_audit.errors import AuditSettingsError


def check(name: str, value: object, kind: type, remedy: str) -> None:
    """Raise `AuditSettingsError` for what is neither None nor of a kind.

    The value itself is not shown: it may be a key.
    """
    if value is not None and not isinstance(value, kind):
        message = (
            f"{name}= cannot be used: it is of type {type(value).__name__}, and has to be "
            f"{kind.__name__}; {remedy}"
        )
        raise AuditSettingsError(message)
