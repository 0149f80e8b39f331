"""Sending one request of log records and judging the answer: by HTTP or by gRPC.

`Sender.send` promises that "delivered" was said by the far end, and never
raises for what a network or a server can do: that is an `Answer`, too.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

from otel_audit.readers.shipping.otlp import answer
from otel_audit.readers.shipping.otlp.answer import Answer
from otel_audit.readers.shipping.otlp.web import Site

if TYPE_CHECKING:
    from otel_audit.destinations import Destination

_LEVEL: Final = 2
"""Of gzip: audit records shrink to a tenth at any level, at half the cost of the default."""


class Sender(Protocol):
    """What a shipper needs of a protocol. For one thread at a time."""

    def send(self, request: bytes) -> Answer:
        """Send an ExportLogsServiceRequest and wait for what becomes of it."""
        ...

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        ...


def sender(destination: Destination) -> Sender:
    """Make the sender for the destination's protocol."""
    if destination.protocol == "grpc":
        from otel_audit.readers.shipping.otlp.grpc import GrpcSender  # noqa: PLC0415 - gRPC takes 20 MB and a tenth of a second

        return GrpcSender(destination)
    return HttpSender(destination)


class HttpSender:
    """OTLP/HTTP with protobuf (opentelemetry-proto, docs/specification.md)."""

    def __init__(self, destination: Destination) -> None:
        """Remember where to; nothing is opened yet."""
        self._site = Site(destination)
        self._gzip = destination.compression == "gzip"
        self._headers = {"content-type": "application/x-protobuf"}
        if self._gzip:
            self._headers["content-encoding"] = "gzip"

    def send(self, request: bytes) -> Answer:
        """Send a request and wait for what becomes of it."""
        body = gzipped(request) if self._gzip else request
        try:
            reply = self._site.ask("POST", body=body, headers=self._headers)
        except OSError as error:
            return Answer("later", str(error), kind="unreachable")
        judged = answer.read(reply.status, reply.headers, reply.body)
        if judged.verdict == "later":
            self.close()
        return judged

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._site.close()


def gzipped(content: bytes) -> bytes:
    """Compress in gzip's format, without a time in it."""
    packer = zlib.compressobj(_LEVEL, wbits=31)
    return packer.compress(content) + packer.flush()
