"""What conversion and redaction cost, measured in encodings of the same fields.

    python -m benchmarks.record_stages [--rounds 9]

The floor is a bare `orjson.dumps` of the eight fields. The stages run once for
each record, so the figures say how many encodings they are worth.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.rounds import compare, ratio
from otel_audit.record.coerce import plain
from otel_audit.record.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

# Typical ones: identifiers, a path, an address and prose are what the search has to pass over.
FIELDS: dict[str, Any] = {
    "document_id": "5f2b7c1e-8a44-4b1e-9d38-2f0c6a7b9e11",
    "reason": "quarterly review of contracts",
    "path": "/srv/data/reports/2024/q3.pdf",
    "count": 42,
    "ratio": 0.25,
    "department": "finance",
    "peer": "203.0.113.42",
    "user_email": "alice@example.com",
}
NESTED: dict[str, Any] = {
    **FIELDS,
    "tags": ["a", "b", "c"],
    "limits": {"rows": 100, "mode": "fast"},
}
REPEAT = 500


def nanoseconds(call: Callable[[], object]) -> Callable[[], float]:
    """Measure ``call``: nanoseconds of this thread each, the best of twenty short runs.

    Short, and not by the clock on the wall: others use the machine too.
    """

    def run() -> float:
        best = float("inf")
        for _ in range(20):
            start = time.thread_time_ns()
            for _ in range(REPEAT):
                call()
            best = min(best, (time.thread_time_ns() - start) / REPEAT)
        return best

    return run


def main() -> None:
    """Print the stages' cost as multiples of the encoding's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    redactor = Redactor()
    secret = {**FIELDS, "login": "postgres://app:made-up@db/main"}
    assert plain(FIELDS) == (FIELDS, [])
    redactor.fields(FIELDS)
    assert FIELDS["count"] == 42

    def both() -> None:
        fields, _ = plain(FIELDS)
        redactor.fields(fields)

    figures = compare(
        {
            "encode (orjson.dumps)": nanoseconds(lambda: orjson.dumps(FIELDS)),
            "coerce": nanoseconds(lambda: plain(FIELDS)),
            "redact": nanoseconds(lambda: redactor.fields(FIELDS)),
            "coerce and redact": nanoseconds(both),
            "coerce, with a list and an object": nanoseconds(lambda: plain(NESTED)),
            "redact, with a secret": nanoseconds(lambda: redactor.fields(dict(secret))),
        },
        rounds=rounds,
        show="{:,.0f} ns",
    )
    floor = figures["encode (orjson.dumps)"]
    ratio("coerce / encode", figures["coerce"], floor, "at most 8")
    ratio("redact / encode", figures["redact"], floor, "at most 16")
    ratio("coerce and redact / encode", figures["coerce and redact"], floor, "at most 24")


if __name__ == "__main__":
    main()
