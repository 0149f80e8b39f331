"""What a probe's answer means, whatever it is."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from otel_audit.health.probe import HealthStatus, ProbeResult, failed, judged, shown

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = HealthStatus


def test_states_have_one_order_and_each_its_status_in_http() -> None:
    """Certainly bad is worse than not known: so the whole is as the document's table says."""
    ordered = sorted(HealthStatus, key=lambda status: status.severity)
    assert [(one.value, one.http_status) for one in ordered] == [
        ("healthy", 200), ("degraded", 200), ("unknown", 503), ("unhealthy", 503),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, HEALTHY),
        (True, HEALTHY),
        (False, UNHEALTHY),
        ("healthy", HEALTHY),
        ("degraded", DEGRADED),
        (UNHEALTHY, UNHEALTHY),
        (ProbeResult.degraded("slow", queue=3), DEGRADED),
        (ProbeResult.unhealthy("gone"), UNHEALTHY),
        (ProbeResult(status=DEGRADED), DEGRADED),
    ],
)
def test_an_answer_means_what_it_says(answer: object, status: HealthStatus) -> None:
    assert judged(answer).status is status


class Unhashable(dict[str, Any]):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None


@pytest.mark.parametrize(
    "garbage",
    [
        0,
        1,
        "fine",
        "unknown",
        UNKNOWN,
        b"healthy",
        {"status": "healthy"},
        object(),
        Unhashable(),
        [],
        ProbeResult(status="splendid"),  # type: ignore[arg-type]
        ProbeResult(status=UNKNOWN),
        ProbeResult(message=3),  # type: ignore[arg-type]
        ProbeResult(details=7),  # type: ignore[arg-type]
    ],
    ids=lambda garbage: repr(garbage).partition(" at 0x")[0],
)
def test_garbage_is_a_failure_that_says_so(garbage: object) -> None:
    result = judged(garbage)
    assert result.status is UNHEALTHY
    assert "means nothing" in result.message
    assert result.details is None


def test_details_are_a_copy() -> None:
    details = {"queue": 3}
    result = judged(ProbeResult(details=details))
    details["queue"] = 4
    assert result.details == {"queue": 3}


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


CYCLE: dict[str, Any] = {}
CYCLE["me"] = CYCLE
DEEP: list[Any] = []
for _ in range(1_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("details", "visible"),
    [
        ({("eu", 1): 2}, b'{"[\\"eu\\",1]":2}'),
        (CYCLE, b'{"me":{"me":"[cycle]"}}'),
        ({"lag": float("nan")}, b'{"lag":"NaN"}'),
        ({"rude": Rude()}, b'{"rude":"[unreadable Rude: RuntimeError]"}'),
        (
            {"deep": DEEP},
            b'{"deep":' + b"[" * 15 + b'"[cut: deeper than 16 levels]"' + b"]" * 15 + b"}",
        ),
        (
            {"password": "hunter2", "at": ["postgres://u:hunter2@db"]},
            b'{"password":"[REDACTED]","at":["postgres://u:[REDACTED:url_password]@db"]}',
        ),
    ],
    ids=["key", "cycle", "NaN", "rude", "deep", "secret"],
)
def test_details_become_plain_json_without_secrets(details: Any, visible: bytes) -> None:
    result = judged(ProbeResult(details=details))
    assert result.status is HEALTHY
    assert orjson.dumps(result.details) == visible


@pytest.mark.parametrize(
    "many", [dict.fromkeys(range(9_000), 1), {"said": "x" * 1_000_000}], ids=["many", "long"]
)
def test_details_are_bounded(many: dict[Any, Any]) -> None:
    result = judged(ProbeResult(details=many))
    assert 14_000 < len(orjson.dumps(result.details)) <= 16_384


def test_a_message_has_one_line_no_secret_and_an_end() -> None:
    url = "postgresql://shop:hunter2@db.example/shop"
    assert shown(f"cannot\n reach {url}") == "cannot reach postgresql://***@db.example/shop"
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
    assert token not in shown(f"refused: Bearer {token}")
    assert len(shown("x" * 10_000)) == 300
    assert judged(ProbeResult.unhealthy(url)).message == shown(url)


def test_an_exception_is_named_and_its_secrets_are_not() -> None:
    result = failed(OSError("amqp://u:p@broker refused"))
    assert result == ProbeResult.unhealthy("OSError: amqp://***@broker refused")
    assert failed(TimeoutError()).message == "TimeoutError"


def test_an_exception_that_cannot_be_shown_is_named_all_the_same() -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert failed(RudeError()).message == "RudeError: its message cannot be shown"
