"""What somebody can do to a table's pages who does not go through SQLite (sqlite.org/fileformat2.html).

All for a table of a two-level b-tree whose rows fit into pages of 4096 bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import apsw

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096
_LEAF, _INTERIOR = 13, 5


class Cell(NamedTuple):
    """One entry of a page, and its key."""

    key: int
    raw: bytes


class Table:
    """The pages of one table of a database that nobody has open."""

    def __init__(self, path: Path, name: str) -> None:
        connection = apsw.Connection(str(path))
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        self.root: int = connection.execute(query, (name,)).get
        connection.close()
        self._path = path
        self._bytes = bytearray(path.read_bytes())

    def save(self) -> None:
        struct.pack_into(">I", self._bytes, 28, len(self._bytes) // PAGE)
        self._path.write_bytes(self._bytes)

    def children(self) -> tuple[list[Cell], int]:
        """Return the root's entries, and its last child."""
        page = self._page(self.root)
        assert page[0] == _INTERIOR
        cells = [
            Cell(_varint(page, place + 4)[0], bytes(page[place : place + 4]))
            for place in self._places(page, 12)
        ]
        return cells, struct.unpack_from(">I", page, 8)[0]

    def rows(self, number: int) -> list[Cell]:
        """Return the rows of one leaf."""
        page, cells = self._page(number), []
        assert page[0] == _LEAF
        for place in self._places(page, 8):
            length, width = _varint(page, place)
            key, more = _varint(page, place + width)
            cells.append(Cell(key, bytes(page[place : place + width + more + length])))
        return cells

    def set_children(self, cells: list[Cell], last: int) -> None:
        entries = [cell.raw[:4] + _as_varint(cell.key) for cell in cells]
        self._write(self.root, _INTERIOR, entries, struct.pack(">I", last))

    def set_rows(self, number: int, rows: list[Cell]) -> None:
        self._write(number, _LEAF, [row.raw for row in rows], b"")

    def add_page(self) -> int:
        self._bytes += bytes(PAGE)
        return len(self._bytes) // PAGE

    def swap(self, number: int, order: list[int]) -> None:
        """Order the rows of a leaf otherwise."""
        rows = self.rows(number)
        self.set_rows(number, [rows[place] for place in order])

    def _page(self, number: int) -> memoryview:
        return memoryview(self._bytes)[(number - 1) * PAGE : number * PAGE]

    @staticmethod
    def _places(page: memoryview, header: int) -> list[int]:
        (count,) = struct.unpack_from(">H", page, 3)
        return list(struct.unpack_from(f">{count}H", page, header))

    def _write(self, number: int, kind: int, entries: list[bytes], more: bytes) -> None:
        page, end, places = bytearray(PAGE), PAGE, []
        for entry in entries:
            end -= len(entry)
            page[end : end + len(entry)] = entry
            places.append(end)
        page[0] = kind
        struct.pack_into(">HH", page, 3, len(entries), end)
        page[8 : 8 + len(more)] = more
        struct.pack_into(f">{len(places)}H", page, 8 + len(more), *places)
        assert end >= 8 + len(more) + 2 * len(places)
        self._bytes[(number - 1) * PAGE : number * PAGE] = page


def _varint(page: memoryview, place: int) -> tuple[int, int]:
    """Return a number and how many bytes it takes; ours are short."""
    value = 0
    for width in range(1, 9):
        byte = page[place + width - 1]
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, width
    raise AssertionError


def _as_varint(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F | 0x80)
    return bytes(reversed(parts))
