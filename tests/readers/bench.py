"""A trail to fill, a mirror of it, and the mirror's files put together again.

As a program it is one process of a trail:

    python -m tests.readers.bench write ROOT RECORDS     commit records, a few at a time
    python -m tests.readers.bench agent ROOT [MAX_BYTES] serve the trail until SIGTERM
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_audit.readers.agent import Agent
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.mirror import Mirror
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

ROOT = Path(__file__).parents[2]


class Bench:
    """The trail ``root/trail`` and its mirror ``root/log/audit.log``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "trail"
        self.path = root / "log" / "audit.log"
        self._stack = ExitStack()
        self.trail = Trail.open(self.directory)
        self._stack.callback(self.trail.close)
        self._random = random.Random(7)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def append(self, count: int, size: int = 100) -> None:
        """Commit ``count`` records of about ``size`` bytes as one group."""
        first = self.trail.reader.tree().size
        records = [
            b'{"n":%d,"pad":"%s"}' % (number, b"x" * self._random.randrange(2 * size))
            for number in range(first, first + count)
        ]
        self.trail.store.append(records, {})

    def mirror(self, **options: Any) -> Mirror:
        """Make a mirror with a view of its own, as another process would have it."""
        reader = TrailReader(self.directory)
        cursors = Cursors(self.directory)
        mirror = Mirror(reader, self.path, cursors, **options)
        for part in (reader, cursors, mirror):
            self._stack.callback(part.close)
        return mirror

    def agent(self, **options: Any) -> Agent:
        """Make an agent that is not started."""
        parts: dict[str, Any] = {
            "reader_factory": lambda: TrailReader(self.directory),
            "sign_checkpoint": self.trail.signer.sign,
            "empty_wal": self.trail.store.wal.empty,
            "mirror_path": self.path,
        }
        agent = Agent(self.directory, **(parts | options))
        self._stack.callback(agent.close)
        return agent

    def catch_up(self, mirror: Mirror) -> int:
        """Step until nothing is left; return the number of lines."""
        lines = 0
        while written := mirror.step():
            lines += written
        return lines

    def expected(self) -> list[bytes]:
        """All records of the trail."""
        return [leaf.record for leaf in self.trail.reader.leaves()]

    def mirrored(self) -> list[bytes]:
        """All lines of the mirror's files, oldest file first; each has to be whole."""
        content = b"".join(map(_content, sorted(self.path.parent.iterdir(), key=_age)))
        assert not content or content.endswith(b"\n")
        return content.split(b"\n")[:-1]

    def check(self) -> None:
        """Assert that no line is missing, repeated, torn or out of order."""
        mirrored, expected = self.mirrored(), self.expected()
        if mirrored != expected:  # pytest would compare megabytes
            wrong = next(
                (
                    index
                    for index, pair in enumerate(zip(mirrored, expected, strict=False))
                    if pair[0] != pair[1]
                ),
                min(len(mirrored), len(expected)),
            )
            message = (
                f"{len(mirrored)} lines for {len(expected)} records, the first difference at "
                f"{wrong}: {mirrored[wrong : wrong + 2]!r:.300} for {expected[wrong : wrong + 2]!r:.300}"
            )
            raise AssertionError(message)

    def start(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run this module as a program."""
        command = [sys.executable, "-m", "tests.readers.bench", role, str(self.root)]
        return subprocess.Popen([*command, *arguments], cwd=ROOT)

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run this module as a program; it is killed at the end."""
        process = self.start(*arguments)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _content(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def _age(file: Path) -> int:
    """Order audit.log-1770000000(.gz), ..., audit.log.10(.gz), ..., audit.log.1, audit.log."""
    suffix = file.name.removesuffix(".gz").removeprefix("audit.log")
    if suffix.startswith("-"):
        return int(suffix[1:]) - (1 << 40)
    return -int(suffix[1:] or 0)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def _write(bench: Bench, count: int) -> None:
    number = random.Random(os.getpid())
    while count > 0:
        group = min(count, number.randrange(1, 20))
        # Lines of several pages are the ones that a kill can tear.
        bench.append(group, number.choice((50, 200, 20_000)))
        count -= group
        time.sleep(number.choice((0, 0.002, 0.02)))


def _serve(bench: Bench, max_bytes: int) -> None:
    agent = bench.agent(mirror_max_bytes=max_bytes, mirror_backups=1_000)
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    agent.run()


def main() -> None:
    """Be one process of a trail."""
    role, root, *rest = sys.argv[1:]
    with Bench(Path(root)) as bench:
        if role == "write":
            _write(bench, int(rest[0]))
        else:
            _serve(bench, int(rest[0]) if rest else 0)


if __name__ == "__main__":
    main()
