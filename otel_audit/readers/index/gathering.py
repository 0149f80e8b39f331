"""What the index keeps of the records of one small segment.

Promises: `Gathered` finds the same terms as `words.texts_of` and the same words
as `words.searchable`, for records of any form (tests compare them).

An index spends most of its time here: 25 fields a record. What was tried and is
no faster: columns instead of rows, plans for records of the same form, and loops
in C, since the time goes to making and hashing the values, not to the loop.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import TYPE_CHECKING

from otel_audit.readers.index.segments import NO_TIME, SMALL
from otel_audit.readers.query.words import (
    TIMESTAMP,
    as_text,
    fields_of,
    indexable,
    moment_of,
    searchable,
    texts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_audit.trail.reader import Leaf


class Gathered:
    """What is known of the segment that begins with ``start``.

    ``rows`` has the rows of each value of each field; ``texts`` the text of
    each record, with its sequence number; ``last_hash`` is the last leaf's.
    """

    __slots__ = ("_full_text", "last_hash", "rows", "start", "texts", "times")

    def __init__(self, start: int, *, full_text: bool) -> None:
        self.start = start
        self.rows: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
        self.times = array("q", [NO_TIME]) * SMALL
        self.texts: list[tuple[int, str]] = []
        self.last_hash = b""
        self._full_text = full_text

    def add(self, leaves: Iterable[Leaf]) -> None:
        """Add records, in their order."""
        for sequence, committed, self.last_hash, record in leaves:
            fields = fields_of(record)
            row = sequence - self.start
            self.times[row] = moment_of(fields, committed)
            if self._full_text:
                self.texts.append((sequence, indexable(searchable(fields))))
            fields.pop(TIMESTAMP, None)
            self._add(fields, row)

    def _add(self, fields: Mapping[str, object], row: int) -> None:
        # Without a call for each field, which would cost as much as the rest.
        rows = self.rows
        for field, value in fields.items():
            if type(value) is not str:
                if value is None or type(value) is dict:
                    continue
                if type(value) is list:
                    self._add_each(field, texts_of(fields, field), row)
                    continue
                value = as_text(value)  # noqa: PLW2901 - the same value, as it is typed
            by_value = rows[field]
            found = by_value.get(value)
            if found is None:
                by_value[value] = [row]
            else:
                found.append(row)

    def _add_each(self, field: str, values: Iterable[str], row: int) -> None:
        """Add the items of a list, of which some may be the same."""
        for value in dict.fromkeys(values):
            self.rows[field].setdefault(value, []).append(row)
