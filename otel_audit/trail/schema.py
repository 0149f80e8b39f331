"""The tables of a trail, and whether a database has just these.

Promises: whatever else stands in a database's schema is named, and also what
stands there otherwise than the store writes it: an index makes SQLite count and
look up by itself instead of the table, a trigger swallows what is written, a
view answers for a table. `disarm` keeps a connection from running any of it
before that is known. What is in the tables is left to others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from otel_audit.trail.database import fetch

if TYPE_CHECKING:
    from pathlib import Path

TABLES: Final = {
    "meta": """\
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    "leaf": """\
CREATE TABLE leaf (
  seq INTEGER PRIMARY KEY, committed_unix_nano INTEGER NOT NULL,
  hash BLOB NOT NULL, record BLOB NOT NULL)""",
    "tile": """\
CREATE TABLE tile (
  level INTEGER NOT NULL, idx INTEGER NOT NULL, hashes BLOB NOT NULL,
  PRIMARY KEY (level, idx)) WITHOUT ROWID""",
    "tree": """\
CREATE TABLE tree (
  id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL, edge BLOB NOT NULL,
  committed_unix_nano INTEGER NOT NULL)""",
    "checkpoint": """\
CREATE TABLE checkpoint (
  id INTEGER PRIMARY KEY, size INTEGER NOT NULL, unix_nano INTEGER NOT NULL, note TEXT NOT NULL)""",
    "resource": """\
CREATE TABLE resource (hash TEXT PRIMARY KEY, json BLOB NOT NULL) WITHOUT ROWID""",
}
"""As SQLite keeps the statements: every version of this software has written them like this."""

CREATE: Final = ";\n".join((*TABLES.values(), "INSERT INTO tree VALUES (0, 0, x'', 0)"))

_STATISTICS: Final = frozenset({"sqlite_stat1", "sqlite_stat4"})
"""What ANALYZE leaves, which some tools do by themselves: names of SQLite's own, for its planner,
which has nothing to choose from here."""

_NAMED: Final = 40
"""Characters of a name that somebody else chose which a message has."""


class Oddity(NamedTuple):
    """What stands in the schema and should not, or the other way round.

    ``in_place``: it is where one of our tables should be, so that nothing can be
    known of what is read there.
    """

    what: str
    in_place: bool


def disarm(connection: apsw.Connection) -> None:
    """Let triggers and views do nothing on this connection, and the schema call no function."""
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)


def oddities(connection: apsw.Connection) -> list[Oddity]:
    """Return how a database's schema differs from a trail's; nothing if it does not."""
    # As blobs: who wrote into the schema may have written any bytes.
    rows = fetch(
        connection,
        "SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB) "
        "FROM sqlite_schema",
    )
    missing, found = dict(TABLES), []
    for kind, name, table, sql in (tuple(map(_text, row)) for row in rows):
        if kind == "table" and missing.get(name) == sql and table == name:
            del missing[name]
            continue
        if kind == "table" and name in _STATISTICS:
            continue
        ours = kind in ("table", "view") and name.lower() in TABLES
        on = f" on {_short(table)}" if kind in ("index", "trigger") else ""
        what = f"there is {_short(kind)} {_short(name)}{on}, which is none of a trail's"
        if ours and kind == "table":
            missing.pop(name, None)
            what = f"table {_short(name)} is defined otherwise than a trail's"
        found.append(Oddity(what, in_place=ours))
    return found + [Oddity(f"table {name} is missing", in_place=False) for name in missing]


def described(path: Path, odd: list[Oddity]) -> str:
    """Say what is odd, and what to do."""
    return (
        f"{path} is not as a trail is made: {'; '.join(one.what for one in odd)}. It was changed "
        "by another program, and what is written or read there may not be what it seems. Find out "
        "by whom, keep a copy as evidence, run `otel-audit verify`, and take out what does not "
        "belong there, or begin a new origin with `otel-audit new-origin`"
    )


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")


def _short(name: str) -> str:
    return ascii(name[:_NAMED])
