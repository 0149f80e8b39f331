"""Audit trail for Python services."""

from otel_audit._version import __version__

__all__ = ["__version__"]
