"""Real servers for each test; README.md beside this file says how to use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.stack.servers import Collector, Loki, Prometheus, Prometheus2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus 3, empty."""
    with Prometheus(tmp_path / "prometheus") as server:
        yield server


@pytest.fixture
def prometheus2(tmp_path: Path) -> Iterator[Prometheus2]:
    """Debian's Prometheus 2.42, empty; tell it what to `scrape`."""
    with Prometheus2(tmp_path / "prometheus2") as server:
        yield server


@pytest.fixture
def loki(tmp_path: Path) -> Iterator[Loki]:
    """Loki, empty."""
    with Loki(tmp_path / "loki") as server:
        yield server


@pytest.fixture
def collector(tmp_path: Path, loki: Loki, prometheus: Prometheus) -> Iterator[Collector]:
    """Collector that sends to `loki` and `prometheus`, which scrapes it."""
    with Collector(tmp_path / "collector", loki=loki, prometheus=prometheus) as server:
        address = loki.url.removeprefix("http://")
        prometheus.scrape({"otelcol-audit": [server.metrics_address], "loki": [address]})
        yield server
