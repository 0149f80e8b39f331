"""What changes data or structure is found, with its table, wherever it stands and however it is written."""

from __future__ import annotations

import time

import pytest

from otel_audit.api.sql.statement import statement


@pytest.mark.parametrize(
    ("text", "verb", "table"),
    [
        ("INSERT INTO users VALUES (?)", "INSERT", "users"),
        ("INSERT\tINTO users VALUES (?)", "INSERT", "users"),
        ("INSERT OR REPLACE INTO users VALUES (?)", "INSERT", "users"),
        ("insert users values (?)", "INSERT", "users"),
        ("MERGE\nINTO t USING s ON a = b", "MERGE", "t"),
        ("MERGE TOP (5) INTO dbo.t AS x USING s ON a = b", "MERGE", "dbo.t"),
        ("TRUNCATE users", "TRUNCATE", "users"),
        ("TRUNCATE\nTABLE ONLY users", "TRUNCATE", "users"),
        ("REPLACE INTO t VALUES (1)", "REPLACE", "t"),
        ("COPY t\nFROM STDIN", "COPY", "t"),
        ("COPY users (a, b) FROM STDIN", "COPY", "users"),
        ("COPY INTO t FROM @stage", "COPY", "t"),
        ("COPY (DELETE FROM users RETURNING *) TO STDOUT", "DELETE", "users"),
        ("LOAD DATA INFILE 'x' REPLACE INTO TABLE users", "LOAD", "users"),
        ("BULK INSERT users FROM 'x'", "BULK", "users"),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY v", "REFRESH", "v"),
        ("CALL pay(1)", "CALL", None),
        ("{? = call pay(?)}", "CALL", None),
        ("EXEC sp_delete 5", "EXEC", None),
        ("DO $$ BEGIN DELETE FROM x; END $$", "DO", None),
        ("BEGIN pay(:1); END;", "BEGIN", None),
        ("BEGIN DELETE FROM users; END", "DELETE", "users"),
        ("SELECT a INTO TEMP backup FROM users", "SELECT INTO", "backup"),
        ("SELECT * INTO OUTFILE '/tmp/x' FROM users", "SELECT INTO", None),
        # Behind something else
        ("/* job */ DELETE FROM users", "DELETE", "users"),
        ("-- it's\n-- late\nDELETE FROM users", "DELETE", "users"),
        ("# it's late\nDELETE FROM users", "DELETE", "users"),
        ("/* a /* b */ don't */ DELETE FROM users", "DELETE", "users"),
        ("/*!50003 DELETE FROM users */", "DELETE", "users"),
        ("BEGIN; DELETE FROM users; COMMIT", "DELETE", "users"),
        ("SELECT 'C:\\'; DELETE FROM users", "DELETE", "users"),
        ("WITH g AS (SELECT id FROM x) DELETE FROM users WHERE id IN (SELECT id FROM g)", "DELETE", "users"),
        ("WITH x AS (INSERT INTO a VALUES (1) RETURNING id) SELECT * FROM x", "INSERT", "a"),
        ("WITH x AS (SELECT 1) UPDATE a JOIN x ON a.id = x.id SET a.x = 1", "UPDATE", "a"),
        ("EXPLAIN ANALYZE DELETE FROM users", "DELETE", "users"),
        ("EXPLAIN (ANALYZE, BUFFERS) UPDATE users SET a = 1", "UPDATE", "users"),
        ("SET NOCOUNT ON DELETE FROM users", "DELETE", "users"),
        ("IF EXISTS (SELECT 1) DELETE users", "DELETE", "users"),
        ("BEGIN TRAN DELETE FROM users", "DELETE", "users"),
        ("SELECT 1 UPDATE users SET a = 1", "UPDATE", "users"),
        ("DECLARE @x int EXEC pay @x", "EXEC", None),
        # Whatever a table is called
        ("UPDATE ONLY users SET a = 1", "UPDATE", "users"),
        ('INSERT INTO "public"."users" VALUES (1)', "INSERT", "public.users"),
        ('DELETE FROM "my table"', "DELETE", "my table"),
        ("DELETE FROM `my``table`", "DELETE", "my`table"),
        ("DELETE FROM [dbo].[my table] WHERE a = 'x'", "DELETE", "dbo.my table"),
        ("DELETE FROM größe", "DELETE", "größe"),
        ("DELETE FROM db..users", "DELETE", "db..users"),
        ("DELETE u FROM users AS u JOIN x ON x.id = u.id", "DELETE", "users"),
        ("DELETE t1 FROM t1 JOIN t2 ON t1.id = t2.id", "DELETE", "t1"),
        ("UPDATE u SET a = 1 FROM dbo.users u", "UPDATE", "dbo.users"),
        ("DELETE FROM ?", "DELETE", None),
    ],
)  # fmt: skip
def test_what_changes_data(text: str, verb: str, table: str | None) -> None:
    said = statement(text)
    assert (said.write, said.write_table) == (verb, table)
    assert said.change is None


@pytest.mark.parametrize(
    ("text", "verb", "table"),
    [
        ("CREATE\nTABLE t (a int)", "CREATE", "t"),
        ("CREATE TEMPORARY TABLE IF NOT EXISTS s.t (a int)", "CREATE", "s.t"),
        ("CREATE OR REPLACE VIEW v AS SELECT 1 FROM t", "CREATE", "v"),
        ("CREATE INDEX CONCURRENTLY ix ON users (name)", "CREATE", "users"),
        ("CREATE INDEX CONCURRENTLY ON users (name)", "CREATE", "users"),
        ("CREATE TRIGGER tr AFTER INSERT ON users BEGIN SELECT 1; END", "CREATE", "users"),
        ("CREATE USER bob IDENTIFIED BY 'x'", "CREATE", None),
        ("ALTER TABLE ONLY public.users ADD COLUMN x int", "ALTER", "public.users"),
        ("DROP TABLE users", "DROP", "users"),
        ("DROP INDEX ix", "DROP", None),
        ("RENAME TABLE a TO b", "RENAME", "a"),
        ("GRANT SELECT, DELETE ON users TO bob", "GRANT", "users"),
        ("REVOKE ALL ON ALL TABLES IN SCHEMA x FROM bob", "REVOKE", None),
        ("COMMENT ON TABLE users IS 'x'", "COMMENT", "users"),
        ("SET PASSWORD FOR 'bob' = 'x'", "SET", None),
        ("SET GLOBAL max_connections = 5", "SET", None),
        ("SELECT 1; DROP TABLE users", "DROP", "users"),
        ("SELECT 1 DROP TABLE users", "DROP", "users"),
        ("CREATE PROCEDURE p AS DELETE FROM users", "CREATE", None),
        ("CREATE TABLE t (a int REFERENCES u ON DELETE CASCADE ON UPDATE SET NULL)", "CREATE", "t"),
    ],
)
def test_what_changes_structure_accounts_and_rights(
    text: str, verb: str, table: str | None
) -> None:
    said = statement(text)
    assert (said.change, said.change_table) == (verb, table)
    assert said.write is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM users",
        "SELECT * FROM users FOR UPDATE",
        "SELECT * FROM users FOR NO KEY UPDATE OF users SKIP LOCKED",
        "SELECT replace(a, 'x', 'y'), insert(b, 1, 2, 'z') FROM users",
        "SELECT a.update, delete, insert FROM users",
        "SELECT 'x; DELETE FROM users' FROM users",
        'SELECT "delete from" FROM users',
        "SELECT last_update, update_count FROM users WHERE NOT deleted",
        "SELECT max(x) INTO @v FROM t",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "(SELECT 1) UNION (SELECT 2)",
        "EXPLAIN DELETE FROM users",
        "EXPLAIN QUERY PLAN DELETE FROM users",
        "PREPARE p AS DELETE FROM users",
        "COPY users TO STDOUT",
        "COPY (SELECT * FROM users) TO STDOUT",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "begin transaction; commit",
        "BEGIN SELECT 1 END",
        "SET search_path = x",
        "PRAGMA foreign_keys = ON",
        "VACUUM",
        "",
        " ;; ",
        "-- DELETE FROM users",
        "/* DELETE FROM users */ SELECT 1",
    ],
)
def test_what_only_reads(text: str) -> None:
    said = statement(text)
    assert (said.write, said.change) == (None, None)


def test_of_several_statements_the_first_of_each_kind_counts_and_has_its_own_table() -> None:
    said = statement("SELECT 1 FROM x; DROP TABLE a; DELETE FROM b; UPDATE c SET d = 1")
    assert (said.write, said.write_table) == ("DELETE", "b")
    assert (said.change, said.change_table) == ("DROP", "a")


def test_statements_of_both_kinds_without_anything_between_them() -> None:
    for text in (
        "CREATE TABLE #a (id int) INSERT INTO b SELECT 1",
        "INSERT INTO b SELECT 1 CREATE TABLE #a (id int)",
    ):
        said = statement(text)
        assert (said.write, said.write_table) == ("INSERT", "b")
        assert (said.change, said.change_table) == ("CREATE", "#a")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("SELECT * FROM users u", "users"),
        ('SELECT 1 FROM "my table" WHERE a = 1', "my table"),
        ("INSERT INTO a SELECT * FROM b", "a"),
        ("DROP TABLE c", "c"),
        ("SELECT 1", None),
    ],
)
def test_a_table_is_also_known_of_what_only_reads(text: str, table: str | None) -> None:
    assert statement(text).table == table


def test_what_comes_again_costs_nothing() -> None:
    """As SQLAlchemy writes statements; the second time takes microseconds, on any machine."""
    columns = ", ".join(f"users.c{n} AS users_c{n}" for n in range(30))
    text = f"SELECT {columns} FROM users"  # noqa: S608 - no database reads it
    statement(text)
    began = time.thread_time()
    for _ in range(1_000):
        statement(text)
    assert time.thread_time() - began < 0.02
