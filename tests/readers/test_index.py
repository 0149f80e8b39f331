"""The index as a file: how it follows, and what becomes of a damaged, foreign or full one."""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit import AuditLogger, AuditProvider, Settings
from otel_audit.errors import TrailError
from otel_audit.readers.beside import Beside
from otel_audit.readers.index import DATABASE, QueryIndex, following
from otel_audit.readers.query import parse
from otel_audit.readers.search import TrailSearch
from otel_audit.readers.segments import (
    LARGE,
    SMALL,
    Bucket,
    DamagedError,
    Terms,
    ascending,
    bitmap,
    blocks,
    pack,
)
from tests.readers.bench import wait_for
from tests.readers.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def test_rows_come_out_of_a_bucket_as_they_went_in() -> None:
    chance = random.Random(1)
    postings = {
        chance.getrandbits(64): sorted(chance.sample(range(LARGE), count))
        for count in (1, 2, 3, 100, 4_095, 4_096, 30_000, LARGE)
    }
    blob = pack(postings)
    bucket = Bucket(blob)
    for term, rows in postings.items():
        assert ascending(bucket.bitmap(term)) == rows
    assert {term: list(rows) for term, rows in bucket.items()} == postings
    assert bucket.bitmap(1) == 0
    assert [number for number, _ in blocks(bitmap([3, 5_000]), backwards=True)] == [19, 0]
    assert bitmap([]) == 0


def test_a_bucket_that_was_changed_is_noticed() -> None:
    blob = bytearray(pack({7: [1], 9: [1, 2, 3]}))
    for place in range(len(blob)):
        changed = bytes([*blob[:place], blob[place] ^ 1, *blob[place + 1 :]])
        with pytest.raises(DamagedError):
            Bucket(changed)
    with pytest.raises(DamagedError):
        Bucket(b"")


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
    assert b"otel-audit/1" not in content
    assert b'"event"' not in content
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
    (second.directory / DATABASE).write_bytes((first.directory / DATABASE).read_bytes())
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


def test_an_index_whose_rows_contradict_each_other_is_made_anew(ledger: Ledger) -> None:
    ledger.fill(3 * SMALL)
    index = ledger.index()
    with apsw.Connection(str(index.path)) as database:
        database.execute("DELETE FROM segment")
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
        path = provider.directory / DATABASE
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
        provider.trail.store.append([(bytes(32), record) for record in records], {})
        path = provider.directory / DATABASE
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
    thread = following(ledger.directory, ledger.reader_of, share=0.9)
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
    assert "the unlucky reader failed (1 times" in caplog.text
    assert "the unlucky reader works again" in caplog.text
