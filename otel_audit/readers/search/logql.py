"""Queries in LogQL: lines that may match a query, and counts of those that do.

Promises: `lines` chooses every line that matches, and some others; what
`counting` counts is exactly what the same query finds by looking at each line,
unless `Counting.unsure` finds something, and it is None where LogQL cannot say
what is asked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from otel_audit.readers.loki import EVERY_STREAM
from otel_audit.readers.query.model import needles, wild

if TYPE_CHECKING:
    from otel_audit.readers.query.model import Condition, Query

BUCKET: Final = "asked_bucket"
VALUE: Final = "asked_value"
"""Labels of a count: the number of its time bucket, and the value that was counted by."""

_ID: Final = "asked_id"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""Names of fields that need no care within a path of JSON and a regular expression."""


class Counting(NamedTuple):
    """A count in LogQL: ``distinct`` of records, which cost Loki a series each, ``total`` of lines.

    ``among`` is of the ``lines`` that may be wanted, of which ``unsure`` are
    those that Loki reads otherwise. Counts lack the length of their range, for
    `over`. ``by`` and ``per`` say whether there are values, and buckets of how
    many nanoseconds.
    """

    lines: str
    distinct: str
    total: str
    among: str
    unsure: str
    by: bool
    per: int | None

    @staticmethod
    def over(logql: str, milliseconds: int) -> str:
        """Return a count over a range of this length."""
        return logql.replace(_RANGE, f"[{milliseconds}ms]")


_RANGE: Final = "[\0]"


def lines(query: Query) -> str:
    """Choose lines by what each that matches has in its bytes."""
    parts = [EVERY_STREAM, '|= `"schema":"otel-audit/`']
    parts += [f"|= {_quoted(needle.decode())}" for needle in needles(query) if needle]
    # A word is letters and digits, in any case.
    parts += [f"|~ {_quoted('(?i)' + word.removesuffix('*'))}" for word in query.words]
    return " ".join(parts)


def counting(query: Query, by: str | None, per: int | None) -> Counting | None:
    """Return what counts the records of a query, None when LogQL cannot tell which those are."""
    fields = dict.fromkeys(name for condition in query.conditions for name in condition.fields)
    asked = [*fields] if by is None else [*fields, by]
    # Loki has no word of ours, and takes a field that is empty for one that is not there.
    known = not query.words and all(_PLAIN.fullmatch(name) for name in asked)
    if not known or any("" in condition.values for condition in query.conditions):
        return None
    labels = {name: f"asked_{number}" for number, name in enumerate(fields)}
    paths = [(_ID, "record_id"), *((label, name) for name, label in labels.items())]
    groups = []
    if by is not None:
        paths.append((VALUE, by))
        groups.append(VALUE)
    chosen = lines(query)
    stages = [
        chosen,
        "| json " + ", ".join(f"{label}={_path(name)}" for label, name in paths),
    ]
    stages += [f"| {_filter(condition, labels)}" for condition in query.conditions]
    if per is not None:
        # Not by steps of a range of time: those begin where Loki likes, to the millisecond.
        stages.append(
            f"| label_format {BUCKET}=`{{{{ div (unixEpochNanos __timestamp__) {per} }}}}`"
        )
        groups.append(BUCKET)
    found = " ".join(stages)
    each = f"count by ({', '.join([*groups, _ID])}) (count_over_time({found} {_RANGE}))"
    return Counting(
        chosen,
        f"count by ({', '.join(groups)}) ({each})",
        f"sum(count_over_time({found} {_RANGE}))",
        f"sum(count_over_time({chosen} {_RANGE}))",
        f"sum(count_over_time({chosen} {_unsure(asked)} {_RANGE}))"
        f' or sum(count_over_time({chosen} != `"record_id":"` {_RANGE}))',
        by is not None,
        per,
    )


def _unsure(fields: list[str]) -> str:
    r"""Find lines that Loki reads otherwise: empty texts, lists, objects, and U+FFFD, which it cuts."""
    names = "|".join(map(re.escape, dict.fromkeys(fields)))
    return "|~ " + _quoted(rf'"(?:{names})":(?:""|\[|\{{)|\x{{FFFD}}' if names else r"\x{FFFD}")


def _filter(condition: Condition, labels: dict[str, str]) -> str:
    tests = [
        _test(labels[name], value, wanted=condition.wanted)
        for name in condition.fields
        for value in condition.values
    ]
    return "(" + (" or " if condition.wanted else " and ").join(tests) + ")"


def _test(label: str, value: str, *, wanted: bool) -> str:
    expression = wild(value)
    if expression is None:
        return f"{label}{'=' if wanted else '!='}{_quoted(value)}"
    pattern = _quoted(f"(?s){expression}")
    # A pattern that fits nothing at all would fit what is not there.
    return (
        f'({label}=~{pattern} and {label}!="")' if wanted else f'({label}!~{pattern} or {label}="")'
    )


def _path(name: str) -> str:
    return _quoted(f'["{name}"]')


def _quoted(text: str) -> str:
    return orjson.dumps(text.encode(errors="replace").decode()).decode()
