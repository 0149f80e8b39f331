"""The OpenTelemetry distribution: audit first, then OpenTelemetry as it is set up anyway.

Promises: it replaces nobody. Where another distribution is installed, that one
configures OpenTelemetry, through ours or before it; where none is, traces,
metrics and logs go the way that OpenTelemetry's variables say, over OTLP when
they say nothing. A distribution that cannot be configured does not cost the
audit trail.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from opentelemetry.instrumentation.distro import (  # type: ignore[attr-defined]  # it is there
    BaseDistro,
)

from otel_audit.instrumentation.launch import start
from otel_audit.settings import give_defaults

_logger: Final = logging.getLogger("otel_audit.instrumentation")
_OURS: Final = "otel_audit"
_LOADER: Final = "opentelemetry.instrumentation.auto_instrumentation._load"


class AuditDistro(BaseDistro):  # type: ignore[misc]  # see above
    """Chosen by OTEL_PYTHON_DISTRO=otel_audit, or by being the first that is found."""

    def _configure(self, **kwargs: Any) -> None:
        other = _other("opentelemetry_distro")
        if other is not None:
            # It is imported before OpenTelemetry's SDK, as it is without us. Elastic's names its
            # resource detectors in the environment; in a worker, which inherits that, importing
            # the SDK loads them, and they need the distribution, which needs the SDK.
            with suppress(Exception):  # it raises again below, and is logged
                other.load()
        # First of what may fail, since that makes the launcher give up, silently.
        start()
        # Ours configures by means of the other one, and survives it.
        give_defaults(OTEL_PYTHON_CONFIGURATOR=_OURS)
        _hush()
        self._other: BaseDistro | None = None
        if other is None:
            give_defaults(
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_METRICS_EXPORTER="otlp",
                OTEL_LOGS_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            )
            return
        try:
            distro = other.load()()
            distro.configure(**kwargs)
            self._other = distro
        except Exception:
            _logger.exception("the distribution %r cannot be used; audit goes on", other.value)

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Let the other distribution load the instrumentor in its own way, if there is one."""
        if self._other is not None:
            self._other.load_instrumentor(entry_point, **kwargs)
        else:
            super().load_instrumentor(entry_point, **kwargs)


class AuditConfigurator:
    """Configures OpenTelemetry as the other distribution would, else as its SDK does.

    It is no subclass of the SDK's, which this module must not import: `AuditDistro` says why.
    """

    def configure(self, **kwargs: Any) -> None:
        """Start the audit if need be, and configure; MUST NOT raise."""
        start()
        _hush()
        other = _other("opentelemetry_configurator")
        try:
            kind: Any
            if other is None:
                from opentelemetry.sdk._configuration import (  # noqa: PLC0415 - see above
                    _OTelSDKConfigurator as kind,
                )
            else:
                kind = other.load()
            kind().configure(**kwargs)
        except Exception:
            _logger.exception(
                "OpenTelemetry cannot be configured, so there may be no traces; audit goes on"
            )


def _other(group: str) -> EntryPoint | None:
    """Return the entry point of another distribution, if one is installed."""
    others = [point for point in entry_points(group=group) if point.name != _OURS]
    # The reference distribution may be there as a dependency of the one that is meant.
    others.sort(key=lambda point: point.value.startswith("opentelemetry.distro"))
    return others[0] if others else None


def _hush() -> None:
    """Drop what the loader says of other configurators because of ours: that they are not loaded."""
    logging.getLogger(_LOADER).addFilter(_is_true)


def _is_true(record: logging.LogRecord) -> bool:
    instead = record.args[1] if isinstance(record.args, tuple) and len(record.args) > 1 else None
    return not (record.msg.startswith("Configuration of ") and instead == _OURS)
