"""What is said when Loki cannot be asked; tests/stack asks a real one."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from otel_audit.errors import AuditSettingsError, TrailError
from otel_audit.readers.loki_search import LokiSearch
from otel_audit.readers.query import Query
from tests.cli.conftest import Cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("url", ["loki", "ftp://loki", "http://", "file:///etc/passwd", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AuditSettingsError, match="looks like http"):
        LokiSearch(url)


class Broken(BaseHTTPRequestHandler):
    """Answers as no Loki should."""

    def do_GET(self) -> None:
        bad = "limit=1000" in self.path and "start=1&" in self.path
        body = b"parse error" if bad else b"<html>not JSON</html>"
        self.send_response(400 if bad else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_loki_that_does_not_answer_well_is_an_error_that_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(TrailError, match="answered 400: parse error"):
        LokiSearch(url).page(Query(start=1, end=1000))
    with pytest.raises(TrailError, match="cannot be asked"):
        LokiSearch(url).page(Query(start=2, end=1000))
    server.shutdown()
    server.server_close()
    thread.join()
    with pytest.raises(TrailError, match="is the address right"):
        list(LokiSearch(url).stream(Query()))
    shown = Cli(capsys, tmp_path).bare("query", "--loki", url, code=3)
    assert "is the address right" in shown.err
