"""Records on stderr, for whoever develops the application (OTEL_AUDIT_CONSOLE=1).

Promises: each record that is committed from the start on is printed once, by
one of the processes on the trail, one line each; nothing that a record holds
can move the cursor or hide itself. What cannot be printed is left out: the
trail has it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.errors import OtelAuditError
from otel_audit.readers.cursors import Cursors
from otel_audit.record.event import RESERVED
from otel_audit.trail.layout import CONSOLE_LOCK
from otel_audit.trail.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TextIO

    from otel_audit.trail.reader import TrailReader

CURSOR: Final = "console"

_logger: Final = logging.getLogger("otel_audit.console")

_TICK: Final = 0.1
_COLOURS: Final = {"success": "\x1b[32m", "failure": "\x1b[31m", "unknown": "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"


class Console:
    """Follows the trail and prints; a companion of the provider."""

    def __init__(
        self,
        directory: Path,
        reader_factory: Callable[[], TrailReader],
        stream: TextIO | None = None,
    ) -> None:
        """Print to ``stream``, by default to stderr as it is at that moment."""
        self._lease = FileLock(directory / CONSOLE_LOCK)
        self._cursors = Cursors(directory)
        self._reader_factory = reader_factory
        self._stream = stream
        self._position = -1
        self._leading = False
        self._closing = threading.Event()
        self._looked = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with what is committed from now on."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._reader_factory() as reader:
            self._position = reader.tree().size
        self._leading = False
        self._closing, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-audit-console", daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Wait until what is committed now is printed; at once where another process prints."""
        deadline = time.monotonic() + timeout
        with self._reader_factory() as reader:
            target = reader.tree().size
        self._looked.wait(timeout)
        while self._leading and self._position < target:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TICK / 10)
        return True

    def hand_over(self, timeout: float) -> None:
        """Do nothing: nothing leaves the machine."""

    def close(self) -> None:
        """Print the rest and let go."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            with self._reader_factory() as reader:
                while not self._closing.is_set():
                    self._step(reader)
                    self._closing.wait(_TICK)
                self._step(reader)
        except (OtelAuditError, OSError):
            _logger.exception("records are not printed any more; the trail has them")
        finally:
            self._leading = False
            self._lease.close()
            self._cursors.close()

    def _step(self, reader: TrailReader) -> None:
        size = reader.tree().size
        if not self._leading and self._lease.try_acquire():
            # Whoever printed before may have got further than we have looked.
            self._position = max(self._position, self._cursors.get(CURSOR))
            self._leading = True
        if self._leading and size > self._position:
            for leaf in reader.leaves(self._position, size):
                self._print(leaf.record)
            self._cursors.set(CURSOR, size)
            self._position = size
        self._looked.set()

    def _print(self, record: bytes) -> None:
        stream = self._stream or sys.stderr
        if stream is None:
            return
        try:
            colour = hasattr(stream, "isatty") and stream.isatty()
            stream.write(line(orjson.loads(record), colour=colour) + "\n")
            stream.flush()
        except Exception:  # noqa: BLE001 - stderr may be anything with a method to write
            # A closed stderr must not end the thread: somebody may open it again.
            return


def line(record: dict[str, Any], *, colour: bool = False) -> str:
    """Return a record as one line: when, how it went, who, what, on what, and the rest."""
    outcome = f"{record.get('outcome', ''):<7}"
    if colour:
        outcome = f"{_COLOURS.get(outcome.strip(), '')}{outcome}{_PLAIN}"
    actor = str(record.get("actor_id", ""))
    if record.get("actor_verified") is False and actor != "anonymous":
        actor += "?"
    what = f"{record.get('event', '')}: {record.get('action', '')}"
    target = f"{record.get('resource_type', '')} {record.get('resource_name', '')}".strip()
    rest = " ".join(
        f"{name}={value if isinstance(value, str) else orjson.dumps(value).decode()}"
        for name, value in record.items()
        if name not in RESERVED
    )
    trace = f"trace={record['trace_id'][:8]}" if record.get("trace_id") else ""
    error = f"error={record['error']}" if record.get("error") else ""
    parts = (actor, what, target, error, rest, trace)
    head = f"audit {str(record.get('timestamp', ''))[11:23]} {record.get('level', ''):<8} {outcome}"
    return "  ".join((head, *(_visible(part) for part in parts if part)))


def _visible(text: str) -> str:
    """Show what is no character to be seen as an escape."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
