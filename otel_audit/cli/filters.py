"""The options by which records are chosen, for every command that has them.

Promises: they are the parameters of a query over HTTP (`readers/query`), times
and pages left aside, under their names; where the terminal had another name
first, both are known. What they mean is said there, and nowhere here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from otel_audit.cli.outcome import UsageError
from otel_audit.readers.filters import FILTERS, Filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.readers.query.model import Condition, Query

_CONDITION: Final = re.compile(r"([^=!]+)(!?=)(.*)", re.DOTALL)
_WHERE: Final = "where"
_FILTERS: Final = (
    *FILTERS[:-1],
    Filter(_WHERE, "FIELD=VALUE", "Any field, also of your own; FIELD!=VALUE: not so.", ""),
    FILTERS[-1],
)
_NAMES: Final = {
    "actor": ("--actor", "--actor-id"),
    "client": ("--client", "--client-id"),
    "resource_name": ("--resource", "--resource-name"),
    "q": ("--words", "--q", "-q"),
}
"""The options of those that have others than their name."""


class Chosen(NamedTuple):
    """Which records were asked for: parameters of a query, and conditions as they were typed."""

    parameters: list[tuple[str, str]]
    conditions: list[str]

    def query(self, **others: str | None) -> Query:
        """Make a query of it, with ``others``, such as times. Raises `QueryError`, `UsageError`."""
        from otel_audit.readers.query.parameters import parse

        more = [(name, value) for name, value in others.items() if value is not None]
        asked, _ = parse([*self.parameters, *more])
        conditions = tuple(map(_condition, self.conditions))
        return replace(asked, conditions=(*asked.conditions, *conditions))


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all filters in the place of its parameter ``chosen``."""

    @wraps(command)
    def with_filters(**given: object) -> None:
        chosen = Chosen([], [])
        for one in _FILTERS:
            values = given.pop(one.name)
            for value in values if isinstance(values, list) else ():
                if one.name == _WHERE:
                    chosen.conditions.append(value)
                else:
                    chosen.parameters.append((one.name, value))
        command(**given, chosen=chosen)

    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += _options() if name == "chosen" else [parameter]
    # Typer asks for these two; the types are known by the signature already.
    with_filters.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect's own protocol
    with_filters.__annotations__ = {}
    return with_filters


def option(metavar: str, meaning: str, *names: str) -> object:
    """Return an option that chooses records."""
    return typer.Option(*names, metavar=metavar, show_default=False, help=meaning)


def _options() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                list[str] | None, option(one.value, one.meaning, *_NAMES.get(one.name, ()))
            ],
        )
        for one in _FILTERS
    ]


def _condition(text: str) -> Condition:
    """Read FIELD=VALUE or FIELD!=VALUE, with the names that filters have. Raises `UsageError`."""
    from otel_audit.readers.query.model import Condition, fields_named

    match = _CONDITION.fullmatch(text)
    if match is None:
        message = (
            f"--where {text!r} is not FIELD=VALUE or FIELD!=VALUE, such as outcome=failure or "
            "'event=login*'"
        )
        raise UsageError(message)
    return Condition(fields_named(match[1].strip()), (match[3],), match[2] == "=")
