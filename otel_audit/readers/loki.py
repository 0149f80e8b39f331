"""One Loki over HTTP: lines and numbers for queries in LogQL.

Promises: `Loki.pages` gives every line that Loki has in a range, each once,
however many there are; what Loki does not answer is a `TrailError` that says
why, and what it refuses a `LokiRefusedError` with its words. Which queries are
asked, and what their answers mean, is left to others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode

import orjson

from otel_audit.errors import TrailError
from otel_audit.readers.shipping.otlp.web import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.destinations import Destination

_T = TypeVar("_T")

EVERY_STREAM: Final = '{service_name=~".+"}'
"""Selects the streams of all services; LogQL wants one selector at least."""

AT_A_TIME: Final = 500
"""Lines of one answer, which may have 64 KiB each; Loki gives 5,000 at most."""

WINDOW: Final = 28 * 86_400 * 1_000_000_000
"""Loki takes no longer range in one question (``max_query_length`` is 30 days and an hour)."""


class LokiRefusedError(TrailError):
    """Loki does not answer this query; ``said`` is what it says about it."""

    def __init__(self, message: str, said: str) -> None:
        """Keep Loki's words."""
        super().__init__(message)
        self.said = said


class Line(NamedTuple):
    """One line; ``labels`` are its stream's labels and its structured metadata."""

    unix_nano: int
    text: str
    labels: dict[str, str]


class Loki:
    """One Loki to ask. For one thread at a time."""

    def __init__(self, where: Destination) -> None:
        """Take where it is; nothing is opened yet."""
        self._site = Site(where)

    def close(self) -> None:
        """Close the connection; the next question opens a new one."""
        self._site.close()

    def pages(
        self, logql: str, low: int, high: int, *, oldest_first: bool = True
    ) -> Iterator[tuple[list[Line], int]]:
        """Yield all lines from ``low`` until before ``high``, and with each page where the next begins.

        Lines of one moment are on one page. With the newest first, pages begin
        with what is before their moment. Raises `TrailError`.
        """
        while low < high:
            if oldest_first:
                page, low = self._page(logql, low, min(high, low + WINDOW), oldest_first=True)
                yield page, low
            else:
                page, high = self._page(logql, max(low, high - WINDOW), high, oldest_first=False)
                yield page, high

    def _page(
        self, logql: str, low: int, high: int, *, oldest_first: bool
    ) -> tuple[list[Line], int]:
        limit = AT_A_TIME
        while True:
            lines = self.lines(logql, low, high, oldest_first=oldest_first, limit=limit)
            if len(lines) < limit:
                return lines, high if oldest_first else low
            last = lines[-1].unix_nano
            # More of the last moment may follow, so all of it is left to the next page.
            whole = [line for line in lines if line.unix_nano != last]
            if whole:
                return whole, last if oldest_first else last + 1
            limit *= 2

    def lines(
        self, logql: str, start: int, end: int, *, oldest_first: bool, limit: int = AT_A_TIME
    ) -> list[Line]:
        """Return up to ``limit`` lines from ``start`` until before ``end``, in this order."""
        found = self._ask(
            "query_range",
            _lines,
            query=logql,
            start=start,
            end=end,
            limit=limit,
            direction="forward" if oldest_first else "backward",
        )
        return sorted(found, key=_moment, reverse=not oldest_first)

    def numbers(self, logql: str, at: int) -> list[tuple[dict[str, str], int]]:
        """Return labels and value of each series of a metric query, as of one nanosecond."""
        return self._ask("query", _numbers, query=logql, time=at)

    def _ask(self, path: str, read: Callable[[Any], _T], **parameters: str | int) -> _T:
        loki = f"Loki at {self._site.url}"
        try:
            reply = self._site.ask("GET", f"/loki/api/v1/{path}?{urlencode(parameters)}")
        except OSError as error:
            why = str(error).removeprefix(f"{self._site.url}: ")
            message = f"{loki} cannot be asked: {why}; is the address right?"
            raise TrailError(message) from error
        if reply.status != 200:  # noqa: PLR2004 - HTTP's OK
            said = " ".join(reply.body[:500].decode(errors="replace").split())
            if "location" in reply.headers:
                said = f"it redirects to {reply.headers['location']}, which is not followed"
            message = f"{loki} answered {reply.status}: {said}"
            if reply.status == 400:  # noqa: PLR2004 - what Loki says to queries that it cannot take
                raise LokiRefusedError(message, said)
            raise TrailError(message)
        try:
            return read(orjson.loads(reply.body)["data"]["result"])
        except (ValueError, LookupError, TypeError) as error:
            message = f"{loki} answers with something that is not Loki's: {error!r}"
            raise TrailError(message) from error


def _lines(streams: Any) -> list[Line]:  # noqa: ANN401 - whatever somebody answers
    return [
        Line(int(moment), text, stream["stream"])
        for stream in streams
        for moment, text, *_ in stream["values"]
    ]


def _numbers(vector: Any) -> list[tuple[dict[str, str], int]]:  # noqa: ANN401 - whatever somebody answers
    return [(series["metric"], int(float(series["value"][1]))) for series in vector]


def _moment(line: Line) -> int:
    return line.unix_nano
