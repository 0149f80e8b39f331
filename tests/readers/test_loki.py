"""Loki's client: who it says it is and to whom, pages, and answers that are none."""

from __future__ import annotations

import itertools
import ssl
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from otel_audit.errors import TrailError
from otel_audit.readers.loki import AT_A_TIME, WINDOW, Line, Loki, LokiRefusedError
from otel_audit.settings import Settings
from tests.readers.farend import HttpFarEnd, Reply, certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JSON = {"content-type": "application/json"}


class Held(HttpFarEnd):
    """Holds lines by their times, and gives them as Loki does; or another ``answer``, if any."""

    def __init__(self, *moments: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.moments = moments
        self.other: Reply | None = None

    def asked(self, path: str) -> Reply:
        if self.other is not None:
            return self.other
        wanted = {name: value[0] for name, value in parse_qs(urlsplit(path).query).items()}
        if "time" in wanted:
            series = [{"metric": {"a": "b"}, "value": [1, "3"]}]
            return Reply(200, JSON, orjson.dumps({"data": {"result": series}}))
        found = [
            [str(moment), f"{number}"]
            for number, moment in enumerate(self.moments)
            if int(wanted["start"]) <= moment < int(wanted["end"])
        ]
        found.sort(key=lambda line: int(line[0]), reverse=wanted["direction"] == "backward")
        streams = [{"stream": {"service_name": "hub"}, "values": found[: int(wanted["limit"])]}]
        return Reply(200, JSON, orjson.dumps({"data": {"result": streams}}))


@pytest.fixture
def held() -> Iterator[Held]:
    with Held(1, 2) as held:
        yield held


@pytest.fixture(params=["query_loki", "reconcile_loki"])
def wants(request: pytest.FixtureRequest) -> str:
    """Give the setting that names Loki: there are two, and one client."""
    return str(request.param)


def loki(url: str, wants: str = "query_loki", **environ: str) -> Loki:
    settings = Settings.from_env(environ, **{wants: url})
    where = {"query_loki": settings.query_with, "reconcile_loki": settings.reconcile_with}[wants]
    assert where is not None
    return Loki(where)


def test_a_redirect_is_an_error_and_takes_no_credentials_to_another_host(
    held: Held, wants: str
) -> None:
    with HttpFarEnd() as other:
        held.other = Reply(302, {"location": f"{other.url}/elsewhere"}, b"moved")
        asked = loki(held.url.replace("://", "://user:hidden@"), wants, LOKI_TENANT="secret")
        with pytest.raises(TrailError, match=f"answered 302: .*{other.url}/elsewhere") as caught:
            asked.numbers("x", 1)
        assert "hidden" not in str(caught.value)
        assert held.headers[0]["authorization"] == "Basic dXNlcjpoaWRkZW4="
        assert held.headers[0]["x-scope-orgid"] == "secret"
        assert other.headers == []


def test_all_that_is_said_of_loki_holds_when_it_is_asked(tmp_path: Path, wants: str) -> None:
    public, private = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    token = tmp_path / "token"
    token.write_text("t0ken\n", "utf-8")
    with Held(1, tls=context) as held:
        said = {"LOKI_TOKEN_FILE": str(token), "LOKI_HEADERS": "x-way=west", "LOKI_TENANT": "one"}
        asked = loki(held.url, wants, **said, LOKI_CERTIFICATE=str(public))
        assert asked.numbers("x", 1) == [({"a": "b"}, 3)]
        sent = held.headers[0]
        assert sent["authorization"] == "Bearer t0ken"
        assert (sent["x-way"], sent["x-scope-orgid"]) == ("west", "one")
        asked.close()
        with pytest.raises(TrailError, match=r"cannot be asked: .*certificate"):
            loki(held.url, wants, **said).numbers("x", 1)
    with Held() as proxy:
        loki("http://loki.example:3100/", wants, HTTP_PROXY=proxy.url).numbers("x", 1)
        assert proxy.paths[0].startswith("http://loki.example:3100/loki/api/v1/query?query=x")


def test_a_connection_is_kept(held: Held) -> None:
    asked = loki(held.url)
    for _ in range(3):
        assert asked.lines("x", 0, 9, oldest_first=True) == [
            Line(1, "0", {"service_name": "hub"}),
            Line(2, "1", {"service_name": "hub"}),
        ]
    assert len(held.peers) == 1


@pytest.mark.parametrize("oldest_first", [True, False])
def test_pages_have_each_line_once_and_moments_whole(held: Held, *, oldest_first: bool) -> None:
    crowd = [7 + WINDOW] * (3 * AT_A_TIME)
    held.moments = (*range(1, AT_A_TIME * 2), *crowd, 9 + WINDOW, 3 * WINDOW)
    pages = list(loki(held.url).pages("x", 1, 3 * WINDOW, oldest_first=oldest_first))
    found = [line.unix_nano for lines, _ in pages for line in lines]
    assert found == sorted(held.moments[:-1], reverse=not oldest_first)
    assert len({line.text for lines, _ in pages for line in lines}) == len(found)
    for (lines, turn), (following, _) in itertools.pairwise(pages):
        if oldest_first:
            assert all(line.unix_nano < turn for line in lines)
            assert all(line.unix_nano >= turn for line in following)
        else:
            assert all(line.unix_nano >= turn for line in lines)
            assert all(line.unix_nano < turn for line in following)
    assert pages[-1][1] == (3 * WINDOW if oldest_first else 1)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        b'{"data":{}}',
        b'{"data":{"result":[{"stream":{},"values":[["x"]]}]}}',
    ],
)
def test_what_is_not_lokis_answer_is_told(held: Held, body: bytes) -> None:
    held.other = Reply(200, JSON, body)
    with pytest.raises(
        TrailError, match=f"Loki at {held.url} answers with something .* not Loki's"
    ):
        loki(held.url).lines("x", 0, 1, oldest_first=True)


def test_what_loki_says_is_told(held: Held) -> None:
    held.other = Reply(400, {}, b"parse\n error")
    with pytest.raises(LokiRefusedError, match="answered 400: parse error") as caught:
        loki(held.url).numbers("x", 1)
    assert caught.value.said == "parse error"
    held.other = Reply(429, {}, b"too many outstanding requests")
    with pytest.raises(TrailError, match="answered 429: too many outstanding") as others:
        loki(held.url).numbers("x", 1)
    assert not isinstance(others.value, LokiRefusedError)
