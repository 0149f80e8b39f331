"""One HTTP server, spoken to patiently: TLS, tokens, proxies, slow answers."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace

from otel_audit.destinations import Destination
from otel_audit.readers.shipping.otlp.answer import LONGEST_WAIT, wait_asked
from otel_audit.readers.shipping.otlp.sender import HttpSender
from otel_audit.readers.shipping.otlp.web import Site
from tests.readers.farend import HttpFarEnd, Reply, certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def destination(url: str, **options: object) -> Destination:
    return Destination("otlp", f"{url}/v1/logs", "X", **options)  # type: ignore[arg-type]


def server_side(public: Path, private: Path, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    with HttpFarEnd(server_side(public, private)) as far_end:
        assert HttpSender(destination(far_end.url, certificate=public)).send(b"").verdict == (
            "delivered"
        )
        untrusted = HttpSender(destination(far_end.url)).send(b"")
        assert untrusted.verdict == "later"
        assert "certificate" in untrusted.reason.lower()


def test_a_client_certificate_is_shown_and_found_anew_when_it_was_renewed(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    client, key = certificate(tmp_path, name="client")
    with HttpFarEnd(server_side(public, private, client)) as far_end:
        missing = tmp_path / "later.crt"
        sender = HttpSender(
            destination(far_end.url, certificate=public, client_certificate=missing, client_key=key)
        )
        refused = sender.send(b"")
        assert refused.verdict == "later"
        missing.write_bytes(client.read_bytes())
        assert sender.send(b"").verdict == "delivered"
        anonymous = HttpSender(destination(far_end.url, certificate=public, timeout=2.0)).send(b"")
        assert anonymous.verdict == "later"


def test_a_token_is_read_anew_after_each_failure(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with HttpFarEnd() as far_end:
        sender = HttpSender(destination(far_end.url, token_file=token))
        assert f"{token} cannot be read" in sender.send(b"").reason
        token.write_text("old\n", encoding="utf-8")
        far_end.answers.append(Reply(401))
        assert "look at the token" in sender.send(b"").reason
        token.write_text("new\n", encoding="utf-8")
        assert sender.send(b"").verdict == "delivered"
        assert [each["authorization"] for each in far_end.headers] == ["Bearer old", "Bearer new"]


def test_user_and_password_of_an_address_are_sent_as_such() -> None:
    with HttpFarEnd() as far_end:
        url = far_end.url.replace("://", "://us%40er:pass@")
        sender = HttpSender(destination(url, compression="none"))
        assert sender.send(b"").verdict == "delivered"
        assert far_end.headers[0]["authorization"] == "Basic dXNAZXI6cGFzcw=="
        assert "content-encoding" not in far_end.headers[0]
        far_end.close()
        assert "pass" not in sender.send(b"").reason


def test_a_connection_is_kept() -> None:
    with HttpFarEnd() as far_end:
        sender = HttpSender(destination(far_end.url))
        for _ in range(3):
            assert sender.send(b"").verdict == "delivered"
        assert len(far_end.peers) == 1


def served(answer: Callable[[socket.socket], None]) -> int:
    """Answer one connection with raw bytes; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65_536)
            with suppress(OSError):  # who asked may have hung up
                answer(connection)

    threading.Thread(target=run, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("said", "dripped"),
    [
        (b"HTTP/1.1 200", b"x"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    ],
    ids=["status", "header", "headers", "continue", "body", "chunk's length", "trailers"],
)
@pytest.mark.parametrize("by", ["itself", "a proxy"])
def test_an_answer_that_trickles_is_not_waited_for_for_ever(
    said: bytes, dripped: bytes, by: str
) -> None:
    drops: list[bytes] = []
    hung_up = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(said)
        try:
            for _ in range(200):
                connection.sendall(dripped)
                drops.append(dripped)
                time.sleep(0.1)
        except OSError:
            hung_up.set()
            raise

    url = f"http://127.0.0.1:{served(trickle)}"
    where = (
        destination(url, timeout=0.2)
        if by == "itself"
        else destination("https://collector.example", proxy=url, timeout=0.2)
    )
    answer = HttpSender(where).send(b"")
    assert answer.verdict == "later"
    # It did not come to its end, nor to the hundred headers that are too many for Python.
    assert hung_up.wait(30)
    assert len(drops) < 90


def test_reading_slowly_and_answering_slowly_share_the_time() -> None:
    def dawdle(connection: socket.socket) -> None:
        time.sleep(0.4)
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            while connection.recv(1 << 20):
                pass
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    where = destination(f"http://127.0.0.1:{served(dawdle)}", timeout=0.6, compression="none")
    assert HttpSender(where).send(bytes(16 << 20)).verdict == "later"


def test_a_kept_connection_gives_each_request_all_its_time() -> None:
    with HttpFarEnd() as far_end:
        sender = HttpSender(destination(far_end.url, timeout=1.9))
        for _ in range(4):
            far_end.answers.append(Reply(wait=0.5))
            assert sender.send(b"").verdict == "delivered"
        assert len(far_end.peers) == 1


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nx"])
def test_what_is_no_http_is_no_success(said: bytes) -> None:
    port = served(lambda connection: connection.sendall(said))
    answer = HttpSender(destination(f"http://127.0.0.1:{port}", timeout=2.0)).send(b"")
    assert answer.verdict == "later"
    assert answer.reason


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nContent-Type: application/x-protobuf\r\n\r\n",
        b"HTTP/1.1 202 Accepted\ncontent-length: 0\n\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    ],
)
def test_an_empty_success_counts_when_its_headers_ended_and_not_only_the_connection(
    head: bytes,
) -> None:
    def judged(said: bytes) -> str:
        port = served(lambda connection: connection.sendall(said))
        return HttpSender(destination(f"http://127.0.0.1:{port}", timeout=5.0)).send(b"").verdict

    assert judged(head) == "delivered"
    assert {judged(head[:length]) for length in range(len(head))} == {"later"}


def test_a_proxy_is_used() -> None:
    with HttpFarEnd() as proxy:
        site = Site(destination("http://collector.example:4318", proxy=proxy.url))
        assert site.ask("POST", body=b"", headers={"content-type": "x"}).status == 200
        assert proxy.paths == ["http://collector.example:4318/v1/logs"]


def test_redirects_are_told_and_not_followed() -> None:
    with HttpFarEnd() as far_end, HttpFarEnd() as other:
        far_end.answers.append(Reply(308, {"location": other.url}))
        answer = HttpSender(destination(far_end.url)).send(b"")
        assert answer.verdict == "later"
        assert f"redirects to {other.url}" in answer.reason
        assert other.headers == []


def test_instrumented_http_clients_see_that_this_is_telemetry() -> None:
    from opentelemetry import context
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

    assert context.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is None
    with HttpFarEnd() as far_end:
        HttpSender(destination(far_end.url)).send(b"")
    assert context.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is None
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("999999", LONGEST_WAIT),
        ("soon", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 2100 23:59:59 GMT", LONGEST_WAIT),
        ("Fri, 31 Dec 2100 23:59:59", LONGEST_WAIT),
    ],
)
def test_retry_after(said: str | None, seconds: float) -> None:
    assert wait_asked(said) == seconds
