"""Run everything on this machine, without containers: ``make stack``.

Collector, Loki and Prometheus are plain processes on free loopback ports, and
the example application ships to them. Ctrl-C (or SIGTERM) ends them all, by
process id, in the order in which nothing is lost.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.stack.build import COLLECTOR, BuildError, binary
from collector.stack.servers import Collector, Loki, Prometheus, Server, ServerError
from examples.agenthub.services import DEMO_USERS

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA: Final = COLLECTOR.parent / ".cache" / "stack"
SERVICE: Final = "agenthub"
RECONCILE_SECONDS: Final = 60


class Hub(Server):
    """The example application, shipping to the Collector, compared with Loki each minute."""

    ready_path = "/"

    def __init__(self, directory: Path, *, collector: Collector, loki: Loki) -> None:
        super().__init__(directory)
        self._collector = collector
        self._loki = loki
        self.password = "-".join(secrets.token_hex(2) for _ in range(3))

    @property
    def trail(self) -> Path:
        """The trail's directory."""
        return self.directory / "data" / "logs" / "trail"

    def folder(self) -> Path:
        """Return where it is started: at the root of the checkout, which has the example."""
        return COLLECTOR.parent

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        module = "collector.stack.hub"
        return [sys.executable, "-m", module, "--port", str(self.port), "--new-password"]

    def environment(self) -> Mapping[str, str]:
        """Return where it ships to, by OpenTelemetry's own variables."""
        return {
            "AGENTHUB_DATA": str(self.directory / "data"),
            "AGENTHUB_PASSWORD": self.password,
            "OTEL_SERVICE_NAME": SERVICE,
            "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": self._collector.audit_endpoint,
            "OTEL_EXPORTER_OTLP_AUDIT_TOKEN_FILE": str(self._collector.token_file),
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": self._collector.otlp_endpoint + "/v1/metrics",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": self._collector.otlp_endpoint + "/v1/traces",
            "OTEL_AUDIT_RECONCILE_LOKI": self._loki.url,
            "OTEL_AUDIT_RECONCILE_INTERVAL": str(RECONCILE_SECONDS),
            "LOKI_TENANT": self._loki.tenant,
        }


def main() -> int:
    """Start everything, say where it is, and wait."""
    parser = argparse.ArgumentParser(prog="make stack", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="where everything is kept")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        for name in ("otelcol-audit", "loki", "prometheus"):
            binary(name)
        _run(arguments.data.absolute())
    except (BuildError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.")
    return 0


def _run(data: Path) -> None:
    with ExitStack() as running:
        print("Starting Prometheus, Loki, the Collector and the example ...", flush=True)
        prometheus = running.enter_context(Prometheus(data / "prometheus", interval="5s"))
        loki = running.enter_context(Loki(data / "loki", prometheus=prometheus))
        collector = running.enter_context(
            Collector(
                data / "collector",
                loki=loki,
                prometheus=prometheus,
                # Nobody takes traces here; say so in the log instead of trying again.
                overlays=[COLLECTOR / "overlays" / "traces-to-log.yaml"],
            )
        )
        prometheus.scrape(
            {
                "otelcol-audit": [collector.metrics_address],
                "loki": [loki.url.removeprefix("http://")],
            }
        )
        hub = running.enter_context(Hub(data / "hub", collector=collector, loki=loki))
        print(_banner(prometheus, loki, collector, hub), flush=True)
        hub.wait()
        print(f"The example has ended; its log ends with:\n{hub.log_tail()}", file=sys.stderr)


def _banner(prometheus: Prometheus, loki: Loki, collector: Collector, hub: Hub) -> str:
    programs = Path(sys.executable).parent
    lines = [
        "",
        f"  AgentHub     {hub.url}",
        f"               sign in as {', '.join(DEMO_USERS)}; password {hub.password}",
        f"  Collector    {collector.audit_endpoint} (OTLP/HTTP, audit; token in {collector.token_file})",
        f"               {collector.otlp_endpoint} (OTLP/HTTP, metrics and traces)",
        f"  Loki         {loki.url} (tenant {loki.tenant})",
        f"  Prometheus   {prometheus.url}",
        "",
        f"  Traffic      AGENTHUB_PASSWORD={hub.password} {programs}/python -m examples.agenthub.driver --url {hub.url}",
        f"  Records      curl -sG -H 'X-Scope-OrgID: {loki.tenant}' {loki.url}/loki/api/v1/query_range --data-urlencode 'query={{service_name=\"{SERVICE}\"}}'",
        f"  Metrics      curl -sG {prometheus.url}/api/v1/query --data-urlencode 'query=audit_queue_depth'",
        f"  Compare      LOKI_TENANT={loki.tenant} {programs}/otel-audit reconcile --dir {hub.trail} --loki {loki.url}",
        "  Grafana      not here: docker compose -f collector/compose.yaml up brings it with the rest",
        "",
        f"  Data and logs in {hub.directory.parent}; Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
