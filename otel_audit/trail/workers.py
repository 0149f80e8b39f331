"""Runs the scanning of stretches in this process, or in several others.

Promises: results come back in order; a few stretches are under way at a time,
so that memory does not grow with the trail; no process outlives the ``with``
block. The workers are programs of their own rather than ``multiprocessing``
ones: those would import the application's main module again, with whatever
that does.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import queue
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from otel_audit.errors import TrailError
from otel_audit.trail.note import Verifier
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.scan import Scanned, Scanner, Stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from typing_extensions import Self

    Scan = Callable[[Iterable[Stretch]], Iterator[Scanned]]

_IN_FLIGHT = 2
"""Stretches handed out ahead, for each worker."""
_PATIENCE = 5.0
"""Seconds in which a worker must end once its input has."""
# -I: nothing from the current directory or the environment gets in; the import
# path is the parent's.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from otel_audit.trail.workers import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
)


@contextmanager
def scanning(reader: TrailReader, verifiers: Sequence[Verifier], processes: int) -> Iterator[Scan]:
    """Lend a function that scans stretches, with up to ``processes`` processes.

    It raises `TrailError` if a worker process ends before its time.
    """
    if processes <= 1:
        scanner = Scanner(reader, verifiers)
        yield lambda stretches: map(scanner.scan, stretches)
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(_Worker(reader.directory, verifiers)))
        threads = stack.enter_context(ThreadPoolExecutor(processes, "otel-audit-verify"))
        yield lambda stretches: _in_order(threads, idle, stretches, processes * _IN_FLIGHT)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Be a worker: read where the trail is, then scan each stretch asked for."""
    gc.disable()  # it would look at rows by the million, none of them in a cycle
    directory, keys = pickle.load(requests)  # noqa: S301 - a pipe from our own parent
    with TrailReader(Path(directory)) as reader:
        scanner = Scanner(reader, [Verifier.parse(key) for key in keys])
        while True:
            try:
                stretch = pickle.load(requests)  # noqa: S301 - a pipe from our own parent
            except EOFError:
                return
            pickle.dump(scanner.scan(stretch), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


class _Worker:
    """One worker process and the pipes to it."""

    def __init__(self, directory: Path, verifiers: Sequence[Verifier]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very Python, with our own program
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._start = (str(directory.absolute()), [str(verifier) for verifier in verifiers])

    def __enter__(self) -> Self:
        self._send(sys.path)
        self._send(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def scan(self, stretch: Stretch) -> Scanned:
        self._send(stretch)
        try:
            answer = pickle.load(self._process.stdout)  # type: ignore[arg-type]  # noqa: S301 - a pipe from our own child, so it is there
        except (EOFError, pickle.UnpicklingError):
            raise self._ended() from None
        if not isinstance(answer, Scanned):
            raise self._ended()
        return answer

    def _send(self, message: object) -> None:
        try:
            pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)  # type: ignore[arg-type]  # stdin=PIPE, so it is there
            self._process.stdin.flush()  # type: ignore[union-attr]  # stdin=PIPE, so it is there
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> TrailError:
        msg = (
            f"a worker process of the verification ended before its time (exit code "
            f"{self._process.poll()}); verify with one process instead"
        )
        return TrailError(msg)


def _in_order(
    threads: ThreadPoolExecutor,
    idle: queue.SimpleQueue[_Worker],
    stretches: Iterable[Stretch],
    ahead: int,
) -> Iterator[Scanned]:
    def ask(stretch: Stretch) -> Scanned:
        worker = idle.get()
        try:
            return worker.scan(stretch)
        finally:
            idle.put(worker)

    under_way: deque[Future[Scanned]] = deque()
    for stretch in stretches:
        under_way.append(threads.submit(ask, stretch))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
