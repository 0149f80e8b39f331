"""What the far end's answer means for the records that were sent.

Promises: records count as delivered only by an answer that is OTLP's and says
so; everything that is not understood means that they have to be sent again.
OTLP's is what says nothing at all, or speaks of a partial success; what a newer
OTLP may say beside that is passed over.
Only an answer that is about the request's *content* (400, 413, a partial
success) is a refusal; wrong tokens, wrong paths and broken servers are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

Verdict = Literal["delivered", "refused", "later"]

LONGEST_WAIT: Final = 600.0
"""Seconds that a far end may ask us to wait."""

_SHOWN: Final = 200
_REFUSALS: Final = (400, 413)
_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
_PARTIAL_SUCCESS: Final = frozenset({"partialSuccess", "partial_success"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict on one request.

    ``reason`` says why it is not `delivered`, or carries a warning. ``wait``
    is how long, in seconds, the far end asked to be left alone; ``kind`` is a
    short word for metrics (`error.type`).
    """

    verdict: Verdict
    reason: str = ""
    wait: float = 0.0
    kind: str = ""


def read(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Judge a whole HTTP answer; ``headers`` finds names in any case.

    An empty success is OTLP's: a message in which nothing is said takes no byte.
    """
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's class of success
        if not body:
            return Answer("delivered")
        return _success(status, headers.get("content-type") or "", body)
    said = _said(headers.get("content-type") or "", body)
    reason = f"HTTP {status}{': ' + said if said else ''}"
    if status in _REFUSALS:
        return Answer("refused", reason, kind=str(status))
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP's class of redirections
        reason += (
            f": it redirects to {headers.get('location') or 'nowhere'}, which is not followed; "
            "set the endpoint to the right address"
        )
    elif status in (401, 403):
        reason += ": look at the token, or the client certificate, that is sent"
    elif status in (404, 405):
        reason += ": look at the endpoint's address, its port and its path (/v1/logs)"
    return Answer("later", reason, wait_asked(headers.get("retry-after")), kind=str(status))


def partial_success(response: ExportLogsServiceResponse) -> Answer:
    """Judge the message of a success: it may say that records were refused nevertheless."""
    partial = response.partial_success
    if partial.rejected_log_records < 0:
        reason = f"it says that {partial.rejected_log_records} were rejected, which is no number"
        return Answer("later", reason, kind="not_otlp")
    if partial.rejected_log_records > 0:
        return Answer(
            "refused",
            f"{partial.rejected_log_records} rejected: {partial.error_message[:_SHOWN]}",
            kind="partial_success",
        )
    return Answer("delivered", partial.error_message[:_SHOWN])


def wait_asked(retry_after: str | None) -> float:
    """Read Retry-After (RFC 9110, 10.2.3): seconds or a date; 0 when it says nothing."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            until = parsedate_to_datetime(retry_after)
        except (TypeError, ValueError):
            return 0.0
        if until.tzinfo is None:
            until = until.replace(tzinfo=timezone.utc)
        seconds = (until - datetime.now(timezone.utc)).total_seconds()
    # The comparison also turns "nan" into nothing.
    return min(seconds, LONGEST_WAIT) if seconds > 0 else 0.0


def _success(status: int, kind: str, body: bytes) -> Answer:
    media = kind.partition(";")[0].strip().lower()
    why = ""
    try:
        if media == _PROTOBUF:
            return partial_success(_from_protobuf(body))
        if media == _JSON:
            return partial_success(_from_json(body))
    except (DecodeError, ParseError, ValueError) as error:
        why = f": {error}"
    return Answer(
        "later",
        f"HTTP {status} with {media or 'something'} that is no OTLP answer{why} "
        f"({_said(kind, body)}): is there a proxy or a log-in page before the endpoint?",
        kind="not_otlp",
    )


def _from_protobuf(body: bytes) -> ExportLogsServiceResponse:
    """Read an answer that is not empty. Raises DecodeError and ValueError.

    Other messages can be read as this one, with nothing but unknown fields, such as a
    google.rpc.Status.
    """
    response: ExportLogsServiceResponse = ExportLogsServiceResponse.FromString(body)
    if not response.HasField("partial_success"):
        message = "it is another message"
        raise ValueError(message)
    return response


def _from_json(body: bytes) -> ExportLogsServiceResponse:
    """Read OTLP's JSON of the answer. Raises ParseError and ValueError."""
    said = orjson.loads(body)
    if not isinstance(said, dict) or (said and not said.keys() & _PARTIAL_SUCCESS):
        message = "it has no partialSuccess"
        raise ValueError(message)
    # ParseDict would look for names in a text as well.
    if not all(isinstance(said.get(name) or {}, dict) for name in _PARTIAL_SUCCESS):
        message = "its partialSuccess is no object"
        raise ValueError(message)
    response: ExportLogsServiceResponse = ParseDict(
        said, ExportLogsServiceResponse(), ignore_unknown_fields=True
    )
    return response


def _said(kind: str, body: bytes) -> str:
    """Return the beginning of what the far end wrote: a google.rpc.Status, or text."""
    if kind.startswith(_PROTOBUF):
        try:
            return str(Status.FromString(body).message)[:_SHOWN]
        except DecodeError:
            return ""
    text = body[: 2 * _SHOWN].decode(errors="replace")
    return " ".join(text.split())[:_SHOWN]
