"""End to end: N answered to clients = N in the trail = N in Loki, byte for byte, after any fault."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from collector.stack.servers import Collector, Loki
from otel_audit import AuditLogger, AuditProvider, Settings
from tests.small_disk import mounted
from tests.stack.shop import ENDPOINT, HEADERS, Forgetful, Shop, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from collector.stack.servers import Prometheus, Prometheus2

HOUR = 3_600 * 10**9

pytestmark = pytest.mark.timeout(300)


def through(collector: Collector) -> dict[str, str]:
    """Ship to the Collector's audit port."""
    return {ENDPOINT: collector.audit_endpoint, HEADERS: f"Authorization={collector.authorization}"}


def straight(loki: Loki) -> dict[str, str]:
    """Ship to Loki's own OTLP endpoint."""
    return {"LOKI_ENABLED": "true", "LOKI_ENDPOINT": loki.url, "LOKI_TENANT": loki.tenant}


def reading(loki: Loki) -> dict[str, str]:
    return {"LOKI_TENANT": loki.tenant}


@pytest.fixture
def gateway(tmp_path: Path, loki: Loki) -> Iterator[Collector]:
    """Give a Collector that sends to Loki only."""
    with Collector(tmp_path / "gateway", loki=loki) as collector:
        yield collector


@pytest.fixture
def shop(tmp_path: Path, loki: Loki, gateway: Collector) -> Iterator[Shop]:
    """Give a service that ships through the Collector; a test starts it."""
    shop = Shop(tmp_path / "shop", **through(gateway), **reading(loki))
    yield shop
    shop.end()


def test_all_arrive_through_the_collector(shop: Shop, loki: Loki) -> None:
    with shop:
        shop.order(200)
    shop.check(loki)


def test_all_arrive_by_grpc(tmp_path: Path, loki: Loki, gateway: Collector) -> None:
    environment = through(gateway) | {
        ENDPOINT: gateway.audit_grpc_endpoint,
        "OTEL_EXPORTER_OTLP_AUDIT_PROTOCOL": "grpc",
    }
    with Shop(tmp_path / "shop", **environment, **reading(loki)) as shop:
        shop.order(100)
        shop.check(loki)


def test_all_arrive_straight_in_loki(tmp_path: Path, loki: Loki) -> None:
    with Shop(tmp_path / "shop", **straight(loki)) as shop:
        shop.order(100)
    shop.check(loki)


def test_two_ways_to_one_loki_show_each_record_once(
    tmp_path: Path, loki: Loki, gateway: Collector
) -> None:
    with Shop(tmp_path / "shop", **through(gateway), **straight(loki)) as shop:
        shop.order(50)
        time.sleep(2)
    shop.check(loki)


def test_the_collector_is_down_for_the_whole_run(
    shop: Shop, loki: Loki, gateway: Collector
) -> None:
    gateway.stop()
    with shop:
        shop.order(100)
        trouble = shop.standing()
        assert trouble["waiting"] == 100
        assert "refused" in trouble["trouble"]
    assert shop.in_loki(loki) == []
    gateway.start()
    with shop:
        shop.check(loki)


def test_loki_is_down_and_the_collector_killed_in_between(
    shop: Shop, loki: Loki, gateway: Collector
) -> None:
    with shop:
        shop.order(50)
        loki.stop()
        shop.order(100)
        wait_for(lambda: shop.standing()["waiting"] == 0, what="delivery to the Collector")
        gateway.kill()
        shop.order(50)
        gateway.start()
        shop.order(50)
        loki.start()
        shop.check(loki)


def test_the_token_is_wrong_for_a_while(shop: Shop, loki: Loki, gateway: Collector) -> None:
    right = gateway.token
    gateway.change_token("another-token")
    time.sleep(2)
    with shop:
        shop.order(50)
        wait_for(lambda: "401" in shop.standing()["trouble"], what="a refusal")
        assert shop.standing()["set_aside"] == 0
        gateway.change_token(right)
        shop.check(loki)
    assert "shipping to 'otlp' failed" in shop.log.read_text()


def test_the_collectors_queue_is_full(tmp_path: Path, loki: Loki) -> None:
    # More than one request, which may have 2 MiB: what is larger than the queue never fits.
    full = {"AUDIT_QUEUE_BYTES": "3000000"}
    with Collector(tmp_path / "gateway", loki=loki, settings=full) as small:
        environment = through(small) | {
            "OTEL_EXPORTER_OTLP_AUDIT_TIMEOUT": "2",
            "SHOP_PAD": "1000",
        }
        with Shop(tmp_path / "shop", **environment, **reading(loki)) as shop:
            loki.stop()
            # A fast machine has two full batches of 2,000 on their way before anything waits.
            for _ in range(60):
                shop.order(100)
                if shop.standing()["trouble"]:
                    break
            wait_for(lambda: shop.standing()["trouble"], what="a full queue")
            assert shop.standing()["waiting"] > 0
            loki.start()
            wait_for(lambda: shop.standing()["waiting"] == 0, what="delivery to the Collector")
            # A Collector whose disk is full may lose what it has answered with 200 (seen with
            # v0.159 and a queue that is larger than its disk). Only reconciliation can know.
            wait_for(lambda: repaired(shop, loki), 120, what="repair")
            shop.check(loki)
            assert shop.standing()["set_aside"] == 0


def test_the_disk_of_the_collectors_queue_is_full(tmp_path: Path, loki: Loki) -> None:
    # Somebody else's file fills the file system, while the Collector believes that it has room.
    queue = tmp_path / "gateway" / "queue"
    with mounted(queue, "24m"), Collector(tmp_path / "gateway", loki=loki) as gateway:
        environment = through(gateway) | {
            "OTEL_EXPORTER_OTLP_AUDIT_TIMEOUT": "2",
            "SHOP_PAD": "1000",
        }
        with Shop(tmp_path / "shop", **environment, **reading(loki)) as shop:
            shop.order(100)
            loki.stop()
            ballast = queue / "ballast"
            fill_up(ballast)
            for _ in range(20):
                shop.order(100)
                if shop.standing()["trouble"]:
                    break
            wait_for(lambda: shop.standing()["trouble"], what="a full disk")
            assert shop.standing()["waiting"] > 0
            loki.start()
            ballast.unlink()
            wait_for(lambda: shop.standing()["waiting"] == 0, 120, what="delivery")
            # What the Collector had answered and could not write down, reconciliation finds.
            wait_for(lambda: repaired(shop, loki), 120, what="repair")
            shop.check(loki)
            assert shop.standing()["set_aside"] == 0


def fill_up(ballast: Path) -> None:
    """Write until the file system has no byte left."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(ballast.parent).f_bavail == 0


def repaired(shop: Shop, loki: Loki) -> bool:
    """Do what the agent does on a schedule; whether nothing was left to do."""
    ok: bool = shop.command("reconcile", "--loki", loki.url, "--repair", code=None)["ok"]
    return ok and shop.standing()["to_be_sent_again"] == 0


def test_the_application_is_killed_while_it_ships(shop: Shop, loki: Loki) -> None:
    shop.start()
    clients = [threading.Thread(target=shop.order, args=(2_000,)) for _ in range(4)]
    for client in clients:
        client.start()
    wait_for(lambda: len(shop.answered) > 300, what="some orders")
    shop.end(signal.SIGKILL)
    for client in clients:
        client.join()
    with shop:
        shop.check(loki, all_answered=False)


def test_answers_are_lost_after_the_records_were_stored(tmp_path: Path, loki: Loki) -> None:
    with Forgetful(loki.port, losses=3) as proxy:
        environment = straight(loki) | {"LOKI_ENDPOINT": f"http://127.0.0.1:{proxy.port}"}
        with Shop(tmp_path / "shop", **environment) as shop:
            shop.order(50)
            wait_for(lambda: shop.standing()["waiting"] == 0, what="delivery")
            assert proxy.lost == 3
        shop.check(loki)


def test_the_clock_jumps_by_hours(tmp_path: Path, loki: Loki, gateway: Collector) -> None:
    environment = through(gateway) | {"SHOP_SKEW_HOURS": "0,-5,12,-70,3"}
    with Shop(tmp_path / "shop", **environment, **reading(loki)) as shop:
        shop.order(100)
        shop.check(loki)


def recorded(directory: Path, times: list[int], **environment: str) -> Shop:
    """Write a trail whose records were made at these times; nobody ships it yet."""
    now = [times[0]]
    shop = Shop(directory, **environment)
    settings = Settings.from_env(
        {
            "OTEL_AUDIT_DIR": str(shop.directory),
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_AUDIT_AGENT": "off",
        }
    )
    provider = AuditProvider(settings, clock=lambda: now[0])
    audit = AuditLogger(provider=provider)
    for number, moment in enumerate(times):
        now[0] = moment
        receipt = audit.audit_event("order.placed", "create", "order", f"o-{number}")
        shop.answered.append(receipt.record_id)
    provider.close()
    return shop


def test_records_are_older_than_lokis_window(tmp_path: Path, loki: Loki) -> None:
    now = time.time_ns()
    times = [now - days * 24 * HOUR for days in (29, 20, 9, 8, 6, 1, 0)]
    shop = recorded(tmp_path / "shop", times, **straight(loki))
    with shop:
        shop.check(loki)


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Loki]:
    """Give a Loki that refuses lines of more than 900 bytes."""
    with Loki(tmp_path / "strict") as loki:
        text = loki.configuration.read_text()
        assert "max_line_size: 1MB" in text
        loki.configuration = loki.directory / "strict.yaml"
        loki.configuration.write_text(text.replace("max_line_size: 1MB", "max_line_size: 900B"))
        loki.stop()
        loki.start()
        yield loki


def tolerate(strict: Loki) -> None:
    """Let it take long lines from now on."""
    text = strict.configuration.read_text()
    strict.stop()
    strict.configuration.write_text(text.replace("max_line_size: 900B", "max_line_size: 1MB"))
    strict.start()


def with_a_long_one(shop: Shop) -> bytes:
    """Place orders, among them one whose record is too long for a strict Loki."""
    shop.order(20)
    settings = Settings.from_env(
        {
            **shop.environment,
            "OTEL_AUDIT_AGENT": "off",
            "OTEL_AUDIT_EXPORTER": "none",
            "LOKI_ENABLED": "",
        }
    )
    provider = AuditProvider(settings)
    receipt = AuditLogger(provider=provider).audit_event(
        "order.placed", "create", "order", "long", note="x" * 2_000
    )
    provider.close()
    shop.answered.append(receipt.record_id)
    shop.order(20)
    return shop.records()[20]


def test_a_record_that_loki_refuses_is_set_aside_and_the_others_arrive(
    tmp_path: Path, strict: Loki
) -> None:
    with Shop(tmp_path / "shop", **straight(strict)) as shop:
        long = with_a_long_one(shop)
        wait_for(lambda: shop.standing()["waiting"] == 0, what="delivery")
        assert shop.standing()["set_aside"] == 1
        others = sorted(record for record in shop.records() if record != long)
        assert sorted(shop.in_loki(strict)) == others
        report = shop.command("reconcile", "--loki", strict.url)
        assert (report["ok"], report["found"]) == (True, 40)
        doctor = shop.command("doctor", code=None)
        assert any("refused 1 record" in check["message"] for check in doctor["checks"])
        tolerate(strict)
        shop.command("ship", "requeue")
        shop.check(strict)


def test_what_a_collector_had_to_drop_is_found_and_repaired(tmp_path: Path, strict: Loki) -> None:
    with (
        Collector(tmp_path / "gateway", loki=strict) as gateway,
        Shop(tmp_path / "shop", **through(gateway), **reading(strict)) as shop,
    ):
        with_a_long_one(shop)
        wait_for(lambda: shop.standing()["waiting"] == 0, what="delivery to the Collector")
        wait_for(lambda: len(shop.in_loki(strict)) == 40, what="delivery to Loki")
        report = shop.command("reconcile", "--loki", strict.url, code=1)
        assert report["missing_records"] == [20]
        tolerate(strict)
        report = shop.command("reconcile", "--loki", strict.url, "--repair", code=1)
        assert report["sent_again"] == 1
        shop.check(strict)


def test_what_was_changed_in_loki_is_found(shop: Shop, loki: Loki) -> None:
    """Whoever can write to Loki can add entries; no tree has them."""
    with shop:
        shop.order(10)
        shop.check(loki)
        first = json.loads(shop.records()[0])
        entry = [
            str(time.time_ns()),
            json.dumps({**first, "actor_id": "mallory"}),
            {"audit_sequence_stream_id": shop.origin, "audit_sequence_number": "0"},
        ]
        foreign = [entry[0], "{}", {"audit_sequence_stream_id": shop.origin}]
        import httpx

        pushed = httpx.post(
            f"{loki.url}/loki/api/v1/push",
            json={"streams": [{"stream": {"service_name": "x"}, "values": [entry, foreign]}]},
            headers={"X-Scope-OrgID": loki.tenant},
            trust_env=False,
        )
        assert pushed.status_code == 204, pushed.text
        wait_for(lambda: len(shop.in_loki(loki)) == 12, what="the entries")
        report = shop.command("reconcile", "--loki", loki.url, code=1)
        assert (report["altered"], report["foreign"], report["missing"]) == (1, 1, 0)


METRICS = (
    "audit_records_emitted_total",
    "audit_records_exported_total",
    "audit_records_dropped_total",
    "audit_queue_depth",
    "audit_export_duration_seconds_count",
    "otel_audit_commit_duration_seconds_count",
    "otel_audit_queue_age_seconds",
    "otel_audit_quarantine_size",
    "otel_audit_checkpoint_age_seconds",
    "otel_audit_checkpoint_pending",
    "otel_audit_reconcile_checked",
    "otel_audit_reconcile_missing",
    "otel_audit_reconcile_age_seconds",
)


def test_metrics_are_in_prometheus_3_and_in_prometheus_2(
    tmp_path: Path,
    loki: Loki,
    collector: Collector,
    prometheus: Prometheus,
    prometheus2: Prometheus2,
) -> None:
    prometheus2.scrape({"applications": [collector.scrape_address]})
    environment = {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.otlp_endpoint}/v1/metrics",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_AUDIT_RECONCILE_LOKI": loki.url,
    }
    with Shop(tmp_path / "shop", **environment, **through(collector), **reading(loki)) as shop:
        shop.order(60)
        for server in (prometheus, prometheus2):
            for name in METRICS:
                wait_for(lambda name=name, server=server: _of_the_shop(server, name), what=name)  # type: ignore[misc]
            wait_for(
                lambda server=server: _of_the_shop(server, "audit_records_emitted_total") >= [60.0],  # type: ignore[misc]
                what="60 records",
            )
            assert _of_the_shop(server, "audit_records_dropped_total") == [0.0, 0.0]


def _of_the_shop(server: Any, name: str) -> list[float]:
    found = server.query(f'{name}{{service_name="shop"}}') or server.query(f'{name}{{job="shop"}}')
    return sorted(value for _, value in found)


def test_the_agent_as_a_process_of_its_own_ships_and_measures(
    tmp_path: Path, loki: Loki, collector: Collector, prometheus: Prometheus
) -> None:
    import os
    import subprocess
    import sys

    environment = {
        **through(collector),
        **reading(loki),
        "OTEL_AUDIT_AGENT": "off",
    }
    with Shop(tmp_path / "shop", **environment) as shop:
        agent = subprocess.Popen(
            [sys.executable, "-m", "otel_audit.cli", "agent", "--wait"],
            env={
                **os.environ,
                **shop.environment,
                "OTEL_METRICS_EXPORTER": "otlp",
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.otlp_endpoint}/v1/metrics",
            },
        )
        try:
            shop.order(50)
            shop.check(loki)
            wait_for(
                lambda: _of_the_shop(prometheus, "audit_records_exported_total") == [50.0],
                what="the agent's metrics",
            )
        finally:
            agent.terminate()
            agent.wait(30)
