"""Each probe against its real server: working, stopped, back, paused (SIGSTOP), going on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import neo4j
import pika
import psycopg_pool
import pytest
import redis
import redis.asyncio
import sqlalchemy
from confluent_kafka.admin import AdminClient, NewTopic
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.ext.asyncio import create_async_engine

from collector.stack.servers import Collector
from otel_audit.health.checker import HealthChecker
from otel_audit.health.probe import HealthStatus
from otel_audit.health.probes.amqp import amqp_probe
from otel_audit.health.probes.collector import collector_probe
from otel_audit.health.probes.kafka import kafka_probe
from otel_audit.health.probes.neo4j import neo4j_probe
from otel_audit.health.probes.postgres import asyncpg_probe, psycopg_probe
from otel_audit.health.probes.redis import redis_probe
from otel_audit.health.probes.sqlalchemy import sqlalchemy_probe
from otel_audit.health.probes.tcp import tcp_probe
from tests.stack.health.servers import Kafka, Postgres, Rabbit, Redis, Server, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus
OPTIONS: dict[str, Any] = {"interval": 0.3, "timeout": 0.8}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def checker() -> Iterator[HealthChecker]:
    made = HealthChecker(watch_trail=False)
    yield made
    made.stop()


def state_of(checker: HealthChecker, name: str) -> Any:
    return next(state for state in checker.states if state.name == name)


async def until(
    condition: Callable[[], object], what: Callable[[], object], seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)


async def become(checker: HealthChecker, status: HealthStatus, seconds: float = 30) -> None:
    """Wait until all components are ``status``; the event loop stays free all the time."""
    begun = time.monotonic()
    await until(
        lambda: all(state.at(time.monotonic()) is status for state in checker.states),
        lambda: [(state.name, state.status, state.message) for state in checker.states],
        seconds,
    )
    assert checker.loop_silence() == 0
    assert time.monotonic() - begun < seconds


async def life(checker: HealthChecker, server: Server, back: float = 30) -> None:
    """Lead the server through everything, and see the states follow."""
    checker.start()
    await become(checker, HEALTHY)
    await asyncio.to_thread(server.stop)
    await become(checker, UNHEALTHY)
    await asyncio.to_thread(server.start)
    await become(checker, HEALTHY, back)
    server.pause()
    await become(checker, UNHEALTHY)
    for state in checker.states:
        assert "no answer" in state.message or state.failures >= 3
    server.resume()
    await become(checker, HEALTHY, back)


async def test_postgresql_by_every_client(checker: HealthChecker) -> None:
    with started(Postgres) as server:
        plain = sqlalchemy.create_engine(f"postgresql+psycopg://{server.address}", pool_size=2)
        coroutine = create_async_engine(f"postgresql+asyncpg://{server.address}", pool_size=2)
        url = f"postgresql://{server.address}"
        pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
        threads = psycopg_pool.ConnectionPool(url, min_size=1, open=True)
        tasks = psycopg_pool.AsyncConnectionPool(url, min_size=1, open=False)
        await tasks.open()
        checker.register("sqlalchemy", sqlalchemy_probe(plain), **OPTIONS)
        checker.register("sqlalchemy async", sqlalchemy_probe(coroutine), **OPTIONS)
        checker.register("asyncpg", asyncpg_probe(pool), **OPTIONS)
        checker.register("psycopg", psycopg_probe(threads), **OPTIONS)
        checker.register("psycopg async", psycopg_probe(tasks), **OPTIONS)
        checker.register("psycopg by string", psycopg_probe(url), **OPTIONS)
        try:
            await life(checker, server, back=60)
            assert state_of(checker, "asyncpg").details["size"] >= 1
            assert "Pool size: 2" in state_of(checker, "sqlalchemy").details["pool"]
        finally:
            checker.stop()
            pool.terminate()
            await tasks.close(timeout=1)
            await asyncio.to_thread(threads.close, timeout=1)
            await coroutine.dispose()
            plain.dispose()


async def test_redis_by_both_clients(checker: HealthChecker) -> None:
    with started(Redis) as server:
        plain = redis.Redis(port=server.port)
        coroutine = redis.asyncio.Redis(port=server.port)
        checker.register("redis", redis_probe(plain), **OPTIONS)
        checker.register("redis async", redis_probe(coroutine), **OPTIONS)
        checker.register("refuses", redis_probe(plain), **OPTIONS)
        await life(checker, server)
        checker.stop()
        plain.close()
        await coroutine.aclose()


async def test_a_redis_that_loads_or_wants_a_password_is_unhealthy(checker: HealthChecker) -> None:
    """PING answers with an error then, although the port accepts."""
    with started(Redis) as server:
        # By default redis-py tries again for seconds, which is a time-out here.
        client = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        checker.register("redis", redis_probe(client), **OPTIONS)
        checker.register("port", tcp_probe("127.0.0.1", server.port), **OPTIONS)
        checker.start()
        await become(checker, HEALTHY)
        client.config_set("requirepass", "hunter2")
        client.connection_pool.disconnect()
        await until(
            lambda: state_of(checker, "redis").status is UNHEALTHY,
            lambda: checker.states,
            10,
        )
        assert "AuthenticationError" in state_of(checker, "redis").message
        assert state_of(checker, "port").status is HEALTHY
        checker.stop()
        client.close()


async def test_rabbitmq_and_the_length_of_its_queues(checker: HealthChecker) -> None:
    with started(Rabbit) as server:
        parameters = pika.URLParameters(server.address)
        connection = pika.BlockingConnection(parameters)
        channel = connection.channel()
        channel.queue_declare("jobs", durable=True)
        probe = amqp_probe(server.address, queues={"jobs": 2})
        checker.register("rabbitmq", probe, interval=0.3, timeout=2.0)
        checker.start()
        await become(checker, HEALTHY)
        assert state_of(checker, "rabbitmq").details == {"messages": {"jobs": 0}}
        for _ in range(3):
            channel.basic_publish("", "jobs", b"work")
        await until(
            lambda: state_of(checker, "rabbitmq").status is DEGRADED, lambda: checker.states, 15
        )
        assert state_of(checker, "rabbitmq").message == "too many messages wait in jobs (3)"
        channel.queue_purge("jobs")
        connection.close()
        await become(checker, HEALTHY)
        await life(checker, server, back=120)
        checker.stop()
        await asyncio.sleep(1)
        probe.close()


async def test_a_queue_that_is_not_there_is_unhealthy(checker: HealthChecker) -> None:
    with started(Rabbit) as server:
        probe = amqp_probe(server.address, queues={"jobs": 2})
        checker.register("rabbitmq", probe, interval=0.3, timeout=2.0)
        checker.start()
        await become(checker, UNHEALTHY)
        assert "no queue 'jobs'" in state_of(checker, "rabbitmq").message
        checker.stop()
        await asyncio.sleep(1)
        probe.close()


async def test_kafka_and_its_topics(checker: HealthChecker) -> None:
    with started(Kafka) as server:
        admin = AdminClient({"bootstrap.servers": server.address, "log_level": 0})
        admin.create_topics([NewTopic("audit", 2, 1)])["audit"].result(30)
        slow: dict[str, Any] = {"interval": 0.5, "timeout": 2.0}
        checker.register("kafka", kafka_probe(admin, topics=["audit"], timeout=2), **slow)
        checker.register("by address", kafka_probe(server.address, timeout=2), **slow)
        await life(checker, server, back=90)
        assert state_of(checker, "kafka").details == {"brokers": 1, "topics": 1}
        checker.register("absent", kafka_probe(admin, topics=["absent"], timeout=2), **slow)
        await until(
            lambda: state_of(checker, "absent").status is UNHEALTHY, lambda: checker.states, 15
        )
        assert state_of(checker, "absent").message == "there is no topic absent"
        checker.stop()


async def test_a_graph_driver_that_reaches_nothing_is_unhealthy(checker: HealthChecker) -> None:
    """Experimental: no server could be had; that something else answers is not taken for one."""
    with started(Redis) as server:
        gone = neo4j.GraphDatabase.driver("bolt://127.0.0.1:1", connection_timeout=1)
        other = neo4j.AsyncGraphDatabase.driver(
            f"bolt://127.0.0.1:{server.port}", connection_timeout=1
        )
        checker.register("gone", neo4j_probe(gone), **OPTIONS)
        checker.register("other", neo4j_probe(other), **OPTIONS)
        checker.start()
        await become(checker, UNHEALTHY)
        assert "ServiceUnavailable" in state_of(checker, "gone").message
        checker.stop()
        gone.close()
        await other.close()


async def test_the_collector(checker: HealthChecker, tmp_path: Path) -> None:
    with Collector(tmp_path) as collector:
        checker.register("collector", collector_probe(f"{collector.url}/"), **OPTIONS)
        checker.start()
        await become(checker, HEALTHY)
        await asyncio.to_thread(collector.stop)
        await become(checker, UNHEALTHY)
        await asyncio.to_thread(collector.start)
        await become(checker, HEALTHY)
        collector.freeze()
        await become(checker, UNHEALTHY)
        collector.thaw()
        await become(checker, HEALTHY)
