"""The frames of SQLite's write-ahead log: whether those that count are still in it.

Promises: a log that was cut off or emptied in place, or whose header was
overwritten, is told from a sound one by two short reads, whatever its length.
SQLite goes on behind the hole, and would make the file long again; so it is kept
longer than what is written between two looks. What the pages in the frames hold
is left to SQLite. No lock is touched: SQLite places its own on the database and
the shared memory, never on the log (https://sqlite.org/walformat.html).
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_HEADER: Final = struct.Struct(">4s 4x I 4x 8s 8s")
"""The log's header: magic number, page size, salts, checksum."""

_FRAME: Final = struct.Struct(">I I 8s 8x")
"""A frame's header: the number of its page, the database's size if it ends a transaction, and the
salts of the log."""

_LITTLE, _BIG = bytes.fromhex("377f0682"), bytes.fromhex("377f0683")
_WORDS: Final = 6

_LEFT: Final = 4 << 20
"""Bytes of log that are more than what is written between two looks."""

_AHEAD: Final = 16 << 20
"""Bytes by which a log is made longer when fewer are left. They take no room on the disk."""


class Log(NamedTuple):
    """A log at one moment: its salts, which are others when it begins anew, and its length."""

    salts: bytes
    length: int


def look_into(path: str, number: int, known: Log | None) -> Log:
    """Return what a log is like that SQLite says has ``number`` frames, at least one.

    ``known`` is what this returned before: until the log begins anew it never
    becomes shorter. Raises ``ValueError``, which says what is wrong, and
    `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        page, salts = _opened(os.pread(descriptor, _HEADER.size, 0))
        end = _HEADER.size + number * (_FRAME.size + page)
        last = os.pread(descriptor, _FRAME.size, end - _FRAME.size - page)
        length = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if length < end:
        msg = f"it has {length} bytes, its {number} frames need {end}"
        raise ValueError(msg)
    _, ends, own = _FRAME.unpack(last)
    if own != salts or not ends:
        msg = f"frame {number}, its last one, is not there"
        raise ValueError(msg)
    if known is not None and known.salts == salts and length < known.length:
        msg = f"it has {length} bytes, and had {known.length}"
        raise ValueError(msg)
    if length - end < _LEFT:
        # Where that cannot be, only the look is worth less.
        with suppress(OSError):
            os.truncate(path, length + _AHEAD)
            length += _AHEAD
    return Log(salts, length)


def pages_in(path: str, page: int, start: int, stop: int) -> set[int]:
    """Return the numbers of the pages, ``page`` bytes long, that the frames after ``start`` hold.

    ``stop`` is the last frame. Raises `OSError`.
    """
    if start == stop:
        return set()
    step = _FRAME.size + page
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        headers = (
            os.pread(descriptor, _FRAME.size, _HEADER.size + number * step)
            for number in range(start, stop)
        )
        return {_FRAME.unpack(header)[0] for header in headers if len(header) == _FRAME.size}
    finally:
        os.close(descriptor)


def bytes_in(log: Path) -> int:
    """Return how many bytes of pages stand in the log: what it can hide at most."""
    try:
        with log.open("rb") as file:
            _, page, salts, _ = _HEADER.unpack(file.read(_HEADER.size))
            pages = 0
            while page and len(header := file.read(_FRAME.size)) == _FRAME.size:
                if _FRAME.unpack(header)[2] != salts:
                    break
                pages += 1
                file.seek(page, os.SEEK_CUR)
    except (OSError, struct.error):
        return 0
    return pages * int(page)


def _opened(header: bytes) -> tuple[int, bytes]:
    """Return page size and salts: without a right header SQLite takes the log to be empty."""
    if len(header) == _HEADER.size:
        magic, page, salts, checksum = _HEADER.unpack(header)
        if magic in (_LITTLE, _BIG) and _checksum(header, little=magic == _LITTLE) == checksum:
            return page, salts
    msg = "it has no header, or a damaged one"
    raise ValueError(msg)


def _checksum(header: bytes, *, little: bool) -> bytes:
    order = "<" if little else ">"
    words = struct.unpack_from(f"{order}{_WORDS}I", header)
    first = second = 0
    for at in range(0, _WORDS, 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return struct.pack(">2I", first, second)
