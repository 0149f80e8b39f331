"""The form of the query index: which rows of a segment hold which terms.

A segment covers `SMALL` or `LARGE` sequence numbers in a row; a row is a
sequence number less the segment's first one. A term is a field and a value of
it; the index knows it by a keyed hash of 64 bits alone, so that it holds no
values, and nobody can make values whose terms collide. A segment's terms lie
in buckets by their first bits, and one lookup reads one bucket.

Promises: packing and unpacking are each other's inverse. That what is unpacked
is what was packed is seen to by `tables.py`.

Rows are written as in a Roaring bitmap (https://roaringbitmap.org): 16-bit
numbers when there are few, a bitmap when there are many. In memory a set of
rows is one integer with a bit for each, which Python joins and intersects at
the speed of memory.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SMALL: Final = 1_024
LARGE: Final = 65_536
"""Rows of a segment: as many as 16 bits can number."""

FORMAT: Final = f"5-{sys.byteorder}"
"""An index of another format is made anew."""

_BITS: Final = {SMALL: 4, LARGE: 10}
"""A segment has two to this power buckets."""

_LISTED: Final = 1 << 31
"""Marks, in the place of a row, the position of a list of rows."""

_BITMAP: Final = 0xFFFF
"""Stands in the place of a list's length for a bitmap of the whole segment."""

_FEW: Final = 16
"""A list of rows has this many bits a row: from so many of all rows on a bitmap is shorter."""

_HEAD: Final = struct.Struct("=Q")
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


Rows: TypeAlias = "int | Sequence[int] | bytes"
"""What has a term: one row, as with most terms, several in ascending order, or a bitmap of all."""


class Terms:
    """Hashes terms with the index's own key, so that nobody can choose what collides."""

    def __init__(self, key: bytes) -> None:
        """Take up to 64 secret bytes."""
        self._state = blake2b(digest_size=8, key=key)

    def __call__(self, field: str, value: str) -> int:
        """Return the term of a field's value."""
        return self.of(field, (value,))[0]

    def of(self, field: str, values: Iterable[str]) -> Sequence[int]:
        """Return the terms of a field's values."""
        begun = self._state.copy()
        begun.update(f"{field}\0".encode("utf-8", "surrogatepass"))
        digests = []
        for value in values:
            state = begun.copy()
            state.update(value.encode("utf-8", "surrogatepass"))
            digests.append(state.digest())
        terms = array("Q", b"".join(digests))
        if sys.byteorder == "little":
            terms.byteswap()
        return terms


def bucket_of(term: int, span: int) -> int:
    """Return the bucket of a term in a segment of ``span`` rows."""
    return term >> (64 - _BITS[span])


def buckets(span: int) -> int:
    """Return how many buckets a segment of ``span`` rows has."""
    return 1 << _BITS[span]


def pack(postings: Mapping[int, Rows], span: int, terms: Sequence[int] | None = None) -> bytes:
    """Write one bucket: the rows of these ``terms``, which are in ascending order; default: all."""
    ordered = sorted(postings) if terms is None else terms
    references = array("I")
    data = array("H")
    for term in ordered:
        rows = postings[term]
        if isinstance(rows, int):
            references.append(rows)
        elif len(rows) == 1:
            references.append(rows[0])
        else:
            references.append(_LISTED | len(data))
            if isinstance(rows, bytes):
                data.append(_BITMAP)
                data.frombytes(rows)
            elif len(rows) * _FEW < span:
                data.append(len(rows))
                data.extend(rows)
            else:
                data.append(_BITMAP)
                data.frombytes(bitmap(rows).to_bytes(span // 8, "little"))
    body = array("Q", ordered).tobytes() + references.tobytes() + data.tobytes()
    return _HEAD.pack(len(ordered)) + body


class Bucket:
    """One bucket of a segment of ``span`` rows as it was read."""

    __slots__ = ("_data", "_octets", "_references", "_terms")

    def __init__(self, blob: bytes | memoryview, span: int) -> None:
        """Take what `pack` wrote, and nothing else."""
        self._octets = span // 8
        (count,) = _HEAD.unpack_from(blob)
        body = memoryview(blob)[_HEAD.size :]
        self._terms = body[: count * 8].cast("Q")
        self._references = body[count * 8 : count * 12].cast("I")
        self._data = body[count * 12 :].cast("H")

    def bitmap(self, term: int) -> int:
        """Return the rows of a term, 0 when it has none here."""
        place = bisect_left(self._terms, term)
        if place == len(self._terms) or self._terms[place] != term:
            return 0
        rows = self._rows(self._references[place])
        if isinstance(rows, int):
            return 1 << rows
        return int.from_bytes(rows, "little") if isinstance(rows, bytes) else bitmap(rows)

    def items(self) -> Iterator[tuple[int, Rows]]:
        """Yield the terms with their rows, in the terms' order."""
        for term, reference in zip(self._terms, self._references, strict=True):
            yield term, reference if reference < _LISTED else self._rows(reference)

    def _rows(self, reference: int) -> Rows:
        if reference < _LISTED:
            return reference
        data, start = self._data, reference - _LISTED
        if data[start] == _BITMAP:
            return bytes(data[start + 1 : start + 1 + self._octets // 2])
        return data[start + 1 : start + 1 + data[start]].tolist()


def pack_all(postings: Mapping[int, Rows], span: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and blob of each bucket that is not empty."""
    shift = 64 - _BITS[span]
    ordered = sorted(postings)
    begin = 0
    while begin < len(ordered):
        number = ordered[begin] >> shift
        end = bisect_left(ordered, (number + 1) << shift, begin)
        yield number, pack(postings, span, ordered[begin:end])
        begin = end


class Joined:
    """Buckets of several small segments, as one of a large segment.

    Rows are kept as they will be written: as objects of Python's they would be
    ten times as long, and the time would go to memory that no cache holds.
    """

    __slots__ = ("_few", "_many")

    def __init__(self) -> None:
        self._few: dict[int, int | array[int]] = {}
        self._many: dict[int, bytearray] = {}

    def add(self, blob: bytes | memoryview, offset: int) -> None:
        """Add a bucket whose segment begins at row ``offset`` of the large one."""
        few = self._few
        for term, rows in Bucket(blob, SMALL).items():
            if isinstance(rows, bytes):
                self._add_many(term, rows, offset // 8)
                continue
            known = few.get(term)
            if known is None:
                few[term] = rows + offset if isinstance(rows, int) else _moved(rows, offset)
                continue
            if isinstance(known, int):
                known = few[term] = array("H", (known,))
            if isinstance(rows, int):
                known.append(rows + offset)
            else:
                known += _moved(rows, offset)

    def _add_many(self, term: int, octets: bytes, place: int) -> None:
        whole = self._many.get(term)
        if whole is None:
            whole = self._many[term] = bytearray(LARGE // 8)
        whole[place : place + len(octets)] = octets

    def rows(self) -> dict[int, Rows]:
        """Return the rows of each term."""
        rows: dict[int, Rows] = dict(self._few)
        for term, octets in self._many.items():
            rows[term] = _together(octets, self._few.get(term, ()))
        return rows


def _moved(rows: Sequence[int], offset: int) -> array[int]:
    return array("H", [row + offset for row in rows])


def _together(octets: bytearray, rows: int | Sequence[int]) -> Rows:
    """Join a large segment's bitmap and rows of the same term, in the shorter form."""
    for row in (rows,) if isinstance(rows, int) else rows:
        octets[row >> 3] |= 1 << (row & 7)
    everything = int.from_bytes(octets, "little")
    few = everything.bit_count() * _FEW < LARGE
    return array("H", ascending(everything)) if few else bytes(octets)


def bitmap(rows: Sequence[int]) -> int:
    """Return the set of these rows, which are in ascending order, as one integer."""
    if not rows:
        return 0
    first, count = rows[0], len(rows)
    if rows[-1] - first == count - 1:  # without a gap, as of what all records have
        return ((1 << count) - 1) << first
    # As a numeral of twos, which Python reads twice as fast as a loop can set bits.
    marks = bytearray(rows[-1] + 1)
    for row in rows:
        marks[row] = 1
    marks.reverse()
    return int(marks.translate(_DIGITS), 2)


_DIGITS: Final = bytes((48, 49)).ljust(256, b"0")
"""Makes digits of zeros and ones."""


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

    def __init__(self, blob: bytes | memoryview, span: int) -> None:
        """Take what `pack_times` wrote, and nothing else."""
        numbers = 2 * span // BLOCK
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
