"""A Kafka cluster: its metadata, and that the topics that matter have leaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_audit.health.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_TIMEOUT: Final = 3.0


def kafka_probe(
    client: Any,  # noqa: ANN401 - confluent_kafka's AdminClient, Producer or Consumer, which are not imported here
    *,
    topics: Collection[str] = (),
    timeout: float = _TIMEOUT,
) -> Callable[[], ProbeResult]:
    """Ask for the cluster's metadata with a client of confluent-kafka.

    ``client`` is an ``AdminClient``, ``Producer`` or ``Consumer`` of the
    application's, or the address of a broker. A topic that is not there, or
    that has a partition without leader, is unhealthy. ``timeout``: seconds
    that the client waits; give the component no less.
    """
    if isinstance(client, str):
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - optional

        # What it logs by itself, to stderr, is what the probe says.
        client = AdminClient({"bootstrap.servers": client, "log_level": 0})

    def probe() -> ProbeResult:
        metadata = client.list_topics(timeout=timeout)
        troubles = [trouble for topic in topics for trouble in _troubles(metadata, topic)]
        details: dict[str, Any] = {"brokers": len(metadata.brokers), "topics": len(metadata.topics)}
        if troubles:
            return ProbeResult.unhealthy("; ".join(troubles), **details)
        return ProbeResult.healthy(**details)

    return probe


def _troubles(metadata: Any, name: str) -> list[str]:  # noqa: ANN401 - confluent_kafka.admin.ClusterMetadata
    topic = metadata.topics.get(name)
    if topic is None or topic.error is not None:
        return [f"there is no topic {name}"]
    headless = [str(number) for number, part in topic.partitions.items() if part.leader < 0]
    return [f"no leader for partition {', '.join(headless)} of {name}"] if headless else []
