"""Verification of a whole trail, offline, through the reading interface alone.

Promises: a change, removal, insertion or reordering of records that a valid
checkpoint covers MUST be found, if made without the signing key; truncation,
and whatever was done with the key, MUST be found when ``against`` is a later
checkpoint kept elsewhere, or when the file ``signed`` beside the trail holds one.
Records after the last checkpoint are counted as not yet covered; that is no
finding, as long as a crash explains it. Each finding names the record as far as that is possible; where every
trace was rewritten, the records between the last checkpoint that holds and the
first that does not. The trail is read once; the memory used does not grow with
it; a trail that is written to meanwhile is verified as it was at the start.

Without keys from elsewhere, the keys that the trail itself claims are used, and
the report says so: whoever rewrote the trail could have put in their own.

The parts: ``outside`` opens the checkpoints that are not in the database, ``scan``
checks stretches of records, ``workers`` spreads them over processes, ``spine``
puts them together to the tree, ``judge`` holds the checkpoints against it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from otel_audit.errors import ProofError, TrailError
from otel_audit.trail import merkle
from otel_audit.trail.behind import changed_behind_log
from otel_audit.trail.checkpoint import OVERDUE_NANO
from otel_audit.trail.findings import Finding, Findings, record_id_in
from otel_audit.trail.judge import Judge
from otel_audit.trail.merkle import TILE_WIDTH
from otel_audit.trail.note import ED25519, Verifier
from otel_audit.trail.outside import kept_elsewhere, signed_last, within
from otel_audit.trail.reader import StoredCheckpoint, Tree
from otel_audit.trail.resource import Resource
from otel_audit.trail.scan import STRETCH, UNREADABLE, Scanner, Stretch, size_of
from otel_audit.trail.spine import Levels, Spine
from otel_audit.trail.workers import scanning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from otel_audit.trail.outside import Outside
    from otel_audit.trail.reader import TrailReader
    from otel_audit.trail.scan import Scanned

__all__ = ["Finding", "Report", "verify"]

_SMALL = 4 * STRETCH
"""Records below which starting worker processes costs more than it gives."""
_LARGEST = 1 << 62
_SMALLEST = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a verification.

    ``size``: records verified. ``covered``: how many of them a valid checkpoint
    covers. ``root``: the root over all of them, in hex, empty if it cannot be
    computed. ``checkpoints``: how many are valid; ``last_checkpoint``: when the
    newest was signed (Unix seconds, by the cosignature). ``findings``: the first
    1,000; ``counts``: how many there are of each kind. ``warnings``: what is
    worth knowing and proves nothing. ``keys``: the public keys used;
    ``self_asserted``: they come from the trail itself.
    """

    origin: str
    size: int
    covered: int
    root: str
    checkpoints: int
    last_checkpoint: int | None
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    warnings: tuple[str, ...]
    keys: tuple[str, ...]
    self_asserted: bool

    @property
    def ok(self) -> bool:
        """Whether nothing at all was found."""
        return not self.counts

    @property
    def proven(self) -> bool:
        """Whether nothing was found, and that says something: a valid checkpoint covers records."""
        return self.ok and self.covered > 0

    @property
    def finding_count(self) -> int:
        """How many findings there are, listed or not."""
        return sum(self.counts.values())


def verify(
    reader: TrailReader,
    *,
    verifiers: Iterable[Verifier] | None = None,
    against: str | bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
    clock: Callable[[], int] = time.time_ns,
) -> Report:
    """Verify the trail that ``reader`` reads.

    ``verifiers`` are public keys obtained from elsewhere; ``against`` is the
    note of a checkpoint kept elsewhere. ``progress`` is called with the number
    of records done and of all. With ``processes`` above 1, as many worker
    processes share the work, if the trail is long enough to be worth it. ``clock``
    gives nanoseconds since 1970.

    Raises `ProofError` if ``against`` is not a checkpoint at all, and
    `TrailError` if the trail does not say which one it is, or if a worker process
    fails. Whatever is wrong with the
    trail itself is in the report.
    """
    _check_origin(reader)
    given = None if verifiers is None else tuple(verifiers)
    findings = Findings()
    if _schema_misleads(reader, findings):
        return _unread(reader, findings, self_asserted=given is None)
    run = _Verification(reader, given, against, findings)
    with scanning(reader, run.trusted, processes if run.size > _SMALL else 1) as scan:
        for scanned in scan(run.stretches()):
            run.take(scanned)
            if progress is not None:
                progress(scanned.stop, run.size)
    return run.report(clock())


def _check_origin(reader: TrailReader) -> None:
    try:
        origin: object = reader.origin
    except LookupError:
        origin = None
    if not isinstance(origin, str):
        msg = "the trail does not state its origin: the database is damaged"
        raise TrailError(msg)


def _schema_misleads(reader: TrailReader, findings: Findings) -> bool:
    """Report what is odd in the schema; say whether something stands in a table's place."""
    found = reader.oddities()
    for odd in found:
        findings.add(Finding("schema-changed", f"{odd.what}: the database was changed"))
    return any(odd.in_place for odd in found)


def _unread(reader: TrailReader, findings: Findings, *, self_asserted: bool) -> Report:
    """Report a trail of which nothing was read, as it could be anything, also without an end."""
    return Report(
        origin=reader.origin,
        size=0,
        covered=0,
        root="",
        checkpoints=0,
        last_checkpoint=None,
        findings=tuple(findings.listed),
        counts=dict(findings.counts),
        warnings=("no record was read: where its table should be is something else",),
        keys=(),
        self_asserted=self_asserted,
    )


class _Verification:
    """One verification: what there is to do, what has come back, what is left."""

    def __init__(
        self,
        reader: TrailReader,
        given: tuple[Verifier, ...] | None,
        against: str | bytes | None,
        findings: Findings,
    ) -> None:
        self._reader = reader
        self._findings = findings
        self._given = given
        self.trusted = self._choose_keys()
        self._memory = signed_last(reader, self.trusted)
        self._stated = self._read_tree()
        self.size = self._find_size()
        self._outside = self._open_outside(against)
        self._judge = Judge(reader, self._findings, signed=bool(self.trusted))
        self._spine = Spine()
        self._levels = Levels(reader, self._findings)
        self._unordered: list[StoredCheckpoint] = []
        self._beyond: list[StoredCheckpoint] = []
        self._root: bytes | None = None
        self._last_nano = 0
        self._time_jumps = 0
        self._resources: dict[str, int] = {}

    # Before the records are read.

    def _choose_keys(self) -> tuple[Verifier, ...]:
        """Return the keys to use: none if there is no log key of this origin."""
        origin = self._reader.origin
        keys, source = self._given, "given"
        if keys is None:
            source = "that the trail claims"
            try:
                keys = tuple(Verifier.parse(key) for key in self._reader.claimed_keys)
            except (AttributeError, TypeError, ProofError):  # a damaged row may hold anything
                keys = ()
        if any(key.name == origin and key.algorithm == ED25519 for key in keys):
            return keys
        if self._given is not None or self._has_checkpoints():
            names = ", ".join(key.name for key in keys) or "none"
            msg = (
                f"this trail is {origin}, but the keys {source} are of {names}: no signature can "
                "be checked, and nothing counts as covered"
            )
            self._findings.add(Finding("wrong-key", msg))
        return ()

    def _has_checkpoints(self) -> bool:
        try:
            return self._reader.last_checkpoint() is not None
        except UNREADABLE:
            return True

    def _read_tree(self) -> Tree:
        try:
            tree = self._reader.tree()
        except UNREADABLE as error:
            self._findings.add(Finding("tree-changed", f"the stored tree cannot be read: {error}"))
            return Tree(-1, (), 0)
        return tree

    def _find_size(self) -> int:
        """Return how many records can be verified: the tree's, unless rows are gone."""
        stated = self._stated.size
        if stated == 0 or (stated > 0 and self._exists(stated - 1)):
            return stated
        # A damaged row may state any size; what can be read decides.
        low, high = 0, _LARGEST if stated < 0 else stated
        while low < high:
            middle = (low + high) // 2
            if self._exists(middle):
                low = middle + 1
            else:
                high = middle
        if stated > low:
            msg = f"records {low} to {stated - 1} are missing or unreadable: the trail was cut off"
            self._findings.add(Finding("truncated", msg, low, stated - 1), stated - low)
        return low

    def _exists(self, sequence: int) -> bool:
        """Say whether there is a record at ``sequence`` or after it."""
        try:
            return self._reader.any_from(sequence)
        except UNREADABLE:
            return False

    def _open_outside(self, against: str | bytes | None) -> tuple[Outside, ...]:
        """Return the checkpoints to compare that are not in the database."""
        found: list[Outside] = []
        if against is not None:
            kept = kept_elsewhere(
                self._reader,
                against,
                self.trusted,
                self._findings,
                self_asserted=self._given is None,
            )
            found += [kept] if kept else []
        memory = self._memory.outside
        if memory is not None and all(kept.checkpoint != memory.checkpoint for kept in found):
            found.append(memory)
        return tuple(within(found, self.size, self._findings))

    # While they are read.

    def stretches(self) -> Iterator[Stretch]:
        """Yield the stretches in order, each with the checkpoints that fall into it.

        The checkpoints are read along the way, so that memory does not grow
        with their number either.
        """
        rows = self._plausible_checkpoints()
        row = next(rows, None)
        for start in range(0, max(self.size, 1), STRETCH):
            stop = min(start + STRETCH, self.size)
            mine: list[StoredCheckpoint] = []
            while row is not None and row.size <= stop:
                in_order = row.size > start or start == 0
                (mine if in_order else self._unordered).append(row)
                row = next(rows, None)
            cuts = self._cuts(start, stop, (row.size for row in mine))
            yield Stretch(start, stop, cuts, tuple(mine), self._stated_tail())

    def take(self, scanned: Scanned) -> None:
        """Add the next stretch to the tree, and judge its checkpoints."""
        self._findings.merge(scanned.findings)
        self._time_jumps += scanned.time_jumps
        if scanned.stop > scanned.start:
            self._time_jumps += scanned.first_nano < self._last_nano
            self._last_nano = scanned.last_nano
        self._resources = {**scanned.resources, **self._resources}
        roots = self._roots(scanned)
        self._levels.add(scanned.tile_roots)
        self._judge.checkpoints(scanned.checkpoints, roots)
        self._root = roots.get(self.size, self._root)
        for outside in self._outside:
            if outside.checkpoint.size in roots:
                self._judge.outside(outside, roots[outside.checkpoint.size])

    def _plausible_checkpoints(self) -> Iterator[StoredCheckpoint]:
        try:
            for row in self._reader.checkpoints(_SMALLEST):
                if 0 <= size_of(row, -1) <= self.size:
                    yield row
                else:
                    self._beyond.append(row)
        except UNREADABLE as error:
            self._findings.add(Finding("unreadable", f"the checkpoints cannot be read: {error}"))

    def _cuts(self, start: int, stop: int, sizes: Iterable[int]) -> tuple[int, ...]:
        """Return the sizes within a stretch at which the root is needed."""
        wanted = {*sizes, self.size, *(outside.checkpoint.size for outside in self._outside)}
        return tuple(sorted(size for size in wanted if start < size <= stop))

    def _stated_tail(self) -> bytes | None:
        """Return what the stored tree says of its last, incomplete tile."""
        edge, size = self._stated.edge, self._stated.size
        count = (max(size, 0) % TILE_WIDTH).bit_count()
        if not count or self.size != size or len(edge) != size.bit_count():
            return None
        return merkle.edge_root(edge[-count:])

    def _roots(self, scanned: Scanned) -> dict[int, bytes | None]:
        """Grow the tree by a stretch; return its roots at the sizes that matter."""
        spine, base = self._spine, scanned.start // TILE_WIDTH
        roots: dict[int, bytes | None] = {} if scanned.start else {0: merkle.EMPTY_ROOT}
        sizes = (checkpoint.size for checkpoint in scanned.checkpoints)
        for size in self._cuts(scanned.start, scanned.stop, sizes):
            spine.grow(scanned.tile_roots[spine.tiles - base : size // TILE_WIDTH - base])
            roots[size] = spine.root(size, scanned.parts.get(size))
        spine.grow(scanned.tile_roots[spine.tiles - base :])
        return roots

    # Afterwards.

    def report(self, now: int) -> Report:
        """Check what is not a record, and say what was found; ``now`` is when."""
        self._levels.finish(self._size_now)
        self._check_tree()
        self._guarded(self._check_tile_rows)
        self._guarded(self._check_strays)
        self._guarded(self._check_hidden)
        self._guarded(self._check_resources)
        self._guarded(self._check_behind_log)
        self._check_odd_checkpoints()
        self._judge.finish()
        self._guarded(lambda: self._check_uncovered(now))
        return Report(
            origin=self._reader.origin,
            size=self.size,
            covered=self._judge.covered,
            root="" if self._root is None else self._root.hex(),
            checkpoints=self._judge.valid,
            last_checkpoint=self._judge.last_time,
            findings=tuple(sorted(self._findings.listed, key=_place)),
            counts=dict(self._findings.counts),
            warnings=tuple(self._warnings()),
            keys=tuple(map(str, self.trusted)),
            self_asserted=self._given is None,
        )

    def _size_now(self) -> int:
        """Return how many records the tree has by now: somebody may be writing."""
        try:
            return self._reader.tree().size
        except UNREADABLE:
            return self.size

    def _guarded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except UNREADABLE as error:
            msg = f"the database cannot be read in full: {error}"
            self._findings.add(Finding("unreadable", msg))

    def _check_tree(self) -> None:
        """Compare the stored tree: what is appended next would build on it."""
        stated = self._stated
        if stated.size != self.size or self._root is None:
            return
        if len(stated.edge) != self.size.bit_count() or stated.root != self._root:
            msg = f"the stored right edge of the tree is not that of the {self.size} records"
            self._findings.add(Finding("tree-changed", msg))

    def _check_tile_rows(self) -> None:
        """Look for tiles of level 0 that are gone, or that should not be there."""
        complete, expected = self.size // TILE_WIDTH, 0
        for index, _ in self._reader.tiles(0):
            if index >= complete:
                self._check_tile_beyond(index)
                break
            self._report_missing_tiles(expected, index)
            expected = index + 1
        self._report_missing_tiles(expected, complete)

    def _check_tile_beyond(self, index: int) -> None:
        if index >= self._size_now() // TILE_WIDTH:
            msg = f"tile 0/{index} knows of records beyond the {self.size} that there are"
            self._findings.add(Finding("tile-changed", msg))

    def _report_missing_tiles(self, start: int, stop: int) -> None:
        if start < stop:
            msg = f"tile 0/{start} is missing" + (f", up to 0/{stop - 1}" * (stop - start > 1))
            self._findings.add(Finding("tile-missing", msg), stop - start)

    def _check_strays(self) -> None:
        """Look for rows where the tree has no record."""
        for start, stop in ((_SMALLEST, 0), (max(self.size, self._stated.size), _LARGEST)):
            for batch in self._reader.batches(start, stop):
                # Read after the batch: what was committed meanwhile is no stray.
                size = self._size_now()
                strays = [leaf for leaf in batch if not 0 <= leaf.sequence < size]
                for leaf in strays:
                    self._report_stray(leaf.sequence, leaf.record)
                if not strays:
                    break  # else this would follow a busy writer for ever

    def _check_hidden(self) -> None:
        """Look for rows that reading in order passes over, and that a look-up may still find.

        SQLite takes a b-tree to be in order and does not look, so that pages
        that contradict each other can hide a row between two others.
        """
        if self._findings.counts:
            return  # the numbers cannot be right
        rows, size = self._reader.count()
        if rows != size:
            msg = (
                f"the table of records holds {rows} rows, the tree {size} records: rows were put "
                "in between that no reading in order comes across"
            )
            self._findings.add(Finding("record-unlisted", msg))

    def _check_resources(self) -> None:
        """Check the OTel Resources: they are not in the tree, but records name them by hash."""
        there = set()
        for name, json in self._reader.resources():
            there.add(name)
            if json is None or Resource.of(json).hash != name:
                msg = f"the OTel Resource {name} was changed: its bytes do not have that hash"
                self._findings.add(Finding("resource-changed", msg))
        for name, sequence in self._resources.items():
            if name not in there:
                leaf = self._reader.leaf(sequence)
                record_id = None if leaf is None else record_id_in(leaf.record)
                msg = (
                    f"record {sequence} ({record_id}) and maybe others name the OTel Resource "
                    f"{name}, which is missing"
                )
                finding = Finding("resource-missing", msg, sequence, sequence, record_id)
                self._findings.add(finding)

    def _check_behind_log(self) -> None:
        """Look for changes to the file that the write-ahead log still hides."""
        for sequence in changed_behind_log(self._reader):
            leaf = self._reader.leaf(sequence)
            record_id = None if leaf is None else record_id_in(leaf.record)
            msg = (
                f"record {sequence} ({record_id}) was changed in {self._reader.path.name}; the "
                "write-ahead log still hides that by its own, right copy"
            )
            self._findings.add(Finding("record-changed", msg, sequence, sequence, record_id))

    def _report_stray(self, sequence: int, record: object) -> None:
        record_id = record_id_in(record)
        msg = (
            f"record {sequence} ({record_id}) stands where the tree has none: it was put in "
            "without the tree, or the tree was set back"
        )
        self._findings.add(Finding("record-unlisted", msg, sequence, sequence, record_id))

    def _check_uncovered(self, now: int) -> None:
        """Look for records that should have been covered long ago.

        A checkpoint is due each second of activity. A process that was killed
        leaves its last second uncovered; where more is, nobody signed, or
        somebody has removed what was signed, to change records unseen. The next
        process signs all there is: a trail of which nothing at all is covered has
        not seen one, or has lost them all.
        """
        first, last = self._judge.covered, self.size - 1
        if self._findings.counts or not self.trusted or first > last:
            return
        oldest, newest = self._reader.leaf(first), self._reader.leaf(last)
        if oldest is None or newest is None:
            return
        until = now if first == 0 else newest.committed_unix_nano
        if until - oldest.committed_unix_nano <= OVERDUE_NANO:
            return
        killed = ", the process was killed within its first second," if first == 0 else ""
        msg = (
            f"records {first} to {last} are not covered by a valid checkpoint, although the first "
            f"of them was committed at {_utc(oldest.committed_unix_nano)}: checkpoints were "
            f"removed{killed} or no agent signs them. Changes to them cannot be found, except by a "
            "checkpoint kept elsewhere; to sign what there is now, run `otel-audit checkpoint --sign`"
        )
        record_id = record_id_in(oldest.record)
        self._findings.add(Finding("checkpoint-missing", msg, first, last, record_id))

    def _check_odd_checkpoints(self) -> None:
        """Check the checkpoints that stand out of order, or beyond the records."""
        scanner = Scanner(self._reader, self.trusted)
        for row in self._unordered:
            checkpoint = scanner.open(row)
            if checkpoint is not None:
                self._judge.checkpoints([checkpoint], {row.size: self._root_from_tiles(row.size)})
        grown = self._size_now()
        there = grown if grown > self._stated.size else self.size
        opened = (scanner.open(row) for row in self._beyond)
        sizes = [one.size for one in opened if one is not None and one.size > there]
        if sizes:
            self._report_beyond(len(sizes), max(sizes))
        self._findings.merge(scanner.take_findings())

    def _report_beyond(self, number: int, largest: int) -> None:
        """Report as one finding: each of a busy trail's last checkpoints says the same."""
        covers = (
            f"a signed checkpoint covers {largest} records"
            if number == 1
            else f"{number} signed checkpoints cover more records, up to {largest}"
        )
        msg = f"{covers}, the trail has only {self.size}: it was cut off, or replaced by an older copy"
        finding = Finding("truncated", msg, self.size, largest - 1, checkpoint_size=largest)
        self._findings.add(finding, number)

    def _root_from_tiles(self, size: int) -> bytes | None:
        """Return the root at any size, by the tiles, which are compared already."""
        try:
            return merkle.edge_root(merkle.edge_at(size, self._reader.hash_at))
        except UNREADABLE:
            return None

    def _warnings(self) -> Iterator[str]:
        judge, uncovered = self._judge, self.size - self._judge.covered
        if self._given is None:
            yield (
                "the keys come from the trail itself (self-asserted): whoever rewrote the whole "
                "trail could have put in their own; give a public key obtained from elsewhere"
            )
        if self._memory.warning is not None:
            yield self._memory.warning
        if uncovered:
            yield (
                f"{uncovered} of {self.size} records are not covered by a valid checkpoint yet, "
                f"the last one committed at {_utc(self._last_nano)}: changes to them cannot be found, except by a checkpoint kept elsewhere"
            )
        if self._unordered:
            yield f"{len(self._unordered)} checkpoints stand behind one of a larger tree"
        if judge.time_jumps:
            yield f"the times of checkpoints go back {judge.time_jumps} times: a clock was set back"
        if self._time_jumps:
            yield (
                f"the commit times of records go back {self._time_jumps} times; they are not "
                "part of the tree, and writers never let them go back"
            )


def _place(finding: Finding) -> tuple[bool, int]:
    """Order findings by the records they are about, then all others."""
    return finding.sequence is None, finding.sequence or 0


def _utc(unix_nano: int) -> str:
    """Return a commit time to be read by people."""
    try:
        moment = datetime.fromtimestamp(unix_nano // 10**9, timezone.utc)
    except (OverflowError, OSError, TypeError, ValueError):
        return "an impossible time"
    return moment.isoformat().replace("+00:00", "Z")
