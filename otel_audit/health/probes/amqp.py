"""A message queue that speaks AMQP 0-9-1, such as RabbitMQ: a channel, and how long queues are."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from otel_audit.health.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEARTBEAT: Final = 10
_TIMEOUT: Final = 3.0


def amqp_probe(url: str, *, queues: Mapping[str, int] | None = None) -> AmqpProbe:
    """Keep a connection to ``url`` and open a channel on it each time; needs pika.

    ``queues``: names, with the number of messages above which the queue counts
    as degraded; one that is not there is unhealthy. The connection is the
    probe's own, because pika's may be used by one thread only.
    """
    return AmqpProbe(url, queues or {})


class AmqpProbe:
    """One connection, made when it is needed and again after each failure."""

    def __init__(self, url: str, queues: Mapping[str, int]) -> None:
        """Remember where to connect; nothing is opened yet."""
        import pika  # noqa: PLC0415 - optional

        self._pika: Any = pika
        self._parameters: Any = pika.URLParameters(url)
        self._parameters.heartbeat = _HEARTBEAT
        self._parameters.socket_timeout = _TIMEOUT
        self._parameters.stack_timeout = 2 * _TIMEOUT
        self._parameters.blocked_connection_timeout = _HEARTBEAT
        self._parameters.connection_attempts = 1
        self._queues = queues
        self._connection: Any = None

    def __call__(self) -> ProbeResult:
        """Open a channel, and look at the queues."""
        try:
            return self._ask()
        except Exception as error:
            self.close()
            if isinstance(error, self._pika.exceptions.AMQPError):
                said = f"{type(error).__name__}: {_cause(error)}".rstrip(": ")
                return ProbeResult.unhealthy(said)
            raise

    def _ask(self) -> ProbeResult:
        if self._connection is None or not self._connection.is_open:
            self._connection = self._pika.BlockingConnection(self._parameters)
        channel = self._connection.channel()
        try:
            lengths = {name: self._length(channel, name) for name in self._queues}
        finally:
            if channel.is_open:
                channel.close()
        long = [name for name, length in lengths.items() if length > self._queues[name]]
        details: dict[str, Any] = {"messages": lengths} if lengths else {}
        if long:
            said = ", ".join(f"{name} ({lengths[name]:,})" for name in long)
            return ProbeResult.degraded(f"too many messages wait in {said}", **details)
        return ProbeResult.healthy(**details)

    def _length(self, channel: Any, name: str) -> int:  # noqa: ANN401 - a channel of pika's
        return int(channel.queue_declare(name, passive=True).method.message_count)

    def close(self) -> None:
        """Close the connection; a later check would open another one."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            with suppress(Exception):
                connection.close()


def _cause(error: BaseException) -> str:
    """Return what the innermost error says: pika wraps it twice, and its own text is empty."""
    inside = getattr(error, "exception", error.args[0] if error.args else None)
    if isinstance(inside, BaseException):
        return _cause(inside)
    return " ".join(map(str, error.args))
