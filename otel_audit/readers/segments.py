"""The form of the query index: which rows of a segment hold which terms.

A segment covers `SMALL` or `LARGE` sequence numbers in a row; a row is a
sequence number less the segment's first one. A term is a field and a value of
it; the index knows it by a keyed hash of 64 bits alone, so that it holds no
values, and nobody can make values whose terms collide. A segment's terms lie
in buckets by their first bits, and one lookup reads one bucket.

Promises: packing and unpacking are each other's inverse; a bucket that was
changed on the disk is a `DamagedError`, never a wrong answer.

Rows are written as in a Roaring bitmap (https://roaringbitmap.org): 16-bit
numbers when there are few, a bitmap when there are many. In memory a set of
rows is one integer with a bit for each, which Python joins and intersects at
the speed of memory.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from otel_audit.errors import OtelAuditError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SMALL: Final = 1_024
LARGE: Final = 65_536
"""Rows of a segment: as many as 16 bits can number."""

FORMAT: Final = f"2-{sys.byteorder}"
"""An index of another format is made anew."""

_BITS: Final = {SMALL: 4, LARGE: 10}
"""A segment has two to this power buckets."""

_FEW: Final = 4_096
"""From here on a bitmap is shorter than a list of rows."""

_LISTED: Final = 1 << 31
"""Marks, in the place of a row, the position of a list of rows."""

_BITMAP: Final = 0xFFFF
_BITMAP_BYTES: Final = LARGE // 8
_HEAD: Final = struct.Struct("=II")
_BLOCK: Final = 32
"""Bytes of a bitmap that are looked at together."""

BLOCK: Final = _BLOCK * 8
"""Rows whose first and last time is known: most of the time that is all that is asked."""

NO_TIME: Final = -(1 << 63)
"""Stands for the time of a row whose record was removed."""

_SET: Final = re.compile(rb"[^\x00]", re.DOTALL)
_BITS_OF: Final = tuple(
    tuple(bit for bit in range(8) if number >> bit & 1) for number in range(256)
)


class DamagedError(OtelAuditError, ValueError):
    """A part of the index is not what was written; the trail has to be read instead."""


class Terms:
    """Hashes terms with the index's own key, so that nobody can choose what collides."""

    def __init__(self, key: bytes) -> None:
        """Take up to 64 secret bytes."""
        self._state = blake2b(digest_size=8, key=key)

    def __call__(self, field: str, value: str) -> int:
        """Return the term of a field's value."""
        state = self._state.copy()
        state.update(f"{field}\0{value}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(state.digest(), "big")


def bucket_of(term: int, span: int) -> int:
    """Return the bucket of a term in a segment of ``span`` rows."""
    return term >> (64 - _BITS[span])


def buckets(span: int) -> int:
    """Return how many buckets a segment of ``span`` rows has."""
    return 1 << _BITS[span]


def pack(postings: Mapping[int, Sequence[int]]) -> bytes:
    """Write one bucket: each term's rows, which have to be in ascending order."""
    ordered = sorted(postings)
    references = array("I")
    data = array("H")
    for term in ordered:
        rows = postings[term]
        if len(rows) == 1:
            references.append(rows[0])
            continue
        references.append(_LISTED | len(data))
        if len(rows) < _FEW:
            data.append(len(rows))
            data.extend(rows)
        else:
            data.append(_BITMAP)
            data.frombytes(bitmap(rows).to_bytes(_BITMAP_BYTES, "little"))
    body = array("Q", ordered).tobytes() + references.tobytes() + data.tobytes()
    return _HEAD.pack(zlib.crc32(body, len(ordered)), len(ordered)) + body


class Bucket:
    """One bucket as it was read."""

    __slots__ = ("_data", "_references", "_terms")

    def __init__(self, blob: bytes) -> None:
        """Check the blob. Raises `DamagedError`."""
        try:
            checksum, count = _HEAD.unpack_from(blob)
            body = memoryview(blob)[_HEAD.size :]
            if zlib.crc32(body, count) != checksum:
                raise DamagedError(_DAMAGED)
            self._terms = body[: count * 8].cast("Q")
            self._references = body[count * 8 : count * 12].cast("I")
            self._data = body[count * 12 :].cast("H")
        except (struct.error, TypeError) as error:
            raise DamagedError(_DAMAGED) from error

    def bitmap(self, term: int) -> int:
        """Return the rows of a term, 0 when it has none here."""
        place = bisect_left(self._terms, term)
        if place == len(self._terms) or self._terms[place] != term:
            return 0
        reference = self._references[place]
        if reference < _LISTED:
            return 1 << reference
        data, start = self._data, reference - _LISTED
        if data[start] == _BITMAP:
            return int.from_bytes(self._raw(start), "little")
        return bitmap(data[start + 1 : start + 1 + data[start]])

    def items(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield the terms with their rows, in the terms' order."""
        data = self._data
        for term, reference in zip(self._terms, self._references, strict=True):
            if reference < _LISTED:
                yield term, (reference,)
                continue
            start = reference - _LISTED
            if data[start] == _BITMAP:
                yield term, ascending(int.from_bytes(self._raw(start), "little"))
            else:
                yield term, data[start + 1 : start + 1 + data[start]].tolist()

    def _raw(self, start: int) -> memoryview:
        return self._data[start + 1 : start + 1 + _BITMAP_BYTES // 2].cast("B")


def pack_all(postings: Mapping[int, Sequence[int]], span: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and blob of each bucket that is not empty."""
    shift = 64 - _BITS[span]
    parts: dict[int, dict[int, Sequence[int]]] = {}
    for term, rows in postings.items():
        part = parts.get(term >> shift)
        if part is None:
            part = parts[term >> shift] = {}
        part[term] = rows
    for number in sorted(parts):
        yield number, pack(parts[number])


def merged(parts: Iterable[tuple[int, bytes]]) -> dict[int, list[int]]:
    """Join buckets of several small segments; each comes with its first row in the large one."""
    postings: dict[int, list[int]] = {}
    for offset, blob in parts:
        for term, rows in Bucket(blob).items():
            joined = postings.get(term)
            if joined is None:
                joined = postings[term] = []
            joined.extend([row + offset for row in rows])
    return postings


def bitmap(rows: Sequence[int]) -> int:
    """Return the set of these rows as one integer."""
    if len(rows) == 1:
        return 1 << rows[0]
    if not rows:
        return 0
    octets = bytearray(max(rows) // 8 + 1)
    for row in rows:
        octets[row >> 3] |= 1 << (row & 7)
    return int.from_bytes(octets, "little")


def ascending(rows: int) -> list[int]:
    """Return the rows of a set in ascending order."""
    return [row for block, octets in blocks(rows) for row in rows_in(block, octets)]


def blocks(rows: int, *, backwards: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield number and bits of each block that holds any of the rows."""
    octets = rows.to_bytes((rows.bit_length() + 7) // 8, "little")
    numbers = []
    found = _SET.search(octets)
    while found is not None:
        numbers.append(found.start() // _BLOCK)
        found = _SET.search(octets, (numbers[-1] + 1) * _BLOCK)
    for number in reversed(numbers) if backwards else numbers:
        yield number, octets[number * _BLOCK : (number + 1) * _BLOCK]


def rows_in(block: int, octets: bytes) -> list[int]:
    """Return the rows of one block in ascending order."""
    start = block * BLOCK
    return [
        start + match.start() * 8 + bit
        for match in _SET.finditer(octets)
        for bit in _BITS_OF[match[0][0]]
    ]


class Times:
    """The time of each row of a segment, and of each block the first and the last one."""

    __slots__ = ("_bounds", "of")

    def __init__(self, blob: bytes, span: int) -> None:
        """Take what `pack_times` wrote. Raises `DamagedError`."""
        numbers = 2 * span // BLOCK
        if len(blob) != (numbers + span) * 8:
            raise DamagedError(_DAMAGED)
        everything = memoryview(blob).cast("q")
        self._bounds = everything[:numbers]
        self.of = everything[numbers:]

    def bounds(self, block: int) -> tuple[int, int]:
        """Return the first and the last time of a block; both are `NO_TIME` when it is empty."""
        return self._bounds[2 * block], self._bounds[2 * block + 1]


def pack_times(times: array[int]) -> bytes:
    """Write the times of a segment's rows."""
    bounds = array("q")
    for start in range(0, len(times), BLOCK):
        known = [moment for moment in times[start : start + BLOCK] if moment != NO_TIME]
        bounds.extend((min(known, default=NO_TIME), max(known, default=NO_TIME)))
    return bounds.tobytes() + times.tobytes()


_DAMAGED: Final = "a part of the query index was changed on the disk"
