"""Paging, repetition and failures of Loki's answers; tests/stack asks a real one."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from otel_audit.destinations import Destination
from otel_audit.errors import QueryError, TrailError
from otel_audit.readers.query.model import Entry, Query
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import stamp
from otel_audit.readers.search.logql import counting
from otel_audit.readers.search.loki import LokiSearch
from otel_audit.readers.search.trail import TrailSearch
from tests.cli.conftest import Cli
from tests.readers.ledger import SECOND, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def search(url: str) -> LokiSearch:
    return LokiSearch(Destination("loki", url, "X"))


class Broken(BaseHTTPRequestHandler):
    """Answers as no Loki should."""

    def do_GET(self) -> None:
        bad = "start=1&" in self.path
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
        search(url).page(Query(start=1, end=1000))
    with pytest.raises(TrailError, match="not Loki's"):
        search(url).page(Query(start=2, end=1000))
    server.shutdown()
    server.server_close()
    thread.join()
    with pytest.raises(TrailError, match="is the address right"):
        list(search(url).stream(Query()))
    shown = Cli(capsys, tmp_path).bare("query", "--loki", url, code=3)
    assert "is the address right" in shown.err


class Shelf(BaseHTTPRequestHandler):
    """Gives the lines of a range as Loki does: so many, in the direction that is asked for.

    It counts nothing, so that who wants a count has to read.
    """

    lines: ClassVar[list[tuple[int, str]]] = []

    asked_by: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.asked_by.add(self.headers["authorization"])
        asked = {name: value[0] for name, value in parse_qs(urlsplit(self.path).query).items()}
        if "direction" not in asked:
            self.answer(400, b"it cannot count")
            return
        found = [
            [str(moment), line]
            for moment, line in sorted(self.lines, reverse=asked["direction"] == "backward")
            if int(asked["start"]) <= moment < int(asked["end"])
        ][: int(asked["limit"])]
        stream = {"service_name": "hub", "audit_sequence_number": "7"}
        self.answer(200, orjson.dumps({"data": {"result": [{"stream": stream, "values": found}]}}))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[tuple[TrailSearch, LokiSearch]]:
    """Put a trail's records on a shelf, some twice, and several of one moment."""
    ledger = Ledger(tmp_path / "trail")
    began = time.time_ns() - 3_600 * SECOND
    ledger.write(
        {**ledger.fields(number), "timestamp": stamp(began + number // 3 * SECOND)}
        for number in range(2_300)
    )
    Shelf.lines = []
    for leaf in ledger.reader.leaves():
        moment = began + leaf.sequence // 3 * SECOND
        Shelf.lines += [(moment, leaf.record.decode())] * (1 + (leaf.sequence % 50 == 0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    loki = search(f"http://127.0.0.1:{server.server_port}")
    yield TrailSearch(ledger.reader), loki
    loki.close()
    server.shutdown()
    server.server_close()
    thread.join()
    ledger.close()


def test_a_loki_behind_a_password_is_asked_with_it_and_no_message_shows_it(
    shelf: tuple[TrailSearch, LokiSearch], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = shelf[1]._loki._site.url.replace("://", "://us%40er:hidden@")
    Shelf.asked_by.clear()
    shown = Cli(capsys, tmp_path).bare("query", "--loki", url, "-n", "2", "--verbose")
    assert len(shown.out.splitlines()) >= 2
    assert Shelf.asked_by == {"Basic dXNAZXI6aGlkZGVu"}
    assert "hidden" not in shown.err
    gone = Cli(capsys, tmp_path).bare("query", "--loki", "http://u:hidden@127.0.0.1:1", code=3)
    assert "hidden" not in gone.err
    wrong = Cli(capsys, tmp_path).bare("query", "--loki", "ftp://u:hidden@loki", code=2)
    assert "hidden" not in wrong.err


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("more", [[], [("outcome", "failure")], [("q", "handshake*")]])
def test_the_same_query_has_the_same_answer(
    shelf: tuple[TrailSearch, LokiSearch], order: str, more: list[tuple[str, str]]
) -> None:
    trail, loki = shelf
    query, _ = parse([("start", "-2h"), ("limit", "70"), ("order", order), *more])
    expected = sorted(entry.record for entry in trail.stream(query))
    assert sorted(entry.record for entry in loki.stream(query)) == expected
    found: list[Entry] = []
    position: int | None = None
    while True:
        page = loki.page(query, position)
        found += page.entries
        position = page.next_position
        if position is None:
            break
        assert 70 <= len(page.entries) < 74
    assert sorted(entry.record for entry in found) == expected
    times = [entry.fields["timestamp"] for entry in found]
    assert times == sorted(times, reverse=order == "newest")
    assert found[0].sequence == 7
    for by, per in ((None, None), ("event", None), (None, 60 * SECOND)):
        assert loki.count(query, by=by, per=per) == trail.count(query, by=by, per=per)


def test_a_search_without_time_says_where_it_goes_on(
    shelf: tuple[TrailSearch, LokiSearch],
) -> None:
    _, loki = shelf
    query, _ = parse([("start", "-2h"), ("event", "none")])
    page = loki.page(query, seconds=0)
    assert (page.entries, page.complete) == ([], False)
    assert page.next_position is not None
    with pytest.raises(QueryError, match="too long"):
        loki.count(parse([("start", "-2h")])[0], seconds=0)
    assert loki.progress().size == 0


def test_what_is_to_come_is_not_asked_for(shelf: tuple[TrailSearch, LokiSearch]) -> None:
    _, loki = shelf
    query, _ = parse([("start", "+1d")])
    assert loki.count(query) == {}
    assert loki.page(query).entries == []


@pytest.mark.parametrize(
    ("parameters", "by"),
    [
        ([("q", "word")], None),
        ([("actor", "")], None),
        ([("field.a b", "x")], None),
        ([], "a b"),
        ([], "ö"),
        ([], 'x"y'),
    ],
)
def test_what_logql_cannot_say_is_read(parameters: list[tuple[str, str]], by: str | None) -> None:
    assert counting(parse(parameters)[0], by, None) is None


def test_logql_says_what_is_asked() -> None:
    query, _ = parse([("action", "a*"), ("outcome!", "success"), ("field.n", '5"')])
    found = counting(query, "event", 60 * SECOND)
    assert found is not None
    assert found.over(found.distinct, 1_500) == (
        "count by (asked_value, asked_bucket) (count by (asked_value, asked_bucket, asked_id) ("
        'count_over_time({service_name=~".+"} |= `"schema":"otel-audit/` |= "5\\\\\\"" '
        '| json asked_id="[\\"record_id\\"]", asked_0="[\\"action\\"]", asked_1="[\\"event\\"]", '
        'asked_2="[\\"n\\"]", asked_3="[\\"outcome\\"]", asked_value="[\\"event\\"]" '
        '| ((asked_0=~"(?s)a.*" and asked_0!="") or (asked_1=~"(?s)a.*" and asked_1!="")) '
        '| (asked_2="5\\"") '
        '| (asked_3!="success") '
        "| label_format asked_bucket=`{{ div (unixEpochNanos __timestamp__) 60000000000 }}` "
        "[1500ms])))"
    )
