"""OTLP/gRPC: the one call that ships logs.

Promises what `Sender` does. gRPC's own retries are off, since ours know which
records were delivered. Codes are judged as opentelemetry-proto's specification
says ("OTLP/gRPC Response"), with INVALID_ARGUMENT as HTTP's 400 and a message
that is too large as its 413; what it calls not retryable is retried all the
same, because nothing is ever dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY as SUPPRESS
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_audit._version import __version__
from otel_audit.destinations import without_credentials
from otel_audit.readers.shipping.otlp.answer import LONGEST_WAIT, Answer, partial_success

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.destinations import Destination

_METHOD: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_DETAILS: Final = "grpc-status-details-bin"
_TOO_LARGE: Final = "larger than max"
"""In the message of grpc-go and grpc-core when a request exceeds their limit."""


class GrpcSender:
    """Speaks to the LogsService of a destination. For one thread at a time."""

    def __init__(self, destination: Destination) -> None:
        """Remember where to; nothing is opened yet."""
        self._destination = destination
        address, self._basic = without_credentials(destination.endpoint)
        self._target = urlsplit(address).netloc
        self._channel: grpc.Channel | None = None
        self._export: Callable[..., ExportLogsServiceResponse] | None = None
        self._metadata: list[tuple[str, str]] = []

    def send(self, request: bytes) -> Answer:
        """Send a request and wait for what becomes of it."""
        token = otel_context.attach(otel_context.set_value(SUPPRESS, True))  # noqa: FBT003 - the API has no name for it
        try:
            export = self._export or self._open()
            return partial_success(
                export(request, timeout=self._destination.timeout, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            judged = _judged(error, self._target)
        except OSError as error:
            name = f"{error.filename} cannot be read: " if error.filename else ""
            judged = Answer("later", f"{name}{error.strerror or error}", kind="unreachable")
        finally:
            otel_context.detach(token)
        if judged.verdict == "later":
            self.close()
        return judged

    def close(self) -> None:
        """Close the channel; the next request opens a new one."""
        channel, self._channel, self._export = self._channel, None, None
        if channel is not None:
            channel.close()

    def _open(self) -> Callable[..., ExportLogsServiceResponse]:
        """Make a channel from the files as they are now. Raises `OSError`."""
        destination = self._destination
        self._metadata = list(destination.headers)
        authorization = self._basic
        if destination.token_file is not None:
            authorization = f"Bearer {destination.token_file.read_text('utf-8').strip()}"
        if authorization is not None:
            self._metadata.append(("authorization", authorization))
        options = [
            ("grpc.enable_retries", 0),
            ("grpc.primary_user_agent", f"otel-audit/{__version__}"),
        ]
        packing = (
            grpc.Compression.Gzip
            if destination.compression == "gzip"
            else grpc.Compression.NoCompression
        )
        if destination.secure:
            channel = grpc.secure_channel(self._target, _credentials(destination), options, packing)
        else:
            channel = grpc.insecure_channel(self._target, options, packing)
        self._channel = channel
        self._export = channel.unary_unary(
            _METHOD,
            request_serializer=bytes,
            response_deserializer=ExportLogsServiceResponse.FromString,
        )
        return self._export


def _credentials(destination: Destination) -> grpc.ChannelCredentials:
    files = (destination.certificate, destination.client_key, destination.client_certificate)
    return grpc.ssl_channel_credentials(
        *(None if file is None else file.read_bytes() for file in files)
    )


def _judged(error: grpc.RpcError, target: str) -> Answer:
    code, said = error.code(), error.details() or ""
    reason = f"{target}: {code.name}: {said[:200]}"
    kind = code.name.lower()
    too_large = code == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in said
    if code == grpc.StatusCode.INVALID_ARGUMENT or too_large:
        return Answer("refused", reason, kind=kind)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        reason += ": look at the token, or the client certificate, that is sent"
    return Answer("later", reason, _wait(error), kind=kind)


def _wait(error: grpc.RpcError) -> float:
    """Return what google.rpc.RetryInfo asks for, in seconds."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            return _delay(value)
    return 0.0


def _delay(details: bytes) -> float:
    info = RetryInfo()
    try:
        for detail in Status.FromString(details).details:
            if detail.Unpack(info):
                seconds: float = info.retry_delay.ToTimedelta().total_seconds()
                return min(max(0.0, seconds), LONGEST_WAIT)
    except DecodeError:
        pass
    return 0.0
