"""Queries on a large trail: filters, deep pages, counts, full text, and how fast the index follows.

    python -m benchmarks.query [--records 1000000] [--trail DIRECTORY] [--quick]

The trail is generated, skewed as real ones are: few actors, routes and addresses do most of what
happens, three records belong to a request, and 30 days are covered. With ``--trail`` it is kept
there, and used again when it is there already. What a query costs is printed beside the cost of a
fixed piece of work in the same run, so that machines can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from otel_audit.readers.index.writer import QueryIndex
from otel_audit.readers.query.model import Query
from otel_audit.readers.query.parameters import parse
from otel_audit.readers.query.times import stamp
from otel_audit.readers.search.trail import TrailSearch
from otel_audit.record.encode import new_record_id
from otel_audit.trail.checkpoint import Checkpoint
from otel_audit.trail.layout import INDEX
from otel_audit.trail.merkle import TileHashes
from otel_audit.trail.proof import prove
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.trail.merkle import HashAt
    from otel_audit.trail.reader import Leaf

DAY = 86_400 * 1_000_000_000
DAYS = 30
_GROUP = 4_096
_BEGAN = 1_790_000_000 * 1_000_000_000 // DAY * DAY


class Skewed:
    """Makes records like those of a busy service."""

    def __init__(self, count: int) -> None:
        self._random = random.Random(7)
        self._count = count
        self._requests: list[tuple[str, str, str, str, str]] = []
        self.actors = _zipf("u", 20_000)
        self.clients = _zipf("client", 500)
        self.addresses = _zipf("10.1", 5_000)
        self.credentials = _zipf("credential", 3_000)
        self.routes = _zipf("/api/items", 60)
        self._chosen: dict[int, Iterator[str]] = {}

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield time and bytes of each record."""
        step = DAYS * DAY // self._count
        for number in range(self._count):
            moment = _BEGAN + number * step + self._random.randrange(step)
            if number % 3 == 0:
                self._begin_request()
            yield moment, orjson.dumps(self._record(number, moment))

    def _begin_request(self) -> None:
        self._request = (
            new_record_id(),
            self._random.randbytes(16).hex(),
            self._one(self.actors),
            self._one(self.clients),
            self._one(self.addresses),
        )

    def _one(self, choices: tuple[list[str], list[float]]) -> str:
        chosen = self._chosen.get(id(choices))
        if chosen is None:
            chosen = self._chosen[id(choices)] = self._drawn(choices)
        return next(chosen)

    def _drawn(self, choices: tuple[list[str], list[float]]) -> Iterator[str]:
        while True:
            yield from self._random.choices(choices[0], cum_weights=choices[1], k=4_096)

    def _record(self, number: int, moment: int) -> dict[str, object]:
        request_id, trace_id, actor, client, address = self._request
        kind = number % 3
        failed = self._random.random() < 0.04
        event, action, resource, name = (
            ("authentication", "login", "account", actor)
            if kind == 0
            else ("credential_access", "read", "credential", self._one(self.credentials))
            if kind == 1
            else ("http.request", "GET", "route", self._one(self.routes))
        )
        if number % 9_973 == 17:
            event, action, resource, name = "server_lifecycle_event", "start", "server", "obsidian"
        record: dict[str, object] = {
            "schema": "otel-audit/1",
            "timestamp": stamp(moment),
            "level": "error" if failed else "info",
            "event": event,
            "record_id": new_record_id(),
            "event_type": event,
            "action": action,
            "status": "failed" if failed else "success",
            "outcome": "failure" if failed else "success",
            "actor_id": actor,
            "actor_type": "user",
            "actor_verified": True,
            "resource_type": resource,
            "resource_name": name,
            "request_id": request_id,
            "client_id": client,
            "client_ip": address,
            "session_id": f"{hash(actor) & 0xFFFFFFFF:032x}",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/141.0 Safari/537.36",
            "trace_id": trace_id,
            "span_id": trace_id[:16],
            "trace_flags": "01",
            "service_name": "hub",
            "resource": "5f0c4b0e8a344d8e9f6b0d6a6a3c1f11",
            "retention": "1y",
        }
        if failed:
            record["error"] = "the credential is not known to this server"
        if kind == 2:
            record |= {"method": "GET", "route": name, "path": f"{name}/{number % 5_000}", "status_code": 200,
                       "duration_ms": number % 977 / 10}  # fmt: skip
        if event == "server_lifecycle_event":
            record["server_name"] = "obsidian"
        if number % 250_007 == 3:
            record["note"] = f"rarity{number // 250_007} seen by the operator"
        return record


def _zipf(prefix: str, count: int) -> tuple[list[str], list[float]]:
    weights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return [f"{prefix}-{number}" for number in range(count)], weights


def fill(directory: Path, count: int) -> None:
    """Write a trail of ``count`` records, without signing and without waiting for the disk."""
    now = _BEGAN
    store = TrailStore(directory, new_origin=lambda: "benchmark/query", clock=lambda: now)
    with store._handle.use() as connection:  # noqa: SLF001 - a generated trail need not be durable
        connection.pragma("synchronous", "off")
    group: list[bytes] = []
    for moment, record in Skewed(count).records():
        group.append(record)
        now = moment
        if len(group) == _GROUP:
            store.append(group, {})
            group = []
            store.wal.empty(above=64 << 20)
    if group:
        store.append(group, {})
    store.wal.empty(reset=True)
    store.close()


def index(directory: Path, *, full_text: bool) -> tuple[float, float]:
    """Make the index; return how many records it took in a second, and in one of the processor."""
    maker = QueryIndex(directory, full_text=full_text)
    maker.discard()
    with TrailReader(directory) as reader:
        size = reader.tree().size
        began, used = time.perf_counter(), time.process_time()
        while maker.step(reader, size):
            pass
        rates = size / (time.perf_counter() - began), size / (time.process_time() - used)
    maker.close()
    return rates


class Took(NamedTuple):
    """How many milliseconds each run took, sorted."""

    elapsed: list[float]
    processor: list[float]


def measured(work: Callable[[], object], times: int) -> Took:
    """Run something so many times."""
    elapsed, processor = [], []
    for _ in range(times):
        began, used = time.perf_counter(), time.process_time()
        work()
        processor.append((time.process_time() - used) * 1_000)
        elapsed.append((time.perf_counter() - began) * 1_000)
    return Took(sorted(elapsed), sorted(processor))


def p99(took: list[float]) -> float:
    """Return the 99th percentile."""
    return took[min(len(took) - 1, int(len(took) * 0.99))]


def unit() -> float:
    """Return the milliseconds of a fixed piece of work: what this machine is worth just now."""
    record = orjson.dumps({"field": list(range(200))})
    took = measured(lambda: [orjson.loads(record) for _ in range(1_000)], 15)
    return statistics.median(took.processor)


def show(label: str, took: Took, scale: float, goal: str) -> None:
    """Print one line."""
    middle, worst = statistics.median(took.elapsed), p99(took.elapsed)
    used, most = statistics.median(took.processor), p99(took.processor)
    print(
        f"  {label:<46} median {middle:8.2f} ms  p99 {worst:8.2f} ms; of the processor "
        f"{used:8.2f} and {most:8.2f} ms = {most / scale:5.1f} units (goal {goal})"
    )


def queries(directory: Path, times: int) -> None:
    """Measure what is asked of a trail with its index."""
    chance = random.Random(11)
    scale = unit()
    print(f"  a unit is {scale:.2f} ms: 1,000 small documents parsed")
    search = TrailSearch.open(directory)
    size = search.reader.tree().size
    sample = [search.reader.pick([chance.randrange(size)])[0] for _ in range(times)]
    records = [orjson.loads(leaf.record) for leaf in sample]
    for field in (
        "event", "action", "event_type", "resource_name", "server_name", "client_id", "actor_id",
        "client_ip", "outcome", "level", "request_id", "trace_id", "record_id",
    ):  # fmt: skip
        asked = iter([record.get(field, "obsidian") for record in records])

        def one(field: str = field, asked: Iterator[str] = asked) -> None:
            start = _BEGAN + chance.randrange(DAYS - 2) * DAY
            end = start + chance.choice((DAY // 24, DAY, 7 * DAY, 40 * DAY))
            query, _ = parse([(field, next(asked)), ("start", stamp(start)), ("end", stamp(end))])
            search.page(query)

        show(f"{field} and time, 50 records", measured(one, times), scale, "p99 20 ms")
    _pages(search, times, scale)
    day = _BEGAN + 12 * DAY
    failed = parse([("event", "authentication"), ("outcome", "failure"), ("start", stamp(day)),
                    ("end", stamp(day + DAY))])[0]  # fmt: skip
    everything = Query(start=day, end=day + DAY)
    hour = DAY // 24
    show(
        "failed log-ins by hour, one day",
        measured(lambda: search.count(failed, per=hour), times // 4),
        scale,
        "200 ms",
    )
    show(
        "all records by hour, one day",
        measured(lambda: search.count(everything, per=hour), times // 4),
        scale,
        "200 ms",
    )
    show(
        "all records by event and hour, one day",
        measured(lambda: search.count(everything, by="event", per=hour), times // 4),
        scale,
        "-",
    )
    if search.progress().full_text:
        rare = iter(range(times))
        words = max(1, size // 250_007)
        show(
            "a rare word",
            measured(lambda: search.page(Query(words=(f"rarity{next(rare) % words}",))), times),
            scale,
            "100 ms",
        )
    _proofs(search, times, scale)
    search.close()


def _pages(search: TrailSearch, times: int, scale: float) -> None:
    query = parse([("outcome", "failure")])[0]
    size = search.reader.tree().size
    first = measured(lambda: search.page(query), times)
    deep = measured(lambda: search.page(query, size // 10), times)
    show("the first page of all failures", first, scale, "-")
    show("a page deep in them", deep, scale, "as the first")
    deep_page, first_page = (statistics.median(each.processor) for each in (deep, first))
    print(f"  deep page / first page, of the processor: {deep_page / first_page:.2f}")


def _proofs(search: TrailSearch, times: int, scale: float) -> None:
    reader = search.reader
    tree = reader.tree()
    note = Checkpoint("benchmark/query", tree.size, tree.root).text() + "\n— none AAAAAAAA\n"
    chance = random.Random(5)

    def one(leaf: Leaf, hash_at: HashAt) -> float:
        used = time.process_time()
        prove(leaf.sequence, leaf.record, note, hash_at)
        return time.process_time() - used

    def any_record() -> None:
        one(reader.pick([chance.randrange(tree.size)])[0], reader.hash_at)

    def by_id() -> None:
        found = search.find(next(names))
        assert found is not None
        one(found[0], reader.hash_at)

    sample = reader.pick([chance.randrange(tree.size) for _ in range(times)])
    names = iter([str(orjson.loads(leaf.record)["record_id"]) for leaf in sample])
    show("proof of one record", measured(any_record, times), scale, "1 ms")
    show("... found by its id", measured(by_id, len(sample)), scale, "-")
    # A reader that has just been opened remembers no tile.
    pairs = [(one(leaf, TileHashes(reader.tile)), one(leaf, reader.hash_at)) for leaf in sample]
    ratios = sorted(first / next_one for first, next_one in pairs)
    print(
        f"  the first proof of a process / one of the same record: {statistics.median(ratios):.1f}"
    )


def main() -> None:
    """Generate, index, ask."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--trail", type=Path)
    parser.add_argument("--rounds", type=int, help="for other benchmarks")
    parser.add_argument("--quick", action="store_true", help="20,000 records")
    options = parser.parse_args()
    count = 20_000 if options.quick else options.records
    with ExitStack() as stack:
        place = options.trail or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trail"
        if not (place / "trail.db").exists():
            began = time.perf_counter()
            fill(place, count)
            print(f"  {count:,} records written in {time.perf_counter() - began:.0f} s")
        trail = (place / "trail.db").stat().st_size
        print(f"  the trail has {trail >> 20:,} MiB")
        rate, alone = index(place, full_text=False)
        share = (place / INDEX).stat().st_size / trail
        print(
            f"  index without full text: {rate:,.0f} records a second ({alone:,.0f} of processor time; goal 10,000), {share:.1%} of the trail (goal 40 %)"
        )
        queries(place, 40 if options.quick else 200)
        rate, alone = index(place, full_text=True)
        share = (place / INDEX).stat().st_size / trail
        print(
            f"  index with full text: {rate:,.0f} records a second ({alone:,.0f} of processor time), {share:.1%} of the trail"
        )
        queries(place, 40 if options.quick else 200)


if __name__ == "__main__":
    main()
