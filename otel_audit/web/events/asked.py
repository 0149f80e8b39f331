"""A request that was let in, and what its parameters ask for.

Promises: what has no meaning where it stands is refused by name, as
`QueryError`; what is too much, or not allowed, as `ProblemError`. What filters
mean is left to `readers/query/parameters.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from otel_audit.errors import QueryError
from otel_audit.readers.query.model import OWN_QUERIES, Condition, Query
from otel_audit.readers.query.parameters import parse
from otel_audit.web.access import PERSONAL_DATA
from otel_audit.web.answer import ProblemError, wanted_form

if TYPE_CHECKING:
    from otel_audit.web.access import Access
    from otel_audit.web.asgi import Scope

_LONGEST_QUERY: Final = 16_384
_MOST_PARAMETERS: Final = 100
_AT_A_TIME: Final = 200
"""Records that a stream sends in one piece."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of somebody who was let in; ``hidden`` are the fields that they may not see."""

    scope: Scope
    access: Access
    hidden: frozenset[str]
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, scope: Scope, access: Access, personal: frozenset[str]) -> Asked:
        """Read a request; ``personal`` are the fields for whoever has the scope ``read:pii``."""
        hidden = frozenset[str]() if PERSONAL_DATA in access.scopes else personal
        return cls(scope, access, hidden, _parameters(scope["query_string"]))

    def header(self, name: bytes) -> str:
        """Return a header's value, empty without one."""
        found = [value for key, value in self.scope["headers"] if key == name]
        return found[0].decode("latin-1").strip() if found else ""

    def form(self, *forms: str) -> str:
        """Return the one of these media types that the caller wants, or raise."""
        return wanted_form(self.header(b"accept"), *forms)

    def need(self, *scopes: str) -> None:
        """Raise unless the caller has one of these scopes."""
        if not self.access.scopes.intersection(scopes):
            detail = f"{self.access.name} lacks the scope {' or '.join(scopes)}"
            challenge = f'Bearer error="insufficient_scope", scope="{scopes[0]}"'
            raise ProblemError(403, "not-allowed", detail, ("www-authenticate", challenge))

    def no_parameters(self) -> None:
        """Raise if there are any, where there is nothing to choose."""
        if self.parameters:
            message = "there are no parameters here; filters belong to events, stats and stream"
            raise QueryError(message, parameter=self.parameters[0][0][:64])

    def counting(self) -> tuple[Query, str | None, str | None]:
        """Return what to count, by which field, and per which time."""
        own: dict[str, str] = {}
        filters = []
        for name, value in self.parameters:
            if name in ("limit", "order", "cursor"):
                message = f"{name} has no meaning for a count, which has everything that matches"
                raise QueryError(message, parameter=name)
            if name not in ("by", "per"):
                filters.append((name, value))
                continue
            if name in own:
                message = f"{name} is said twice; say it once"
                raise QueryError(message, parameter=name)
            if not value:
                message = f"{name} is empty; say by=FIELD or per=1h, or leave it out"
                raise QueryError(message, parameter=name)
            own[name] = value
        query, _ = parse(filters, hidden=self.hidden)
        return query, own.get("by"), own.get("per")

    def streaming(self) -> tuple[Query, int | None]:
        """Return what to stream, and from which sequence number on; None: from now on."""
        for name, _ in self.parameters:
            if name in ("limit", "cursor", "order", "start", "end"):
                message = f"{name} has no meaning for a stream, which begins now and does not end"
                raise QueryError(message, parameter=name)
        said = [value for name, value in self.parameters if name == "queries"]
        if said not in ([], ["true"], ["false"]):
            message = "queries is true or false, once: whether records of queries are in the stream"
            raise QueryError(message, parameter="queries")
        query, _ = parse(
            [pair for pair in self.parameters if pair[0] != "queries"], hidden=self.hidden
        )
        conditions = query.conditions
        if said != ["true"]:
            conditions += (Condition(("event_type",), (OWN_QUERIES,), wanted=False),)
        query = replace(query, conditions=conditions, oldest_first=True, limit=_AT_A_TIME)
        return query, _after(self.header(b"last-event-id"))


def _parameters(query_string: bytes) -> tuple[tuple[str, str], ...]:
    if len(query_string) > _LONGEST_QUERY:
        detail = f"The query string has {len(query_string)} bytes; {_LONGEST_QUERY} can be asked."
        raise ProblemError(414, "bad-query", detail)
    try:
        return tuple(
            parse_qsl(
                query_string.decode("latin-1"),
                keep_blank_values=True,
                max_num_fields=_MOST_PARAMETERS,
            )
        )
    except ValueError:
        detail = f"There are more than {_MOST_PARAMETERS} parameters."
        raise ProblemError(400, "bad-query", detail) from None


def _after(last_event: str) -> int | None:
    if not last_event:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", last_event):
        message = "Last-Event-ID is the id of the last event that came: a sequence number"
        raise QueryError(message, parameter="Last-Event-ID")
    return int(last_event) + 1
