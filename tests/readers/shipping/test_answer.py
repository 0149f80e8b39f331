"""What counts as delivery: an answer that is OTLP's and says so, and nothing that only looks alike."""

from __future__ import annotations

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_audit.readers.shipping.otlp.answer import partial_success, read

JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"session expired, log in"}',
        b'{"code":14,"message":"backend down"}',
        b'{"status":"success"}',
        b'{"partialSuccess":"all rejected"}',
        b'{"partialSuccess":["rejectedLogRecords"]}',
        b'{"partialSuccess":1}',
        b'{"partial_success":true}',
        b'{"partialSuccess":{"rejectedLogRecords":[1]}}',
        b'{"partialSuccess":{"rejectedLogRecords":{}}}',
        b'{"partialSuccess":{"rejectedLogRecords":true}}',
        b'{"partialSuccess":{"rejectedLogRecords":"many"}}',
        b'{"partialSuccess":{"rejectedLogRecords":0.5}}',
        b'{"partialSuccess":{"rejectedLogRecords":1e400}}',
        b'{"partialSuccess":{"rejectedLogRecords":-5}}',
        b'{"partialSuccess":{"rejectedLogRecords":"99999999999999999999"}}',
        b'{"partialSuccess":{"errorMessage":{"code":14}}}',
        b'{"partialSuccess":{}',
        b"[]",
        b"null",
        b'""',
        b"0",
    ],
    ids=bytes.decode,
)
def test_json_that_is_no_answer_of_otlp_delivers_nothing(body: bytes) -> None:
    answer = read(200, JSON, body)
    assert (answer.verdict, answer.kind) == ("later", "not_otlp")
    assert answer.reason


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b" {} ",
        b'{"partialSuccess":{}}',
        b'{"partialSuccess":null}',
        b'{"partial_success":{"rejected_log_records":0}}',
        b'{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":null}}',
        b'{"partialSuccess":{"ofANewerOtlp":[1]},"ofANewerOtlp":{"a":1}}',
    ],
    ids=bytes.decode,
)
def test_json_of_otlp_delivers_also_with_fields_of_a_newer_one(body: bytes) -> None:
    assert read(200, JSON, body).verdict == "delivered"


@pytest.mark.parametrize("name", ["partialSuccess", "partial_success"])
@pytest.mark.parametrize("count", ["2", '"2"', "2.0"])
def test_what_was_rejected_is_counted_in_each_of_jsons_ways(name: str, count: str) -> None:
    body = f'{{"{name}":{{"rejectedLogRecords":{count},"errorMessage":"too old"}}}}'.encode()
    answer = read(200, JSON, body)
    assert (answer.verdict, answer.reason) == ("refused", "2 rejected: too old")


@pytest.mark.parametrize(
    "body",
    [
        Status(code=14, message="backend down").SerializeToString(),
        Status(message="backend down").SerializeToString(),
        b"\x28\x01",
        b"\x0a\x05",
        b"<html>Please log in</html>",
    ],
    ids=["a Status", "a Status without a code", "an unknown field", "half a message", "a page"],
)
def test_a_message_that_is_no_answer_of_otlp_delivers_nothing(body: bytes) -> None:
    answer = read(200, PROTOBUF, body)
    assert (answer.verdict, answer.kind) == ("later", "not_otlp")
    assert ("backend down" in answer.reason) == (b"backend down" in body)


def test_a_message_of_otlp_delivers_also_with_fields_of_a_newer_one() -> None:
    response = ExportLogsServiceResponse()
    response.partial_success.SetInParent()
    assert read(200, PROTOBUF, response.SerializeToString() + b"\x28\x01").verdict == "delivered"
    response.partial_success.error_message = "slow down"
    answer = read(200, PROTOBUF, response.SerializeToString())
    assert (answer.verdict, answer.reason) == ("delivered", "slow down")


def test_less_than_none_rejected_is_not_understood() -> None:
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = -1
    assert partial_success(response).verdict == "later"
