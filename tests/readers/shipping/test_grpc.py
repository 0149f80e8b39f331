"""OTLP/gRPC: the same promises by another protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)

from tests.readers.farend import GrpcFarEnd, certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.readers.shipping.shipper import Shipper
    from tests.readers.place import Place

Code = grpc.StatusCode


@pytest.fixture
def server() -> Iterator[GrpcFarEnd]:
    with GrpcFarEnd() as server:
        yield server


def shipper(place: Place, server: GrpcFarEnd, **options: Any) -> Shipper:
    options = {"endpoint": f"http://127.0.0.1:{server.port}", "protocol": "grpc", **options}
    return place.shipper(**options)


def test_records_arrive_by_grpc(place: Place, server: GrpcFarEnd) -> None:
    records = place.fill(1_200)
    one = shipper(place, server, headers=(("authorization", "Bearer secret"),))
    while one.step().more:
        pass
    assert server.records == records
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert place.position() == 1_200


def test_user_and_password_of_an_address_are_sent_by_grpc_and_shown_nowhere(
    place: Place, server: GrpcFarEnd
) -> None:
    records = place.fill(3)
    one = shipper(place, server, endpoint=f"http://us%40er:hidden@127.0.0.1:{server.port}")
    while one.step().more:
        pass
    assert server.records == records
    assert server.headers[0]["authorization"] == "Basic dXNAZXI6aGlkZGVu"
    place.fill(1)
    server.answers.append((Code.UNAUTHENTICATED, "no"))
    trouble = one.step().trouble
    assert trouble is not None
    assert trouble.reason.startswith(f"127.0.0.1:{server.port}: UNAUTHENTICATED")


@pytest.mark.parametrize(
    "code",
    [
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
    ],
    ids=lambda code: code.name,
)
def test_codes_that_say_nothing_about_the_records_are_tried_again(
    place: Place,
    server: GrpcFarEnd,
    code: grpc.StatusCode,
) -> None:
    records = place.fill(2)
    server.answers.append((code, "not now"))
    one = shipper(place, server)
    trouble = one.step().trouble
    assert trouble is not None
    assert f"{code.name}: not now" in trouble.reason
    assert trouble.kind == code.name.lower()
    assert place.position() == 0
    assert one.step().trouble is None
    assert server.records == records


def test_the_wait_that_is_asked_for_is_read(place: Place, server: GrpcFarEnd) -> None:
    place.fill(1)
    status = Status(code=14, message="busy")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=3)))
    details = ("grpc-status-details-bin", status.SerializeToString())
    server.answers.append((Code.UNAVAILABLE, "busy", details))
    server.answers.append((Code.UNAVAILABLE, "busy", ("grpc-status-details-bin", b"\xff")))
    waits = [one.wait for one in (shipper(place, server).step().trouble for _ in "ab") if one]
    assert waits == [3.0, 0.0]


@pytest.mark.parametrize(
    "refusal",
    [
        (Code.INVALID_ARGUMENT, "no such thing"),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)"),
        ExportLogsServiceResponse(partial_success=ExportLogsPartialSuccess(rejected_log_records=1)),
    ],
    ids=["INVALID_ARGUMENT", "too large", "partial success"],
)
def test_only_the_refused_record_is_set_aside(
    place: Place,
    server: GrpcFarEnd,
    refusal: Any,
) -> None:
    records = place.fill(20)
    server.refuses = lambda bodies: refusal if records[7] in bodies else None
    one = shipper(place, server)
    assert one.step()[:2] == (19, 1)
    assert [item.number for item in one.quarantine.items(wanted=False, limit=9)] == [7]
    assert len(server.records) == 19


def test_a_token_wins_over_the_address_s_password_by_grpc(
    place: Place, server: GrpcFarEnd, tmp_path: Path
) -> None:
    """One of the two is sent: of two the receiver would choose."""
    token = tmp_path / "token"
    token.write_text("fresh\n", encoding="utf-8")
    place.fill(1)
    endpoint = f"http://user:hidden@127.0.0.1:{server.port}"
    assert shipper(place, server, endpoint=endpoint, token_file=token).step().trouble is None
    assert server.headers[0]["authorization"] == "Bearer fresh"


def test_a_server_that_is_not_there_is_named(place: Place) -> None:
    place.fill(1)
    trouble = place.shipper(endpoint="http://127.0.0.1:9", protocol="grpc").step().trouble
    assert trouble is not None
    assert trouble.reason.startswith("127.0.0.1:9: UNAVAILABLE")


def test_tls_with_a_client_certificate(place: Place, tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    client_public, client_private = certificate(tmp_path, name="client")
    credentials = grpc.ssl_server_credentials(
        [(private.read_bytes(), public.read_bytes())],
        root_certificates=client_public.read_bytes(),
        require_client_auth=True,
    )
    records = place.fill(1)
    token = tmp_path / "token"
    with GrpcFarEnd(credentials) as server:
        options = {"endpoint": f"https://127.0.0.1:{server.port}", "certificate": public}
        options |= {"client_certificate": client_public, "client_key": client_private}
        one = shipper(place, server, **options, token_file=token)
        trouble = one.step().trouble
        assert trouble is not None
        assert str(token) in trouble.reason
        token.write_text("secret\n", encoding="utf-8")
        assert one.step().trouble is None
        assert server.records == records
        assert server.headers[0]["authorization"] == "Bearer secret"
        without = place.shipper(
            "other", endpoint=options["endpoint"], protocol="grpc", certificate=public
        )
        assert without.step().trouble is not None
