"""Holding records against a query, without parsing those that cannot match.

Promises: `matching` returns what the query asks for and nothing else, whatever
a row that was tampered with holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_audit.readers.query.model import Entry, Query, needles
from otel_audit.readers.query.times import stamp
from otel_audit.readers.query.words import fields_of, moment_of, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.trail.reader import Leaf


def entry_of(leaf: Leaf) -> Entry:
    """Return one record, read."""
    record = _as_bytes(leaf.record)
    return Entry(leaf.sequence, leaf.committed_unix_nano, record, fields_of(record))


def matching(leaves: Iterable[Leaf], query: Query) -> list[Entry]:
    """Return those that the query asks for; what each has to contain is looked for first."""
    wanted = needles(query)
    # Letters beyond ASCII have more than one form, and are left to the thorough look.
    words = [word.removesuffix("*").encode() for word in query.words if word.isascii()]
    early, late = _stamps(query)
    entries = []
    for leaf in leaves:
        record = _as_bytes(leaf.record)
        if any(needle not in record for needle in wanted):
            continue
        if (early or late) and _outside(record, early, late):
            continue
        if words and not _has_all(words, record.lower()) and not _has_any(_DISGUISED, record):
            continue
        fields = fields_of(record)
        if query.matches(fields, moment_of(fields, leaf.committed_unix_nano)):
            entries.append(Entry(leaf.sequence, leaf.committed_unix_nano, record, fields))
    return entries


def _stamps(query: Query) -> tuple[bytes, bytes]:
    """Return the query's time range as records write it; empty is unbounded."""
    start, end = query.start, query.end
    try:
        return (
            b"" if start is None else stamp(start).encode(),
            b"" if end is None else stamp(end).encode(),
        )
    except OverflowError:  # no year that a record could name
        return b"", b""


def _outside(record: bytes, early: bytes, late: bytes) -> bool:
    """Whether a record says, where it says it as ours do, that it is of another time."""
    moment = stamp_of(record)
    return moment is not None and (moment < early or (late != b"" and moment >= late))


def _has_all(words: Iterable[bytes], lowered: bytes) -> bool:
    return all(word in lowered for word in words)


def _has_any(letters: Iterable[bytes], record: bytes) -> bool:
    return any(letter in record for letter in letters)


_DISGUISED: Final = (
    "\N{KELVIN SIGN}".encode(),
    "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}".encode(),
)
"""The letters beyond ASCII that have one of ASCII as their small form."""


def _as_bytes(record: object) -> bytes:
    """Return what a row holds as bytes: a row that was tampered with may hold anything."""
    return record if isinstance(record, bytes) else str(record).encode(errors="backslashreplace")
