"""The trail over HTTP: what is asked, and how it is answered."""

from otel_audit.web.events.application import AuditEvents, audit_router

__all__ = ["AuditEvents", "audit_router"]
