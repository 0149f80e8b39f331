"""Real servers that speak OTLP and misbehave on demand.

`HttpFarEnd` and `GrpcFarEnd` keep what they were sent: ``bodies`` are those of
the records that were stored, in the order in which they came, and ``requests``
what came at all. A test gives answers: each is used once, in turn, and after
the last one everything is taken.
"""

from __future__ import annotations

import gzip
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

PROTOBUF = {"content-type": "application/x-protobuf"}


@dataclass
class Reply:
    """One HTTP answer; ``store`` keeps the records nevertheless, ``cut`` ends it in the middle."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(PROTOBUF))
    body: bytes = b""
    store: bool = False
    cut: bool = False
    wait: float = 0.0
    waits_for: threading.Event | None = None


def partial(rejected: int, message: str = "") -> Reply:
    """Say that some records were not taken."""
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = rejected
    response.partial_success.error_message = message
    return Reply(body=response.SerializeToString())


class FarEnd:
    """What both servers keep and are told."""

    def __init__(self) -> None:
        self.answers: deque[Any] = deque()
        self.refuses: Callable[[list[bytes]], Any] = lambda _: None
        self.requests: list[ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.stored: list[Any] = []
        self.peers: set[object] = set()
        self.paths: list[str] = []
        self.mutex = threading.Lock()

    @property
    def bodies(self) -> list[bytes]:
        """The records that were stored, as they came."""
        return [record.body.string_value.encode() for record in self.stored]

    @property
    def records(self) -> list[bytes]:
        """Those that are no checkpoints."""
        return [
            record.body.string_value.encode()
            for record in self.stored
            if record.event_name != "audit.checkpoint"
        ]

    def take(self, request: ExportLogsServiceRequest) -> None:
        """Keep what a request holds."""
        self.stored += _records(request)

    def answer(self, request: ExportLogsServiceRequest) -> Any:
        """Return the answer that a test wants, None for success."""
        with self.mutex:
            self.requests.append(request)
            wanted = self.answers.popleft() if self.answers else None
        if wanted is None:
            bodies = [record.body.string_value.encode() for record in _records(request)]
            wanted = self.refuses(bodies)
        return wanted


def _records(request: ExportLogsServiceRequest) -> list[Any]:
    return [
        record
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


class HttpFarEnd(FarEnd):
    """An OTLP/HTTP server on a free port, by TLS where ``tls`` is given."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        super().__init__()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.far_end = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def asked(self, path: str) -> Reply:
        """Answer a GET: there is nothing to get here."""
        return Reply(404, {"content-type": "text/plain"}, path.encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    far_end: HttpFarEnd

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: a test makes connections break."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its head to be acknowledged
    server: _Server

    def do_POST(self) -> None:
        far_end = self.server.far_end
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self._note()
        request = ExportLogsServiceRequest.FromString(body)
        reply = far_end.answer(request)
        if reply is None:
            far_end.take(request)
            reply = Reply()
        elif reply.store:
            far_end.take(request)
        if reply.waits_for is not None:
            reply.waits_for.wait(60)
        threading.Event().wait(reply.wait)
        self._write(reply)

    def do_GET(self) -> None:
        self._note()
        self._write(self.server.far_end.asked(self.path))

    def _note(self) -> None:
        far_end = self.server.far_end
        far_end.peers.add(self.client_address)
        far_end.paths.append(self.path)
        far_end.headers.append({key.lower(): value for key, value in self.headers.items()})

    def _write(self, reply: Reply) -> None:
        with suppress(OSError):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body) + 100 * reply.cut))
            self.end_headers()
            self.wfile.write(reply.body)
            if reply.cut:
                self.wfile.flush()
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Keep quiet."""


class GrpcFarEnd(FarEnd):
    """An OTLP/gRPC server on a free port; an answer is a response, or a code and details."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.method_handlers_generic_handler(
            "opentelemetry.proto.collector.logs.v1.LogsService",
            {
                "Export": grpc.unary_unary_rpc_method_handler(
                    self._export,
                    request_deserializer=ExportLogsServiceRequest.FromString,
                    response_serializer=ExportLogsServiceResponse.SerializeToString,
                )
            },
        )
        self._server.add_generic_rpc_handlers((handler,))
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _export(self, request: ExportLogsServiceRequest, context: Any) -> Any:
        headers: dict[str, str] = {}
        for name, value in context.invocation_metadata():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.headers.append(headers)
        answer = self.answer(request)
        if isinstance(answer, tuple):
            code, details, *trailing = answer
            context.set_trailing_metadata(tuple(trailing))
            context.abort(code, details)
        if answer is None:
            self.take(request)
            return ExportLogsServiceResponse()
        return answer

    def close(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def certificate(directory: Path, *, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a self-signed certificate for the loopback address; return its and the key's file."""
    import ipaddress
    from datetime import datetime, timedelta, timezone

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    public, private = directory / f"{name}.crt", directory / f"{name}.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return public, private
