"""Each overlay of the Collector: accepted by the real one, and doing what it is for."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import ssl
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from collector.stack.build import COLLECTOR, MANIFEST
from collector.stack.servers import HOST, OVERLAYS, Collector, Loki, ServerError
from tests.stack import measured, traffic
from tests.stack.sinks import GrpcSink, HttpSink, SyslogSink
from tests.stack.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from otel_audit.record.semconv import OtelLogRecord

ALL = sorted(OVERLAYS.glob("*.yaml"))
SIEM = [one for one in ALL if one.name.startswith("siem-")]


@pytest.mark.parametrize("overlay", ALL, ids=lambda one: one.name)
def test_the_collector_accepts_it(overlay: Path, tmp_path: Path) -> None:
    Collector(tmp_path, overlays=[overlay]).validate()


def test_a_mistake_is_not_accepted(tmp_path: Path) -> None:
    overlay = tmp_path / "mistake.yaml"
    overlay.write_text("exporters: {otlp_http/loki: {retry_on_failure: {for_ever: true}}}")
    with pytest.raises(ServerError, match="for_ever"):
        Collector(tmp_path / "collector", overlays=[overlay]).validate()


@pytest.mark.parametrize("overlay", SIEM, ids=lambda one: one.name)
def test_a_siem_output_gives_nothing_up(overlay: Path) -> None:
    for name, exporter in yaml.safe_load(overlay.read_text())["exporters"].items():
        assert exporter["retry_on_failure"]["max_elapsed_time"] == 0, name
        queue = exporter["sending_queue"]
        assert queue["storage"] == "file_storage/audit", name
        assert queue["block_on_overflow"], name


def test_the_manifest_has_nothing_that_is_not_used() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    texts = [one.read_text() for one in (*ALL, COLLECTOR.parent / "otel-collector-config.yaml")]
    used = {
        section: {
            name.split("/")[0] for text in texts for name in yaml.safe_load(text).get(section, {})
        }
        for section in ("receivers", "processors", "exporters", "extensions")
    }
    assert {section: len(names) for section, names in used.items()} == {
        section: len(manifest[section]) for section in used
    }


def some_records() -> list[OtelLogRecord]:
    with traffic.trail() as trail:
        traffic.business(trail, 2)
        return traffic.log_records(trail)


def test_every_siem_gets_every_record_as_it_is_in_the_trail(tmp_path: Path) -> None:
    """All of them at a time, since each has a pipeline of its own."""
    with ExitStack() as running:
        splunk = running.enter_context(HttpSink(b'{"text":"Success","code":0}').serving())
        elasticsearch = running.enter_context(HttpSink().serving())
        other = running.enter_context(HttpSink().serving())
        opensearch = running.enter_context(GrpcSink().serving())
        syslog = running.enter_context(SyslogSink().serving())
        loki = running.enter_context(Loki(tmp_path / "loki"))
        settings = {
            "SPLUNK_HEC_ENDPOINT": f"{splunk.url}/services/collector",
            "SPLUNK_HEC_TOKEN": "abc",
            "ELASTICSEARCH_OTLP_ENDPOINT": f"{elasticsearch.url}/_otlp",
            "ELASTICSEARCH_API_KEY": "key",
            "OPENSEARCH_OTLP_ENDPOINT": f"{HOST}:{opensearch.port}",
            "OPENSEARCH_INSECURE": "true",
            "OPENSEARCH_AUTHORIZATION": "Basic dTpw",
            "SIEM_OTLP_ENDPOINT": other.url,
            "SIEM_AUTHORIZATION": "Bearer siem",
            "SYSLOG_HOST": HOST,
            "SYSLOG_PORT": str(syslog.port),
            "SYSLOG_INSECURE": "true",
        }
        collector = running.enter_context(
            Collector(tmp_path / "collector", loki=loki, overlays=SIEM, settings=settings)
        )
        records = some_records()
        sent = sorted(one.body for one in records)
        traffic.send(collector.audit_endpoint, records, {"Authorization": collector.authorization})
        wait_until(lambda: len(splunk.events()) == len(sent))
        wait_until(lambda: len(elasticsearch.bodies()) == len(sent))
        wait_until(lambda: len(other.bodies()) == len(sent))
        wait_until(lambda: len(opensearch.bodies()) == len(sent))
        wait_until(lambda: len(syslog.messages) == len(sent))
        wait_until(lambda: len(loki.entries()) == len(sent))
    assert sorted(one["event"] for one in splunk.events()) == sent
    assert {one["sourcetype"] for one in splunk.events()} == {"otel-audit"}
    assert splunk.requests[0][1]["Authorization"] == "Splunk abc"
    assert sorted(elasticsearch.bodies()) == sent
    path, headers, _ = elasticsearch.requests[0]
    assert (path, headers["Authorization"]) == ("/_otlp/v1/logs", "ApiKey key")
    assert sorted(other.bodies()) == sent
    assert other.requests[0][1]["Authorization"] == "Bearer siem"
    assert sorted(opensearch.bodies()) == sent
    assert opensearch.metadata[0]["authorization"] == "Basic dTpw"
    check_syslog(syslog.messages, records)


def check_syslog(messages: list[str], records: list[OtelLogRecord]) -> None:
    """Hold the messages against RFC 5424: header fields, and the body as the message."""
    pattern = re.compile(
        r"<(\d+)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z (\S+) (\S+) - (\S{1,32}) - (.*)\n",
        re.DOTALL,
    )
    parsed = [pattern.fullmatch(message) for message in messages]
    assert all(parsed), messages
    found = sorted((one[5], one[4], int(one[1]), one[3]) for one in parsed if one)
    severities = {"info": 6, "warning": 4, "error": 3, "critical": 2, "debug": 7}
    expected = sorted(
        (one.body, one.event_name, 13 * 8 + severities[one.severity_text], traffic.SERVICE)
        for one in records
    )
    assert found == expected


class Authority:
    """A certificate authority of this test."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / "ca.pem"
        made = self._make(self._name, self._key.public_key(), authority=True)
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._make(subject, key.public_key(), authority=False)
        certificate, file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, file

    def _make(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        address = x509.IPAddress(ipaddress.ip_address(HOST))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def test_mtls_asks_for_a_certificate_and_the_token(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "theirs", "theirs")
    certificate, key = ours.issue("collector")
    settings = {
        "AUDIT_TLS_CERT_FILE": str(certificate),
        "AUDIT_TLS_KEY_FILE": str(key),
        "AUDIT_TLS_CLIENT_CA_FILE": str(ours.certificate),
    }

    def context(client: tuple[Path, Path] | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=ours.certificate)
        if client:
            made.load_cert_chain(*client)
        return made

    overlay = OVERLAYS / "mtls.yaml"
    with (
        Loki(tmp_path / "loki") as loki,
        Collector(
            tmp_path / "collector", loki=loki, overlays=[overlay], settings=settings
        ) as collector,
    ):
        endpoint = collector.audit_endpoint.replace("http:", "https:")
        allowed = {"Authorization": collector.authorization}
        records = some_records()
        for client in (None, theirs.issue("stranger")):
            with pytest.raises(httpx.TransportError):
                traffic.send(endpoint, records, allowed, tls=context(client))
        shop = context(ours.issue("shop"))
        with pytest.raises(traffic.Refused, match="401"):
            traffic.send(endpoint, records, tls=shop)
        traffic.send(endpoint, records, allowed, tls=shop)
        wait_until(lambda: len(loki.entries()) == len(records))


def test_for_prometheus_2_nothing_is_sent_and_all_can_be_scraped(tmp_path: Path) -> None:
    overlay = OVERLAYS / "prometheus2.yaml"
    once = threading.Event()
    once.set()
    with Collector(tmp_path, overlays=[overlay]) as collector:
        measured.report(collector.otlp_endpoint, traffic.SERVICE, once)
        time.sleep(1.5)
        scraped = httpx.get(f"http://{collector.scrape_address}/metrics", trust_env=False).text
        assert "otlp_http/prometheus" not in collector.metrics()
    assert re.search(
        r'^audit_records_emitted_total\{.*service_name="shop".*\} 100$', scraped, re.MULTILINE
    )
