"""Which statements of a text change data or structure, and of which table.

Promises: statements are found behind others of the same text, in common table
expressions and blocks. What is called (functions, procedures) is not known:
that a procedure is called counts as a change of data. Where it is not clear, a
change is assumed: a record too many is better than none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.api.sql.names import NAME, PART

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.api.sql.quoting import Reading


class Deed(NamedTuple):
    """What a statement does, and to which table if it names one."""

    verb: str
    table: str | None


class Deeds(NamedTuple):
    """The first statement that changes data, and the first that changes structure or rights."""

    write: Deed | None
    change: Deed | None


def deeds(reading: Reading) -> Deeds:
    """Find what the statements of a text change."""
    write = change = None
    for code in reading.code.split(";"):
        one = _One(code, reading.names)
        for verb, start in one.verbs():
            if verb in _STRUCTURE:
                change = change or Deed(verb, one.defined(start))
            else:
                write = write or Deed(verb, one.written(verb, start))
        if write is not None and change is not None:
            break
    return Deeds(write, change)


def table_read(reading: Reading) -> str | None:
    """Return the first table that is read from."""
    one = _One(reading.code, reading.names)
    return one.name(_FIRST_READ.search(one.words))


class _One:
    """One statement; ``words`` are its code in capitals of ASCII, place by place."""

    def __init__(self, code: str, names: list[str]) -> None:
        self.code = code
        self.words = (code if code.isascii() else _FOREIGN.sub("X", code)).upper()
        self._names = names

    def verbs(self) -> Iterator[tuple[str, int]]:
        """Return the verbs that change something, and where they are: by the first word, and inside."""
        first, in_a_block = self._first()
        if first is None:
            return
        words, verb, end = self.words, first[1], first.end(1)
        if verb == "PREPARE" or (verb in _EXPLAINS and _ANALYZED.match(words, end) is None):
            return  # of what is only named here
        known = verb in (_STRUCTURE | _DATA) and (
            verb not in _ONLY_IF or _ONLY_IF[verb].match(words, end) is not None
        )
        if known:
            yield verb, first.start(1)
        if verb in _STRUCTURE and _DEFINES.match(words, end) is not None:
            return  # what the body says is not done yet
        inside = False
        for inner in self._inside(verb, end):
            yield inner
            inside = True
        if in_a_block and not (known or inside or verb in _HARMLESS):
            yield "BEGIN", first.start(1)  # it calls a procedure

    def _first(self) -> tuple[re.Match[str] | None, bool]:
        """Return the first word that is not the beginning of a block; the flag says if it is in one."""
        first, in_a_block = _FIRST.match(self.words), False
        while first is not None and first[1] == "BEGIN":
            block = _BLOCK.match(self.words, first.start(1))
            if block is None:
                break  # a transaction
            first, in_a_block = _FIRST.match(self.words, block.end()), True
        return first, in_a_block

    def name(self, found: re.Match[str] | None) -> str | None:
        """Return the name that a search in the words has found."""
        if found is None:
            return None
        parts = (part.strip() for part in self.code[slice(*found.span(1))].split("."))
        return ".".join(
            self._names[int(part[1:-1])] if part.startswith('"') else part for part in parts
        )

    def written(self, verb: str, start: int) -> str | None:
        """Return the table that a verb is about."""
        if verb in _TABLELESS:
            return None
        end = start + len(verb.rpartition(" ")[2])
        if verb == "LOAD":
            return self.name(_LOADED.search(self.words, end))
        found = _TARGET.match(self.words, end)
        if found is not None and verb in _WITH_ALIAS and found[1].isidentifier():
            alias = rf"\b(?:FROM|JOIN)\s+(?!{found[1]}\b)({NAME})\s+(?:AS\s+)?{found[1]}(?![\w\".])"
            found = re.compile(alias).search(self.words, found.end()) or found
        return self.name(found)

    def defined(self, start: int) -> str | None:
        """Return the table whose structure or rights are changed."""
        found = (pattern.match(self.words, start) for pattern in _DEFINED)
        return self.name(next((match for match in found if match is not None), None))

    def _inside(self, first: str, end: int) -> Iterator[tuple[str, int]]:
        """Find what changes something behind the first word."""
        words = self.words
        for match in _VERBS.finditer(words, end):
            verb, start, end = match[0], match.start(), match.end()
            before = words[max(0, start - _BEFORE) : start]
            if _IN_A_NAME.search(before) is not None:
                continue
            if verb == "INTO":
                if first in _SELECTS and _INTO.match(words, end) is not None:
                    yield "SELECT INTO", start
            elif (
                _NO_VERB.search(before) is None and _USUAL[verb].match(words, end) is not None
            ) or (_BEGUN.search(before) is not None and _NAMED.match(words, end) is not None):
                yield verb, start


_DATA: Final = frozenset({
    "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "UPSERT", "TRUNCATE", "COPY", "LOAD", "BULK",
    "REFRESH", "IMPORT", "RESTORE", "CALL", "EXEC", "EXECUTE", "DO",
})  # fmt: skip
_TABLELESS: Final = frozenset({"BEGIN", "CALL", "EXEC", "EXECUTE", "DO", "IMPORT", "RESTORE"})
_STRUCTURE: Final = frozenset({
    "CREATE", "ALTER", "DROP", "RENAME", "GRANT", "REVOKE", "DENY", "COMMENT", "SECURITY", "REASSIGN",
    "ATTACH", "DETACH", "SET", "RESET", "PURGE", "FLASHBACK", "UNDROP", "INSTALL", "UNINSTALL",
    "ENABLE", "DISABLE", "AUDIT", "NOAUDIT",
})  # fmt: skip
_WITH_ALIAS: Final = frozenset({"UPDATE", "DELETE"})
"""DELETE u FROM users AS u"""
_EXPLAINS: Final = frozenset({"EXPLAIN", "DESCRIBE", "DESC"})
_SELECTS: Final = frozenset({"SELECT", "WITH", "EXPLAIN", "ANALYZE"})
_HARMLESS: Final = frozenset({
    "SELECT", "WITH", "VALUES", "TABLE", "IF", "WHILE", "SET", "DECLARE", "PRINT", "NULL", "RETURN",
    "FETCH", "OPEN", "CLOSE", "FOR", "LOOP", "CASE", "RAISE", "END", "BEGIN",
})  # fmt: skip
"""With what the statements of a block begin that call no procedure."""

_FOREIGN: Final = re.compile(r"[^\x00-\x7f]")
_FIRST: Final = re.compile(r"[\s({?=:]*([^\W\d]\w*)")
_ANALYZED: Final = re.compile(r"[\s(]*(?:\w+[\s,]+){0,9}?ANALY[SZ]E\b")
_BLOCK: Final = re.compile(
    r"BEGIN\b(?!\s*\Z|\s+(?:TRAN|TRANSACTION|WORK|DEFERRED|IMMEDIATE|EXCLUSIVE|CONCURRENT|ISOLATION"
    r"|READ|NOT\s+DEFERRABLE)\b)(?:\s+(?:TRY|CATCH|ATOMIC|NOT\s+ATOMIC)\b)?"
)
_COPIED: Final = re.compile(rf"\s+(?:INTO\b|(?:BINARY\s+)?{NAME}\s*(?:\([^()]*\)\s*)?FROM\b)")
# Other settings are the session's.
_LASTING: Final = re.compile(
    r"\b.*?\b(?:PASSWORD|GLOBAL|PERSIST|PERSIST_ONLY|MASTER|DEFAULT\s+ROLE)\b", re.DOTALL
)
_ONLY_IF: Final = {"COPY": _COPIED, "SET": _LASTING, "RESET": _LASTING}
_DEFINES: Final = re.compile(
    r"\s+(?:\w+\s+){0,4}?(?:TRIGGER|PROC|PROCEDURE|FUNCTION|RULE|EVENT|PACKAGE)\b"
)

_BEFORE_A_TABLE: Final = (
    r"(?:INTO|FROM|TABLE|ONLY|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|QUICK|IGNORE|OVERWRITE|BINARY|ALL"
    r"|FIRST|MATERIALIZED|VIEW|CONCURRENTLY|INSERT|TEMP|TEMPORARY|UNLOGGED|OUTFILE|DUMPFILE"
    r"|OR\s+(?:REPLACE|IGNORE|ABORT|FAIL|ROLLBACK))\b"
)
_TARGET: Final = re.compile(
    rf"\s*(?:(?:{_BEFORE_A_TABLE}|TOP\s*\([^()]*\))\s*)*"
    rf"(?!(?:{_BEFORE_A_TABLE}|SET|VALUES|SELECT)\b)({NAME})",
)
_LOADED: Final = re.compile(rf"\bINTO\s+TABLE\s+({NAME})")
_DEFINED: Final = (
    re.compile(
        r"(?:CREATE|ALTER|DROP|RENAME|PURGE|FLASHBACK|UNDROP)\s+(?:\w+\s+){0,4}?(?:TABLE|VIEW)\s+"
        rf"(?:CONCURRENTLY\s+)?(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?:ONLY\s+)?({NAME})",
    ),
    re.compile(
        r"(?:CREATE|ALTER|DROP)\s+(?:\w+\s+){0,4}?(?:INDEX|TRIGGER|POLICY|RULE)\b[^;]*?\bON\s+"
        rf"(?:ONLY\s+)?({NAME})",
    ),
    re.compile(
        r"(?:GRANT|REVOKE|DENY|COMMENT|ENABLE|DISABLE|AUDIT|NOAUDIT)\b[^;]*?\bON\s+"
        r"(?:(?:TABLE|VIEW)\s+)?(?!(?:ALL|COLUMN|DATABASE|SCHEMA|FUNCTION|PROCEDURE|ROUTINE|SEQUENCE"
        r"|LANGUAGE|TYPE|DOMAIN|FOREIGN|TABLESPACE|ROLE|INDEX|TRIGGER|CONSTRAINT|EXTENSION|LARGE"
        rf"|PARAMETER|POLICY|RULE|SERVER)\b)({NAME})",
    ),
)
_VERBS: Final = re.compile(
    r"(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|TRUNCATE|CALL|EXECUTE|EXEC|INTO|CREATE|ALTER|DROP)\b"
)
_BEFORE: Final = 40
"""Characters before a verb that are looked at."""
_IN_A_NAME: Final = re.compile(r"[\w.@:$\"]\Z")
_BEGUN: Final = re.compile(r"(?:[()]|\b(?:BEGIN|THEN|ELSE|ATOMIC|TRY)\s)\s*\Z")
_NAMED: Final = re.compile(rf"\s+(?!(?:AS|AND|OR|ON|WHERE|ORDER|GROUP|THEN|ELSE|END)\b){PART}")
_INTO: Final = re.compile(r"\s+[^\W\d]|\s+[#\"]")
_NEVER: Final = re.compile(r"(?!)")
_USUAL: Final = {
    "INSERT": re.compile(
        r"\s+(?:INTO|OR|IGNORE|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|OVERWRITE|TOP|ALL|FIRST)\b"
    ),
    "UPDATE": re.compile(
        r"\s+(?:(?:LOW_PRIORITY|IGNORE|ONLY|OR\s+\w+)\s+|TOP\s*\([^()]*\)\s*)*(?!SET\b)"
        rf"{NAME}(?:\s+(?:AS\s+)?(?!SET\b){PART})?\s+SET\b"
    ),
    "DELETE": re.compile(r"\s+(?:FROM|TOP|LOW_PRIORITY|QUICK|IGNORE)\b"),
    "MERGE": re.compile(r"\s+INTO\b"),
    "REPLACE": re.compile(r"\s+INTO\b"),
    "TRUNCATE": re.compile(r"\s+TABLE\b"),
    "CREATE": re.compile(r"\s+TABLE\s"),
    "ALTER": re.compile(r"\s+TABLE\s"),
    "DROP": re.compile(r"\s+TABLE\s"),
    "CALL": _NEVER,
    "EXEC": re.compile(rf"\s+{PART}"),
    "EXECUTE": re.compile(rf"\s+{PART}"),
}
"""What follows a verb that nothing else in SQL is followed by."""
_NO_VERB: Final = re.compile(r"(?:\b(?:SELECT|AS|WHERE|AND|OR|NOT|BY|GRANT)|,)\s*\Z")
_FIRST_READ: Final = re.compile(rf"\bFROM\s+(?:ONLY\s+)?({NAME})")
