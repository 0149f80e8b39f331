"""What our instrumentors have in common, on top of OpenTelemetry's.

Promises: instrumenting twice is harmless and silent, since OpenTelemetry's
launcher and our own hook both do it; a library that is absent is left alone,
and one of an unsupported version is skipped with one warning; nothing is
imported for the sake of being changed; `uninstrument` restores everything.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

import wrapt
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]  # it is there
    BaseInstrumentor,
)

from otel_audit.instrumentation.launch import left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_logger: Final = logging.getLogger("otel_audit.instrumentation")


_LAUNCHER: Final = frozenset({"skip_dep_check", "raise_exception_on_conflict"})
"""Options by which OpenTelemetry's launcher is known: applications do not pass them."""


class AuditInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its parameters are untyped
    """Changes one library; ``name`` is what OTEL_AUDIT_DISABLED_INSTRUMENTATIONS calls it."""

    name: ClassVar[str]
    requires: ClassVar[str]
    """The library and its supported versions, as in requirements.txt."""
    _skipped = False

    def __init_subclass__(cls) -> None:
        """Be a singleton of its own: the base class's would be shared with a parent."""
        cls._instance = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what has to be installed."""
        return (self.requires,)

    def instrument(self, **options: Any) -> None:
        """Instrument the library, now or when it is imported; once is enough."""
        if self.is_instrumented_by_opentelemetry:
            return
        if self.name in left_out and not _LAUNCHER.isdisjoint(options):
            return
        conflict = get_dependency_conflicts(self.instrumentation_dependencies())
        if conflict is not None:
            self._skip(conflict.found)
            return
        said = {name: value for name, value in options.items() if name not in _LAUNCHER}
        super().instrument(**said, skip_dep_check=True)

    def uninstrument(self, **options: Any) -> None:
        """Restore the library; harmless when it is not instrumented."""
        if self.is_instrumented_by_opentelemetry:
            super().uninstrument(**options)

    def _skip(self, found: str | None) -> None:
        if self._skipped:
            return
        self._skipped = True
        log = _logger.warning if found else _logger.debug
        log(
            "%s is not audited by itself: %s is needed and %s is installed",
            self.name,
            self.requires,
            found or "nothing",
        )

    @abstractmethod
    def _instrument(self, **options: Any) -> None:
        """Change the library, or arrange for it."""

    @abstractmethod
    def _uninstrument(self, **options: Any) -> None:
        """Restore the library."""


class Patch:
    """Replaces one attribute of a module's class, when the module is imported.

    ``make`` gets the original and returns what takes its place. Who has
    replaced the attribute since keeps that. What only newer versions have is
    not ``needed``.
    """

    def __init__(
        self,
        module: str,
        owner: str,
        attribute: str,
        make: Callable[[Any], Any],
        *,
        needed: bool = True,
    ) -> None:
        self._needed = needed
        self._where = (module, owner, attribute)
        self._make = make
        self._target: Any = None
        self._original: Any = None
        self._ours: Any = None
        self._wanted = False

    def apply(self) -> None:
        """Replace it now if the module is there, else as soon as it is."""
        self._wanted = True
        wrapt.when_imported(self._where[0])(self._replace)

    def restore(self) -> None:
        """Put the original back."""
        self._wanted = False
        _, _, attribute = self._where
        if self._target is not None and vars(self._target).get(attribute) is self._ours:
            setattr(self._target, attribute, self._original)
        self._target = None

    def _replace(self, module: Any) -> None:
        if not self._wanted or self._target is not None:
            return
        _, owner, attribute = self._where
        target = getattr(module, owner) if owner else module
        # Where it is defined: OpenTelemetry puts subclasses in the place of classes, and takes them back.
        target = next(
            (one for one in getattr(target, "__mro__", ()) if attribute in vars(one)), target
        )
        if not (self._needed or hasattr(target, attribute)):
            return
        self._original = getattr(target, attribute)
        self._ours = self._make(self._original)
        setattr(target, attribute, self._ours)
        self._target = target
