"""The threads in which queries run, and the open trails that they use.

Promises: queries never take the threads that an application's own work needs,
and no more than `_WORKERS` run at a time in a process; each has a view of the
trail for itself while it runs. Works after a fork.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

import apsw

from otel_audit.readers.search.loki import LokiSearch
from otel_audit.readers.search.trail import TrailSearch

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.readers.query.model import Backend

_T = TypeVar("_T")

_WORKERS: Final = 4


class Desk:
    """Takes questions to the trail of a provider, which may be another one next time."""

    def __init__(self, provider: Callable[[], AuditProvider]) -> None:
        """Take what returns the provider."""
        self._provider = provider
        self._asked: AuditProvider | None = None
        self._searches: deque[TrailSearch] = deque()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    async def ask(self, work: Callable[[TrailSearch], _T], /) -> _T:
        """Call a function with a search, in one of a few threads of our own."""

        def asked() -> _T:
            search = self._taken()
            try:
                return work(search)
            except apsw.Error:
                search.close()
                raise
            finally:
                self._searches.append(search)

        return await self.in_thread(asked)

    async def ask_anywhere(self, work: Callable[[Backend], _T], /) -> _T:
        """Do the same with Loki, where the settings say so."""
        loki = self._loki()
        if loki is None:
            return await self.ask(work)

        def asked() -> _T:
            with closing(loki):
                return work(loki)

        return await self.in_thread(asked)

    async def open(self) -> Backend:
        """Return a search for the caller alone, who closes it; Loki, where the settings say so."""
        loki = self._loki()
        if loki is not None:
            return loki
        return await self.in_thread(lambda: TrailSearch(self._provider().reader()))

    def _loki(self) -> LokiSearch | None:
        where = self._provider().settings.query_with
        return None if where is None else LokiSearch(where)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Call a function in one of our threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads(), work)

    def _taken(self) -> TrailSearch:
        provider = self._provider()
        if provider is not self._asked:
            self._asked = provider
            while self._searches:
                self._searches.popleft().close()
        try:
            return self._searches.popleft()
        except IndexError:
            return TrailSearch(provider.reader())

    def _threads(self) -> ThreadPoolExecutor:
        pool = self._pool
        if pool is None or pool[0] != os.getpid():
            # The threads of a pool stay in the process that forked.
            made = ThreadPoolExecutor(_WORKERS, thread_name_prefix="otel-audit-query")
            pool = self._pool = (os.getpid(), made)
        return pool[1]
