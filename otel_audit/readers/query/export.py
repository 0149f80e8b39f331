"""Records of an answer as JSON, as lines of JSON, and as CSV.

Promises: fields that are hidden from whoever asks are in none of them; a cell
of CSV never begins like a formula (https://owasp.org/www-community/attacks/CSV_Injection),
and the columns are the same for every answer, so that any number of records
can be written one by one.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.readers.query.times import stamp
from otel_audit.readers.query.words import as_text
from otel_audit.record.event import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.readers.query.model import Entry, Query

_OWN: Final = tuple(key for key in KEYS if key != "schema")
COLUMNS: Final = ("sequence", "committed_at", *_OWN, "fields")
"""The record's own keys, and all that the caller added as one JSON object."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def as_json(entry: Entry, query: Query) -> dict[str, Any]:
    """Return one record with its place, as far as whoever asks may see it."""
    return {
        "sequence": entry.sequence,
        "committed_at": stamp(entry.committed_unix_nano),
        "record": query.visible(entry.fields),
    }


def as_line(entry: Entry, query: Query) -> bytes:
    """Return one record as a line of JSON."""
    return orjson.dumps(as_json(entry, query), option=orjson.OPT_APPEND_NEWLINE)


def csv_head() -> str:
    """Return the first line."""
    return csv_row(COLUMNS)


def csv_line(entry: Entry, query: Query) -> str:
    """Return one record as a line of CSV (RFC 4180)."""
    fields = query.visible(entry.fields)
    own = [fields.pop(key, None) for key in _OWN]
    fields.pop("schema", None)
    rest = orjson.dumps(fields).decode() if fields else ""
    cells = ["" if value is None else as_text(value) for value in own]
    return csv_row(
        [str(entry.sequence), stamp(entry.committed_unix_nano), *map(safe_cell, cells), rest]
    )


def safe_cell(cell: str) -> str:
    """Keep spreadsheets from taking a text for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def csv_row(cells: Iterable[str]) -> str:
    """Return one line of CSV."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
