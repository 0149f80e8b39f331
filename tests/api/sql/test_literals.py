"""No literal survives, whatever the dialect, and whether or not the statement was cut."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.api.sql.statement import LONGEST, statement

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "hunter"

_odd = st.text(alphabet="'\"\\`[]{}()$#-/*;:=.,!% \nqQeEnNaA0", max_size=6)
_contents = st.tuples(_odd, _odd).map(SECRET.join)


def quoted(quote: str, *, backslash: bool = False, doubles: bool = True) -> st.SearchStrategy[str]:
    """Make literals whose quotes are escaped in each way that the dialect has."""

    def escape(drawn: tuple[str, bool]) -> str:
        text, doubled = drawn
        if backslash:
            text = text.replace("\\", "\\\\")
        with_backslash = backslash and not (doubles and doubled)
        text = text.replace(quote, f"\\{quote}" if with_backslash else quote * 2)
        return f"{quote}{text}{quote}"

    return st.tuples(_contents, st.booleans()).map(escape)


def between(opening: str, closing: str, without: str) -> st.SearchStrategy[str]:
    return _contents.map(lambda text: opening + text.replace(without, "") + closing)


def named(opening: str, closing: str) -> st.SearchStrategy[str]:
    """Make quoted names, which hold anything and no secret."""
    return _odd.map(lambda text: f"{opening}n{text.replace(closing, closing * 2)}{closing} = 1")


def to_the_end(mark: str) -> st.SearchStrategy[str]:
    return _odd.map(lambda text: mark + text.replace("\n", "") + "\n")


def block(text: str) -> str:
    return f"/* {text.replace('*/', '').replace('/*', '').rstrip('*/').replace('!', '')} */"


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda text: prefix + text


Strategy: TypeAlias = "st.SearchStrategy[str]"

_blocks = _odd.map(block)
_nested = st.tuples(_odd, _blocks, _odd).map(
    lambda drawn: f"/* {block(drawn[0])[3:-3]} {drawn[1]} {block(drawn[2])[3:-3]} */"
)
DIALECTS: dict[str, tuple[Strategy, Strategy]] = {
    "postgresql": (
        quoted("'")
        | quoted("'", backslash=True).map(prefixed("E"))
        | between("$$", "$$", "$")
        | between("$tag$", "$tag$", "$"),
        named('"', '"') | to_the_end("--") | _blocks | _nested,
    ),
    "mysql": (
        quoted("'", backslash=True) | quoted('"', backslash=True),
        named("`", "`") | to_the_end("-- ") | to_the_end("#") | _blocks | st.just("1--1"),
    ),
    "sql server": (
        quoted("'") | quoted("'").map(prefixed("N")),
        named("[", "]") | named('"', '"') | to_the_end("--") | _blocks | _nested,
    ),
    "oracle": (
        quoted("'") | between("q'[", "]'", "]") | between("nQ'!", "!'", "!"),
        named('"', '"') | to_the_end("--") | _blocks,
    ),
    "sqlite": (
        quoted("'") | quoted('"'),
        named("[", "]") | named("`", "`") | to_the_end("--") | _blocks,
    ),
    "bigquery": (
        # Three quotes begin another kind of literal there.
        quoted("'", backslash=True, doubles=False)
        | quoted('"', backslash=True, doubles=False)
        | _contents.map(lambda text: f"'''{text.replace(chr(92), '').replace(chr(39), '')}it's'''")
        | _contents.map(lambda text: f'"""{text.replace(chr(92), "").replace(chr(34), "")}a"b"""'),
        _odd.map(lambda text: f"`n{text.replace(chr(92), '').replace('`', '')}` = 1")
        | to_the_end("#"),
    ),
}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("dialect", DIALECTS)
@given(data=st.data())
def test_no_literal_survives(dialect: str, data: st.DataObject) -> None:
    literals, noise = DIALECTS[dialect]
    parts = data.draw(st.lists(st.tuples(noise, literals), min_size=1, max_size=4))
    start = data.draw(
        st.sampled_from(["UPDATE t SET a = ", "INSERT INTO t (a, b) VALUES (", "SELECT ", ""])
    )
    text = start + " , ".join(f"{some} , {literal}" for some, literal in parts) + " WHERE a = 1"
    cut = data.draw(st.integers(0, len(text)))
    for said in (text, text[:cut]):
        assert "hunt" not in statement(said).text
        assert "unter" not in statement(said).text


@pytest.mark.usefixtures("unmeasured")
@given(st.text() | st.text(alphabet="'\"`[]{}()$#-/*;:=.,!? \\\nqEaN0", max_size=40))
def test_any_text_is_looked_at(text: str) -> None:
    said = statement(text)
    assert len(said.text) <= LONGEST
    behind = f"DELETE FROM users;{text}"  # noqa: S608 - no database reads it
    assert statement(behind).write_table == "users"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('a = "hunter2secret"', "a = ?"),
        ("a = $$hunter2secret$$", "a = ?"),
        ("a = 'it\\'s hunter2secret', b = 1", "a = ?"),
        ("a = E'a\\'hunter2secret\\' b', b = 1", "a = E?, b = ?"),
        ("a = 'hunter2sec", "a = ?"),
        ("a = ` + 'hunter2secret'", "a = ?"),
        ("a = 0xDEADBEEF AND b = 1e-5 OR c = -.5", "a = ? AND b = ? OR c = -?"),
        ("a = X'1F' AND b = N'x'", "a = X? AND b = N?"),
        ("a1 = $1 AND b = :2 AND c = %s AND d = ? AND e = @p1", "a1 = $1 AND b = :2 AND c = %s AND d = ? AND e = @p1"),
        ("/* it's */ a = 'b' -- it's\n AND c = 1", "  a = ?  \n AND c = ?"),
        ('"t1"."a2" = 1 AND `b3` = 2', '"t1"."a2" = ? AND `b3` = ?'),
    ],
)  # fmt: skip
def test_what_is_left_of_a_condition(text: str, shown: str) -> None:
    prefix = "UPDATE t SET x = y WHERE "
    assert statement(prefix + text).text == prefix + shown


@pytest.mark.parametrize(
    "text",
    [
        'INSERT INTO "public"."users" ("id", "first name", other, "x") VALUES (%s, %s)',
        'INSERT INTO "users" ("id") VALUES (%s) ON CONFLICT ("id") DO UPDATE SET "a" = %s, "b" = %s',
        'UPDATE "auth_user" SET "last_login" = %s, "name" = %s WHERE "auth_user"."id" = %s',
        'DELETE FROM "users" WHERE "users"."id" IN (SELECT U0."id" FROM "other" U0 WHERE U0."x" = %s)',
        'CREATE TABLE IF NOT EXISTS "t" ("id" integer, "b" varchar(?) NOT NULL, PRIMARY KEY ("id", "b"))',
        'CREATE UNIQUE INDEX "ix" ON "t" ("a", "b")',
        'ALTER TABLE "t" ADD CONSTRAINT "c" FOREIGN KEY ("a") REFERENCES "u" ("id")',
        'ALTER TABLE "t" RENAME TO "u"',
    ],
)
def test_names_in_double_quotes_stay_where_they_can_be_nothing_else(text: str) -> None:
    assert statement(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        'UPDATE t SET a = "secret"',
        'UPDATE t SET a = 1, b = concat(c, "secret")',
        'SELECT * FROM t WHERE a = 1 ORDER BY b, "secret" = c',
        'INSERT INTO t (a, b) VALUES (1, "secret")',
        'INSERT INTO t (SELECT "secret", a)',
        'INSERT INTO t (SELECT a, "secret")',
        'CREATE TABLE t (SELECT 1, "secret" text)',
        'CREATE TABLE t (a text DEFAULT "secret", b ENUM("secret", "secret"))',
        'SELECT TRIM(a FROM "secret")',
        'SELECT * FROM t WHERE a IS DISTINCT FROM "secret" ORDER BY b',
        'CREATE USER "secret" IDENTIFIED BY "secret"',
        'UPDATE t SET a = "secret',
    ],
)
def test_texts_in_double_quotes_that_could_be_literals_are_taken_out(text: str) -> None:
    assert "secret" not in statement(text).text


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "repeated",
    [
        "'", '"', '("a",', "[", "`", "$a$", "$$ $a", "/*", "-- '\n", "\\ '", "q'[", "1.1", " ", "(",
        "begin ", "update a ", "insert ", "create index on ", "explain ", "set a,", "grant ", ";",
        "select into ", "with a as (", "1e-", "E'\\", "'''", "from a ", "delete u from ",
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", ["", "select \\ ", "create table t ("])
def test_time_is_linear(start: str, repeated: str) -> None:
    def took(size: int) -> float:
        text = start + repeated * (size // len(repeated))
        best = 1.0
        for number in range(3):
            began = time.thread_time()
            statement(f"{text}{number}")
            best = min(best, time.thread_time() - began)
        return best

    assert took(40_000) < 12 * took(10_000) + 0.01


def test_what_is_kept_is_short() -> None:
    rows = ", ".join(["('x', 1, \"y\")"] * 10_000)
    text = f"INSERT INTO t VALUES {rows}"  # noqa: S608 - no database reads it
    assert len(statement(text).text) == LONGEST
