"""Where a mirror stopped, read from its files.

The cursor and the file cannot be changed together, so after a crash the file
may hold lines that the cursor does not count. `resume` promises the sequence
number of the first record that stands in none of the mirror's files, provided
what the mirror promises: every line that the cursor does not count yet is in
the file that its mark names, behind the mark's offset, and there are at most
`MAX_LINES` of them. Without a cursor, or when the marked file is gone, the
last lines of the newest files are looked up in the trail. So a file that
somebody replaced by an older copy of it is noticed, and made complete.

Nothing is written here, except that a line torn by the crash is taken away.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_audit.trail.reader import TrailReader

MAX_LINES: Final = 2_000
"""Most lines that a mirror writes before it stores its cursor."""

_TAIL: Final = 1 << 20
_SCAN: Final = 20_000
_SEARCHED_FILES: Final = 3

_logger = logging.getLogger("otel_audit.mirror")

# zstd is not in the standard library before Python 3.14.
_OPENERS: Final[dict[str, Callable[[Path], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


class Mark(NamedTuple):
    """Record ``position`` is the first one behind ``offset`` of the file ``inode``."""

    position: int
    inode: int
    offset: int


def resume(reader: TrailReader, path: Path, mark: Mark | None) -> int:
    """Return the sequence number of the first record that is not mirrored yet."""
    size = reader.tree().size
    if mark is None:
        return _search(reader, path, 0, size)
    file = _marked_file(path, mark.inode)
    if file is not None:
        certain, position = _replay(reader, file, mark, is_current=file == path)
        if certain:
            return position
    stop = min(size, mark.position + MAX_LINES)
    found = _search(reader, path, max(0, mark.position - 1), stop)
    return found if found >= mark.position else _behind_older_copy(reader, path, mark.position)


def _marked_file(path: Path, inode: int) -> Path | None:
    """Find the file by its inode, under whichever name rotation gave it."""
    for file in (path, *(entry[1] for entry in _rotated(path))):
        if file.stat().st_ino == inode:
            return file
    return None


def _replay(reader: TrailReader, file: Path, mark: Mark, *, is_current: bool) -> tuple[bool, int]:
    """Compare what stands behind the mark with the records that should stand there.

    Returns whether the file certainly is the marked one (an inode's number is
    given to another file once the first is deleted), and the position.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        _logger.warning("%s cannot be read again: %s", file, error.strerror)
        return False, mark.position
    try:
        certain = _follows(reader, descriptor, mark)
        position, offset = mark.position, mark.offset
        for leaf in reader.leaves(mark.position):
            found = _find_line(descriptor, offset, leaf.record + b"\n")
            if found is None:
                break
            position, offset = leaf.sequence + 1, found
        certain = certain or position > mark.position
        if not is_current:
            cut_torn_line(reader, descriptor, position, certain=certain)
    finally:
        os.close(descriptor)
    return certain, position


def _follows(reader: TrailReader, descriptor: int, mark: Mark) -> bool:
    """Say whether the record before the mark stands before the mark's offset."""
    previous = reader.leaf(mark.position - 1)
    if previous is None or mark.offset == 0:
        return False
    line = previous.record + b"\n"
    start = mark.offset - len(line)
    return start >= 0 and os.pread(descriptor, len(line), start) == line


def _find_line(descriptor: int, offset: int, line: bytes) -> int | None:
    """Return where ``line`` ends, at ``offset`` or behind lines that are not ours."""
    while True:
        if os.pread(descriptor, len(line), offset) == line:
            return offset + len(line)
        following = _next_line(descriptor, offset)
        if following is None:
            return None
        offset = following


def _next_line(descriptor: int, offset: int) -> int | None:
    while chunk := os.pread(descriptor, _TAIL, offset):
        newline = chunk.find(b"\n")
        if newline >= 0:
            return offset + newline + 1
        offset += len(chunk)
    return None


def cut_torn_line(
    reader: TrailReader, descriptor: int, position: int, *, certain: bool = True
) -> bool:
    """Take away an unfinished last line if it is the beginning of record ``position``.

    Returns whether the file now ends with a whole line. NUL bytes count as
    nothing: a power cut can leave a file's length without its contents.
    Unless the file is ``certain`` to be the mirror's, NUL bytes alone stay.
    """
    size = os.fstat(descriptor).st_size
    start = max(0, size - _TAIL)
    tail = os.pread(descriptor, size - start, start)
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return True
    begun = torn.rstrip(b"\0")
    leaf = reader.leaf(position)
    if leaf is None or not leaf.record.startswith(begun) or not (begun or certain):
        return False
    os.ftruncate(descriptor, size - len(torn))
    os.fsync(descriptor)
    return True


def _search(reader: TrailReader, path: Path, start: int, stop: int) -> int:
    """Return what follows the newest record of the range that the newest files end with."""
    lines: set[bytes] = set()
    searched = 0
    newest_first = [path, *(file for _, file in sorted(_rotated(path), reverse=True))]
    for file in newest_first:
        tail = _last_lines(file)
        lines.update(tail)
        searched += bool(tail)
        if searched == _SEARCHED_FILES:
            break
    newest = _newest(reader, lines, start, stop)
    return start if newest is None else newest + 1


def _newest(reader: TrailReader, lines: set[bytes], start: int, stop: int) -> int | None:
    """Return the newest record of the range that is among the lines."""
    while lines and stop > start:
        first = max(start, stop - _SCAN)
        found = [leaf.sequence for leaf in reader.leaves(first, stop) if leaf.record in lines]
        if found:
            return found[-1]
        stop = first
    return None


def _behind_older_copy(reader: TrailReader, path: Path, position: int) -> int:
    """Return where to go on when the lines before ``position`` were not found: there, as a rule.

    Rotation may have put them out of sight; then the file that is there now has
    no line of ours. One whose last line of ours is from before was put there: a
    backup, say. What it and the rotated files lack has to be written again.
    """
    last = _newest(reader, set(_last_lines(path)), 0, position)
    if last is None:
        return position
    behind = _search(reader, path, 0, position)
    if next(reader.leaves(behind, position), None) is None:
        return position
    _logger.error(
        "%s was replaced by an older copy of itself: it ends with record %d, and had come to "
        "record %d. The lines that it lacks are written again; find out who put it there. The "
        "trail is not affected",
        path,
        last,
        position - 1,
    )
    return behind


def _rotated(path: Path) -> list[tuple[int, Path]]:
    """List the rotated files with the time of their last change.

    Their names begin with the file's name (``audit.log.1``,
    ``audit.log-20260131.gz``) or, with logrotate's ``extension``, with its
    stem (``audit-20260131.log``). No other file is ever touched: the trail may
    be in the same directory.
    """
    beginnings = (path.name + ".", path.name + "-", path.stem + "-")
    with os.scandir(path.parent) as entries:
        return [
            (entry.stat().st_mtime_ns, path.with_name(entry.name))
            for entry in entries
            if entry.name.startswith(beginnings) and entry.is_file(follow_symlinks=False)
        ]


def _last_lines(file: Path) -> list[bytes]:
    """Return the whole lines among the last bytes of a file, which may be compressed."""
    try:
        tail = _tail(file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        if not isinstance(error, FileNotFoundError):
            _logger.warning("%s cannot be read, so it is passed over: %s", file, error)
        return []
    return tail.split(b"\n")[:-1]


def _tail(file: Path) -> bytes:
    opener = _OPENERS.get(file.suffix)
    if opener is None:
        with file.open("rb") as plain:
            if not stat.S_ISREG(os.fstat(plain.fileno()).st_mode):
                return b""
            size = plain.seek(0, os.SEEK_END)
            plain.seek(max(0, size - _TAIL))
            return plain.read()
    with opener(file) as packed:
        chunks = deque(iter(lambda: packed.read(_TAIL), b""), maxlen=2)
    return b"".join(chunks)[-_TAIL:]
