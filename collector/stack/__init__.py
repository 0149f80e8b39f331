"""Collector, Loki and Prometheus as plain processes, for ``make stack`` and for tests."""
