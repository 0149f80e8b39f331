"""Real servers as plain processes, on free ports of the loopback interface.

Each class runs one server with the configuration of this folder, so what is
tested here is what is shipped. A server keeps its directory and its ports
when it is stopped, killed and started again, so that tests can take it away
and bring it back. Only processes that were started here are ended, by their
id.

```python
with Loki(directory / "loki") as loki, Collector(directory / "collector", loki=loki) as collector:
    ...  # send to collector.audit_endpoint with collector.token
    loki.entries()
```
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from collector.stack.build import COLLECTOR, binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from typing_extensions import Self

    Sample: TypeAlias = tuple[dict[str, str], float]

HOST: Final = "127.0.0.1"
CONFIGURATION: Final = COLLECTOR.parent / "otel-collector-config.yaml"
OVERLAYS: Final = COLLECTOR / "overlays"
START_SECONDS: Final = 90.0
"""A server that is not ready by then has failed; several share two cores here."""
STOP_SECONDS: Final = 30.0
PAGE: Final = 5_000
"""Entries that Loki gives at a time (its limit)."""


class ServerError(RuntimeError):
    """A server did not start, or answered with an error; says which and what it logged."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on, another one each time.

    Below those that Linux gives to connections (from 32768 on), one of which may
    come between this and the server's start.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - nobody has to be unable to guess it
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind((HOST, port))
            if port not in _given:
                _given.add(port)
                return port


_given: set[int] = set()


class Server:
    """One process, its directory, its log, and whether it is ready.

    Entering the context starts it, leaving the context stops it.
    """

    ready_path = "/ready"

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.log = directory / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its HTTP interface."""
        return f"http://{HOST}:{self.port}"

    @property
    def ready_url(self) -> str:
        """Where it says that it is ready."""
        return self.url + self.ready_path

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return what the configuration takes from the environment."""
        return {}

    def folder(self) -> Path:
        """Return where it is started."""
        return self.directory

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self, *, wait: bool = True) -> Self:
        """Start it and wait until it is ready.

        Raises ServerError when it ends, or is not ready within 90 seconds.
        """
        if self.running:
            return self
        command = self.command()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder(),
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the one who started us, who then stops the servers in order.
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Return once it answers; raise ServerError when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                state = "is not ready" if self.running else "has ended"
                message = f"{type(self).__name__} {state}; its log ends with:\n{self.log_tail()}"
                self.stop()
                raise ServerError(message)
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.ready_url, timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def wait(self) -> None:
        """Return when it has ended by itself."""
        assert self.process is not None
        self.process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End it as an operator does (SIGTERM), or by SIGKILL if it takes longer than 30 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the kernel does when memory is short (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Let it take connections and never answer (SIGSTOP)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.thaw()
        self.stop()

    def get(
        self,
        path: str,
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever JSON the server answers with
        """Ask its HTTP interface; return the JSON of the answer.

        Raises ServerError for anything but a success.
        """
        answer = httpx.get(
            self.url + path, params=parameters, headers=headers, timeout=60, trust_env=False
        )
        if not answer.is_success:
            message = f"{type(self).__name__} answered {answer.status_code}: {answer.text}"
            raise ServerError(message)
        return answer.json()


@dataclass(frozen=True)
class Entry:
    """One line in Loki."""

    unix_nano: int
    line: str
    labels: dict[str, str] = field(repr=False)
    """The stream's labels and the line's structured metadata together."""


class Loki(Server):
    """Loki with ``collector/loki/loki.yaml`` and the rules of its ruler."""

    tenant = "audit"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        prometheus: Prometheus | None = None,
        rules_interval: str = "1m",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port=port)
        self._grpc_port = free_port()
        self._prometheus = prometheus
        self._rules_interval = rules_interval
        self._settings = settings or {}
        self.configuration = COLLECTOR / "loki" / "loki.yaml"

    @property
    def otlp_endpoint(self) -> str:
        """What ``LOKI_ENDPOINT`` takes: logs go to ``/v1/logs`` below it."""
        return self.url + "/otlp"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [
            str(binary("loki")),
            f"-config.file={self.configuration}",
            "-config.expand-env=true",
        ]

    def environment(self) -> Mapping[str, str]:
        """Return what the configuration takes from the environment."""
        # Without Prometheus the ruler writes to a port where nobody listens, and says so.
        write = (self._prometheus or self).url + "/api/v1/write"
        return {
            "LOKI_HTTP_PORT": str(self.port),
            "LOKI_GRPC_PORT": str(self._grpc_port),
            "LOKI_DIR": str(self.directory / "data"),
            "LOKI_RULES_DIR": str(COLLECTOR / "loki" / "rules"),
            "LOKI_RULES_INTERVAL": self._rules_interval,
            "LOKI_LOG_LEVEL": "warn",
            "PROMETHEUS_WRITE_ENDPOINT": write,
            **self._settings,
        }

    def entries(
        self,
        query: str = '{service_name=~".+"}',
        *,
        start: int = 0,
        end: int | None = None,
        tenant: str | None = None,
    ) -> list[Entry]:
        """Return all lines that a LogQL log query finds, oldest first.

        ``start`` and ``end`` are nanoseconds since the Unix epoch; the
        defaults are all that a test would write: from 30 days ago to a year
        ahead. Pages of 5,000 lines are put together; lines of one nanosecond
        that stand on both sides of a page's end come once.
        """
        now = time.time_ns()
        start = start or now - 30 * 86_400 * 10**9
        end = end or now + 365 * 86_400 * 10**9
        found: dict[tuple[int, str, str], Entry] = {}
        while True:
            page = self._page(query, start, end, tenant or self.tenant)
            new = {(one.unix_nano, one.line, str(sorted(one.labels.items()))): one for one in page}
            fresh = new.keys() - found.keys()
            found.update(new)
            if len(page) < PAGE or not fresh:
                return sorted(found.values(), key=lambda one: one.unix_nano)
            start = max(one.unix_nano for one in page)

    def _page(self, query: str, start: int, end: int, tenant: str) -> list[Entry]:
        parameters: dict[str, str | int] = {
            "query": query,
            "start": start,
            "end": end,
            "limit": PAGE,
            "direction": "forward",
        }
        answer = self.get("/loki/api/v1/query_range", parameters, {"X-Scope-OrgID": tenant})
        return [
            Entry(int(at), line, stream["stream"])
            for stream in answer["data"]["result"]
            for at, line in stream["values"]
        ]

    def query(self, query: str, *, tenant: str | None = None) -> list[Sample]:
        """Return labels and value of each sample of a LogQL metric query, as of now."""
        answer = self.get(
            "/loki/api/v1/query",
            {"query": query},
            {"X-Scope-OrgID": tenant or self.tenant},
        )
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def alerts(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """Return the alerts of the ruler, as its API gives them."""
        answer = self.get(
            "/prometheus/api/v1/alerts", headers={"X-Scope-OrgID": tenant or self.tenant}
        )
        found: list[dict[str, Any]] = answer["data"]["alerts"]
        return found


class _Prometheus(Server):
    """What both versions have in common: one configuration folder, and PromQL."""

    ready_path = "/-/ready"
    source = ""

    def __init__(self, directory: Path, *, port: int | None = None, interval: str = "1s") -> None:
        super().__init__(directory, port=port)
        self._interval = interval
        self._rules_interval = interval
        self.scrape({})

    def scrape(self, targets: Mapping[str, Iterable[str]]) -> None:
        """Say what to scrape: job -> addresses (host and port). Takes effect within a second."""
        folder = self.directory / "targets"
        folder.mkdir(exist_ok=True)
        for job in ("alertmanager", "applications", "loki", "otelcol-audit"):
            written = folder / f"{job}.new"
            written.write_text(json.dumps([{"targets": sorted(targets.get(job, ()))}]))
            written.rename(folder / f"{job}.json")

    def arguments(self) -> list[str]:
        """Return the arguments that only this version takes."""
        return []

    def program(self) -> str:
        """Return the path of the program."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Write the configuration; return the program and its arguments."""
        text = (COLLECTOR / "prometheus" / self.source).read_text()
        for name in ("scrape_interval", "evaluation_interval"):
            assert f"{name}: 15s" in text
            text = text.replace(f"{name}: 15s", f"{name}: {self._interval}")
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(text)
        shutil.copytree(
            COLLECTOR / "prometheus" / "rules", self.directory / "rules", dirs_exist_ok=True
        )
        return [
            self.program(),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            *self.arguments(),
        ]

    def query(self, query: str, *, at: float | None = None) -> list[Sample]:
        """Return labels and value of each sample of a PromQL query.

        As of ``at``, in seconds since the Unix epoch, or of now.
        """
        answer = self.get("/api/v1/query", {"query": query, "time": str(at or time.time())})
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Return pending and firing alerts, as the API gives them."""
        found: list[dict[str, Any]] = self.get("/api/v1/alerts")["data"]["alerts"]
        return found


class Prometheus(_Prometheus):
    """Prometheus 3 with ``collector/prometheus/prometheus.yml``: takes OTLP."""

    source = "prometheus.yml"

    @property
    def otlp_endpoint(self) -> str:
        """Where it takes OTLP: metrics go to ``/v1/metrics`` below it."""
        return self.url + "/api/v1/otlp"

    def program(self) -> str:
        """Return the path of the program."""
        return str(binary("prometheus"))

    def arguments(self) -> list[str]:
        """Return the arguments that only this version takes."""
        return [
            "--web.enable-otlp-receiver",
            "--web.enable-remote-write-receiver",
            "--enable-feature=exemplar-storage",
        ]


class Prometheus2(_Prometheus):
    """Debian's Prometheus 2.42 with ``collector/prometheus/prometheus2.yml``: scrapes."""

    source = "prometheus2.yml"

    def program(self) -> str:
        """Return the path of the program."""
        found = shutil.which("prometheus")
        if found is None:
            message = "Prometheus 2 is not installed: tests/stack/setup installs Debian's package"
            raise ServerError(message)
        return found

    def arguments(self) -> list[str]:
        """Return the arguments that only this version takes."""
        return ["--enable-feature=exemplar-storage"]


class Collector(Server):
    """The Collector with ``otel-collector-config.yaml`` and any overlays.

    Sends to the Loki and Prometheus that it is given; without one, to an
    address where nobody listens. ``settings`` are further variables of the
    configuration, such as ``{"AUDIT_QUEUE_BYTES": "100000"}`` for a queue that
    is soon full; ``storage_bytes``, at least 1 MiB, stands for a disk that is.
    """

    ready_path = "/"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        loki: Loki | None = None,
        prometheus: Prometheus | None = None,
        overlays: Iterable[Path] = (),
        settings: Mapping[str, str] | None = None,
        token: str | None = None,
        storage_bytes: int | None = None,
    ) -> None:
        super().__init__(directory, port=port)
        self._loki = loki
        self._prometheus = prometheus
        self._overlays = tuple(overlays)
        if storage_bytes is not None:
            self._overlays += (self._small_disk(storage_bytes),)
        self._settings = dict(settings or {})
        self._nowhere = f"http://{HOST}:{free_port()}"
        self.token_file = directory / "token"
        known = self.token_file.read_text() if self.token_file.exists() else None
        self.token = token or known or secrets.token_urlsafe(24)
        self._ports = {
            name: free_port()
            for name in ("audit", "audit-grpc", "otlp", "otlp-grpc", "metrics", "scrape")
        }
        if self.token != known:
            self.change_token(self.token)

    def _small_disk(self, size: int) -> Path:
        # The configuration's thresholds for compaction are larger than such a disk.
        compaction = {"rebound_needed_threshold_mib": 1, "rebound_trigger_threshold_mib": 1}
        storage = {"max_size": size, "compaction": compaction}
        overlay = self.directory / "small-disk.yaml"
        overlay.write_text(json.dumps({"extensions": {"file_storage/audit": storage}}))
        return overlay

    def change_token(self, token: str) -> None:
        """Let it take another token; it reads the file anew within a moment."""
        self.token = token
        self.token_file.write_text(token)
        self.token_file.chmod(0o600)

    @property
    def audit_endpoint(self) -> str:
        """OTLP/HTTP for audit records: logs go to ``/v1/logs`` below it, with the token."""
        return f"http://{HOST}:{self._ports['audit']}"

    @property
    def audit_grpc_endpoint(self) -> str:
        """OTLP/gRPC for audit records, with the token."""
        return f"http://{HOST}:{self._ports['audit-grpc']}"

    @property
    def authorization(self) -> str:
        """The value of the header ``Authorization`` for the audit endpoints."""
        return f"Bearer {self.token}"

    @property
    def otlp_endpoint(self) -> str:
        """OTLP/HTTP for metrics and traces."""
        return f"http://{HOST}:{self._ports['otlp']}"

    @property
    def metrics_address(self) -> str:
        """Host and port of the Collector's own metrics."""
        return f"{HOST}:{self._ports['metrics']}"

    @property
    def scrape_address(self) -> str:
        """Host and port where Prometheus 2 scrapes the applications' metrics."""
        return f"{HOST}:{self._ports['scrape']}"

    @property
    def queue_directory(self) -> Path:
        """Where it keeps what Loki has not yet answered."""
        return self.directory / "queue"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [str(binary("otelcol-audit")), *self._configurations()]

    def _configurations(self) -> list[str]:
        return [f"--config={file}" for file in (CONFIGURATION, *self._overlays)]

    def environment(self) -> Mapping[str, str]:
        """Return what the configuration takes from the environment."""
        return {
            "AUDIT_HEALTH_ENDPOINT": f"{HOST}:{self.port}",
            "AUDIT_INGEST_TOKEN_FILE": str(self.token_file),
            "AUDIT_QUEUE_DIR": str(self.queue_directory),
            "AUDIT_OTLP_ENDPOINT": f"{HOST}:{self._ports['audit']}",
            "AUDIT_OTLP_GRPC_ENDPOINT": f"{HOST}:{self._ports['audit-grpc']}",
            "OTLP_GRPC_ENDPOINT": f"{HOST}:{self._ports['otlp-grpc']}",
            "OTLP_HTTP_ENDPOINT": f"{HOST}:{self._ports['otlp']}",
            "LOKI_OTLP_ENDPOINT": self._loki.otlp_endpoint if self._loki else self._nowhere,
            "PROMETHEUS_OTLP_ENDPOINT": (
                self._prometheus.otlp_endpoint if self._prometheus else self._nowhere
            ),
            "PROMETHEUS_SCRAPE_ENDPOINT": self.scrape_address,
            "TRACES_OTLP_ENDPOINT": self._nowhere,
            "OTELCOL_METRICS_HOST": HOST,
            "OTELCOL_METRICS_PORT": str(self._ports["metrics"]),
            **self._settings,
        }

    def validate(self) -> None:
        """Let it check its configuration; raises ServerError with what it says."""
        done = subprocess.run(
            [str(binary("otelcol-audit")), "validate", *self._configurations()],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            message = f"the Collector refuses its configuration: {done.stderr}"
            raise ServerError(message)

    def metrics(self) -> str:
        """Return the Collector's own metrics, in Prometheus's text format."""
        return httpx.get(f"http://{self.metrics_address}/metrics", timeout=30, trust_env=False).text
