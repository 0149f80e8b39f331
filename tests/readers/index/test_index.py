"""The index as a file: how it follows, and what becomes of a damaged, foreign or full one."""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.errors import TrailError
from otel_audit.readers.beside import Beside
from otel_audit.readers.index.gathering import Gathered
from otel_audit.readers.index.segments import (
    LARGE,
    SMALL,
    Bucket,
    Joined,
    Terms,
    ascending,
    bitmap,
    blocks,
    pack,
)
from otel_audit.readers.index.writer import QueryIndex, following
from otel_audit.readers.pace import ALL
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.words import TIMESTAMP, indexable, moment_of, searchable, texts_of
from otel_audit.readers.search.trail import TrailSearch
from otel_audit.trail.layout import INDEX
from otel_audit.trail.reader import Leaf
from tests.readers.bench import wait_for
from tests.readers.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.readers.index.segments import Rows


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "trail")
    yield ledger
    ledger.close()


def indexed(ledger: Ledger) -> int:
    search = TrailSearch.open(ledger.directory)
    try:
        return search.progress().indexed
    finally:
        search.close()


@pytest.mark.parametrize("span", [SMALL, LARGE])
def test_rows_come_out_of_a_bucket_as_they_went_in(span: int) -> None:
    chance = random.Random(1)
    few = span // 16
    postings = {
        chance.getrandbits(64): sorted(chance.sample(range(span), count))
        for count in (1, 2, 3, few - 1, few, few + 1, span // 2, span - 1, span)
    }
    blob = pack(postings, span)
    bucket = Bucket(blob, span)
    for term, rows in postings.items():
        assert ascending(bucket.bitmap(term)) == rows
    assert {term: listed(rows) for term, rows in bucket.items()} == postings
    assert pack(dict(bucket.items()), span) == blob
    assert bucket.bitmap(1) == 0


def listed(rows: Rows) -> list[int]:
    """Write rows of any form as a list."""
    if isinstance(rows, int):
        return [rows]
    return ascending(int.from_bytes(rows, "little")) if isinstance(rows, bytes) else list(rows)


def test_a_set_of_rows_is_an_integer() -> None:
    chance = random.Random(2)
    for rows in ([], [0], [7], [3, 4, 5], range(SMALL), sorted(chance.sample(range(LARGE), 999))):
        assert bitmap(rows) == sum(1 << row for row in rows)
        assert ascending(bitmap(rows)) == list(rows)
    assert [number for number, _ in blocks(bitmap([3, 5_000]), backwards=True)] == [19, 0]


def test_small_segments_join_to_what_one_large_one_would_be() -> None:
    chance = random.Random(3)
    shares = {1: 0.0, 2: 0.000_1, 3: 0.01, 4: 0.05, 5: 0.07, 6: 0.5, 7: 1.0}
    expected = {
        term: [row for row in range(LARGE) if chance.random() < share] or [term * 1_000]
        for term, share in shares.items()
    }
    expected[8] = list(range(500, 1_000))  # a burst: many rows of one segment, few of the whole
    expected[9] = [*range(700), 60_000]
    joined = Joined()
    for start in range(0, LARGE, SMALL):
        small = {
            term: [row - start for row in rows if start <= row < start + SMALL]
            for term, rows in expected.items()
        }
        joined.add(pack({term: rows for term, rows in small.items() if rows}, SMALL), start)
    assert {term: listed(rows) for term, rows in joined.rows().items()} == expected
    assert pack(joined.rows(), LARGE) == pack(expected, LARGE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.0, -0.0, 1.0, 2.5])
    | st.sampled_from(["", "0", "true", "one two", "Ä b", "a_b", "x\ny"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from(["event", "schema", "timestamp", "record_id", "note", "tags"]), JSON
)


@given(st.lists(FIELDS, max_size=5))
def test_what_is_gathered_is_what_each_record_has(documents: list[dict[str, Any]]) -> None:
    rows: dict[tuple[str, str], list[int]] = {}
    leaves = [
        Leaf(SMALL + place, 7, b"hash", orjson.dumps(document))
        for place, document in enumerate(documents)
    ]
    for place, document in enumerate(documents):
        for field in document.keys() - {TIMESTAMP}:
            for text in dict.fromkeys(texts_of(document, field)):
                rows.setdefault((field, text), []).append(place)
    built = Gathered(SMALL, full_text=True)
    built.add(leaves)
    assert rows == {
        (field, text): found
        for field, values in built.rows.items()
        for text, found in values.items()
    }
    assert built.texts == [
        (SMALL + place, indexable(searchable(document))) for place, document in enumerate(documents)
    ]
    assert list(built.times[: len(leaves)]) == [moment_of(document, 7) for document in documents]


def test_terms_depend_on_the_key_the_field_and_the_value() -> None:
    one, two = Terms(b"1"), Terms(b"2")
    assert one("a", "b") == one("a", "b")
    assert (
        len({one("a", "b"), two("a", "b"), one("ab", ""), one("", "ab"), one("a", "\ud800")}) == 5
    )


def test_the_index_follows_by_segments_and_holds_no_record(ledger: Ledger) -> None:
    ledger.fill(SMALL - 1)
    index = QueryIndex(ledger.directory)
    assert index.step(ledger.reader, ledger.size) is False
    assert indexed(ledger) == 0
    ledger.fill(SMALL + 5)
    assert index.step(ledger.reader, ledger.size) is True
    assert index.step(ledger.reader, ledger.size) is False
    assert indexed(ledger) == 2 * SMALL
    index.close()
    content = index.path.read_bytes()
    assert b'"schema":' not in content
    assert b'"event":' not in content
    assert index.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["format", "origin", "text", "junk", "history"])
def test_an_index_that_is_of_no_use_is_made_anew(ledger: Ledger, kind: str) -> None:
    ledger.fill(2 * SMALL)
    index = ledger.index()
    before = index.path.stat().st_ino, indexed(ledger)
    assert before[1] == 2 * SMALL
    if kind in ("format", "origin"):
        with apsw.Connection(str(index.path)) as database:
            database.execute("UPDATE meta SET value = 'another' WHERE key = ?", (kind,))
    elif kind == "junk":
        index.path.write_bytes(b"no database at all\n" * 500)
    elif kind == "history":
        with apsw.Connection(str(index.path)) as database:
            database.execute("UPDATE meta SET value = x'00' WHERE key = 'last_hash'")
    with_text = kind != "text"
    again = QueryIndex(ledger.directory, full_text=with_text)
    while again.step(ledger.reader, ledger.size):
        pass
    again.close()
    search = TrailSearch.open(ledger.directory)
    assert search.progress() == (2 * SMALL, 2 * SMALL, with_text)
    query, _ = parse([("actor", "u-3"), ("limit", "1000")])
    assert [entry.sequence for entry in search.page(query).entries] == ledger.expected(query)
    search.close()


def test_an_index_of_more_than_the_trail_has_is_made_anew(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "first"), Ledger(tmp_path / "second")
    first.fill(3 * SMALL)
    first.index()
    second.fill(SMALL)
    (second.directory / INDEX).write_bytes((first.directory / INDEX).read_bytes())
    assert indexed(second) == SMALL  # of three times as many
    second.index()
    search = TrailSearch.open(second.directory)
    query, _ = parse([("actor", "u-3"), ("limit", "1000")])
    assert [entry.sequence for entry in search.page(query).entries] == second.expected(query)
    for part in (search, first, second):
        part.close()


def test_a_damaged_index_is_deleted_and_made_anew(ledger: Ledger) -> None:
    ledger.fill(8 * SMALL)
    index = ledger.index()
    content = bytearray(index.path.read_bytes())
    for suffix in ("-wal", "-shm"):
        index.path.with_name(index.path.name + suffix).unlink(missing_ok=True)
    content[4_096:] = os.urandom(len(content) - 4_096)
    index.path.write_bytes(content)
    ledger.fill(SMALL)
    with suppress(TrailError):
        index.step(ledger.reader, ledger.size)
    ledger.index()
    assert indexed(ledger) == 9 * SMALL
    query, _ = parse([("actor", "u-3"), ("limit", "1000")])
    search = TrailSearch.open(ledger.directory)
    assert [entry.sequence for entry in search.page(query).entries] == ledger.expected(query)
    search.close()


@pytest.mark.parametrize("change", ["DELETE FROM segment", "UPDATE segment SET present = 0"])
def test_an_index_whose_rows_contradict_each_other_is_made_anew(
    ledger: Ledger, change: str
) -> None:
    ledger.fill(3 * SMALL)
    index = ledger.index()
    with apsw.Connection(str(index.path)) as database:
        database.execute(change)
    with pytest.raises(TrailError, match=r"is damaged .* made anew"):
        index.step(ledger.reader, ledger.size)
    assert not index.path.exists()
    ledger.index()
    assert indexed(ledger) == 3 * SMALL


def test_a_full_disk_stops_the_index_and_nothing_else(ledger: Ledger) -> None:
    ledger.fill(4 * SMALL)
    index = QueryIndex(ledger.directory)
    assert index.step(ledger.reader, ledger.size)
    with index._handle.use() as connection:
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages + 1)
    with pytest.raises(TrailError, match="the disk is full"):
        all(index.step(ledger.reader, ledger.size) for _ in range(5))
    assert indexed(ledger) >= SMALL
    ledger.fill(10)
    query, _ = parse([("event", "authentication"), ("limit", "1000")])
    search = TrailSearch.open(ledger.directory)
    assert [e.sequence for e in search.stream(query)] == ledger.expected(query)
    search.close()
    with index._handle.use() as connection:
        connection.pragma("max_page_count", 1 << 30)
    while index.step(ledger.reader, ledger.size):
        pass
    assert indexed(ledger) == 4 * SMALL
    index.close()


def test_the_last_of_the_disk_is_left_to_the_trail(ledger: Ledger) -> None:
    ledger.fill(SMALL)
    index = QueryIndex(ledger.directory, reserve=1 << 60)
    with pytest.raises(TrailError, match=r"MiB are the trail's; free space"):
        index.step(ledger.reader, ledger.size)
    index.close()
    assert indexed(ledger) == 0


def test_an_index_that_is_deleted_while_it_is_written_is_made_anew(ledger: Ledger) -> None:
    ledger.fill(2 * SMALL)
    index = QueryIndex(ledger.directory)
    search = TrailSearch.open(ledger.directory)
    assert index.step(ledger.reader, ledger.size)
    assert search.progress().indexed == SMALL
    index.path.unlink()
    assert search.progress().indexed == 0
    while index.step(ledger.reader, ledger.size):
        pass
    assert search.progress().indexed == 2 * SMALL
    index.close()
    search.close()


def test_index_deleted_and_corrupted_under_load_harms_no_emit_and_no_answer(tmp_path: Path) -> None:
    settings = Settings.from_env({}, directory=tmp_path / "trail", service_name="hub")
    provider = AuditProvider(settings)
    audit = AuditLogger(provider=provider)
    ended = threading.Event()

    def harm() -> None:
        chance = random.Random(2)
        path = provider.directory / INDEX
        while not ended.wait(0.02):
            if chance.random() < 0.5:
                path.unlink(missing_ok=True)
                continue
            with suppress(OSError), path.open("r+b") as file:
                file.seek(chance.randrange(20_000))
                file.write(os.urandom(500))

    vandal = threading.Thread(target=harm)
    vandal.start()
    query, _ = parse(
        [("actor!", "nobody"), ("event", "read"), ("limit", "1000"), ("order", "oldest")]
    )
    search = TrailSearch.open(provider.directory)
    threads = [
        threading.Thread(
            target=lambda: [audit.audit_event("read", "read", "file", f"f-{n}") for n in range(500)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        size = search.reader.tree().size
        found = [entry.sequence for entry in search.stream(query)]
        assert found[:size] == list(range(size))
    ended.set()
    vandal.join()
    assert provider.statistics["failed"] == 0
    wait_for(lambda: search.progress().indexed == SMALL, 20)
    assert sum(1 for _ in search.stream(query)) == 2_000
    search.close()
    provider.close()


def test_the_agent_keeps_the_index_and_the_settings_turn_it_off(tmp_path: Path) -> None:
    for switch in ("true", "false"):
        environment = {"OTEL_AUDIT_INDEX": switch, "OTEL_AUDIT_FULL_TEXT": "false"}
        settings = Settings.from_env(environment, directory=tmp_path / switch, service_name="hub")
        provider = AuditProvider(settings)
        records = [b'{"event":"e"}'] * SMALL
        provider.trail.store.append(records, {})
        path = provider.directory / INDEX
        if switch == "true":
            search = TrailSearch.open(provider.directory)
            wait_for(lambda search=search: search.progress() == (SMALL, SMALL, False))  # type: ignore[misc]
            search.close()
        provider.close()
        assert path.exists() is (switch == "true")


def test_a_thread_that_fails_says_so_tries_again_and_rests(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit.readers.beside._RETRY_SECONDS", 0.01)
    ledger.fill(SMALL)
    thread = following(ledger.directory, ledger.reader_of, share=ALL)
    thread.start()
    thread.start()
    wait_for(lambda: indexed(ledger) == SMALL)
    thread.stop()
    assert thread.last_error is None
    failures = iter([OSError("no luck"), OSError("again")])

    def work() -> bool:
        error = next(failures, None)
        if error is not None:
            raise error
        return False

    unlucky = Beside("unlucky reader", work)
    unlucky.start()
    wait_for(lambda: unlucky.errors == 2 and unlucky.last_error is None)
    unlucky.stop()
    unlucky.forget()
    assert "the unlucky reader failed (1 in a row" in caplog.text
    assert "the unlucky reader works again" in caplog.text
