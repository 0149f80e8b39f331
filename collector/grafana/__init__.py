"""Grafana's dashboards as code: ``python -m collector.grafana`` writes dashboards/*.json."""
