"""One Loki over HTTP: lines and counts for queries in LogQL.

Promises: what Loki does not answer is a `TrailError` that says why, and what it
refuses a `LokiRefusedError` with its words. Which queries are asked, and what
their answers mean, is left to others.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import orjson

from otel_audit.destinations import shown_address, without_credentials
from otel_audit.errors import AuditSettingsError, TrailError

AT_A_TIME: Final = 1_000
"""Lines of one answer, of 5,000 that Loki gives at most."""

_TIMEOUT: Final = 30.0


class LokiRefusedError(TrailError):
    """Loki does not answer this query; ``said`` is what it says about it."""

    def __init__(self, message: str, said: str) -> None:
        """Keep Loki's words."""
        super().__init__(message)
        self.said = said


def unreachable(url: str, reason: object) -> TrailError:
    """Return the error of a Loki that does not answer, the same for whoever asks it."""
    where = shown_address(url.removesuffix("/loki/api/v1/query_range"))
    why = str(reason).removeprefix(f"{where}: ")
    return TrailError(f"Loki at {where} cannot be asked: {why}; is the address right?")


class Line(NamedTuple):
    """One line; ``labels`` are its stream's labels and its structured metadata."""

    unix_nano: int
    text: str
    labels: dict[str, str]


class LokiSite:
    """One Loki to ask; usable from several threads."""

    def __init__(self, url: str, *, tenant: str) -> None:
        """Take Loki's address, such as ``http://loki:3100``. Raises `AuditSettingsError`.

        It may have a user and a password, which no message shows.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            message = (
                f"{shown_address(url)!r} is no address of a Loki; it looks like http://loki:3100"
            )
            raise AuditSettingsError(message)
        address, basic = without_credentials(url)
        self._url = address.rstrip("/")
        self._headers = {"X-Scope-OrgID": tenant}
        if basic is not None:
            self._headers["Authorization"] = basic

    def lines(
        self, logql: str, start: int, end: int, *, oldest_first: bool, limit: int = AT_A_TIME
    ) -> list[Line]:
        """Return up to ``limit`` lines from ``start`` until before ``end``, in this order."""
        answer = self._get(
            "query_range",
            query=logql,
            start=start,
            end=end,
            limit=limit,
            direction="forward" if oldest_first else "backward",
        )
        lines = [
            Line(int(moment), line, stream["stream"])
            for stream in answer["data"]["result"]
            for moment, line, *_ in stream["values"]
        ]
        lines.sort(key=lambda line: line.unix_nano, reverse=not oldest_first)
        return lines

    def numbers(self, logql: str, at: int) -> list[tuple[dict[str, str], int]]:
        """Return labels and value of each series of a metric query, as of one nanosecond."""
        answer = self._get("query", query=logql, time=at)
        return [
            (series["metric"], int(float(series["value"][1])))
            for series in answer["data"]["result"]
        ]

    def _get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        address = f"{self._url}/loki/api/v1/{path}?{urlencode(parameters)}"
        request = Request(address, headers=self._headers)  # noqa: S310 - the scheme was checked
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310 - the same
                answer: dict[str, Any] = orjson.loads(response.read())
        except HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace").strip()
            message = f"Loki at {self._url} answered {error.code}: {said}"
            if error.code == 400:  # noqa: PLR2004 - what Loki says to queries that it cannot take
                raise LokiRefusedError(message, said) from error
            raise TrailError(message) from error
        except (URLError, OSError, ValueError) as error:
            raise unreachable(self._url, getattr(error, "reason", error)) from error
        return answer
