"""Tests; the folders mirror otel_audit/."""
