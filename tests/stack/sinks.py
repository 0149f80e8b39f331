"""Far ends of the Collector, as small as they can be: they take everything and keep it."""

from __future__ import annotations

import gzip
import json
import re
import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"


class HttpSink:
    """Answers every POST with 200 and ``answer``, and keeps path, headers and body of each."""

    def __init__(self, answer: bytes = b"") -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                requests.append((self.path, dict(self.headers), body))
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[HttpSink]:
        """Serve for the length of a block."""
        with _served(self._server):
            yield self

    def bodies(self) -> list[str]:
        """Return the bodies of all log records that came by OTLP."""
        return [
            body
            for _, _, request in self.requests
            for body in bodies(ExportLogsServiceRequest.FromString(request))
        ]

    def events(self) -> list[dict[str, Any]]:
        """Return Splunk's events: JSON objects, one after another."""
        decoder = json.JSONDecoder()
        found = []
        for _, _, request in self.requests:
            text, at = request.decode(), 0
            while at < len(text):
                event, at = decoder.raw_decode(text, at)
                found.append(event)
                at = re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]  # it matches anything
        return found


class SyslogSink:
    """Takes syslog over TCP with octet counting, and keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        messages = self.messages

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while True:
                    length = b""
                    while (one := self.rfile.read(1)) != b" ":
                        if not one:
                            return
                        length += one
                    messages.append(self.rfile.read(int(length)).decode())

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads: ClassVar[bool] = True  # type: ignore[misc]  # it is a class's attribute there, too

        self._server = Server((HOST, 0), Handler)
        self.port = self._server.server_address[1]

    @contextmanager
    def serving(self) -> Iterator[SyslogSink]:
        """Serve for the length of a block."""
        with _served(self._server):
            yield self


class GrpcSink(logs_service_pb2_grpc.LogsServiceServicer):
    """Takes OTLP over gRPC, and keeps the requests and their metadata."""

    def __init__(self) -> None:
        self.requests: list[ExportLogsServiceRequest] = []
        self.metadata: list[dict[str, str]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]  # it has no types
        self.port = self._server.add_insecure_port(f"{HOST}:0")

    def Export(self, request: Any, context: Any) -> ExportLogsServiceResponse:  # noqa: N802 - the name in the protocol
        """Take one request."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return ExportLogsServiceResponse()

    @contextmanager
    def serving(self) -> Iterator[GrpcSink]:
        """Serve for the length of a block."""
        self._server.start()
        try:
            yield self
        finally:
            self._server.stop(None).wait()

    def bodies(self) -> list[str]:
        """Return the bodies of all log records that came."""
        return [body for request in self.requests for body in bodies(request)]


def bodies(request: ExportLogsServiceRequest) -> list[str]:
    """Return the bodies of a request's log records."""
    return [
        record.body.string_value
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    with ExitStack() as ending:
        ending.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        ending.callback(thread.join)
        ending.callback(server.shutdown)
        yield
