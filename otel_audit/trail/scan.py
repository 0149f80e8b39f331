"""Checks one stretch of a trail: its records, its tiles, its checkpoints.

Promises: every record of the stretch was read and hashed; whatever contradicts
its leaf hash, its tile or its form is in the findings, by name; what comes back
is small (a hash for 256 records), so that stretches can be checked in other
processes and be put together by ``verify``. Roots, and therefore the truth of
the hashes themselves, are left to ``verify``.

A record is attested to three times: by its own bytes, by the hash beside it,
and by the tile. Where they contradict each other, the tree goes on with what
the level above confirms, so that one damaged byte is reported once, where it
is, and does not discredit all that follows.
"""

from __future__ import annotations

from itertools import chain
from operator import le
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import apsw
import orjson

from otel_audit.errors import OtelAuditError, ProofError
from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import open_checkpoint, read_checkpoint
from otel_audit.trail.findings import Finding, Findings, Kind, record_id_in
from otel_audit.trail.merkle import HASH_SIZE, TILE_WIDTH
from otel_audit.trail.reader import Leaf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_audit.trail.note import Verifier
    from otel_audit.trail.reader import Row, StoredCheckpoint, TrailReader

STRETCH = 64 * TILE_WIDTH
"""Records in a stretch: enough to be worth a process switch, few enough for a progress bar."""

UNREADABLE = (
    apsw.Error,
    OtelAuditError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What reading a damaged database raises: SQLite's errors, and values of wrong types."""

_T = TypeVar("_T", int, None)

_WINDOW = 8 * TILE_WIDTH
_JSON_CHECK = (
    "SELECT count(*) FROM carray(?1) WHERE json_type(CAST(value AS TEXT), '$.record_id') = 'text'"
)
_MIN_STAMP = 0


class Stretch(NamedTuple):
    """The records ``start`` to ``stop`` (excluded), starting at a tile's first.

    ``cuts`` are the tree sizes in it whose roots will be asked for, ascending.
    ``tail`` is what the stored tree says of the incomplete tile at its end.
    """

    start: int
    stop: int
    cuts: tuple[int, ...]
    checkpoints: tuple[StoredCheckpoint, ...]
    tail: bytes | None


class OpenedCheckpoint(NamedTuple):
    """A checkpoint of the trail whose signatures were checked."""

    size: int
    root: bytes
    timestamp: int | None


class Scanned(NamedTuple):
    """What is left of a stretch: its part of the tree, and what was found.

    ``tile_roots`` are the roots of its complete tiles, ``parts`` the roots of
    the beginnings of tiles that ``cuts`` ask for. ``None``: it cannot be
    computed, records being gone.
    """

    start: int
    stop: int
    tile_roots: list[bytes | None]
    parts: dict[int, bytes | None]
    checkpoints: list[OpenedCheckpoint]
    findings: Findings
    first_nano: int
    last_nano: int
    time_jumps: int
    resources: dict[str, int]
    """The OTel Resources that no stretch before named, each with the first record that does."""


class Scanner:
    """Checks stretches of one trail with one set of keys.

    Without ``verifiers`` the signatures of checkpoints are not checked.
    """

    def __init__(self, reader: TrailReader, verifiers: Sequence[Verifier]) -> None:
        """Read through ``reader`` only."""
        self._reader = reader
        self._origin = reader.origin
        self._verifiers = tuple(verifiers)
        # SQLite checks JSON without building objects: twice as fast as orjson.
        self._json = apsw.Connection(":memory:")
        self._findings = Findings()
        self._first_nano = self._last_nano = _MIN_STAMP
        self._time_jumps = 0
        self._known: dict[str, bytes] = {}
        self._resources: dict[str, int] = {}

    def scan(self, stretch: Stretch) -> Scanned:
        """Check all records and checkpoints of ``stretch``."""
        self._findings = Findings()
        self._first_nano = self._last_nano = _MIN_STAMP
        self._time_jumps = 0
        self._resources = {}
        tile_roots: list[bytes | None] = []
        parts: dict[int, bytes | None] = {}
        for start in range(stretch.start, stretch.stop, _WINDOW):
            stop = min(start + _WINDOW, stretch.stop)
            hashes = self._check(start, stop, stretch.tail)
            cuts = [cut for cut in stretch.cuts if start < cut <= stop]
            _add_parts(parts, hashes, start, cuts)
            tile_roots += [
                _root(hashes[place : place + TILE_WIDTH])
                for place in range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH)
            ]
        opened = [self.open(row) for row in stretch.checkpoints]
        return Scanned(
            stretch.start,
            stretch.stop,
            tile_roots,
            parts,
            [checkpoint for checkpoint in opened if checkpoint is not None],
            self._findings,
            self._first_nano,
            self._last_nano,
            self._time_jumps,
            self._resources,
        )

    def open(self, row: StoredCheckpoint) -> OpenedCheckpoint | None:
        """Check a checkpoint's form, signatures, origin and size."""
        try:
            if self._verifiers:
                signed = open_checkpoint(row.note, self._verifiers)
                head, timestamp = signed.checkpoint, signed.timestamp
            else:
                head, timestamp = read_checkpoint(row.note), None
            if head.origin != self._origin:
                msg = f"it is one of {head.origin}, this trail is {self._origin}"
                raise ProofError(msg)
            if head.size != row.size:
                msg = f"the signed size is {head.size}"
                raise ProofError(msg)
        except (AttributeError, TypeError, ValueError) as error:
            size = size_of(row, None)
            msg = f"the checkpoint stored for {row.size} records is not valid: {error}"
            self._findings.add(Finding("checkpoint-invalid", msg, checkpoint_size=size))
            return None
        return OpenedCheckpoint(head.size, head.root, timestamp)

    def take_findings(self) -> Findings:
        """Return what was found since the last ``scan`` began, and forget it."""
        findings, self._findings = self._findings, Findings()
        return findings

    def _check(self, start: int, stop: int, tail: bytes | None) -> Sequence[bytes | None]:
        """Return the leaf hashes of a window, after checking them."""
        rows = self._read(start, stop)
        if rows is not None:
            computed = self._check_fast(start, stop, rows)
            if computed is not None:
                return computed
        return self._check_slowly(start, stop, rows, tail)

    def _read(self, start: int, stop: int) -> list[Row] | None:
        """Read all rows of a window at once; ``None`` if that does not give just them."""
        try:
            rows = list(chain.from_iterable(self._reader.rows(start, stop)))
        except UNREADABLE:
            return None
        if [row[0] for row in rows] != list(range(start, stop)):
            return None
        return rows

    def _check_fast(self, start: int, stop: int, rows: list[Row]) -> list[bytes] | None:
        """Check rows that are right, which nearly all are; ``None`` if they are not."""
        records = [row[3] for row in rows]
        try:
            computed = merkle.leaf_hashes(records)
            if [row[2] for row in rows] != computed:
                return None
            if not self._tiles_agree(start, stop, computed):
                return None
            self._check_times([row[1] for row in rows])
        except UNREADABLE:
            return None
        self._check_forms(start, records)
        return computed

    def _tiles_agree(self, start: int, stop: int, hashes: list[bytes]) -> bool:
        tile = self._reader.tile
        return all(
            tile(0, first // TILE_WIDTH)
            == b"".join(hashes[first - start : first - start + TILE_WIDTH])
            for first in range(start, stop - TILE_WIDTH + 1, TILE_WIDTH)
        )

    def _check_times(self, times: Sequence[int]) -> None:
        if self._first_nano == _MIN_STAMP:
            self._first_nano = times[0]
        ordered = self._last_nano <= times[0] and all(map(le, times, times[1:]))
        if not ordered:
            pairs = zip((self._last_nano, *times), times, strict=False)
            self._time_jumps += sum(before > after for before, after in pairs)
        self._last_nano = times[-1]

    def _check_forms(self, start: int, records: Sequence[bytes]) -> None:
        """Look for records that are not a line of UTF-8 JSON with a record id."""
        # All at once first; only if something is odd, record by record.
        joined = b"".join(records)
        # SQLite would take a text to end at its first NUL.
        if (
            b"\n" not in joined
            and b"\0" not in joined
            and _is_utf8(joined)
            and self._are_json(records)
        ):
            if sum(map(joined.count, self._known.values())) != len(records):
                self._add_resources(start, records)
            return
        self._add_resources(start, records)
        for sequence, record in enumerate(records, start):
            problem = _malformed(record)
            if problem is not None:
                self._add_record(
                    "record-malformed", sequence, record, f"is in the tree, but {problem}"
                )

    def _add_resources(self, start: int, records: Sequence[bytes]) -> None:
        """Take note of the Resources that were not named before."""
        for sequence, record in enumerate(records, start):
            name = _resource_of(record)
            if isinstance(name, str) and name not in self._known:
                # As it stands in a record that names it.
                self._known[name] = b'"resource":' + orjson.dumps(name)
                self._resources[name] = sequence

    def _are_json(self, records: Sequence[bytes]) -> bool:
        try:
            rows = self._json.execute(_JSON_CHECK, (apsw.carray(tuple(records)),))
            return bool(rows.get == len(records))
        except apsw.SQLError:  # "malformed JSON"
            return False

    def _check_slowly(
        self, start: int, stop: int, rows: list[Row] | None, tail: bytes | None
    ) -> list[bytes | None]:
        """Find out which rows of a window are wrong, and how."""
        found = self._read_singly(start, stop) if rows is None else list(map(Leaf._make, rows))
        self._report_missing(start, found)
        hashes: list[bytes | None] = []
        for first in range(start, stop, TILE_WIDTH):
            part = found[first - start : first - start + TILE_WIDTH]
            hashes += self._check_tile(first, part, tail)
        return hashes

    def _read_singly(self, start: int, stop: int) -> list[Leaf | None]:
        """Read row by row; report each run that cannot be read for one reason as one finding."""
        unreadable: dict[str, list[int]] = {}
        found = [self._read_one(sequence, unreadable) for sequence in range(start, stop)]
        for why, sequences in unreadable.items():
            for first, last in _runs(sequences):
                many = f"records {first} to {last}" if last > first else f"record {first}"
                msg = f"{many} cannot be read: {why}"
                self._findings.add(Finding("unreadable", msg, first, last), last - first + 1)
        return found

    def _read_one(self, sequence: int, unreadable: dict[str, list[int]]) -> Leaf | None:
        try:
            return self._reader.leaf(sequence)
        except UNREADABLE as error:
            unreadable.setdefault(str(error), []).append(sequence)
            return None

    def _report_missing(self, start: int, found: Sequence[Leaf | None]) -> None:
        """Report each run of rows that are gone as one finding."""
        missing = [start + place for place, leaf in enumerate(found) if leaf is None]
        for first, last in _runs(missing):
            many = f"records {first} to {last} are" if last > first else f"record {first} is"
            msg = f"{many} missing: the tree has what no row holds any more"
            self._findings.add(Finding("record-missing", msg, first, last), last - first + 1)

    def _check_tile(
        self, first: int, found: Sequence[Leaf | None], tail: bytes | None
    ) -> list[bytes | None]:
        """Compare the three witnesses of each record of a tile, or of its beginning."""
        computed = [None if leaf is None else _hash_of(leaf.record) for leaf in found]
        stated = [None if leaf is None else _sound_hash(leaf.hash) for leaf in found]
        tiled = self._tile_row(first // TILE_WIDTH, len(found))
        expected = self._confirmed(first, (tiled, computed, stated), tail)
        if len(found) == TILE_WIDTH and tiled != expected:
            msg = f"tile 0/{first // TILE_WIDTH} (records {first} to {first + 255}) was changed"
            self._findings.add(Finding("tile-changed", msg, first, first + TILE_WIDTH - 1))
        places = {value: first + place for place, value in enumerate(expected) if value}
        for place, leaf in enumerate(found):
            if leaf is None:
                continue
            value = computed[place]
            if value is None or value != expected[place]:
                self._report_changed(leaf, first + place, places.get(value or b""))
            elif stated[place] != expected[place]:
                self._add_record(
                    "leaf-hash-changed",
                    first + place,
                    leaf.record,
                    "is right, but the hash beside it was changed",
                )
            else:
                self._check_sound(leaf)
        return expected

    def _tile_row(self, index: int, count: int) -> list[bytes | None]:
        """Return the hashes of a complete stored tile; else as many ``None``."""
        if count == TILE_WIDTH:
            try:
                tile = self._reader.tile(0, index)
            except UNREADABLE:
                tile = b""
            if len(tile) == TILE_WIDTH * HASH_SIZE:
                return [tile[at : at + HASH_SIZE] for at in range(0, len(tile), HASH_SIZE)]
        return [None] * count

    def _confirmed(
        self, first: int, witnesses: tuple[list[bytes | None], ...], tail: bytes | None
    ) -> list[bytes | None]:
        """Return the witness that the level above confirms, else what most say."""
        above = tail
        if len(witnesses[0]) == TILE_WIDTH:
            above = self._root_above(first // TILE_WIDTH)
        if above is not None:
            for witness in witnesses:
                if _root(witness) == above:
                    return witness
        return [_most(values) for values in zip(*witnesses, strict=True)]

    def _root_above(self, index: int) -> bytes | None:
        parent, place = divmod(index, TILE_WIDTH)
        try:
            tile = self._reader.tile(1, parent)
            root = tile[place * HASH_SIZE : (place + 1) * HASH_SIZE]
        except UNREADABLE:
            return None
        return root if len(root) == HASH_SIZE else None

    def _report_changed(self, leaf: Leaf, sequence: int, home: int | None) -> None:
        if home is None:
            what = "was changed: its bytes are not those that the tree holds"
            self._add_record("record-changed", sequence, leaf.record, what)
        else:
            what = f"was moved: its place in the tree is {home}"
            self._add_record("record-moved", sequence, leaf.record, what)

    def _check_sound(self, leaf: Leaf) -> None:
        """Check the rest of a row whose hashes are right."""
        try:
            self._check_times([leaf.committed_unix_nano])
        except TypeError:
            self._time_jumps += 1
        self._check_forms(leaf.sequence, [leaf.record])

    def _add_record(self, kind: Kind, sequence: int, record: object, what: str) -> None:
        record_id = record_id_in(record)
        name = "" if record_id is None else f" ({record_id})"
        msg = f"record {sequence}{name} {what}"
        self._findings.add(Finding(kind, msg, sequence, sequence, record_id))


def size_of(row: StoredCheckpoint, otherwise: _T) -> int | _T:
    """Return the size in a checkpoint's row; a damaged row may hold anything else."""
    size: object = row.size
    return size if isinstance(size, int) else otherwise


def _add_parts(
    parts: dict[int, bytes | None],
    hashes: Sequence[bytes | None],
    start: int,
    cuts: Iterable[int],
) -> None:
    """Add the root of the beginning of a tile for each cut inside one.

    Several cuts in one tile go on from each other: low traffic has as many
    checkpoints as records.
    """
    base = size = start
    edge: list[bytes] = []
    for cut in cuts:
        if cut - cut % TILE_WIDTH != base:
            base = size = cut - cut % TILE_WIDTH
            edge = []
        row = _complete(hashes[base - start : cut - start])
        if row is None:
            parts[cut] = None
        elif row:
            edge = merkle.extend(edge, size - base, row[size - base :])
            size = cut
            parts[cut] = merkle.edge_root(edge)


def _root(hashes: Sequence[bytes | None]) -> bytes | None:
    """Return the root over these leaf hashes, if all are known."""
    row = _complete(hashes)
    return None if row is None else merkle.edge_root(merkle.extend([], 0, row))


def _complete(hashes: Sequence[bytes | None]) -> list[bytes] | None:
    known = [value for value in hashes if value is not None]
    return known if len(known) == len(hashes) else None


def _most(values: tuple[bytes | None, ...]) -> bytes | None:
    """Return what two of three witnesses say, else the tile, the row, the bytes."""
    tiled, computed, stated = values
    if computed is not None and computed in (tiled, stated):
        return computed
    return tiled or stated or computed


def _hash_of(record: object) -> bytes | None:
    return merkle.leaf_hash(record) if isinstance(record, bytes) else None


def _sound_hash(value: object) -> bytes | None:
    return value if isinstance(value, bytes) and len(value) == HASH_SIZE else None


def _malformed(record: bytes) -> str | None:
    """Say what keeps ``record`` from being one; ``None`` if it is one."""
    try:
        content = orjson.loads(record)
    except orjson.JSONDecodeError as error:
        return f"is not valid UTF-8 JSON: {error}"
    if b"\n" in record:
        return "is not one line"
    if not isinstance(content, dict) or not isinstance(content.get("record_id"), str):
        return "has no record_id"
    return None


def _resource_of(record: bytes) -> object:
    try:
        content = orjson.loads(record)
    except orjson.JSONDecodeError:
        return None
    return content.get("resource") if isinstance(content, dict) else None


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _runs(numbers: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Put ascending numbers together to first and last of each run."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
