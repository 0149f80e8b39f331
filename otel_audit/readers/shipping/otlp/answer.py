"""What the far end's answer means for the records that were sent.

Promises: records count as delivered only by an answer that is OTLP's and says
so; everything that is not understood means that they have to be sent again.
Only an answer that is about the request's *content* (400, 413, a partial
success) is a refusal; wrong tokens, wrong paths and broken servers are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal

import orjson
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
    try:
        if media == _PROTOBUF:
            return partial_success(ExportLogsServiceResponse.FromString(body))
        if media == _JSON:
            return partial_success(_from_json(body))
    except (DecodeError, ValueError) as error:
        return Answer(
            "later", f"HTTP {status} with an answer that is damaged: {error}", kind="not_otlp"
        )
    return Answer(
        "later",
        f"HTTP {status} with {media or 'something'} that is no OTLP answer ({_said(kind, body)}): "
        "is there a proxy or a log-in page before the endpoint?",
        kind="not_otlp",
    )


def _from_json(body: bytes) -> ExportLogsServiceResponse:
    """Read OTLP's JSON of the answer. Raises ValueError."""
    said = orjson.loads(body)
    if not isinstance(said, dict):
        message = "it is no JSON object"
        raise ValueError(message)  # noqa: TRY004 - a wrong value from outside, not a wrong call
    response = ExportLogsServiceResponse()
    partial = said.get("partialSuccess") or said.get("partial_success")
    if isinstance(partial, dict):
        rejected = partial.get("rejectedLogRecords") or partial.get("rejected_log_records") or 0
        response.partial_success.rejected_log_records = int(rejected)
        message = partial.get("errorMessage") or partial.get("error_message") or ""
        response.partial_success.error_message = str(message)
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
