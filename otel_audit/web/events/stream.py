"""New records as Server-Sent Events, for any number of clients at the cost of one reader.

Promises: each client gets each record that matches, once, in the trail's order,
from where it says on, whichever worker serves it and whichever wrote the
record; a client that is slow or gone costs one waiting coroutine and no memory,
and never holds up an emit, because nobody writes to it but its own coroutine;
streams end when the server begins to, so that it need not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import orjson

from otel_audit.errors import OtelAuditError
from otel_audit.readers.query.export import as_json
from otel_audit.readers.query.words import moment_of
from otel_audit.readers.search.matching import entry_of
from otel_audit.web.events.ending import server_ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from otel_audit.readers.query.model import Entry, Query
    from otel_audit.readers.search.trail import TrailSearch

_T = TypeVar("_T")


class Asking(Protocol):
    """Calls a function with a search, in a thread."""

    async def __call__(self, work: Callable[[TrailSearch], _T], /) -> _T:
        """Return what ``work`` returns."""
        ...


_POLL_SECONDS: Final = 0.2
_KEPT: Final = 4_096
"""Records that are kept parsed; a client that is further behind reads the trail itself."""

_AT_A_TIME: Final = 200
_SECONDS: Final = 1.0
HEARTBEAT: Final = 15.0

_logger = logging.getLogger("otel_audit.web")


class Follower:
    """Reads what is new in the trail, for all streams of one event loop."""

    def __init__(self, ask: Asking) -> None:
        """``ask`` calls a function with a search, in a thread."""
        self._ask = ask
        self._size = -1
        self._recent: deque[tuple[Entry, int]] = deque(maxlen=_KEPT)
        self._news = asyncio.Event()
        self._clients = 0
        self._ends = False
        self._task: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        """How many streams are open."""
        return self._clients

    async def stream(
        self, query: Query, position: int | None, heartbeat: float
    ) -> AsyncIterator[tuple[int, list[Entry] | None]]:
        """Yield what matches from ``position`` on (default: what is new); None when nothing came.

        Before that stands the position that follows; the first one comes at
        once. Ends with the server only; close it.
        """
        self._clients += 1
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._follow())
            size = await self._known_size()
            place = size if position is None else min(max(0, position), size)
            if not self._ends:
                yield place, []
            while not self._ends:
                news = self._news
                if place >= self._size:
                    if not await _within(news, heartbeat):
                        yield place, None
                    continue
                entries, place = await self._next(query, place)
                if entries:
                    yield place, entries
        finally:
            self._clients -= 1
            if self._clients == 0 and self._task is not None:
                self._task.cancel()
                self._task = None
                self._size = -1
                self._ends = False
                self._recent.clear()

    async def _next(self, query: Query, place: int) -> tuple[list[Entry], int]:
        """Return some of what follows, from memory when it is there."""
        recent = self._recent
        if recent and recent[0][0].sequence <= place:
            held = list(takewhile(lambda kept: kept[0].sequence >= place, reversed(recent)))[::-1]
            entries = [entry for entry, moment in held if query.matches(entry.fields, moment)]
            return entries, self._size
        page = await self._ask(lambda search: search.page(query, place, seconds=_SECONDS))
        if page.next_position is not None:
            return page.entries, page.next_position
        # It may have seen more than is known here.
        last = page.entries[-1].sequence + 1 if page.entries else 0
        return page.entries, max(last, self._size)

    async def _known_size(self) -> int:
        while self._size < 0 and not self._ends:
            await _within(self._news, 1.0)
        return self._size

    async def _follow(self) -> None:
        """Look for news until the server ends; trouble with the trail is logged once and outlived."""
        troubled = False
        while not server_ends():
            try:
                size, news = await self._ask(self._look)
                troubled = False
                self._take(size, news)
            except (OtelAuditError, OSError) as error:
                if not troubled:
                    _logger.warning("streams wait, as the trail cannot be read: %s", error)
                troubled = True
            await asyncio.sleep(_POLL_SECONDS)
        self._ends = True
        self._tell()

    def _look(self, search: TrailSearch) -> tuple[int, list[tuple[Entry, int]]]:
        """Return the trail's size and its newest records; in a thread."""
        size = search.reader.tree().size
        start = size if self._size < 0 else max(self._size, size - _KEPT)
        news = []
        for leaf in search.reader.leaves(start, size):
            entry = entry_of(leaf)
            news.append((entry, moment_of(entry.fields, leaf.committed_unix_nano)))
        return size, news

    def _take(self, size: int, news: list[tuple[Entry, int]]) -> None:
        if size == self._size:
            return
        if size - len(news) > self._size:
            # Some were passed over: what is kept has to be without gaps.
            self._recent.clear()
        self._recent.extend(news)
        self._size = size
        self._tell()

    def _tell(self) -> None:
        """Wake all streams up."""
        told, self._news = self._news, asyncio.Event()
        told.set()


async def _within(news: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def as_beginning(position: int) -> bytes:
    """Say when to come back, and from where on if nothing has come until then."""
    return b"retry: 2000\n" + (b"id: %d\n" % (position - 1) if position else b"") + b"\n"


def as_event(entry: Entry, query: Query) -> bytes:
    """Write one record as an event; its id is what `Last-Event-ID` will say."""
    data = orjson.dumps(as_json(entry, query))
    return b"id: %d\nevent: record\ndata: %s\n\n" % (entry.sequence, data)
