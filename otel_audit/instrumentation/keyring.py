"""The keyring library: each access to a credential becomes a record, and never its value.

Promises: no value is given out, and no change reported as made, before its
record is durable; an exception of the backend is recorded by its type, since
its text may quote the value, and goes on to the caller. A trail that is known
to take no records refuses before anything is changed.

Every way to a backend ends in a method of its class: the functions of keyring,
whoever imported them and when, a copy, a backend of one's own making. So it is
the classes that are changed, and those that come later as they are made. In an
event loop, which an access blocks anyway, its record is waited for as well.
"""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import wrapt
from opentelemetry import context as otel_context

from otel_audit.api.logger import get_audit_logger
from otel_audit.errors import AuditUnavailableError
from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.record.classes import CREDENTIAL_ACCESS
from otel_audit.record.event import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType, ModuleType

    from otel_audit.api.logger import AuditLogger

    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy  # which is generic for type checkers only

_logger: Final = logging.getLogger("otel_audit.instrumentation")

_ACTIONS: Final = {
    "get_password": "read",
    "get_credential": "read",
    "set_password": "modify",
    "delete_password": "delete",
}
"""The methods of a backend, and what they do to a credential."""

_NAMES: Final = (("service", "system", "servicename", "service_name"), ("username", "user"))
"""How backends call the first and the second argument of these methods."""

_REASONS: Final = {
    "NoKeyringError": "keyring_unavailable",
    "InitError": "keyring_unavailable",
    "KeyringLocked": "keyring_locked",
    "PermissionError": "permission_denied",
}
"""Why an access is denied, by the name of the backend's exception; all others are errors."""

_NOT_THE_CALLER: Final = ("keyring", "otel_audit", "wrapt")

_UNDER_WAY: Final = otel_context.create_key("otel-audit-keyring")
"""Where the context holds the accesses within which the code runs."""


class AuditedKeyring(_Proxy):
    """A backend of the keyring library, as it is, with a record of each access.

    ``backend`` is the one that is wrapped, by default the current one.
    ``context`` says in each record what the credentials are for; by default
    it is the module and function that asked. A copy is audited as well.
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
        self._self_recorder = _Recorder(context, audit)

    def get_password(self, service: str, username: str) -> str | None:
        """Return the value, or None. Raises what the backend raises, and as `emit`."""
        value: str | None = self._self_access("get_password", service, username)
        return value

    def get_credential(self, service: str, username: str | None) -> Any:
        """Return user name and value, or None. Raises what the backend raises, and as `emit`."""
        return self._self_access("get_credential", service, username)

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the value. Raises what the backend raises, and as `emit`."""
        self._self_access("set_password", service, username, password)

    def delete_password(self, service: str, username: str) -> None:
        """Delete the value. Raises what the backend raises, and as `emit`."""
        self._self_access("delete_password", service, username)

    def with_properties(self, **properties: Any) -> Any:
        """Return a copy with other properties."""
        return self._self_around(self.__wrapped__.with_properties(**properties))

    def __copy__(self) -> AuditedKeyring:
        return self._self_around(copy.copy(self.__wrapped__))

    def __deepcopy__(self, memo: dict[int, Any]) -> AuditedKeyring:
        return self._self_around(copy.deepcopy(self.__wrapped__, memo))

    def _self_around(self, backend: Any) -> AuditedKeyring:
        recorder = self._self_recorder
        return AuditedKeyring(backend, context=recorder.context, audit=recorder.audit)

    def _self_access(self, method: str, service: str, username: str | None, *rest: str) -> Any:
        backend = self.__wrapped__
        access = _Access(_ACTIONS[method], service, username)
        return self._self_recorder.record(
            access, type(backend), lambda: getattr(backend, method)(service, username, *rest)
        )


class _Access(NamedTuple):
    """What is done to which credential."""

    action: str
    service: Any
    username: Any


class _Recorder:
    """Lets accesses happen, and records each of them once."""

    def __init__(self, context: str | None = None, audit: AuditLogger | None = None) -> None:
        self.context = context
        self.audit = audit or get_audit_logger()

    def record(self, access: _Access, backend: type, happen: Callable[[], Any]) -> Any:
        """Let it happen. MUST NOT return before the record is durable."""
        around: tuple[_Access, ...] = otel_context.get_value(_UNDER_WAY) or ()  # type: ignore[assignment]  # nobody else has the key
        if access in around:
            # On its way through the method of a base class, or another backend's.
            return happen()
        provider = self.audit.provider
        refusal = provider.refusal()
        if refusal is not None and provider.policy.on_failure != "continue":
            raise refusal
        said = {
            "credential_key": access.username,
            "service": access.service,
            "backend": _named(backend),
            "context": self.context or _caller(),
        }
        try:
            with _under_way((*around, access)):
                value = happen()
        except Exception as error:
            self._emit(*_failed(error), access, said, type(error).__name__)
            raise
        except BaseException as error:  # it ends a task, a thread or the process, whatever we find
            try:
                self._emit(_INTERRUPTED, None, access, said, type(error).__name__)
            except AuditUnavailableError as lost:
                _logger.error("what was interrupted is not confirmed: %s", lost)  # noqa: TRY400 - where it happened says nothing
            raise
        missing = access.action == "read" and value is None
        event = "credential_not_found" if missing else _DONE[access.action]
        self._emit(event, None, access, said, None)
        return value

    def _emit(
        self,
        event: str,
        reason: str | None,
        access: _Access,
        said: dict[str, Any],
        error: str | None,
    ) -> None:
        service, key = access.service, access.username
        self.audit.emit(
            AuditEvent(
                event,
                access.action,
                event_type=CREDENTIAL_ACCESS,
                status=_STATUS.get(event, "success"),
                resource_type="credential",
                resource_name=f"{service}/{key}" if key else service,
                error=error,
                fields={**said, "reason": reason} if reason else said,
            ),
            wait=True,
        )


_DONE: Final = {
    "read": "credential_accessed",
    "modify": "credential_modified",
    "delete": "credential_deleted",
}
_INTERRUPTED: Final = "credential_access_interrupted"
_STATUS: Final = {
    "credential_not_found": "not_found",
    "credential_access_denied": "denied",
    "credential_access_error": "error",
    _INTERRUPTED: "interrupted",
}


@contextmanager
def _under_way(accesses: tuple[_Access, ...]) -> Iterator[None]:
    token = otel_context.attach(otel_context.set_value(_UNDER_WAY, accesses))
    try:
        yield
    finally:
        otel_context.detach(token)


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
        self._classes = _Classes(_Recorder(**options))
        self._patch = Patch(
            "keyring.backend", "KeyringBackendMeta", "__init__", self._classes.as_they_are_made
        )
        self._patch.apply()
        wrapt.when_imported("keyring.backend")(self._classes.wrap_all)

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        self._patch.restore()
        self._classes.restore()


class _Classes:
    """Wraps the methods of all backends' classes.

    A subclass's ``set_password`` keeps hold of its parent's, since keyring puts
    a check around each; so what is wrapped passes everything on after `restore`.
    """

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder
        self._active = True
        self._base: Any = None
        self._wrapped: list[tuple[type, str, Any, Any]] = []

    def wrap_all(self, module: ModuleType) -> None:
        """Wrap the classes that there are."""
        self._base = module.KeyringBackend
        if self._active:
            for kind in _with_subclasses(self._base):
                self._wrap(kind)

    def as_they_are_made(self, original: Callable[..., None]) -> Callable[..., None]:
        """Return a constructor of classes that wraps what it makes."""

        def __init__(kind: type, *arguments: Any, **options: Any) -> None:  # noqa: N807 - it becomes one
            original(kind, *arguments, **options)
            self._wrap(kind)

        return __init__

    def restore(self) -> None:
        """Put the originals back."""
        self._active = False
        for kind, name, original, ours in self._wrapped:
            if vars(kind).get(name) is not ours:
                continue
            if original is None:
                delattr(kind, name)
            else:
                setattr(kind, name, original)
        self._wrapped.clear()

    def _wrap(self, kind: type) -> None:
        for name in _ACTIONS:
            owner = next((each for each in kind.__mro__ if name in vars(each)), None)
            # What another backend's class defines is wrapped there; a mixin is none.
            if owner is None or (owner is not kind and issubclass(owner, self._base)):
                continue
            found = vars(owner)[name]
            # Not by the name that the function has: some stand for several methods.
            method = partial(self._method, _ACTIONS[name])
            ours: Any = wrapt.FunctionWrapper(found, method, enabled=self._enabled)
            setattr(kind, name, ours)
            self._wrapped.append((kind, name, found if owner is kind else None, ours))

    def _enabled(self) -> bool:
        return self._active

    def _method(
        self, action: str, method: Any, backend: Any, given: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        access = _Access(action, *_asked(given, named))
        return self._recorder.record(access, type(backend), lambda: method(*given, **named))


def _with_subclasses(kind: type) -> set[type]:
    found = {kind}
    subclass: type
    for subclass in type.__subclasses__(kind):
        found |= _with_subclasses(subclass)
    return found


def _asked(given: tuple[Any, ...], named: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the service and the user name, however they were passed."""
    for place, names in enumerate(_NAMES):
        if place < len(given):
            yield given[place]
        else:
            yield next((named[name] for name in names if name in named), None)
