"""Reading records back out of Loki.

`LokiReader.entries` promises every entry that Loki gives for the range, each
once, oldest first, however many there are; what Loki cannot answer is an
`OSError` that says why. What the entries should be is left to `reconcile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

import orjson

from otel_audit.readers.shipping.otlp.web import Site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otel_audit.destinations import Destination

_PAGE: Final = 500
"""Entries of one answer, which may have 64 KiB each; Loki gives 5,000 at most."""

_WINDOW: Final = 7 * 86_400 * 1_000_000_000
"""Nanoseconds of one query; Loki refuses more than 30 days unless told otherwise."""


class Entry(NamedTuple):
    """One entry; ``labels`` are its stream's labels and its structured metadata."""

    unix_nano: int
    line: str
    labels: Mapping[str, str]


class LokiReader:
    """Asks one Loki. For one thread at a time."""

    def __init__(self, destination: Destination) -> None:
        """Take the address of its query_range; nothing is opened yet."""
        self._site = Site(destination)
        self._address = destination.endpoint

    def entries(self, query: str, start: int, stop: int) -> Iterator[Entry]:
        """Yield the entries of [start, stop), Unix nanoseconds. Raises `OSError`."""
        while start < stop:
            end = min(stop, start + _WINDOW)
            yield from self._window(query, start, end)
            start = end

    def close(self) -> None:
        """Close the connection."""
        self._site.close()

    def _window(self, query: str, start: int, stop: int) -> Iterator[Entry]:
        # Entries of the page's last moment come again on the next page, which begins with it.
        known: set[str] = set()
        limit = _PAGE
        while True:
            page = self._page(query, start, stop, limit)
            fresh = [entry for entry in page if entry.unix_nano > start or _key(entry) not in known]
            yield from fresh
            if len(page) < limit:
                return
            last = page[-1].unix_nano
            if last == start and not fresh:
                limit *= 2
            elif last != start:
                known = set()
            start = last
            known.update(_key(entry) for entry in page if entry.unix_nano == last)

    def _page(self, query: str, start: int, stop: int, limit: int) -> list[Entry]:
        parameters = {
            "query": query,
            "start": start,
            "end": stop,
            "limit": limit,
            "direction": "forward",
        }
        reply = self._site.ask("GET", f"?{urlencode(parameters)}")
        if reply.status != 200:  # noqa: PLR2004 - HTTP's OK
            said = " ".join(reply.body[:300].decode(errors="replace").split())
            message = f"{self._address} answers HTTP {reply.status}: {said}"
            raise OSError(message)
        try:
            streams = orjson.loads(reply.body)["data"]["result"]
            found = [
                Entry(int(value[0]), value[1], stream["stream"])
                for stream in streams
                for value in stream["values"]
            ]
        except (ValueError, LookupError, TypeError) as error:
            message = f"{self._address} answers with something that is not Loki's: {error!r}"
            raise OSError(message) from error
        return sorted(found, key=_moment)


def selector(**wanted: str) -> str:
    """Write a query for entries with these attributes, in any stream of a service."""
    filters = "".join(f" | {name}={orjson.dumps(value).decode()}" for name, value in wanted.items())
    return f'{{service_name=~".+"}}{filters}'


def _moment(entry: Entry) -> int:
    return entry.unix_nano


def _key(entry: Entry) -> str:
    return f"{sorted(entry.labels.items())}{entry.line}"


def describe(entry: Entry) -> dict[str, Any]:
    """Describe an entry that should not be there, for people and programs."""
    number = entry.labels.get("audit_sequence_number")
    return {"unix_nano": entry.unix_nano, "sequence": number, "line": entry.line[:200]}
