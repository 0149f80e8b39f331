"""Verification: every way to tamper with a trail is found, and named.

The tamperer works on the database itself, as anyone with write access to it can.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
import random
import re
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.errors import ProofError, TrailError
from otel_audit.trail import findings, merkle, scan, schema, verify, workers
from otel_audit.trail.checkpoint import Checkpoint, sign
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.note import sign_note
from otel_audit.trail.reader import TrailReader, Tree
from otel_audit.trail.resource import Resource
from otel_audit.trail.store import TrailStore
from otel_audit.trail.trail import Trail
from tests.trail import btree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from otel_audit.trail.note import Verifier
    from otel_audit.trail.reader import Leaf
    from otel_audit.trail.verify import Report

ORIGIN = "otel-audit.local/shop/web-1/0a1b2c3d"
KEYS = TrailKeys.generate(ORIGIN)
STRANGER = TrailKeys.generate(ORIGIN)
SECOND = 1_000_000_000
START = 1_760_000_000


def record(number: int, note: str = "übung") -> bytes:
    """One record as `encode` writes it; its id follows from its number."""
    content = {
        "schema": "otel-audit/1",
        "timestamp": "2026-01-01T00:00:00.000000000Z",
        "event": "data_access",
        "record_id": record_id(number),
        "request_id": str(uuid.UUID(int=number, version=4)),
        "note": f"{note} {number}",
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def record_id(number: int) -> str:
    return str(uuid.UUID(int=number << 64 | 0xABCDEF, version=4))


RECORDS = [record(number) for number in range(700)]
HIDING = 4_096
"""Records of a trail whose look-ups begin with the page that holds record 2,048."""
CUTS = (100, 256, 300, 301, 512, 600)
"""Sizes at which the trail of most tests has a checkpoint; the rest is not covered."""


def build(
    directory: Path,
    records: Sequence[bytes] = RECORDS,
    cuts: Sequence[int] = CUTS,
    keys: TrailKeys = KEYS,
    group: int = 50,
) -> Path:
    """Write a trail the way the software does, into one file without a log."""
    seconds = iter(range(START, START + 10_000_000))
    store = TrailStore(
        directory / "writing", new_origin=lambda: keys.origin, clock=lambda: next(seconds) * SECOND
    )
    log_key, cosigner_key = keys.verifier_keys()
    store.describe({"log_key": log_key, "cosigner_key": cosigner_key})
    edges = sorted({*range(0, len(records), group), len(records), *cuts})
    with TrailReader(store.directory) as reader:
        for before, after in zip([0, *edges], edges, strict=False):
            part = records[before:after]
            if part:
                store.append(part, {})
            if after in cuts:
                tree = reader.tree()
                assert tree.size == after
                now = next(seconds)
                note = sign(Checkpoint(keys.origin, tree.size, tree.root), keys, now)
                store.add_checkpoint(tree.size, now * SECOND, note)
    store.close()
    with connected(store.path) as connection:
        connection.execute("VACUUM INTO ?", (str(directory / "trail.db"),))
    shutil.rmtree(store.directory)
    return directory


class connected:  # noqa: N801 - used like a function
    """A connection of somebody who may write the database."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))

    def __enter__(self) -> apsw.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("template"))


@dataclass
class Victim:
    """A copy of a trail that a test may tamper with."""

    directory: Path
    loose: bool = False

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with connected(self.directory / "trail.db") as connection:
            return connection.execute(sql, values).fetchall()

    def loosen(self) -> None:
        """Let columns hold what the schema forbids, as a damaged file could, until it is verified."""
        with connected(self.directory / "trail.db") as connection:
            connection.pragma("writable_schema", "on")
            connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '')")
        self.loose = True

    def tighten(self) -> None:
        with connected(self.directory / "trail.db") as connection:
            connection.pragma("writable_schema", "on")
            for name, sql in schema.TABLES.items():
                connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))
        self.loose = False

    def verify(self, **arguments: object) -> Report:
        if self.loose:
            self.tighten()
        with TrailReader(self.directory) as reader:
            arguments.setdefault("verifiers", KEYS.verifiers())
            arguments.setdefault("clock", lambda: START * SECOND)
            return verify.verify(reader, **arguments)  # type: ignore[arg-type]

    def kinds(self, **arguments: object) -> dict[str, int]:
        return self.verify(**arguments).counts

    def take_checkpoints_of(self, other: Path) -> None:
        with connected(self.directory / "trail.db") as connection:
            connection.execute("ATTACH ? AS other", (str(other / "trail.db"),))
            connection.execute("DELETE FROM main.checkpoint")
            connection.execute("INSERT INTO main.checkpoint SELECT * FROM other.checkpoint")

    def note(self, size: int) -> str:
        with TrailReader(self.directory) as reader:
            return next(row.note for row in reader.checkpoints() if row.size == size)


@pytest.fixture
def trail(template: Path, tmp_path: Path) -> Victim:
    shutil.copy(template / "trail.db", tmp_path / "trail.db")
    return Victim(tmp_path)


def only(report: Report, kind: str) -> findings.Finding:
    """Return the one finding there is, of this kind."""
    assert not report.ok
    assert report.counts == {kind: 1}
    (finding,) = report.findings
    assert finding.kind == kind
    return finding


# Sound trails.


def test_a_sound_trail_is_found_sound(trail: Victim) -> None:
    progress: list[tuple[int, int]] = []
    report = trail.verify(progress=lambda done, total: progress.append((done, total)))
    assert report.ok
    assert (report.finding_count, report.findings, report.counts) == (0, (), {})
    assert (report.origin, report.size, report.covered, report.checkpoints) == (
        ORIGIN,
        700,
        600,
        len(CUTS),
    )
    assert report.root == merkle.edge_root(merkle.extend([], 0, merkle.leaf_hashes(RECORDS))).hex()
    assert report.keys == KEYS.verifier_keys()
    assert not report.self_asserted
    assert report.last_checkpoint is not None
    assert report.last_checkpoint > START
    assert [warning.split(" are ")[0] for warning in report.warnings] == ["100 of 700 records"]
    assert progress == [(700, 700)]


RESOURCES = [Resource.of(b'{"service.name":"%s"}' % name) for name in (b"shop", b"desk")]


@pytest.fixture
def resourceful(tmp_path: Path) -> Victim:
    """Make a trail whose even records name one OTel Resource, the odd ones another."""
    records = [
        b'{"record_id":"%s","resource":"%s"}'
        % (record_id(number).encode(), RESOURCES[number % 2].hash.encode())
        for number in range(600)
    ]
    build(tmp_path, records)
    victim = Victim(tmp_path)
    for resource in RESOURCES:
        victim.run("INSERT INTO resource VALUES (?, ?)", *resource)
    return victim


def test_resources_that_are_what_their_hashes_name_are_sound(resourceful: Victim) -> None:
    assert resourceful.verify().ok


def test_a_changed_resource_is_found_although_the_tree_does_not_hold_it(
    resourceful: Victim,
) -> None:
    changed = RESOURCES[1].json.replace(b"desk", b"disk")
    resourceful.run("UPDATE resource SET json = ? WHERE hash = ?", changed, RESOURCES[1].hash)
    finding = only(resourceful.verify(), "resource-changed")
    assert RESOURCES[1].hash in finding.message


@pytest.mark.parametrize("value", ["CAST(json AS TEXT)", "CAST(x'ff' AS TEXT)", "5", "x''"])
def test_a_resource_that_is_no_blob_is_found_by_its_name(resourceful: Victim, value: str) -> None:
    resourceful.run(f"UPDATE resource SET json = {value} WHERE hash = ?", RESOURCES[1].hash)  # noqa: S608 - our own words
    assert RESOURCES[1].hash in only(resourceful.verify(), "resource-changed").message


@pytest.mark.parametrize("processes", [1, 2])
def test_a_removed_resource_is_found_with_the_first_record_that_names_it(
    resourceful: Victim, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(verify, "STRETCH", merkle.TILE_WIDTH)
    monkeypatch.setattr(verify, "_SMALL", 1)
    resourceful.run("DELETE FROM resource WHERE hash = ?", RESOURCES[1].hash)
    finding = only(resourceful.verify(processes=processes), "resource-missing")
    assert (finding.sequence, finding.record_id) == (1, record_id(1))


def test_a_resource_that_a_field_only_mentions_need_not_be_there(tmp_path: Path) -> None:
    mention = b'{"resource":"%s"}' % RESOURCES[0].hash.encode()
    records = [
        b'{"record_id":"%s","seen":%s}' % (record_id(number).encode(), mention)
        for number in range(300)
    ]
    build(tmp_path, records, cuts=(300,))
    assert Victim(tmp_path).verify().ok
    records[290] = b'{"record_id":"%s",%s' % (record_id(290).encode(), mention[1:])
    build(tmp_path / "second", records, cuts=(300,))
    assert only(Victim(tmp_path / "second").verify(), "resource-missing").sequence == 290


def test_keys_that_the_trail_claims_itself_are_warned_about(trail: Victim) -> None:
    report = trail.verify(verifiers=None)
    assert report.ok
    assert report.self_asserted
    assert report.keys == KEYS.verifier_keys()
    assert "self-asserted" in report.warnings[0]


def test_an_empty_trail_is_sound(tmp_path: Path) -> None:
    trail = Victim(build(tmp_path, [], []))
    report = trail.verify()
    assert (report.ok, report.size, report.root) == (True, 0, merkle.EMPTY_ROOT.hex())
    assert trail.verify(verifiers=None).ok


def test_a_trail_without_checkpoints_is_sound_but_covered_by_nothing(tmp_path: Path) -> None:
    report = Victim(build(tmp_path, RECORDS[:10], [])).verify()
    assert (report.ok, report.covered, report.last_checkpoint) == (True, 0, None)
    assert "10 of 10 records are not covered" in report.warnings[0]


@settings(max_examples=12)
@given(
    size=st.sampled_from([0, 1, 2, 3, 255, 256, 257, 511, 512, 513]),
    data=st.data(),
)
def test_any_size_with_checkpoints_anywhere_is_sound(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, size), max_size=8, unique=True))
    trail = Victim(build(tmp_path_factory.mktemp("any"), RECORDS[:size], sorted(cuts), group=97))
    report = trail.verify()
    assert report.ok
    assert (report.covered, report.checkpoints) == (max(cuts, default=0), len(cuts))
    assert bool(report.warnings) == (report.covered < size)


def test_a_checkpoint_after_every_record_is_sound(tmp_path: Path) -> None:
    report = Victim(build(tmp_path, RECORDS[:60], range(61), group=1)).verify()
    assert (report.ok, report.checkpoints, report.covered) == (True, 61, 60)


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even a small trail into several stretches and windows."""
    monkeypatch.setattr(verify, "STRETCH", 512)
    monkeypatch.setattr(verify, "_SMALL", 0)
    monkeypatch.setattr(scan, "_WINDOW", 256)


@pytest.mark.usefixtures("short_stretches")
def test_stretches_are_put_together_to_one_tree(trail: Victim) -> None:
    progress: list[tuple[int, int]] = []
    report = trail.verify(progress=lambda done, total: progress.append((done, total)))
    assert (report.ok, report.covered, report.checkpoints) == (True, 600, len(CUTS))
    assert progress == [(512, 700), (700, 700)]


def test_a_trail_that_is_written_to_meanwhile_is_sound(tmp_path: Path) -> None:
    store = TrailStore(tmp_path, new_origin=lambda: ORIGIN)
    stop = threading.Event()

    def write() -> None:
        with TrailReader(tmp_path) as reader:
            number = 0
            while not stop.is_set():
                part = [record(number + place) for place in range(37)]
                number += 37
                store.append(part, {})
                tree = reader.tree()
                note = sign(Checkpoint(ORIGIN, tree.size, tree.root), KEYS, START)
                store.add_checkpoint(tree.size, START * SECOND, note)
                stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    reports: list[Report] = []
    deadline = time.monotonic() + 60
    try:
        while len(reports) < 12 or reports[-1].size == reports[0].size:
            assert time.monotonic() < deadline, "the writer did not get on"
            reports.append(Victim(tmp_path).verify())
    finally:
        stop.set()
        writer.join()
        store.close()
    assert [report.findings for report in reports] == [()] * len(reports)


def test_a_writer_that_is_always_ahead_does_not_hold_up_verification(tmp_path: Path) -> None:
    store = TrailStore(tmp_path, new_origin=lambda: ORIGIN)
    appended = 0

    class Overtaken(TrailReader):
        """Reads a trail to which a record is added before each look beyond its end."""

        def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[Leaf]]:
            nonlocal appended
            while True:
                if start == self.tree().size:
                    assert appended < 20, "verification follows the writer"
                    store.append(RECORDS[:1], {})
                    appended += 1
                batch = next(super().batches(start, stop), None)
                if batch is None:
                    return
                yield batch
                start = batch[-1].sequence + 1
                if stop is not None and start >= stop:
                    return

    store.append(RECORDS[:1], {})
    with Overtaken(tmp_path) as reader:
        assert verify.verify(reader, verifiers=KEYS.verifiers()).ok
    store.close()
    assert 0 < appended < 20


# Changed records.


def test_every_changed_byte_of_every_record_is_found_and_named(tmp_path: Path) -> None:
    records = RECORDS[:2]
    trail = Victim(build(tmp_path, records, [2]))
    with connected(tmp_path / "trail.db") as connection:
        for sequence, content in enumerate(records):
            named = content.index(record_id(sequence).encode())
            for place in range(len(content)):
                changed = bytearray(content)
                changed[place] ^= 0x01
                connection.execute(
                    "UPDATE leaf SET record = ? WHERE seq = ?", (bytes(changed), sequence)
                )
                finding = only(trail.verify(), "record-changed")
                assert (finding.sequence, finding.last_sequence) == (sequence, sequence)
                if not named <= place < named + 36:
                    assert finding.record_id == record_id(sequence)
                    assert record_id(sequence) in finding.message
            connection.execute("UPDATE leaf SET record = ? WHERE seq = ?", (content, sequence))
    assert trail.verify().ok


@pytest.mark.parametrize("sequence", [0, 1, 99, 100, 255, 256, 511, 512, 599, 600, 650, 699])
def test_a_changed_record_is_found_wherever_it_stands(trail: Victim, sequence: int) -> None:
    trail.run("UPDATE leaf SET record = ? WHERE seq = ?", record(sequence, "forged"), sequence)
    report = trail.verify()
    finding = only(report, "record-changed")
    assert (finding.sequence, finding.record_id) == (sequence, record_id(sequence))
    assert (report.checkpoints, report.covered) == (len(CUTS), 600), "the others stay covered"


@pytest.mark.parametrize("sequence", [0, 255, 300, 599, 650, 699])
def test_a_record_changed_with_its_hash_is_found(trail: Victim, sequence: int) -> None:
    forged = record(sequence, "forged")
    trail.run(
        "UPDATE leaf SET record = ?, hash = ? WHERE seq = ?",
        forged,
        merkle.leaf_hash(forged),
        sequence,
    )
    report = trail.verify()
    assert not report.ok
    if sequence < 512:  # the tile tells them apart
        assert only(report, "record-changed").record_id == record_id(sequence)
    elif sequence < 600:  # two witnesses of three agree; the checkpoint does not
        assert report.counts == {"records-changed": 1, "tree-changed": 1}
        (span,) = (found for found in report.findings if found.kind == "records-changed")
        assert (span.sequence, span.last_sequence, span.checkpoint_size) == (512, 599, 600)
    else:
        assert report.counts == {"tree-changed": 1}


@pytest.mark.parametrize("sequence", [0, 255, 300, 599, 650])
def test_a_changed_hash_beside_a_right_record_is_found(trail: Victim, sequence: int) -> None:
    trail.run("UPDATE leaf SET hash = ? WHERE seq = ?", bytes(32), sequence)
    finding = only(trail.verify(), "leaf-hash-changed")
    assert (finding.sequence, finding.record_id) == (sequence, record_id(sequence))


@pytest.mark.parametrize("value", [None, 7, 1.5, "text", b"", b"\x00" * 31, 1 << 62])
@pytest.mark.parametrize("column", ["hash", "record", "committed_unix_nano"])
def test_values_of_wrong_types_are_found_or_harmless(
    trail: Victim, column: str, value: object
) -> None:
    trail.loosen()
    trail.run(f"UPDATE leaf SET {column} = ? WHERE seq = 3", value)  # noqa: S608 - our own names
    report = trail.verify()
    if column == "committed_unix_nano":  # not part of the tree
        assert report.ok
        assert any("commit times" in warning for warning in report.warnings)
    else:
        kind = "record-changed" if column == "record" else "leaf-hash-changed"
        assert only(report, kind).sequence == 3


def test_a_row_of_which_nothing_is_left_is_found(trail: Victim) -> None:
    trail.loosen()
    trail.run("UPDATE leaf SET record = NULL, hash = NULL WHERE seq IN (3, 650)")
    report = trail.verify()
    assert report.counts == {"record-changed": 2}
    assert [found.sequence for found in report.findings] == [3, 650]


@pytest.mark.parametrize("value", [None, 5])
def test_a_trail_that_does_not_say_which_one_it_is_cannot_be_verified(
    trail: Victim, value: object
) -> None:
    trail.loosen()
    trail.run("DELETE FROM meta WHERE key = 'origin'")
    if value is not None:
        trail.run("INSERT INTO meta VALUES ('origin', CAST(? AS BLOB))", value)
    with pytest.raises(TrailError, match="does not state its origin"):
        trail.verify()


def test_many_changed_records_are_all_counted_and_some_listed(
    trail: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LISTED", 20)
    trail.run("UPDATE leaf SET record = CAST(record || ' ' AS BLOB) WHERE seq % 7 = 0")
    report = trail.verify()
    assert report.counts == {"record-changed": 100}
    assert [found.sequence for found in report.findings] == [7 * place for place in range(20)]


# Removed, added and moved records.


@pytest.mark.parametrize("sequence", [0, 50, 255, 256, 511, 530, 650])
def test_a_removed_record_is_found(trail: Victim, sequence: int) -> None:
    trail.run("DELETE FROM leaf WHERE seq = ?", sequence)
    report = trail.verify()
    finding = only(report, "record-missing")
    assert (finding.sequence, finding.last_sequence) == (sequence, sequence)
    # The tile still holds the hash of what is gone; beyond the tiles there is none.
    assert report.covered == (600 if sequence < 512 or sequence >= 600 else 512)


def test_removed_runs_are_one_finding_each(trail: Victim) -> None:
    trail.run("DELETE FROM leaf WHERE seq BETWEEN 10 AND 19 OR seq BETWEEN 250 AND 260")
    report = trail.verify()
    assert report.counts == {"record-missing": 21}
    spans = [(found.sequence, found.last_sequence) for found in report.findings]
    assert spans == [(10, 19), (250, 260)]


def test_a_removed_record_whose_gap_was_closed_is_found(trail: Victim) -> None:
    with connected(trail.directory / "trail.db") as connection:
        connection.execute("DELETE FROM leaf WHERE seq = 520")
        connection.execute("UPDATE leaf SET seq = seq - 1 WHERE seq > 520")
        connection.execute("UPDATE tree SET size = 699")
    report = trail.verify()
    assert report.counts["records-changed"] == 1
    span = next(found for found in report.findings if found.kind == "records-changed")
    assert (span.sequence, span.last_sequence) == (512, 599)
    assert report.covered == 512


def test_an_inserted_record_is_found(trail: Victim) -> None:
    forged = record(9_999)
    with connected(trail.directory / "trail.db") as connection:
        connection.execute("UPDATE leaf SET seq = -seq - 1 WHERE seq >= 520")
        connection.execute("UPDATE leaf SET seq = -seq WHERE seq < 0")
        connection.execute(
            "INSERT INTO leaf VALUES (520, ?, ?, ?)",
            (START * SECOND, merkle.leaf_hash(forged), forged),
        )
        connection.execute("UPDATE tree SET size = 701")
    report = trail.verify()
    span = next(found for found in report.findings if found.kind == "records-changed")
    assert (span.sequence, span.last_sequence) == (512, 599)


@pytest.mark.parametrize("sequence", [700, 5_000, (1 << 62) - 1, -1, -(1 << 63)])
def test_a_record_beyond_the_tree_is_found_and_named(trail: Victim, sequence: int) -> None:
    forged = record(9_999)
    trail.run(
        "INSERT INTO leaf VALUES (?, ?, ?, ?)",
        sequence,
        START * SECOND,
        merkle.leaf_hash(forged),
        forged,
    )
    finding = only(trail.verify(), "record-unlisted")
    assert (finding.sequence, finding.record_id) == (sequence, record_id(9_999))


@pytest.mark.parametrize(("one", "other"), [(3, 4), (0, 255), (300, 400)])
@pytest.mark.parametrize("columns", [("record",), ("record", "hash")])
def test_swapped_records_are_found_and_their_places_named(
    trail: Victim, one: int, other: int, columns: tuple[str, ...]
) -> None:
    with connected(trail.directory / "trail.db") as connection:
        for column in columns:
            values = [
                connection.execute(f"SELECT {column} FROM leaf WHERE seq = ?", (at,)).get  # noqa: S608 - the table is named by the test
                for at in (one, other)
            ]
            for value, at in zip(values, (other, one), strict=True):
                connection.execute(f"UPDATE leaf SET {column} = ? WHERE seq = ?", (value, at))  # noqa: S608 - the table is named by the test
    report = trail.verify()
    assert report.counts == {"record-moved": 2}
    assert [(found.sequence, found.record_id) for found in report.findings] == [
        (one, record_id(other)),
        (other, record_id(one)),
    ]
    assert f"its place in the tree is {other}" in report.findings[0].message


# All traces rewritten, without the key.


def rewritten(tmp_path: Path, template: Path, records: Sequence[bytes]) -> Victim:
    """Make a trail whose records, hashes, tiles and tree fit; only the checkpoints are old."""
    (tmp_path / "forged").mkdir()
    trail = Victim(build(tmp_path / "forged", records, []))
    trail.take_checkpoints_of(template)
    return trail


@pytest.mark.parametrize(
    ("sequence", "first", "last", "size"),
    [(0, 0, 99, 100), (99, 0, 99, 100), (100, 100, 255, 256), (599, 512, 599, 600)],
)
def test_a_rewritten_trail_is_found_between_two_checkpoints(
    tmp_path: Path, template: Path, sequence: int, first: int, last: int, size: int
) -> None:
    records = [*RECORDS]
    records[sequence] = record(sequence, "forged")
    report = rewritten(tmp_path, template, records).verify()
    finding = only(report, "records-changed")
    assert (finding.sequence, finding.last_sequence) == (first, last)
    assert finding.checkpoint_size == size
    assert finding.record_id == record_id(first)
    assert f"({record_id(first)} to {record_id(last)})" in finding.message
    assert report.covered == first
    later = sum(cut > size for cut in CUTS)
    assert (f"{later} later checkpoints" in finding.message) == (later > 0)


def test_a_rewritten_record_alone_between_two_checkpoints_is_named(
    tmp_path: Path, template: Path
) -> None:
    records = [*RECORDS]
    records[300] = record(300, "forged")
    finding = only(rewritten(tmp_path, template, records).verify(), "records-changed")
    assert (finding.sequence, finding.last_sequence) == (300, 300)
    assert finding.record_id == record_id(300)
    assert finding.message.startswith(f"record 300 ({record_id(300)}) was changed")


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records[:200] + records[201:],
        lambda records: [*records[:200], record(9_999), *records[200:]],
        lambda records: [*records[:200], records[201], records[200], *records[202:]],
        lambda records: records[::-1],
    ],
    ids=["removal", "insertion", "reordering", "reversal"],
)
def test_rewritten_structure_is_found(
    tmp_path: Path, template: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    report = rewritten(tmp_path, template, change([*RECORDS])).verify()
    assert report.counts["records-changed"] == 1
    assert report.covered <= 100


def test_records_that_no_checkpoint_covers_can_be_rewritten_unseen_except_from_elsewhere(
    tmp_path: Path, template: Path
) -> None:
    """What the promise leaves out, said by a warning; the checkpoint kept elsewhere finds it."""
    (tmp_path / "whole").mkdir()
    kept = Victim(build(tmp_path / "whole", RECORDS, [700])).note(700)
    records = [*RECORDS]
    records[650] = record(650, "forged")
    trail = rewritten(tmp_path, template, records)
    report = trail.verify()
    assert report.ok
    assert "100 of 700 records are not covered" in report.warnings[0]
    assert trail.kinds(against=kept) == {"rewritten": 1}


# Truncation and rollback.


def test_rows_cut_off_at_the_end_are_found(trail: Victim) -> None:
    trail.run("DELETE FROM leaf WHERE seq >= 550")
    report = trail.verify()
    assert report.size == 550
    assert report.covered == 512
    assert report.counts == {"truncated": 150 + 1}
    assert (report.findings[0].sequence, report.findings[0].last_sequence) == (550, 699)
    assert report.findings[1].checkpoint_size == 600


@pytest.mark.parametrize("size", [0, 1, 256, 300, 550])
def test_a_trail_set_back_is_found_by_its_later_checkpoints(
    tmp_path: Path, template: Path, size: int
) -> None:
    report = rewritten(tmp_path, template, RECORDS[:size]).verify()
    later = [cut for cut in CUTS if cut > size]
    assert report.counts == {"truncated": len(later)}
    (found,) = report.findings
    assert found.checkpoint_size == later[-1]
    assert (found.sequence, found.last_sequence) == (size, later[-1] - 1)
    assert report.size == size


def test_an_older_copy_is_only_found_from_elsewhere(tmp_path: Path, template: Path) -> None:
    trail = Victim(build(tmp_path, RECORDS[:400], CUTS[:3]))
    assert trail.verify().ok
    kept = Victim(template).note(600)
    report = trail.verify(against=kept)
    finding = only(report, "rolled-back")
    assert (finding.sequence, finding.last_sequence, finding.checkpoint_size) == (400, 599, 600)


def test_removed_checkpoints_are_found_where_a_crash_does_not_explain_it(
    trail: Victim, template: Path
) -> None:
    trail.run("DELETE FROM checkpoint WHERE size > 512")
    report = trail.verify()
    assert (report.ok, report.proven, report.covered) == (True, True, 512)
    trail.run("DELETE FROM checkpoint WHERE size > 256")
    report = trail.verify()
    finding = only(report, "checkpoint-missing")
    assert (finding.sequence, finding.last_sequence) == (256, 699)
    assert finding.record_id == record_id(256)
    assert (report.proven, report.covered) == (False, 256)
    report = trail.verify(against=Victim(template).note(600))
    assert (report.ok, report.covered) == (True, 600)


@pytest.mark.parametrize("keys", [KEYS.verifiers(), None], ids=["given", "claimed"])
def test_a_trail_of_which_nothing_is_covered_is_in_order_only_while_it_is_young(
    tmp_path: Path, keys: tuple[Verifier, Verifier] | None
) -> None:
    """Else who removed all checkpoints could have written what they like."""
    trail = Victim(build(tmp_path, RECORDS[:3], []))
    ((first,),) = trail.run("SELECT min(committed_unix_nano) FROM leaf")

    def after(seconds: int) -> Report:
        return trail.verify(verifiers=keys, clock=lambda: first + seconds * SECOND)

    for seconds in (-1_000, 0, 10):
        assert after(seconds).ok
        assert not after(seconds).proven
    finding = only(after(11), "checkpoint-missing")
    assert (finding.sequence, finding.last_sequence) == (0, 2)
    assert "the process was killed within its first second" in finding.message
    (tmp_path / "signed").write_text(checkpoint(3), encoding="utf-8")
    assert after(11).proven


def test_the_last_second_of_a_process_that_was_killed_is_in_order_at_any_time(
    trail: Victim,
) -> None:
    assert trail.verify(clock=lambda: (START + 1_000_000) * SECOND).proven


def test_a_trail_that_was_never_signed_misses_no_checkpoint(tmp_path: Path) -> None:
    trail = Victim(build(tmp_path, RECORDS[:3], []))
    trail.run("DELETE FROM meta WHERE key LIKE '%_key'")
    report = trail.verify(verifiers=None, clock=time.time_ns)
    assert (report.ok, report.proven) == (True, False)


# Whoever holds the key.


def test_what_the_key_holder_rewrote_is_found_from_elsewhere(
    tmp_path: Path, template: Path
) -> None:
    records = [*RECORDS]
    records[42] = record(42, "forged")
    trail = Victim(build(tmp_path, records, CUTS))
    assert trail.verify().ok
    kept = Victim(template)
    for size in CUTS:
        report = trail.verify(against=kept.note(size))
        finding = only(report, "rewritten")
        assert (finding.sequence, finding.last_sequence) == (0, size - 1)
    assert trail.kinds(against=kept.note(300), verifiers=None) == {"rewritten": 1}


def test_a_checkpoint_from_elsewhere_that_fits_covers_more(tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    kept = Victim(build(tmp_path / "later", RECORDS, [700]))
    trail = Victim(build(tmp_path, RECORDS, CUTS))
    for against in (kept.note(700), kept.note(700).encode()):
        report = trail.verify(against=against)
        assert (report.ok, report.covered, report.warnings) == (True, 700, ())


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 699, 700])
def test_a_checkpoint_from_elsewhere_may_have_any_size(trail: Victim, size: int) -> None:
    root = merkle.edge_root(merkle.extend([], 0, merkle.leaf_hashes(RECORDS[:size])))
    note = sign(Checkpoint(ORIGIN, size, root), KEYS, START)
    assert trail.verify(against=note).ok
    wrong = sign(Checkpoint(ORIGIN, size, bytes(32)), KEYS, START)
    assert trail.kinds(against=wrong) == {"rewritten": 1}


def test_a_checkpoint_from_elsewhere_must_be_signed_by_the_key(trail: Victim) -> None:
    root = merkle.edge_root(merkle.extend([], 0, merkle.leaf_hashes(RECORDS)))
    head = Checkpoint(ORIGIN, 700, root)
    report = trail.verify(against=sign(head, STRANGER, START))
    assert report.counts == {"checkpoint-invalid": 1}
    assert report.covered == 600
    # Nobody is accused on a stranger's word, nor on that of a note that was damaged.
    for said in (replace(head, root=bytes(32)), replace(head, size=900)):
        report = trail.verify(against=sign(said, STRANGER, START))
        assert report.counts == {"checkpoint-invalid": 1}


def test_keys_that_the_trail_claims_may_be_the_forgers(trail: Victim) -> None:
    """So a checkpoint that they have not signed may be genuine, and is told."""
    for size, kind in ((700, "rewritten"), (900, "rolled-back")):
        note = sign(Checkpoint(ORIGIN, size, bytes(32)), STRANGER, START)
        report = trail.verify(against=note, verifiers=None)
        assert report.counts == {"checkpoint-invalid": 1, kind: 1}
        (found,) = (finding for finding in report.findings if finding.kind == kind)
        assert "if it is genuine" in found.message


def test_a_checkpoint_of_another_trail_does_not_fit(trail: Victim) -> None:
    other = TrailKeys.generate("elsewhere")
    note = sign(Checkpoint("elsewhere", 1, bytes(32)), other, START)
    report = trail.verify(against=note)
    assert report.counts == {"checkpoint-invalid": 1, "rewritten": 1}
    assert "it is another trail" in report.findings[1].message


def test_what_is_no_checkpoint_at_all_is_the_callers_mistake(trail: Victim) -> None:
    for against in ("", "not a note", b"\xff", sign_note("a note\n", [KEYS.log], START)):
        with pytest.raises(ProofError):
            trail.verify(against=against)


def test_missing_records_cannot_be_compared_with_a_checkpoint(trail: Victim) -> None:
    kept = trail.note(600)
    trail.run("DELETE FROM leaf WHERE seq = 530")
    report = trail.verify(against=kept)
    assert report.counts == {"record-missing": 1, "rewritten": 1}
    (found,) = (found for found in report.findings if found.kind == "rewritten")
    assert "because records are missing" in found.message


def test_records_in_a_row_that_cannot_be_read_are_one_finding(trail: Victim) -> None:
    pages = trail.run(
        "SELECT pageno FROM dbstat WHERE name = 'leaf' AND pagetype = 'leaf' ORDER BY path"
    )
    with (trail.directory / "trail.db").open("r+b") as database:
        for (page,) in pages[5:8]:
            database.seek((page - 1) * btree.PAGE)
            database.write(b"\xff" * btree.PAGE)
    report = trail.verify()
    (found,) = (one for one in report.findings if one.kind == "unreadable" and one.sequence)
    assert found.sequence is not None
    assert found.last_sequence is not None
    number = found.last_sequence - found.sequence + 1
    assert number > 10
    assert found.message.startswith(
        f"records {found.sequence} to {found.last_sequence} cannot be read: "
    )
    assert report.counts["unreadable"] >= number
    assert report.counts["record-missing"] == number


# What was signed last here.


def checkpoint(size: int, keys: TrailKeys = KEYS, records: Sequence[bytes] = RECORDS) -> str:
    root = merkle.edge_root(merkle.extend([], 0, merkle.leaf_hashes(records[:size])))
    return sign(Checkpoint(keys.origin, size, root), keys, START)


@pytest.mark.parametrize("size", [0, 1, 256, 600, 650, 700])
def test_what_was_signed_last_here_covers_as_a_checkpoint_does(trail: Victim, size: int) -> None:
    (trail.directory / "signed").write_text(checkpoint(size), encoding="utf-8")
    report = trail.verify()
    assert (report.ok, report.covered) == (True, max(600, size))
    assert len(report.warnings) == (size < 700)


def test_an_older_copy_is_found_by_what_was_signed_last_here(trail: Victim) -> None:
    note = checkpoint(710, records=[*RECORDS, *RECORDS])
    (trail.directory / "signed").write_text(note, encoding="utf-8")
    finding = only(trail.verify(), "rolled-back")
    assert (finding.sequence, finding.last_sequence, finding.checkpoint_size) == (700, 709, 710)
    assert str(trail.directory / "signed") in finding.message
    only(trail.verify(verifiers=None), "rolled-back")


def test_another_tree_than_was_signed_last_here_is_found(trail: Victim) -> None:
    note = checkpoint(650, records=RECORDS[::-1])
    (trail.directory / "signed").write_text(note, encoding="utf-8")
    finding = only(trail.verify(), "rewritten")
    assert (finding.sequence, finding.last_sequence, finding.checkpoint_size) == (0, 649, 650)
    assert finding.message.startswith("the checkpoint signed last here (")


def test_what_the_database_has_as_well_is_found_once(trail: Victim) -> None:
    (trail.directory / "signed").write_text(trail.note(600), encoding="utf-8")
    trail.run("DELETE FROM leaf WHERE seq = 530")
    only(trail.verify(), "record-missing")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not a signed note"),
        ("nonsense\n", "not a signed note"),
        (checkpoint(900, STRANGER), "signed by no known key"),
        (checkpoint(900, TrailKeys.generate("elsewhere")), "signed by no known key"),
        (None, "Is a directory"),
    ],
    ids=["empty", "damaged", "a stranger's", "another trail's", "unreadable"],
)
def test_what_cannot_be_used_of_what_was_signed_here_is_a_warning(
    trail: Victim, content: str | None, why: str
) -> None:
    memory = trail.directory / "signed"
    if content is None:
        memory.mkdir()
    else:
        memory.write_text(content, encoding="utf-8")
    report = trail.verify()
    assert (report.ok, report.covered) == (True, 600)
    assert report.warnings[0].startswith(f"{memory}, ")
    assert why in report.warnings[0]


def test_another_trails_checkpoint_is_no_proof_against_this_one(trail: Victim) -> None:
    """Whoever gives the keys of several trails at once may have one of each."""
    other = TrailKeys.generate("elsewhere")
    (trail.directory / "signed").write_text(checkpoint(900, other), encoding="utf-8")
    report = trail.verify(verifiers=[*KEYS.verifiers(), *other.verifiers()])
    assert report.ok
    assert "it is of elsewhere" in report.warnings[0]


def test_a_checkpoint_that_is_signed_during_the_verification_is_no_finding(tmp_path: Path) -> None:
    """The file is written before the database has the checkpoint."""
    trail = Trail.open(tmp_path / "trail")
    trail.store.append(RECORDS[:5], {})
    trail.signer.sign()

    class Watched(TrailReader):
        def tree(self) -> Tree:
            found = super().tree()
            trail.store.append([RECORDS[found.size]], {})
            grown = super().tree()
            head = Checkpoint(trail.store.origin, grown.size, grown.root)
            note = sign(head, trail.keys, START)
            (self.directory / "signed").write_text(note, encoding="utf-8")
            return found

    with Watched(tmp_path / "trail") as reader:
        for _ in range(3):
            assert verify.verify(reader).ok
    trail.close()


# Keys.


def test_the_key_of_another_trail_is_found(trail: Victim) -> None:
    other = TrailKeys.generate("elsewhere")
    report = trail.verify(verifiers=other.verifiers())
    finding = only(report, "wrong-key")
    assert "elsewhere" in finding.message
    assert (report.covered, report.checkpoints, report.keys) == (0, 0, ())


def test_checkpoints_of_a_stranger_cover_nothing(trail: Victim) -> None:
    report = trail.verify(verifiers=STRANGER.verifiers())
    assert report.counts == {"checkpoint-invalid": len(CUTS)}
    assert report.covered == 0


def test_a_trail_forged_from_the_start_needs_the_real_key(tmp_path: Path) -> None:
    trail = Victim(build(tmp_path, [record(1, "forged")], [1], STRANGER))
    assert trail.verify(verifiers=None).ok, "self-asserted keys prove nothing, hence the warning"
    assert trail.kinds() == {"checkpoint-invalid": 1}


@pytest.mark.parametrize(
    "value",
    [None, "", "nonsense", KEYS.verifier_keys()[1]],
    ids=["none", "empty", "nonsense", "cosigner"],
)
def test_a_trail_that_claims_no_key_cannot_vouch_for_itself(
    trail: Victim, value: str | bytes | None
) -> None:
    trail.run("DELETE FROM meta WHERE key LIKE '%_key'")
    if value is not None:
        trail.run("INSERT INTO meta VALUES ('log_key', ?)", value)
    assert trail.kinds(verifiers=None) == {"wrong-key": 1}
    assert trail.verify().ok


def test_the_log_key_alone_is_enough(trail: Victim) -> None:
    report = trail.verify(verifiers=[KEYS.log.verifier])
    assert (report.ok, report.covered, report.last_checkpoint) == (True, 600, None)


# Checkpoints.


def test_every_changed_byte_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    trail = Victim(build(tmp_path, RECORDS[:3], [2, 3]))
    note = trail.note(2).encode()
    with connected(tmp_path / "trail.db") as connection:
        for place in range(len(note)):
            changed = bytearray(note)
            changed[place] ^= 0x01
            connection.execute(
                "UPDATE checkpoint SET note = CAST(? AS TEXT) WHERE size = 2", (bytes(changed),)
            )
            try:
                report = trail.verify()
            except UnicodeDecodeError:  # pragma: no cover - the reader is to raise its own error
                pytest.fail("a changed note must not escape as a decoding error")
            assert set(report.counts) <= {"checkpoint-invalid", "unreadable"}
            assert not report.ok


@pytest.mark.parametrize("size", [99, 101, 700, 701, 0, -1, 1 << 40, "x", 1.5])
def test_a_changed_size_beside_a_checkpoint_is_found(trail: Victim, size: object) -> None:
    trail.loosen()
    trail.run("UPDATE checkpoint SET size = ? WHERE size = 100", size)
    report = trail.verify()
    assert report.counts == {"checkpoint-invalid": 1}
    assert (report.covered, report.checkpoints) == (600, len(CUTS) - 1)


@pytest.mark.parametrize("note", [None, 5, b"blob", ""])
def test_a_checkpoint_that_is_no_text_is_found(trail: Victim, note: object) -> None:
    trail.loosen()
    trail.run("UPDATE checkpoint SET note = ? WHERE size = 100", note)
    assert trail.kinds() == {"checkpoint-invalid": 1}


def test_a_checkpoint_of_another_origin_is_found(trail: Victim) -> None:
    other = TrailKeys.generate("elsewhere")
    note = sign(Checkpoint("elsewhere", 100, bytes(32)), other, START)
    trail.run("UPDATE checkpoint SET note = ? WHERE size = 100", note)
    both = (*KEYS.verifiers(), *other.verifiers())
    report = trail.verify(verifiers=both)
    assert "it is one of elsewhere" in only(report, "checkpoint-invalid").message


def test_a_log_that_signed_two_trees_is_found(trail: Victim) -> None:
    note = sign(Checkpoint(ORIGIN, 300, bytes(32)), KEYS, START)
    trail.run("UPDATE checkpoint SET note = ? WHERE size = 300", note)
    report = trail.verify()
    assert only(report, "checkpoint-contradicted").checkpoint_size == 300
    assert (report.covered, report.checkpoints) == (600, len(CUTS) - 1)


def test_checkpoints_out_of_order_are_checked_and_warned_about(trail: Victim) -> None:
    """Two processes may sign at the same time; each signature is right."""
    trail.run("UPDATE checkpoint SET id = 1000 - id")
    report = trail.verify()
    assert report.ok
    assert (report.covered, report.checkpoints) == (600, len(CUTS))
    assert any("the times of checkpoints go back" in warning for warning in report.warnings)
    note = sign(Checkpoint(ORIGIN, 100, bytes(32)), KEYS, START)
    trail.run("UPDATE checkpoint SET note = ? WHERE size = 100", note)
    assert not trail.verify().ok


@pytest.mark.usefixtures("short_stretches")
def test_checkpoints_far_out_of_order_are_checked_by_the_tiles(trail: Victim) -> None:
    trail.run("UPDATE checkpoint SET id = 1000 - id")
    report = trail.verify()
    assert (report.ok, report.covered, report.checkpoints) == (True, 600, len(CUTS))
    assert any("stand behind one of a larger tree" in warning for warning in report.warnings)
    note = sign(Checkpoint(ORIGIN, 100, bytes(32)), KEYS, START)
    trail.run("UPDATE checkpoint SET note = ? WHERE size = 100", note)
    assert not trail.verify().ok


# Tiles and the tree.


@pytest.mark.parametrize(("level", "index"), [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("place", [0, 40, 63])
def test_a_changed_tile_is_found_and_blamed_alone(
    trail: Victim, level: int, index: int, place: int
) -> None:
    (hashes,) = trail.run("SELECT hashes FROM tile WHERE level = ? AND idx = ?", level, index)[0]
    assert isinstance(hashes, bytes)
    changed = bytearray(hashes)
    changed[place] ^= 0x01
    trail.run(
        "UPDATE tile SET hashes = ? WHERE level = ? AND idx = ?", bytes(changed), level, index
    )
    report = trail.verify()
    assert f"tile {level}/{index}" in only(report, "tile-changed").message
    assert report.covered == 600


@pytest.mark.parametrize(("level", "index"), [(0, 0), (0, 1), (1, 0)])
def test_a_missing_tile_is_found(trail: Victim, level: int, index: int) -> None:
    trail.run("DELETE FROM tile WHERE level = ? AND idx = ?", level, index)
    report = trail.verify()
    assert f"tile {level}/{index}" in only(report, "tile-missing").message
    assert report.covered == 600


@pytest.mark.parametrize("hashes", [b"", bytes(31), bytes(8_191), bytes(8_193), "text", None, 9])
@pytest.mark.parametrize("level", [0, 1])
def test_a_tile_that_is_none_is_found(trail: Victim, level: int, hashes: object) -> None:
    trail.loosen()
    trail.run("UPDATE tile SET hashes = ? WHERE level = ? AND idx = 0", hashes, level)
    report = trail.verify()
    assert set(report.counts) <= {"tile-changed", "tile-missing"}
    assert not report.ok
    assert report.covered == 600


def test_tiles_left_over_from_a_longer_trail_are_found(
    tmp_path: Path, template: Path, trail: Victim
) -> None:
    """Whoever sets a trail back must remember the tiles as well."""
    del template, tmp_path
    with connected(trail.directory / "trail.db") as connection:
        connection.execute("DELETE FROM leaf WHERE seq >= 300")
        connection.execute("DELETE FROM checkpoint WHERE size > 300")
        edge = merkle.extend([], 0, merkle.leaf_hashes(RECORDS[:300]))
        connection.execute("UPDATE tree SET size = 300, edge = ?", (b"".join(edge),))
    report = trail.verify()
    assert report.counts == {"tile-changed": 2}
    assert "knows of more records" in report.findings[0].message


@pytest.mark.parametrize(
    "edge", [b"", bytes(32), bytes(32 * 6), b"short", "text", None], ids=range(6)
)
def test_a_changed_tree_is_found(trail: Victim, edge: object) -> None:
    trail.loosen()
    trail.run("UPDATE tree SET edge = ?", edge)
    report = trail.verify()
    assert report.counts == {"tree-changed": 1}
    assert (report.size, report.covered) == (700, 600)


@pytest.mark.parametrize(
    "value",
    ["'abc'", "700.5", "x'00'", "CAST(x'ff' AS TEXT)", "NULL", "-5", "9e18", "1e300"],
)
@pytest.mark.parametrize("column", ["size", "committed_unix_nano", "edge"])
def test_a_tree_of_wrong_types_is_found_and_no_traceback(
    trail: Victim, value: str, column: str
) -> None:
    trail.loosen()
    trail.run(f"UPDATE tree SET {column} = {value}")  # noqa: S608 - our own words
    report = trail.verify()
    if column == "committed_unix_nano" and value in ("-5", "9e18"):
        assert report.ok  # a number, and not part of the tree
        return
    assert "tree-changed" in report.counts or value == "9e18"
    assert (report.ok, report.size, report.covered) == (False, 700, 600)
    with pytest.raises(TrailError if value != "9e18" else Exception):
        TrailStore(trail.directory, new_origin=lambda: ORIGIN).append([b"x"], {})


@pytest.mark.parametrize(
    "statement", ["DELETE FROM tree", "INSERT INTO tree VALUES (1, 9, x'', 0)"]
)
def test_a_tree_of_no_row_or_two_is_found(trail: Victim, statement: str) -> None:
    with connected(trail.directory / "trail.db") as connection:
        connection.pragma("ignore_check_constraints", "on")
        connection.execute(statement)
    report = trail.verify()
    assert report.counts == {"tree-changed": 1}
    assert (report.size, report.covered) == (700, 600)


def test_a_tree_that_states_too_few_records_is_found(trail: Victim) -> None:
    trail.run("UPDATE tree SET size = 550")
    report = trail.verify()
    assert report.counts["record-unlisted"] == 150
    assert report.counts["truncated"] == 1


@pytest.mark.parametrize("size", [701, 1 << 40, 1 << 61])
def test_a_tree_that_states_too_many_records_is_found_in_time(trail: Victim, size: int) -> None:
    trail.run("UPDATE tree SET size = ?", size)
    report = trail.verify()
    assert (report.size, report.covered) == (700, 600)
    assert report.counts == {"truncated": size - 700}
    assert (report.findings[0].sequence, report.findings[0].last_sequence) == (700, size - 1)


# Records that are in the tree, but are not records.


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"not json", "UTF-8 JSON"),
        (b"", "UTF-8 JSON"),
        (b'{"record_id":"x"', "UTF-8 JSON"),
        (b'{"record_id":"x"}\x00', "UTF-8 JSON"),
        (b'{"record_id":"x"} trailing', "UTF-8 JSON"),
        (b'{"record_id":"\xff"}', "UTF-8 JSON"),
        (b'{"record_id":"x",\n"a":1}', "one line"),
        (b'{"record_id":"x"}\n', "one line"),
        (b'["record_id"]', "no record_id"),
        (b'"record_id"', "no record_id"),
        (b'{"record_id":5}', "no record_id"),
        (b'{"nested":{"record_id":"x"}}', "no record_id"),
        (b"{}", "no record_id"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_records_that_are_none_are_found(
    tmp_path: Path, content: bytes, problem: str, place: int
) -> None:
    records = RECORDS[:5]
    records[place] = content
    report = Victim(build(tmp_path, records, [5])).verify()
    finding = only(report, "record-malformed")
    assert finding.sequence == place
    assert problem in finding.message
    assert report.covered == 5


def test_any_json_object_with_a_record_id_is_a_record(tmp_path: Path) -> None:
    records = [
        b'{"record_id":"x","nested":{"record_id":"y","a":[1,2,null,true,1.5e3]}}',
        '{"a":"\\u00fc ü \u2028 \U0001f600","record_id":"z"}'.encode(),
        b' { "record_id" : "w" } ',
    ]
    assert Victim(build(tmp_path, records, [3])).verify().ok


def test_commit_times_that_go_back_are_warned_about(trail: Victim) -> None:
    trail.run("UPDATE leaf SET committed_unix_nano = 1 WHERE seq IN (5, 300)")
    report = trail.verify()
    assert report.ok
    assert any("go back 2 times" in warning for warning in report.warnings)


def test_an_impossible_commit_time_does_not_stop_the_report(trail: Victim) -> None:
    trail.run("UPDATE leaf SET committed_unix_nano = 9e18 WHERE seq = 699")
    assert "100 of 700" in trail.verify().warnings[0]


# A damaged file.


def flipped(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_a_flipped_byte_anywhere_in_the_file_changes_no_record_unseen(tmp_path: Path) -> None:
    """What verification calls sound gives the very records that were written."""
    records = RECORDS[:300]
    build(tmp_path, records, [100, 300])
    path = tmp_path / "trail.db"
    size = path.stat().st_size
    chance = random.Random(7)
    for _ in range(250):
        place, mask = chance.randrange(size), 1 << chance.randrange(8)
        flipped(path, place, mask)
        try:
            report = Victim(tmp_path).verify()
            if report.ok:
                with TrailReader(tmp_path) as reader:
                    assert [leaf.record for leaf in reader.leaves()] == records, place
                    found = [reader.leaf(number) for number in range(len(records))]
                    assert [leaf and leaf.record for leaf in found] == records, place
                assert report.covered == 300, place
        except (TrailError, apsw.Error):
            pass  # cannot be opened at all, and says so
        flipped(path, place, mask)
    assert Victim(tmp_path).verify().ok


def test_a_flipped_byte_of_a_record_in_the_file_is_named(tmp_path: Path) -> None:
    """The issue's own words: one byte of trail.db, anywhere in a record."""
    build(tmp_path, RECORDS[:40], [40])
    path = tmp_path / "trail.db"
    content = path.read_bytes()
    for sequence, wanted in enumerate(RECORDS[:40]):
        # SQLite may have left further copies behind in unused parts of its pages.
        starts = [found.start() for found in re.finditer(re.escape(wanted), content)]
        for offset in range(0, len(wanted), 11):
            for start in starts:
                flipped(path, start + offset, 0x20)
            assert only(Victim(tmp_path).verify(), "record-changed").sequence == sequence
            for start in starts:
                flipped(path, start + offset, 0x20)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_row_that_a_forged_page_hides_between_two_others_is_found(
    tmp_path: Path, *, indexed: bool
) -> None:
    """A range ends at the first row beyond it, a look-up goes by the keys above: here they differ."""
    records = [record(number) for number in range(HIDING)]
    build(tmp_path, records, [HIDING])
    if indexed:  # by which SQLite would count
        with connected(tmp_path / "trail.db") as connection:
            connection.execute("CREATE INDEX innocent ON leaf (committed_unix_nano)")
    forged = records[1_500].replace(b" 1500", b" 9999")
    assert forged != records[1_500]
    leaf = merkle.leaf_hash(forged)
    with connected(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE leaf (seq INTEGER PRIMARY KEY, at, hash, record)")
        connection.execute("INSERT INTO leaf VALUES (1500, 0, ?, ?)", (leaf, forged))
    (lie,) = btree.Table(tmp_path / "other.db", "leaf").rows(2)
    table = btree.Table(tmp_path / "trail.db", "leaf")
    cells, last = table.children()
    place = next(place for place, cell in enumerate(cells) if cell.key >= 2_048)
    number = int.from_bytes(cells[place].raw, "big")
    rows = table.rows(number)
    before = [row for row in rows if row.key < 2_048]
    after = [row for row in rows if row.key >= 2_048]
    hiding, rest = table.add_page(), table.add_page()
    table.set_rows(number, before)
    table.set_rows(hiding, [after[0], lie, after[0]])
    table.set_rows(rest, after)
    cells[place : place + 1] = [
        btree.Cell(before[-1].key, number.to_bytes(4, "big")),
        btree.Cell(1_500, hiding.to_bytes(4, "big")),
        btree.Cell(cells[place].key, rest.to_bytes(4, "big")),
    ]
    assert cells[(len(cells) - 1) // 2].key == 1_500, "where SQLite looks first"
    table.set_children(cells, last)
    table.save()
    with TrailReader(tmp_path) as reader:
        shown = reader.leaf(1_500)
        assert shown is not None
        assert shown.record == forged
        (range_,) = reader.batches(1_000, 2_000)
        assert [one.record for one in range_] == records[1_000:2_000]
        assert reader.count() == (HIDING + 3, HIDING)
    if indexed:
        finding = only(Victim(tmp_path).verify(), "schema-changed")
        assert (
            "there is 'index' 'innocent' on 'leaf', which is none of a trail's" in finding.message
        )
        return
    assert "rows were put in between" in only(Victim(tmp_path).verify(), "record-unlisted").message


def test_rows_out_of_order_end_the_reading_and_are_found(trail: Victim) -> None:
    """SQLite gives them as they stand; who goes on after the last one would never end."""
    table = btree.Table(trail.directory / "trail.db", "leaf")
    last = table.children()[1]
    places = list(range(len(table.rows(last))))
    table.swap(last, [*places[1:], places[0]])
    table.save()
    assert not trail.verify().ok
    with TrailReader(trail.directory) as reader, pytest.raises(TrailError, match="not in order"):
        list(reader.leaves())


# A schema that is no trail's.


ENDLESS = """
ALTER TABLE {0} RENAME TO other;
CREATE VIEW {1} AS WITH RECURSIVE r (seq) AS (SELECT 0 UNION ALL SELECT seq + 1 FROM r)
SELECT seq, 0 AS committed_unix_nano, x'' AS hash, x'' AS record, seq AS size, x'' AS edge,
  seq AS idx, 0 AS level, x'' AS hashes, seq AS rowid, '' AS note, 0 AS unix_nano, x'' AS json
FROM r
"""


@pytest.mark.parametrize("table", ["leaf", "tile", "tree", "checkpoint", "resource"])
@pytest.mark.parametrize("written", [str.lower, str.upper])
def test_a_view_in_the_place_of_a_table_is_found_and_not_read(
    trail: Victim, table: str, written: Callable[[str], str]
) -> None:
    trail.run(ENDLESS.format(table, written(table)))
    report = trail.verify()
    assert report.counts == {"schema-changed": 3}
    assert (report.size, report.covered, report.root) == (0, 0, "")
    assert any(f"'view' '{written(table)}'" in found.message for found in report.findings)
    assert any(f"table {table} is missing" in found.message for found in report.findings)
    assert report.warnings[0].startswith("no record was read")


def test_views_answer_nobody(trail: Victim) -> None:
    trail.run(ENDLESS.format("meta", "meta"))
    with pytest.raises(TrailError, match="cannot be read"):
        trail.verify()


def test_a_table_that_is_defined_otherwise_is_found_and_not_read(trail: Victim) -> None:
    trail.loosen()
    trail.loose = False
    report = trail.verify()
    assert report.counts == {"schema-changed": len(schema.TABLES)}
    assert "table 'meta' is defined otherwise" in report.findings[0].message
    assert report.size == 0


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE TABLE more (x)", "'table' 'more',"),
        ("CREATE TRIGGER leaf INSERT ON leaf BEGIN SELECT 1; END", "'trigger' 'leaf' on 'leaf'"),
        ("CREATE VIEW more AS SELECT 1", "'view' 'more'"),
    ],
)
def test_what_does_not_belong_into_a_trail_is_found(
    trail: Victim, statement: str, named: str
) -> None:
    trail.run(statement)
    report = trail.verify()
    assert set(report.counts) == {"schema-changed"}
    assert named in report.findings[0].message
    assert (report.size, report.covered) == (700, 600), "the records are read all the same"


@pytest.mark.parametrize("table", ["leaf", "tile", "tree", "checkpoint"])
@pytest.mark.parametrize("keys", [KEYS.verifiers(), None], ids=["given", "claimed"])
def test_a_missing_table_is_found(
    trail: Victim, table: str, keys: tuple[Verifier, Verifier] | None
) -> None:
    trail.run(f"DROP TABLE {table}")
    report = trail.verify(verifiers=keys)
    assert not report.ok
    assert report.size == (0 if table == "leaf" else 700)
    assert report.covered == (0 if table in ("leaf", "checkpoint") else 600)


def test_a_zeroed_page_is_reported_with_the_records_in_it(trail: Victim) -> None:
    path = trail.directory / "trail.db"
    at = path.read_bytes().index(RECORDS[350]) // 4096 * 4096
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(4096))
    report = trail.verify()
    assert not report.ok
    named: set[int] = set()
    for found in report.findings:
        if found.sequence is not None and found.last_sequence is not None:
            named.update(range(found.sequence, found.last_sequence + 1))
    assert 350 in named
    assert {10, 690}.isdisjoint(named)


# Several processes.


def damage(trail: Victim) -> None:
    trail.run("UPDATE leaf SET record = ? WHERE seq = 5", record(5, "forged"))
    trail.run("DELETE FROM leaf WHERE seq = 270")
    trail.run("UPDATE leaf SET hash = ? WHERE seq = 690", bytes(32))
    trail.run("UPDATE checkpoint SET note = 'x' WHERE size = 301")


@pytest.mark.usefixtures("short_stretches")
def test_several_processes_find_the_same(trail: Victim) -> None:
    assert trail.verify(processes=2) == trail.verify()
    damage(trail)
    report = trail.verify()
    assert report.finding_count == 4
    assert trail.verify(processes=2) == report


@pytest.mark.usefixtures("short_stretches")
def test_a_worker_that_dies_is_an_error_that_says_so(
    trail: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("import sys; sys.exit(3)", "import sys; sys.stdin.buffer.read(1); print('?')"):
        monkeypatch.setattr(workers, "_PROGRAM", program)
        with pytest.raises(TrailError, match="worker process"):
            trail.verify(processes=2)


@pytest.mark.usefixtures("short_stretches")
def test_a_worker_that_hangs_is_ended(trail: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.2)
    program = workers._PROGRAM + "; import time; time.sleep(600)"
    monkeypatch.setattr(workers, "_PROGRAM", program)
    assert trail.verify(processes=2).ok


def test_a_worker_answers_each_stretch(trail: Victim) -> None:
    stretch = scan.Stretch(0, 700, (600, 700), (), None)
    asked, answered = io.BytesIO(), io.BytesIO()
    pickle.dump((str(trail.directory), KEYS.verifier_keys()), asked)
    pickle.dump(stretch, asked)
    asked.seek(0)
    try:
        workers.serve(asked, answered)
    finally:
        gc.enable()  # a worker process does without
    answered.seek(0)
    scanned = pickle.load(answered)  # noqa: S301 - written a line above
    assert isinstance(scanned, scan.Scanned)
    assert (len(scanned.tile_roots), sorted(scanned.parts)) == (2, [600, 700])


@pytest.fixture(scope="module")
def long_trail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [record(number) for number in range(4 * scan.STRETCH + 100)]
    return build(tmp_path_factory.mktemp("long"), records, range(0, 65_000, 10_000), group=5_000)


def test_a_long_trail_is_sound_in_one_process_and_in_two(long_trail: Path) -> None:
    one = Victim(long_trail).verify()
    assert (one.ok, one.covered) == (True, 60_000)
    assert Victim(long_trail).verify(processes=2) == one


def test_memory_does_not_grow_with_the_trail(long_trail: Path) -> None:
    import tracemalloc

    peaks = []
    for limit in (scan.STRETCH, 4 * scan.STRETCH):
        with TrailReader(long_trail) as reader:
            scanner = scan.Scanner(reader, KEYS.verifiers())
            tracemalloc.start()
            for start in range(0, limit, scan.STRETCH):
                scanner.scan(scan.Stretch(start, start + scan.STRETCH, (), (), None))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


# Names of damaged records.


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (RECORDS[1], record_id(1)),
        (RECORDS[1][:-40], record_id(1)),
        (RECORDS[1].replace(b"record_id", b"recorX_id"), record_id(1)),
        (b'{"record_id": "' + record_id(2).encode() + b'"}', record_id(2)),
        (b'{"record_id":"' + b"\xff" * 36 + b'"}', "\ufffd" * 36),
        (b"{}", None),
        (b"", None),
        ("text", None),
        (None, None),
    ],
)
def test_record_ids_are_dug_out(content: object, found: str | None) -> None:
    assert findings.record_id_in(content) == found


def test_findings_of_several_parts_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "LISTED", 3)
    one, other = findings.Findings(), findings.Findings()
    for number in range(2):
        one.add(findings.Finding("record-changed", "x", number))
        other.add(findings.Finding("record-missing", "x", number), 10)
    one.merge(other)
    one.merge(other)
    assert one.counts == {"record-changed": 2, "record-missing": 40}
    assert [found.sequence for found in one.listed] == [0, 1, 0]


def test_what_a_tool_left_for_sqlite_s_planner_stops_nobody(trail: Victim) -> None:
    """Some programs run ANALYZE by themselves when they close a database."""
    trail.loosen()
    trail.run("ANALYZE")
    assert trail.verify().ok
    TrailStore(trail.directory, new_origin=lambda: ORIGIN).append([b"x"], {})
