"""Probes against real files, sockets, databases and servers of this process.

What needs a server of its own kind is in tests/stack/health/test_servers.py.
"""

from __future__ import annotations

import asyncio
import http.server
import inspect
import os
import socket
import sys
import threading
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pika
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from otel_audit import AuditProvider, Settings
from otel_audit.api.logger import AuditLogger
from otel_audit.health.probe import HealthStatus, ProbeResult, judged
from otel_audit.health.probes.agents import agents_probe
from otel_audit.health.probes.amqp import amqp_probe
from otel_audit.health.probes.collector import collector_probe
from otel_audit.health.probes.disk import disk_probe
from otel_audit.health.probes.http import http_probe
from otel_audit.health.probes.kafka import kafka_probe
from otel_audit.health.probes.neo4j import neo4j_probe
from otel_audit.health.probes.postgres import asyncpg_probe, psycopg_probe
from otel_audit.health.probes.redis import redis_probe
from otel_audit.health.probes.sqlalchemy import sqlalchemy_probe
from otel_audit.health.probes.tcp import tcp_probe
from otel_audit.health.probes.trail import trail_probe
from otel_audit.readers.cursors import Cursors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus


async def answer(probe: Any) -> ProbeResult:
    found = probe()
    if inspect.isawaitable(found):
        found = await found
    return judged(found)


# disk


async def test_free_space_is_compared_with_both_limits(tmp_path: Path) -> None:
    found = await answer(disk_probe(tmp_path, degraded_below=1, unhealthy_below=0))
    assert found.status is HEALTHY
    assert found.details is not None
    facts = os.statvfs(tmp_path)
    assert found.details["total_bytes"] == facts.f_blocks * facts.f_frsize
    more = 1 << 80
    assert (await answer(disk_probe(tmp_path, degraded_below=more))).status is DEGRADED
    full = await answer(disk_probe(tmp_path, unhealthy_below=more))
    assert full.status is UNHEALTHY
    assert "make room" in full.message


async def test_a_disk_without_inodes_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = os.statvfs("/")
    none_left = SimpleNamespace(
        f_bavail=facts.f_bavail, f_frsize=4096, f_blocks=facts.f_blocks, f_files=10, f_favail=0
    )
    monkeypatch.setattr(os, "statvfs", lambda _path: none_left)
    assert (await answer(disk_probe("/"))).message.startswith("no inodes are free")


# tcp


async def test_a_port_that_accepts_is_healthy_and_one_that_refuses_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert (await answer(tcp_probe("127.0.0.1", port))).status is HEALTHY
    with pytest.raises(ConnectionRefusedError):
        await answer(tcp_probe("127.0.0.1", port))


# agents


@pytest.mark.parametrize(
    ("agents", "status", "message"),
    [
        ({"a": True, "b": "healthy"}, HEALTHY, "2 of 2 agents work"),
        ({"a": True, "b": False}, DEGRADED, "1 of 2 agents work; not well: b"),
        ({"a": True, "b": "degraded"}, DEGRADED, "2 of 2 agents work; not well: b"),
        ({"a": False}, UNHEALTHY, "0 of 1 agents work; not well: a; 1 are needed"),
        ({}, UNHEALTHY, "0 of 0 agents work; 1 are needed"),
        (dict.fromkeys("abcdefg", False) | {"z": True}, DEGRADED, "a, b, c, d, e and 2 more"),
    ],
)
async def test_agents_are_counted(
    agents: dict[str, object], status: HealthStatus, message: str
) -> None:
    found = await answer(agents_probe(lambda: agents))
    assert found.status is status
    assert message in found.message


async def test_a_registry_may_be_a_coroutine_function() -> None:
    async def registry() -> dict[str, object]:
        return {"a": None}

    assert (await answer(agents_probe(registry, at_least=1))).status is HEALTHY
    assert (await answer(agents_probe(registry, at_least=2))).status is UNHEALTHY


# http


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        """Answer with the status that the path names."""
        self.asked.append((self.command, self.path, self.headers.get("authorization")))
        status = int(self.path.rpartition("/")[2].partition("?")[0])
        self.send_response(status)
        self.send_header("location", "/200")
        self.send_header("content-length", "2" if self.command == "GET" else "0")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"ok")

    do_HEAD = do_GET  # noqa: N815 - the name that the library calls

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    """Serve in a thread; what was asked is in ``Handler.asked``."""
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "health"),
    [
        (200, HEALTHY),
        (204, HEALTHY),
        (302, HEALTHY),
        (401, UNHEALTHY),
        (429, DEGRADED),
        (503, UNHEALTHY),
    ],
)
async def test_a_status_says_how_it_is(web: str, status: int, health: HealthStatus) -> None:
    async with httpx.AsyncClient() as client:
        found = await answer(http_probe(f"{web}/{status}", client=client))
    assert found.status is health
    assert found.details is not None
    assert found.details["http_status"] == status
    assert found.details["latency_ms"] > 0
    assert Handler.asked == [("HEAD", f"/{status}", None)]


async def test_method_headers_and_expectation_are_the_callers(web: str) -> None:
    async with httpx.AsyncClient() as client:
        probe = http_probe(
            f"{web}/401",
            method="GET",
            expect=(401,),
            headers={"authorization": "Bearer s3cret"},
            client=client,
        )
        assert (await answer(probe)).status is HEALTHY
    assert Handler.asked == [("GET", "/401", "Bearer s3cret")]


async def test_neither_answer_nor_failure_shows_a_secret(web: str) -> None:
    address = web.removeprefix("http://")
    async with httpx.AsyncClient() as client:
        secret = f"http://key:s3cret@{address}/v1/500?api_key=s3cret"
        found = await answer(http_probe(secret, client=client))
        assert found.message == f"HEAD http://{address}/v1/500 answers 500"
        refused = await answer(
            http_probe("http://key:s3cret@127.0.0.1:1/?api_key=s3cret", client=client)
        )
    assert refused.message == "HEAD http://127.0.0.1:1/ failed: ConnectError"


async def test_a_client_is_made_once_where_none_is_given(web: str) -> None:
    probe = http_probe(f"{web}/200")
    assert (await answer(probe)).status is HEALTHY
    assert (await answer(probe)).status is HEALTHY
    made = inspect.getclosurevars(probe).nonlocals["made"]
    assert len(made) == 1
    await made[0].aclose()


async def test_a_collector_is_asked_at_its_health_endpoint(web: str) -> None:
    async with httpx.AsyncClient() as client:
        assert (await answer(collector_probe(f"{web}/200", client=client))).status is HEALTHY
        assert (await answer(collector_probe(f"{web}/204", client=client))).status is UNHEALTHY


# databases


async def test_a_plain_engine_and_its_pool(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}", pool_size=1, max_overflow=1
    )
    probe = sqlalchemy_probe(engine)
    found = await answer(probe)
    assert found.status is HEALTHY
    assert found.details is not None
    assert found.details["in_use"] == 0
    with engine.connect(), engine.connect():
        full = await answer(probe)
    assert full.status is DEGRADED
    assert full.message == "all 2 connections of the pool are in use"
    engine.dispose()


async def test_an_engine_without_a_bounded_pool_is_asked_as_well() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.NullPool)
    found = await answer(sqlalchemy_probe(engine))
    assert found.status is HEALTHY
    assert found.details == {"pool": "NullPool"}
    gone = sqlalchemy.create_engine("sqlite:////nowhere/at/all.db")
    with pytest.raises(sqlalchemy.exc.OperationalError):
        await answer(sqlalchemy_probe(gone))


async def test_a_plain_engine_needs_nothing_of_async_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy 2.1 installs without greenlet, and its asyncio module cannot be imported then."""
    monkeypatch.setitem(sys.modules, "sqlalchemy.ext.asyncio", None)
    found = await answer(sqlalchemy_probe(sqlalchemy.create_engine("sqlite://")))
    assert found.status is HEALTHY


async def test_an_async_engine_and_its_pool(tmp_path: Path) -> None:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", pool_size=1, max_overflow=0
    )
    probe = sqlalchemy_probe(engine)
    assert (await answer(probe)).status is HEALTHY
    async with engine.connect():
        assert (await answer(probe)).status is DEGRADED
    await engine.dispose()


class FakePool:
    """The part of asyncpg's and psycopg's pools that the probes use; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def fetchval(self, query: str) -> int:
        self.asked.append(query)
        return 1

    def acquire(self) -> AbstractAsyncContextManager[FakePool]:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def held() -> Any:
            yield self

        return held()

    def get_size(self) -> int:
        return 3

    def get_idle_size(self) -> int:
        return 2

    def get_stats(self) -> dict[str, int]:
        return {"pool_size": 3, "pool_available": 2}


class FakeSyncPool(FakePool):
    def connection(self) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def held() -> Any:
            yield SimpleNamespace(execute=self.asked.append)

        return held()


class FakeAsyncPool(FakePool):
    async def __aenter__(self) -> None:
        """Be one that is used with ``async with``."""

    async def execute(self, query: str) -> None:
        self.asked.append(query)

    def connection(self) -> Any:
        return self.acquire()


async def test_the_pools_of_postgresql_clients() -> None:
    pool = FakePool()
    found = await answer(asyncpg_probe(pool))
    assert found == ProbeResult.healthy(size=3, idle=2)
    facts = ProbeResult.healthy(size=3, idle=2, waiting=0)
    plain, coroutine = FakeSyncPool(), FakeAsyncPool()
    assert await answer(psycopg_probe(plain)) == facts
    assert await answer(psycopg_probe(coroutine)) == facts
    assert pool.asked == plain.asked == coroutine.asked == ["SELECT 1"]


async def test_redis_is_pinged_by_either_kind_of_client() -> None:
    async def pong() -> bool:
        return True

    assert (await answer(redis_probe(SimpleNamespace(ping=lambda: True)))).status is HEALTHY
    assert (await answer(redis_probe(SimpleNamespace(ping=pong)))).status is HEALTHY
    client = SimpleNamespace(ping=lambda: pong(), aclose=None)  # noqa: PLW0108 - as redis-py has it
    assert (await answer(redis_probe(client))).status is HEALTHY
    odd = await answer(redis_probe(SimpleNamespace(ping=lambda: ["what"])))
    assert odd == ProbeResult.unhealthy("PING was answered by ['what']")


async def test_a_graph_driver_of_either_kind_is_asked() -> None:
    asked: list[str] = []

    async def verify() -> None:
        asked.append("coroutine")

    plain = SimpleNamespace(verify_connectivity=lambda: asked.append("plain"))
    assert (await answer(neo4j_probe(plain))).status is HEALTHY
    coroutine = SimpleNamespace(verify_connectivity=verify)
    assert (await answer(neo4j_probe(coroutine))).status is HEALTHY
    assert asked == ["plain", "coroutine"]


async def test_kafka_topics_need_leaders() -> None:
    def topic(*leaders: int, error: object = None) -> Any:
        partitions = {number: SimpleNamespace(leader=one) for number, one in enumerate(leaders)}
        return SimpleNamespace(partitions=partitions, error=error)

    topics = {"audit": topic(1, 1), "headless": topic(1, -1), "bad": topic(error="unknown")}
    metadata = SimpleNamespace(brokers={1: None}, topics=topics)
    client = SimpleNamespace(list_topics=lambda timeout: metadata if timeout else None)
    assert (await answer(kafka_probe(client, topics=["audit"]))).details == {
        "brokers": 1,
        "topics": 3,
    }
    found = await answer(kafka_probe(client, topics=["audit", "headless", "bad", "absent"]))
    assert found.message == (
        "no leader for partition 1 of headless; there is no topic bad; there is no topic absent"
    )


async def test_a_message_queue_that_does_not_answer_is_unhealthy_and_keeps_its_secret() -> None:
    probe = amqp_probe("amqp://shop:hunter2@127.0.0.1:1/%2F", queues={"jobs": 1})
    found = await answer(probe)
    assert found.status is UNHEALTHY
    assert found.message.startswith("AMQPConnectionError")
    assert "refused" in found.message
    assert "hunter2" not in found.message
    probe.close()


class FakeChannel:
    """What the probe uses of a channel of pika's."""

    is_open = True

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    def queue_declare(self, _name: str, *, passive: bool) -> Any:
        assert passive
        return SimpleNamespace(method=SimpleNamespace(message_count=self._waiting))

    def close(self) -> None:
        self.is_open = False


async def test_the_length_of_a_queue_counts_and_a_broken_connection_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[FakeChannel] = []

    def channel() -> FakeChannel:
        if len(made) == 2:
            made.append(FakeChannel(0))
            raise ZeroDivisionError
        made.append(FakeChannel(len(made) * 5))
        return made[-1]

    closed: list[bool] = []
    connections: list[object] = []

    def connect(_parameters: object) -> object:
        connection = SimpleNamespace(
            is_open=True, channel=channel, close=lambda: closed.append(True)
        )
        connections.append(connection)
        return connection

    monkeypatch.setattr(pika, "BlockingConnection", connect)
    probe = amqp_probe("amqp://127.0.0.1/", queues={"jobs": 4})
    assert (await answer(probe)).details == {"messages": {"jobs": 0}}
    assert not made[0].is_open
    long = await answer(probe)
    assert (long.status, long.message) == (DEGRADED, "too many messages wait in jobs (5)")
    assert len(connections) == 1
    with pytest.raises(ZeroDivisionError):
        await answer(probe)
    assert closed == [True]
    await answer(probe)
    assert len(connections) == 2


# the trail


async def test_a_trail_is_watched_without_being_written(provider: AuditProvider) -> None:
    probe = trail_probe(provider)
    empty = await answer(probe)
    assert empty.status is HEALTHY, empty.message
    assert empty.details is not None
    assert empty.details["records"] == 0
    assert empty.details["last_commit_age_s"] is None
    assert (provider.directory / "health").stat().st_mode & 0o777 == 0o600
    await AuditLogger(provider=provider).audit_event("login", "login")
    found = await answer(probe)
    assert found.details is not None
    assert found.details["records"] == found.details["uncovered"] == 1
    assert 0 <= found.details["last_commit_age_s"] < 10
    provider.checkpoint()
    signed = await answer(probe)
    assert signed.details is not None
    assert signed.details["uncovered"] == 0
    assert 0 <= signed.details["checkpoint_age_s"] < 10
    assert signed.details["waiting"] == 0
    assert signed.details["free_bytes"] > 0


async def test_a_trail_that_nobody_signs_is_degraded(
    provider: AuditProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_audit.health.probes import trail

    await AuditLogger(provider=provider).audit_event("login", "login")
    monkeypatch.setattr(trail, "_CHECKPOINT_SECONDS", -1)
    found = await answer(trail_probe(provider))
    assert found.status is DEGRADED
    assert "have waited for a checkpoint" in found.message


async def test_a_reader_that_lags_is_named(provider: AuditProvider) -> None:
    audit = AuditLogger(provider=provider)
    for _ in range(3):
        await audit.audit_event("login", "login")
    cursors = Cursors(provider.directory)
    cursors.set("agent", 0, {"follows": ["mirror:a", "ship:otlp", "ship:new"]})
    cursors.set("mirror:a", 3)
    cursors.set("ship:otlp", 1)
    cursors.set("ship:old", 0)  # was shipped to by a process that has ended
    cursors.set("reconcile", 0)  # looks once an hour
    cursors.close()
    found = await answer(trail_probe(provider))
    assert found.status is HEALTHY
    assert found.details is not None
    lags = found.details["lag"]
    assert lags["mirror:a"] == {"records": 0, "seconds": 0.0}
    assert {name: lag["records"] for name, lag in lags.items()} == {
        "mirror:a": 0,
        "ship:otlp": 2,
        "ship:new": 3,
    }
    late = await answer(trail_probe(provider, max_lag=-1.0))
    assert late.status is DEGRADED
    assert "ship:otlp is 0 s behind the trail" in late.message
    assert "old" not in late.message


def test_a_mirror_that_is_not_written_any_more_lags_behind_nothing(tmp_path: Path) -> None:
    """As after a trail was moved, or after its mirror was switched off."""
    mirror = tmp_path / "audit.log"
    with closing(opened(tmp_path, mirror=mirror)) as first:
        AuditLogger(provider=first).audit_event("login", "login")
        assert first.flush()
        assert set(lags(first)) == {f"mirror:{mirror}"}
    with closing(opened(tmp_path, mirror=tmp_path / "new.log")) as second:
        AuditLogger(provider=second).audit_event("login", "login")
        assert second.flush()
        assert set(lags(second)) == {f"mirror:{tmp_path / 'new.log'}"}


def opened(directory: Path, mirror: Path) -> AuditProvider:
    environment = {"AUDIT_LOG_LOCAL_FILE": str(mirror)}
    return AuditProvider(Settings.from_env(environment, directory=directory / "trail"))


def lags(provider: AuditProvider) -> dict[str, Any]:
    details: Mapping[str, Any] = trail_probe(provider)().details or {}
    found: dict[str, Any] = details["lag"]
    return found


async def test_a_trail_that_cannot_be_written_raises(
    provider: AuditProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    probe = trail_probe(provider)
    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        await answer(probe)
    monkeypatch.undo()
    assert (await answer(probe)).status is HEALTHY


async def test_a_closed_or_broken_trail_is_unhealthy(provider: AuditProvider) -> None:
    probe = trail_probe(provider)
    provider.close()
    found = await answer(probe)
    assert found.status is UNHEALTHY
    assert "closed" in found.message


@pytest.mark.parametrize(("free", "status"), [(1 << 20, UNHEALTHY), (1 << 29, DEGRADED)])
async def test_the_space_of_the_trail_counts(
    provider: AuditProvider, monkeypatch: pytest.MonkeyPatch, free: int, status: HealthStatus
) -> None:
    facts = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=1 << 40, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _path: facts)
    found = await answer(trail_probe(provider))
    assert found.status is status
    assert "MiB are free" in found.message


async def test_the_loop_is_free_while_probes_run() -> None:
    """A probe that is a coroutine function gives way to others."""
    await asyncio.gather(*(answer(agents_probe(lambda: {"a": None})) for _ in range(3)))
