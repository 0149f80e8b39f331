"""Flask: every application is audited when it is called.

Promises what `AuditWSGIMiddleware` does, with the rule of the route as
template. It stands around OpenTelemetry's instrumentation, whichever was
loaded first and whichever is removed again, and records the request while its
server span is the current one.
"""

from __future__ import annotations

from typing import Any, Final

from otel_audit.instrumentation.instrumentor import AuditInstrumentor, Patch
from otel_audit.instrumentation.wsgi import Route, audited
from otel_audit.web.wsgi import SCOPE_KEY

_REQUEST: Final = "werkzeug.request"
"""Where Flask leaves the request that it made of an environ."""


class FlaskInstrumentor(AuditInstrumentor):
    """Audits applications of Flask; takes the options of `AuditWSGIMiddleware`."""

    name = "flask"
    requires = "flask >= 2.2"

    def _instrument(self, **options: Any) -> None:
        self._patch = Patch("flask", "Flask", "__call__", audited(_describe, **options))
        self._patch.apply()

    def _uninstrument(self, **options: Any) -> None:  # noqa: ARG002 - the base class has them
        self._patch.restore()


def _describe(environ: dict[str, Any]) -> None:
    """Say which route it was, now that Flask knows."""
    request = environ.get(_REQUEST)
    rule = getattr(request, "url_rule", None)
    if rule is not None:
        scope = environ[SCOPE_KEY]
        scope["route"] = Route(rule.rule)
        scope["path_params"] = getattr(request, "view_args", None) or {}
