"""Answers queries from Loki, where the records of many hosts meet.

`LokiSearch` takes the same `Query` as `TrailSearch` and promises the same
answer for the same records: LogQL chooses lines that may match, by time and by
what has to be in them, and each is held against the query here, because the
line is the record's own bytes. A record that was shipped twice is given once.
Positions are times in nanoseconds; a page ends where the time changes, so it may
be longer than its limit by records of one and the same nanosecond.

It shows what arrived: whether that is everything, the trail knows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import orjson

from otel_audit.errors import AuditSettingsError, QueryError, TrailError
from otel_audit.readers.query import Counts, Entry, Page, Progress, check_buckets, needles
from otel_audit.readers.words import fields_of, moment_of, texts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.readers.query import Query

TENANT: Final = "audit"
"""Of the bundled Loki; one without tenants does not look at it."""

_SELECTOR: Final = '{service_name=~".+"}'
_AT_A_TIME: Final = 1_000
_WINDOW: Final = 28 * 86_400 * 1_000_000_000
"""Loki takes no longer range in one question (``max_query_length`` is 30 days and an hour)."""

_FURTHEST: Final = 3 * 366 * 86_400 * 1_000_000_000
"""How far back it looks when nothing is said: as long as the bundled Loki keeps anything."""

_AHEAD: Final = 600 * 1_000_000_000
"""Clocks of other hosts may be ahead."""

_REMEMBERED: Final = 20_000
"""Records that are known when they come again; what is shipped twice comes close together."""

_TIMEOUT: Final = 30.0


class LokiSearch:
    """One Loki to ask; usable from several threads."""

    def __init__(self, url: str, *, tenant: str = TENANT) -> None:
        """Take Loki's address, such as ``http://loki:3100``. Raises `AuditSettingsError`."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            message = f"{url!r} is no address of a Loki; it looks like http://loki:3100"
            raise AuditSettingsError(message)
        self._url = url.rstrip("/")
        self._tenant = tenant

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    def progress(self) -> Progress:
        """Return zeros: Loki has an index of its own."""
        return Progress(0, 0, full_text=False)

    def page(
        self, query: Query, position: int | None = None, *, seconds: float | None = None
    ) -> Page:
        """Return about ``query.limit`` records from ``position`` on."""
        deadline = None if seconds is None else time.monotonic() + seconds
        entries: list[Entry] = []
        last: int | None = None
        for entry, moment in self._found(query, position):
            if entry is not None:
                if len(entries) >= query.limit and moment != last:
                    return Page(entries, moment if query.oldest_first else moment + 1, True)  # noqa: FBT003 - a page's fields in order
                entries.append(entry)
                last = moment
            elif deadline is not None and time.monotonic() >= deadline:
                return Page(entries, moment, complete=False)
        return Page(entries, None, complete=True)

    def stream(self, query: Query, position: int | None = None) -> Iterator[Entry]:
        """Yield all records of the answer, as of now."""
        for entry, _ in self._found(query, position):
            if entry is not None:
                yield entry

    def count(
        self,
        query: Query,
        *,
        by: str | None = None,
        per: int | None = None,
        seconds: float | None = None,
    ) -> Counts:
        """Count the records, by the values of a field, by time buckets, or both."""
        if by is not None:
            query.check_field(by)
        check_buckets(query, per)
        deadline = None if seconds is None else time.monotonic() + seconds
        counts: Counts = {}
        for entry in self.stream(query):
            if deadline is not None and time.monotonic() >= deadline:
                message = "this count takes too long here; narrow it by start and end"
                raise QueryError(message)
            moment = moment_of(entry.fields, entry.committed_unix_nano)
            bucket = None if per is None else moment // per * per
            values = [None] if by is None else list(dict.fromkeys(texts_of(entry.fields, by)))
            for value in values:
                counts[bucket, value] = counts.get((bucket, value), 0) + 1
        return counts

    def _found(self, query: Query, position: int | None) -> Iterator[tuple[Entry | None, int]]:
        """Yield records with their times, and after each answer of Loki's None with the next one."""
        now = time.time_ns() + _AHEAD
        low = now - _FURTHEST if query.start is None else query.start
        high = now if query.end is None else min(query.end, now)
        if position is not None:
            low, high = (position, high) if query.oldest_first else (low, min(high, position))
        logql = _logql(query)
        seen: dict[str, None] = {}
        while low < high:
            start, end = (
                (low, min(high, low + _WINDOW))
                if query.oldest_first
                else (max(low, high - _WINDOW), high)
            )
            lines = self._lines(logql, start, end, oldest_first=query.oldest_first)
            for moment, line, labels in lines:
                entry = _entry(line, labels, moment)
                name = str(entry.fields.get("record_id", line))
                if name not in seen and query.matches(
                    entry.fields, moment_of(entry.fields, moment)
                ):
                    seen[name] = None
                    if len(seen) > _REMEMBERED:
                        del seen[next(iter(seen))]
                    yield entry, moment
            if len(lines) < _AT_A_TIME:
                low, high = (end, high) if query.oldest_first else (low, start)
            else:
                edge = lines[-1][0]
                # Others of this very nanosecond may follow; those that were seen are known.
                if query.oldest_first:
                    low = max(edge, low + 1) if lines[0][0] != edge else edge + 1
                else:
                    high = edge + 1 if lines[0][0] != edge else edge
            yield None, low if query.oldest_first else high

    def _lines(
        self, logql: str, start: int, end: int, *, oldest_first: bool
    ) -> list[tuple[int, str, dict[str, str]]]:
        """Ask Loki for some lines of a range, in the query's order."""
        parameters = {
            "query": logql,
            "start": start,
            "end": end,
            "limit": _AT_A_TIME,
            "direction": "forward" if oldest_first else "backward",
        }
        answer = self._get(f"/loki/api/v1/query_range?{urlencode(parameters)}")
        lines = [
            (int(moment), line, stream["stream"])
            for stream in answer["data"]["result"]
            for moment, line, *_ in stream["values"]
        ]
        lines.sort(key=lambda item: item[0], reverse=not oldest_first)
        return lines

    def _get(self, path: str) -> dict[str, Any]:
        request = Request(self._url + path, headers={"X-Scope-OrgID": self._tenant})  # noqa: S310 - the scheme was checked
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310 - the same
                answer: dict[str, Any] = orjson.loads(response.read())
        except HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace").strip()
            message = f"Loki at {self._url} answered {error.code}: {said}"
            raise TrailError(message) from error
        except (URLError, OSError, ValueError) as error:
            message = f"Loki at {self._url} cannot be asked: {error}; is the address right?"
            raise TrailError(message) from error
        return answer


def _logql(query: Query) -> str:
    """Choose lines by what each that matches has in its bytes; texts are quoted as LogQL does."""
    parts = [_SELECTOR, '|= `"schema":"otel-audit/`']
    parts += [f"|= {orjson.dumps(needle.decode()).decode()}" for needle in needles(query) if needle]
    parts += [f"|~ {_word(word)}" for word in query.words]
    return " ".join(parts)


def _word(word: str) -> str:
    """Write a word, which is letters and digits, as a pattern for any case."""
    plain = word.removesuffix("*")
    return orjson.dumps(f"(?i){plain}").decode()


def _entry(line: str, labels: dict[str, str], moment: int) -> Entry:
    record = line.encode()
    number = labels.get("audit_sequence_number", "")
    committed = labels.get("observed_timestamp", "")
    return Entry(
        int(number) if number.isdecimal() else -1,
        int(committed) if committed.isdecimal() else moment,
        record,
        fields_of(record),
    )
