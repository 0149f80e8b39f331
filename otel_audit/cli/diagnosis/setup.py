"""Settings and versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from otel_audit._version import __version__
from otel_audit.cli.diagnosis.check import Check, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.cli.diagnosis.check import Subject


def settings(subject: Subject) -> Iterator[Check]:
    """Whether every setting can be used, and every variable of ours is one."""
    for error in subject.unusable:
        message, _, remedy = str(error).partition("; ")
        yield fail("settings", message, remedy)
    for remark in subject.settings.remarks:
        message, _, remedy = remark.partition("; ")
        yield warn("settings", message, remedy)
    if subject.settings.disabled:
        yield fail(
            "settings",
            "OTEL_AUDIT_DISABLED is set: nothing at all is recorded",
            "unset it wherever something has to be audited",
        )
    if not subject.unusable and not subject.settings.remarks:
        yield ok("settings", "every variable that is set here is known and usable")


def versions() -> dict[str, str]:
    """Return the versions of what a trail depends on."""
    import apsw

    return {
        "otel-audit": __version__,
        "Python": platform.python_version(),
        "SQLite": apsw.sqlite_lib_version(),
        "apsw": apsw.apsw_version(),
        "OpenTelemetry": _installed("opentelemetry-sdk"),
    }


def _installed(package: str) -> str:
    """Ask the metadata: importing OpenTelemetry takes longer than everything else here."""
    try:
        return version(package)
    except PackageNotFoundError:  # pragma: no cover - it is a dependency
        return "not installed"
