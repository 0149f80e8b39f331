"""`python -m otel_audit.cli` does the same as `otel-audit`."""

from __future__ import annotations

from otel_audit.cli import main

main()
