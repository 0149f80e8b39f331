"""Answers: whole and right with any index, with none, and with a damaged one."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import apsw
import pytest

from otel_audit.errors import QueryError
from otel_audit.readers.index import tables
from otel_audit.readers.index.segments import LARGE, SMALL
from otel_audit.readers.index.view import IndexView
from otel_audit.readers.query.model import Condition, Query, where
from otel_audit.readers.query.page_cursor import CursorSigner
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import stamp
from otel_audit.readers.query.words import texts_of
from otel_audit.readers.search.trail import TrailSearch
from otel_audit.trail.layout import INDEX
from tests.readers.ledger import BEGAN, EVENTS, SECOND, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = 3_600 * SECOND
COUNT = LARGE + 3 * SMALL + 700


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Give a trail with a large segment, three small ones, and some records behind them."""
    ledger = Ledger(tmp_path_factory.mktemp("large") / "trail")
    ledger.fill(COUNT)
    ledger.index()
    yield ledger
    ledger.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "trail")
    yield ledger
    ledger.close()


def pages(search: TrailSearch, query: Query) -> list[int]:
    """Turn all pages, and return what they hold."""
    found: list[int] = []
    position: int | None = None
    while True:
        page = search.page(query, position)
        found += [entry.sequence for entry in page.entries]
        assert page.complete
        assert len(page.entries) <= query.limit
        if page.next_position is None:
            return found
        assert len(page.entries) == query.limit
        position = page.next_position


QUERIES = {
    "nothing": [("actor", "nobody")],
    "one": [("record_id", f"{LARGE // 2:08x}-0000-4000-8000-000000000000")],
    "one in a small segment": [("request_id", f"r-{(LARGE + SMALL) // 3}")],
    "one not indexed": [("request_id", f"r-{(COUNT - 5) // 3}")],
    "rare": [("server_name", "obsidian")],
    "action is the action": [("action", "start"), ("order", "oldest")],
    "action is the event": [("action", "server_lifecycle_event"), ("limit", "7")],
    "two fields": [("outcome", "failure"), ("actor", "u-3")],
    "one of two": [("actor", "u-30"), ("actor", "u-31")],
    "none of two": [("actor!", "u-1"), ("actor!", "u-2"), ("outcome", "failure"), ("limit", "900")],
    "a number": [("field.number", "65000")],
    "the form of the record": [
        ("field.schema", "otel-audit/1"),
        ("limit", "1000"),
        ("server_name", "files"),
    ],
    "an item of a list": [("field.tags", "t-3"), ("server_name", "files")],
    "a pattern": [("event", "server_*"), ("limit", "100")],
    "a pattern over many values": [("request_id", "r-2222*")],
    "not a pattern": [("event!", "*ti*"), ("outcome", "failure"), ("limit", "500")],
    "words": [("q", "handshake NUMBER 42"), ("limit", "20")],
    "beginning of a word": [("q", "handsh* 7"), ("order", "oldest")],
    "an identifier": [("q", f"{LARGE // 3:032x}")],
}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", QUERIES)
def test_pages_hold_exactly_what_a_look_at_each_record_finds(large: Ledger, name: str) -> None:
    query, _ = parse(QUERIES[name])
    expected = large.expected(query)
    if name != "nothing":
        assert expected
    search = TrailSearch(large.reader)
    assert pages(search, query) == expected
    assert [entry.sequence for entry in search.stream(query)] == expected


def test_times_bound_an_answer_wherever_segments_begin(large: Ledger) -> None:
    chance = random.Random(5)
    search = TrailSearch(large.reader)
    for number in range(12):
        start = BEGAN + chance.randrange(COUNT) * SECOND
        end = start + chance.randrange(0, 3_000) * SECOND
        query = Query(
            where({"event": EVENTS[0]}),
            start=None if number == 1 else start,
            end=None if number == 2 else end,
            oldest_first=bool(number % 2),
            limit=800,
        )
        assert pages(search, query) == large.expected(query)


def test_the_answer_is_the_same_with_a_part_of_an_index_and_without(
    large: Ledger, tmp_path: Path
) -> None:
    query, _ = parse([("outcome", "failure"), ("server_name", "files"), ("order", "oldest")])
    expected = large.expected(query)
    copy = tmp_path / "copy"
    shutil.copytree(large.directory, copy)
    search = TrailSearch.open(str(copy))
    with apsw.Connection(str(copy / INDEX)) as database:
        database.execute("DELETE FROM segment WHERE start >= ?", (LARGE + SMALL,))
        tables.seal(database)
    assert search.progress()[:2] == (LARGE + SMALL, COUNT)
    assert pages(search, query) == expected
    (copy / INDEX).unlink()
    assert search.progress()[:2] == (0, COUNT)
    assert pages(search, query) == expected
    search.close()


def test_a_search_without_time_stops_where_it_is_and_goes_on_from_there(large: Ledger) -> None:
    search = TrailSearch(large.reader)
    query, _ = parse([("request_id", "r-22*"), ("limit", "1000")])
    expected = large.expected(query)
    found: list[int] = []
    position: int | None = None
    stops = 0
    while True:
        page = search.page(query, position, seconds=0)
        found += [entry.sequence for entry in page.entries]
        position = page.next_position
        if position is None:
            break
        stops += not page.complete
    assert stops > 1
    assert found == expected
    with pytest.raises(QueryError, match="narrow it by start and end"):
        search.count(query, seconds=0)


@pytest.mark.parametrize(
    ("by", "per"),
    [(None, None), (None, 600 * SECOND), ("event", 3_600 * SECOND), ("tags", 86_400 * SECOND)],
)
@pytest.mark.parametrize(
    "parameters",
    [
        [],
        [("outcome", "failure")],
        [
            ("outcome", "failure"),
            ("actor", "u-3"),
            ("start", "2026-02-02T09:10:11Z"),
            ("end", "2026-02-05"),
        ],
        [("q", "handshake 42"), ("end", "2026-02-02T19:10:11Z")],
        [("event", "*_*"), ("start", "2026-02-02T20:00:00Z"), ("end", "2026-02-02T21:00:00Z")],
    ],
    ids=["all", "failures", "of one since", "words until", "pattern between"],
)
def test_counts_are_what_a_look_at_each_record_gives(
    large: Ledger, parameters: list[tuple[str, str]], by: str | None, per: int | None
) -> None:
    query, _ = parse(parameters)
    expected: Counter[tuple[int | None, str | None]] = Counter()
    for _, fields, moment in large.parsed():
        if query.matches(fields, moment):
            for value in [None] if by is None else texts_of(fields, by):
                expected[None if per is None else moment // per * per, value] += 1
    assert TrailSearch(large.reader).count(query, by=by, per=per) == expected
    assert expected


def test_timestamps_are_not_counted_by(large: Ledger) -> None:
    with pytest.raises(QueryError, match="use start, end and per"):
        TrailSearch(large.reader).count(Query(), by="timestamp")


def test_pages_stay_right_while_records_arrive(ledger: Ledger) -> None:
    ledger.fill(3 * SMALL)
    ledger.index()
    search = TrailSearch(ledger.reader)
    query, _ = parse([("event", "authentication"), ("limit", "50")])
    expected = ledger.expected(query)
    found: list[int] = []
    position: int | None = None
    while True:
        page = search.page(query, position)
        found += [entry.sequence for entry in page.entries]
        position = page.next_position
        if position is None:
            break
        ledger.fill(200)
        ledger.index()
    assert found == expected


def test_a_page_oldest_first_ends_where_the_next_one_begins(ledger: Ledger) -> None:
    ledger.fill(120)
    query, _ = parse([("order", "oldest"), ("limit", "50")])
    search = TrailSearch(ledger.reader)
    page = search.page(query)
    assert page.next_position == 50
    assert [entry.sequence for entry in search.page(query, 50).entries] == list(range(50, 100))
    assert search.page(query, 100).next_position is None


def test_bytes_that_are_no_record_harm_nobody(ledger: Ledger) -> None:
    ledger.write(
        [b"\xff\xfe", b"[1, 2]", b'"text"', b"{", b'{"timestamp": 7, "event": {"a": [1]}}']
    )
    ledger.write([{"timestamp": "9999-99-99T00:00:00Z", "event": "odd", "deep": [[1], {"a": 2}]}])
    ledger.fill(2 * SMALL)
    search = TrailSearch(ledger.reader)
    for _ in range(2):
        assert len(pages(search, Query())) == ledger.size
        assert pages(search, Query(where({"event": "odd"}))) == [5]
        assert pages(search, Query(where({"deep": "1"}))) == []
        ledger.index()


def test_counts_by_a_field_of_too_many_values_are_right_as_well(ledger: Ledger) -> None:
    ledger.fill(4 * SMALL)
    ledger.write([{"event": "odd", "request_id": "x" * 5_000}] * SMALL)
    ledger.index()
    query, _ = parse([("outcome", "failure")])
    expected = Counter(
        (None, fields["request_id"]) for _, fields, _ in ledger.parsed() if fields.get("error")
    )
    search = TrailSearch(ledger.reader)
    assert search.count(query, by="request_id") == expected
    odd, _ = parse([("event", "odd")])
    assert search.count(odd, by="request_id") == {(None, "x" * 5_000): SMALL}
    assert search.count(odd, by="error") == {}


def test_a_field_that_is_hidden_cannot_be_asked_for_or_found_by_its_words(ledger: Ledger) -> None:
    ledger.write([{"event": "a", "actor_id": "alice"}, {"event": "alice says"}])
    ledger.fill(SMALL)
    hidden = frozenset({"actor_id"})
    for name in ("actor", "actor_id", "actor!"):
        with pytest.raises(QueryError, match=r"actor_id is hidden from you.*read:pii"):
            parse([(name, "alice")], hidden=hidden)
    search = TrailSearch(ledger.reader)
    query, _ = parse([("q", "alice")], hidden=hidden)
    everything, _ = parse([("q", "alice")])
    for _ in range(2):
        assert pages(search, query) == [1]
        assert pages(search, everything) == [1, 0]
        assert search.count(query) == {(None, None): 1}
        with pytest.raises(QueryError, match="hidden"):
            search.count(query, by="actor_id")
        ledger.index()
    assert "actor_id" not in query.visible({"actor_id": "alice", "event": "a"})


def test_what_is_hidden_is_so_under_every_name_and_at_every_depth(ledger: Ledger) -> None:
    """A caller's own `client_ip` is kept as `field_client_ip`, a user's `email` in an object."""
    shown = {"event": "a", "user": {"plan": "free", "seen": [{}, 1]}, "fieldwork": "north"}
    ledger.write(
        [
            {
                "event": "a",
                "field_client_ip": "alice",
                "Email": "alice",
                "user": {"plan": "free", "email": "alice", "seen": [{"Client_IP": "alice"}, 1]},
                "fieldwork": "north",
            }
        ]
    )
    ledger.fill(SMALL)
    hidden = frozenset({"client_ip", "email"})
    for name in ("field.field_client_ip", "field.Email", "field.EMAIL"):
        with pytest.raises(QueryError, match="is hidden from you"):
            parse([(name, "alice")], hidden=hidden)
    search = TrailSearch(ledger.reader)
    for _ in range(2):
        for words, found in (("alice", []), ("free", [0]), ("north", [0])):
            query, _ = parse([("q", words)], hidden=hidden)
            assert pages(search, query) == found
            assert [query.visible(entry.fields) for entry in search.page(query).entries] == [
                shown for _ in found
            ]
        ledger.index()


@pytest.mark.parametrize("depth", [10, 99, 300, 900])
def test_a_record_that_is_nested_too_deep_is_none_of_ours_and_stops_nobody(
    ledger: Ledger, depth: int
) -> None:
    record = b'{"event":"deep","a":' + b"[" * depth + b'"word"' + b"]" * depth + b"}"
    ledger.write([record, {"event": "deep", "a": "word"}])
    ledger.fill(SMALL)
    ledger.index()
    hidden = frozenset({"email"})
    search = TrailSearch(ledger.reader)
    for parameters in ([("event", "deep")], [("q", "word")]):
        query, _ = parse(parameters, hidden=hidden)
        found = search.page(query).entries
        assert [entry.sequence for entry in found] == ([1, 0] if depth < 255 else [1])
        assert all(query.visible(entry.fields) for entry in found)


@pytest.mark.parametrize("full_text", [True, False])
def test_words_are_found_with_and_without_the_index_of_words(
    ledger: Ledger, *, full_text: bool
) -> None:
    ledger.fill(2 * SMALL)
    ledger.index(full_text=full_text)
    search = TrailSearch(ledger.reader)
    assert search.progress().full_text is full_text
    query, _ = parse([("q", "secret 99")])
    assert pages(search, query) == ledger.expected(query) != []


@pytest.mark.usefixtures("unmeasured")
def test_letters_of_all_scripts_are_found_with_and_without_the_index(ledger: Ledger) -> None:
    """Combining marks, letters without case or with two, and such as SQLite's Unicode lacks."""
    letters = (
        "éßſıİ\u212aΣς\u0301\u0307\u20dd\ufb01\u10d0\u1c90\u13a0\uab70\u1e9e\u0345²½Ⅷ☃_-中\u30fc"
    )
    letters += "\U0001f600\U0001e900\U0001e922\U00010570\U0001fbf0\U0001f1e6\U0003134f\U000e0041"
    fields = [ledger.fields(number) for number in range(SMALL)]
    for letter, record in zip(letters, fields, strict=False):
        record["note"] = f"xa{letter}b {letter}"
    ledger.write(fields)
    with_index: dict[str, list[int]] = {}
    without: dict[str, list[int]] = {}
    queries = {
        q: parse([("q", q)])[0]
        for letter in letters
        for q in (f"xa{letter}b", f"xa{letter.lower()}*", f"XA{letter.upper()}B", f"x {letter}")
    }
    for found in without, with_index:
        found |= {q: pages(TrailSearch(ledger.reader), query) for q, query in queries.items()}
        ledger.index()
    expected = {q: ledger.expected(query) for q, query in queries.items()}
    assert without == expected
    assert with_index == expected


@pytest.mark.parametrize(
    "text", ["' OR 1=1 --", '"', "a'; DROP TABLE leaf; --", "NEAR(a b)", "words:x", "\0", "%"]
)
@pytest.mark.parametrize("name", ["actor", "event", "field.x'--", 'field.") OR 1', "q"])
def test_sql_in_any_field_is_a_text_like_others(large: Ledger, name: str, text: str) -> None:
    parameters = [(name, text)]
    if name == "q" and not any(map(str.isalnum, text)):
        with pytest.raises(QueryError, match="no word"):
            parse(parameters)
        return
    query, _ = parse(parameters)
    search = TrailSearch(large.reader)
    assert list(search.stream(query)) == []
    assert search.count(query, by="event", per=10**13) == {}
    assert large.size == COUNT


@pytest.mark.parametrize("how", ["zeros", "cut", "flipped", "text", "emptied"])
def test_a_damaged_index_costs_time_and_nothing_else(ledger: Ledger, how: str) -> None:
    ledger.fill(6 * SMALL)
    index = ledger.index()
    query, _ = parse([("event", "authentication"), ("outcome", "failure"), ("limit", "1000")])
    expected = ledger.expected(query)
    search = TrailSearch(ledger.reader)
    assert pages(search, query) == expected
    damage(index.path, how)
    fresh = TrailSearch.open(ledger.directory)
    for asked in (search, fresh):
        assert pages(asked, query) == expected
        assert asked.count(query) == {(None, None): len(expected)}
        assert asked.progress().size == ledger.size
    fresh.close()


_CHANGES = {
    "no buckets": "DELETE FROM bucket",
    "empty buckets": "UPDATE bucket SET terms = zeroblob(12)",
    "buckets of others": "UPDATE bucket SET terms = (SELECT terms FROM bucket WHERE id < 16 LIMIT 1)",
    "a bit in each bucket": "UPDATE bucket SET terms = substr(terms, 1, 20) || x'01' || substr(terms, 22)",
    "no times": "DELETE FROM times",
    "other times": "UPDATE times SET nanos = substr(nanos, 1, 4) || zeroblob(length(nanos) - 4)",
    "no values": "DELETE FROM facet",
    "other values": """UPDATE facet SET "values" = substr("values", 1, 4) || '[]'""",
    "values of others": """UPDATE facet SET "values" =
        (SELECT "values" FROM facet AS other WHERE other.field = 'outcome' LIMIT 1)""",
    "nothing there": "UPDATE segment SET present = 0",
    "of another time": "UPDATE segment SET first_ns = 1, last_ns = 2",
    "longer": "UPDATE segment SET span = 4096 WHERE start = 1024",
    "a segment less": "DELETE FROM segment WHERE start = 2048",
    "no fields": "UPDATE segment SET fields = '[]'",
    "nothing in buckets": "UPDATE segment SET buckets = zeroblob(2)",
    "no text": "UPDATE segment SET fields = CAST(x'ff' AS TEXT)",
    "no number": "UPDATE segment SET last_ns = 'never'",
    "another key": "UPDATE meta SET value = zeroblob(32) WHERE key = 'key'",
}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("change", _CHANGES)
def test_whatever_is_changed_in_the_index_answers_stay_right(ledger: Ledger, change: str) -> None:
    ledger.fill(6 * SMALL)
    index = ledger.index()
    asked = [
        parse([*said, ("limit", "1000")])[0]
        for said in (
            [("event", "authentication"), ("outcome", "failure")],
            [("event", "auth*")],
            [("event!", "authentication"), ("start", stamp(BEGAN + 1_000 * SECOND))],
            [("start", stamp(BEGAN)), ("end", stamp(BEGAN + 3_000 * SECOND))],
        )
    ]
    search = TrailSearch.open(ledger.directory)
    right = [(pages(search, query), search.count(query, by="outcome", per=HOUR)) for query in asked]
    assert [found for found, _ in right] == [ledger.expected(query) for query in asked]
    search.close()
    with apsw.Connection(str(index.path)) as database:
        database.execute(_CHANGES[change])
        assert database.changes()
    fresh = TrailSearch.open(ledger.directory)
    for query, expected in zip(asked, right, strict=True):
        assert (pages(fresh, query), fresh.count(query, by="outcome", per=HOUR)) == expected
    fresh.close()


def damage(path: Path, how: str) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    if how == "zeros":
        content[8_192:] = bytes(len(content) - 8_192)
    elif how == "cut":
        del content[len(content) // 2 :]
    elif how == "flipped":
        for place in range(5_000, len(content), 997):
            content[place] ^= 0x55
    elif how == "text":
        content = bytearray(b"this is not a database\n" * 1_000)
    else:
        content.clear()
    path.write_bytes(content)


def test_a_cursor_continues_its_query_and_no_other() -> None:
    signer = CursorSigner(b"k" * 32)
    now = BEGAN
    first, _ = parse([("actor", "u-1"), ("start", "-15m")], now=now)
    cursor = signer.sign(first, 77)
    later, said = parse([("actor", "u-1"), ("start", "-15m"), ("cursor", cursor)], now=now + SECOND)
    assert said == cursor
    query, position = signer.open(later, cursor)
    assert position == 77
    assert (query.start, query.end) == (first.start, None)
    more, _ = parse([("actor", "u-1"), ("start", "-15m"), ("limit", "9")])
    assert signer.open(more, cursor)[1] == 77
    others = (
        [("actor", "u-2"), ("start", "-15m")],
        [("actor!", "u-1"), ("start", "-15m")],
        [("actor", "u-1"), ("start", "-16m")],
        [("actor", "u-1"), ("start", "-15m"), ("order", "oldest")],
        [("actor", "u-1"), ("start", "-15m"), ("q", "x")],
    )
    for other in others:
        with pytest.raises(QueryError, match="belongs to another query"):
            signer.open(parse(other)[0], cursor)
    hidden, _ = parse([("actor", "u-1"), ("start", "-15m")], hidden=frozenset({"email"}))
    with pytest.raises(QueryError, match="belongs to another query"):
        signer.open(hidden, cursor)


def test_a_cursor_that_was_tampered_with_is_refused() -> None:
    signer = CursorSigner(b"k" * 32)
    query, _ = parse([])
    cursor = signer.sign(query, 77)
    forged = [
        cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        for place in range(0, len(cursor) - 1, 5)
    ]
    for bad in [*forged, "", "A", cursor[:-4], cursor + "AAAA", "é", "../../etc", "=" * 9]:
        with pytest.raises(QueryError, match="no cursor of this trail"):
            signer.open(query, bad)
    with pytest.raises(QueryError, match="no cursor of this trail"):
        CursorSigner(b"x" * 32).open(query, cursor)


def test_the_index_of_another_trail_is_not_used(ledger: Ledger) -> None:
    ledger.fill(SMALL)
    ledger.index()
    view = IndexView(ledger.directory, "another/origin")
    with view.use() as lookup:
        assert lookup is None
    view.close()


def test_a_condition_holds_for_texts_numbers_and_items() -> None:
    fields = {"a": "x", "n": 5, "f": 1.5, "t": True, "l": ["p", 2], "none": None, "d": {"k": 1}}
    for name, value in (
        ("a", "x"),
        ("n", "5"),
        ("f", "1.5"),
        ("t", "true"),
        ("l", "2"),
        ("a", "*"),
    ):
        assert Condition((name,), (value,)).holds(fields)
        assert not Condition((name,), (value,), wanted=False).holds(fields)
    for name, value in (("a", "X"), ("none", "null"), ("d", "*"), ("missing", "*")):
        assert not Condition((name,), (value,)).holds(fields)
