"""Times and lengths of time as people write them, and as nanoseconds since 1970.

Promises: what cannot be understood is a `QueryError` that says what could be.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Final

from otel_audit.errors import QueryError

_NANO: Final = 1_000_000_000
_DAY: Final = 86_400 * _NANO
_DAYS: Final = {"today": 0, "yesterday": _DAY}
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"(?:\d{1,9}[smhdw])+")
_PART: Final = re.compile(r"(\d+)([smhdw])")
_STAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)?)?"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


def moment(name: str, text: str, now: int) -> int:
    """Return a point in time: RFC 3339, a date, ``now``, or relative such as ``-15m``.

    A date, ``today`` and ``yesterday`` are the beginning of that day in UTC.
    Raises `QueryError`.
    """
    if text == "now":
        return now
    if text in _DAYS:
        return now - now % _DAY - _DAYS[text]
    if text[:1] in ("-", "+") and _SPAN.fullmatch(text[1:]):
        distance = duration(name, text[1:])
        return _bounded(name, text, now - distance if text[0] == "-" else now + distance)
    match = _STAMP.fullmatch(text.replace(" ", "+") if _blank_zone(text) else text)
    if match is not None:
        try:
            return _bounded(name, text, _nanoseconds(match))
        except (ValueError, OverflowError):
            pass
    message = (
        f"{name} is {text[:64]!r}; it has to be a time such as 2026-01-31T08:00:00Z, a day such as "
        "2026-01-31, today or yesterday (UTC), or relative: -15m, -24h, -7d"
    )
    raise QueryError(message, parameter=name)


def duration(name: str, text: str) -> int:
    """Return a length of time such as ``15m`` or ``1h30m`` in nanoseconds. Raises `QueryError`."""
    if not _SPAN.fullmatch(text):
        message = f"{name} is {text[:32]!r}; it has to be a length of time such as 15m, 1h or 1d"
        raise QueryError(message, parameter=name)
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text)) * _NANO


def stamp(nanoseconds: int) -> str:
    """Return a time as RFC 3339 in UTC, with nine digits of a second's fraction."""
    seconds, fraction = divmod(nanoseconds, _NANO)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def stamp_of_bucket(nanoseconds: int) -> str:
    """Return the start of a time bucket, which is a whole second, as RFC 3339 in UTC."""
    return stamp(nanoseconds)[:19] + "Z"


def _blank_zone(text: str) -> bool:
    """Whether the plus of a zone became a blank, as it does in a URL that nobody encoded."""
    return re.fullmatch(r".*[0-9] \d\d:\d\d", text) is not None and "T" in text.upper()


def _nanoseconds(match: re.Match[str]) -> int:
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z", "z") else zone
    clock = clock or "00:00"
    since = datetime.fromisoformat(f"{day}T{clock}{zone}") - _EPOCH
    return (since.days * 86_400 + since.seconds) * _NANO + int((fraction or "").ljust(9, "0"))


def _bounded(name: str, text: str, nanoseconds: int) -> int:
    if not -(1 << 62) < nanoseconds < (1 << 62):
        message = f"{name} is {text[:32]!r}, a time that no record can have"
        raise QueryError(message, parameter=name)
    return nanoseconds
