"""The keyring library: each access to a credential becomes a record, and never its value.

Promises: no value is given out, and no change reported as made, before its
record is durable; an exception of the backend is recorded by its type, since
its text may quote the value, and goes on to the caller. A trail that is known
to take no records refuses before anything is changed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import wrapt

from otel_audit.api.logger import get_audit_logger
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.record.classes import CREDENTIAL_ACCESS
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_audit.api.logger import AuditLogger

    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy  # which is generic for type checkers only

_REASONS: Final = {
    "NoKeyringError": "keyring_unavailable",
    "InitError": "keyring_unavailable",
    "KeyringLocked": "keyring_locked",
    "PermissionError": "permission_denied",
}
"""Why an access is denied, by the name of the backend's exception; all others are errors."""

_NOT_THE_CALLER: Final = ("keyring", "otel_audit", "wrapt")


class AuditedKeyring(_Proxy):
    """A backend of the keyring library, as it is, with a record of each access.

    ``backend`` is the one that is wrapped, by default the current one.
    ``context`` says in each record what the credentials are for; by default
    it is the module and function that asked.
    """

    def __init__(
        self,
        backend: Any = None,
        *,
        context: str | None = None,
        audit: AuditLogger | None = None,
    ) -> None:
        if backend is None:
            import keyring  # noqa: PLC0415 - an optional dependency

            backend = keyring.get_keyring()
        super().__init__(backend)
        self._self_context = context
        self._self_audit = audit or get_audit_logger()

    def get_password(self, service: str, username: str) -> str | None:
        """Return the value, or None. Raises what the backend raises, and as `emit`."""
        value: str | None = self._self_access(
            "read", service, username, lambda: self.__wrapped__.get_password(service, username)
        )
        return value

    def get_credential(self, service: str, username: str | None) -> Any:
        """Return user name and value, or None. Raises what the backend raises, and as `emit`."""
        return self._self_access(
            "read", service, username, lambda: self.__wrapped__.get_credential(service, username)
        )

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the value. Raises what the backend raises, and as `emit`."""
        self._self_access(
            "modify",
            service,
            username,
            lambda: self.__wrapped__.set_password(service, username, password),
        )

    def delete_password(self, service: str, username: str) -> None:
        """Delete the value. Raises what the backend raises, and as `emit`."""
        self._self_access(
            "delete", service, username, lambda: self.__wrapped__.delete_password(service, username)
        )

    def _self_access(
        self, action: str, service: str, username: str | None, access: Callable[[], Any]
    ) -> Any:
        said = {
            "credential_key": username,
            "service": service,
            "backend": _named(type(self.__wrapped__)),
            "context": self._self_context or _caller(),
        }
        provider = self._self_audit.provider
        refusal = provider.refusal()
        if refusal is not None and provider.policy.on_failure != "continue":
            raise refusal
        try:
            value = access()
        except Exception as error:
            self._self_record(*_failed(error), action, said, type(error).__name__)
            raise
        if action == "read" and value is None:
            self._self_record("credential_not_found", None, action, said, None)
        else:
            self._self_record(_DONE[action], None, action, said, None)
        return value

    def _self_record(
        self,
        event: str,
        reason: str | None,
        action: str,
        said: dict[str, Any],
        error: str | None,
    ) -> None:
        service, key = said["service"], said["credential_key"]
        self._self_audit.emit(
            AuditEvent(
                event,
                action,
                event_type=CREDENTIAL_ACCESS,
                status=_STATUS.get(event, "success"),
                resource_type="credential",
                resource_name=f"{service}/{key}" if key else service,
                error=error,
                fields={**said, "reason": reason} if reason else said,
            )
        )


_DONE: Final = {
    "read": "credential_accessed",
    "modify": "credential_modified",
    "delete": "credential_deleted",
}
_STATUS: Final = {
    "credential_not_found": "not_found",
    "credential_access_denied": "denied",
    "credential_access_error": "error",
}


def _failed(error: Exception) -> tuple[str, str]:
    """Return the event for an exception, and the reason."""
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return "credential_access_denied", _REASONS[kind.__name__]
    return "credential_access_error", "backend_error"


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _caller() -> str | None:
    """Return the module and function outside of keyring that asked."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.stack() reads source files
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _NOT_THE_CALLER:
            return f"{module}:{frame.f_code.co_name}"
        frame = frame.f_back
    return None


class KeyringInstrumentor(AuditInstrumentor):
    """Records every access through ``keyring``; takes the options of `AuditedKeyring`."""

    name = "keyring"
    requires = "keyring >= 23"

    def _instrument(self, **options: Any) -> None:
        def make(original: Callable[[], Any]) -> Callable[[], Any]:
            def get_keyring() -> Any:
                backend = original()
                if isinstance(backend, wrapt.ObjectProxy):
                    return backend
                return AuditedKeyring(backend, **options)

            return get_keyring

        # keyring.get_password() and its relatives look get_keyring() up in their own module, so
        # that whoever imported them before is audited as well.
        self._patches = [
            Patch("keyring.core", "", "get_keyring", make),
            Patch("keyring", "", "get_keyring", make),
        ]
        for patch in self._patches:
            patch.apply()

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        for patch in self._patches:
            patch.restore()
