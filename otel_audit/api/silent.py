"""Rules for spans that nothing here makes: they would be silent, and nobody would know.

Promises: a rule is called silent only where it is known which distributions make
its spans, by the shipped set or by the name of an instrumentation of
OpenTelemetry, and none of them is installed. Spans of the application's own are
not known: a rule for those may be called silent wrongly.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.api.derived import SpanRule


class Silent(NamedTuple):
    """A rule set, or a rule of the file; ``remedy`` names what to install."""

    rules: str
    remedy: str

    @property
    def finding(self) -> str:
        """What is wrong."""
        return f"{self.rules}: no instrumentation that could make such spans is installed"


def makers_of(scope: str | None) -> tuple[str, ...]:
    """Return the distribution of an instrumentation of OpenTelemetry; nothing for another scope."""
    if scope is None or not scope.startswith(_MODULE):
        return ()
    name = scope[len(_MODULE) :].partition(".")[0]
    return (_PACKAGE + name.replace("_", "-"),) if name.isidentifier() else ()


def silent_rules(rules: Iterable[SpanRule]) -> list[Silent]:
    """Return the rules whose spans nothing makes that is installed; those of a shipped set once."""
    found: dict[str, Silent] = {}
    for rule in rules:
        if not rule.made_by or any(map(_is_installed, rule.made_by)):
            continue
        shipped = rule.origin.startswith(_SHIPPED)
        which = rule.origin.partition(":")[0] if shipped else f"the rule at {rule.origin}"
        found[which] = Silent(which, _remedy(rule.made_by))
    return list(found.values())


def _remedy(makers: tuple[str, ...]) -> str:
    """Name those whose library is here, else the one that is used most."""
    of_libraries = [name for name in makers if _is_of_a_library_here(name)]
    fitting = _fitting()
    named = [fitting.get(name, name) for name in of_libraries or makers[:1]]
    return f"pip install {'one of ' if len(named) > 1 else ''}{', '.join(named)}"


def _fitting() -> dict[str, str]:
    """Return what to install of each instrumentation that works beside one exact version only.

    Of any other, pip would take apart the OpenTelemetry that is installed.
    """
    from opentelemetry.instrumentation import bootstrap_gen  # noqa: PLC0415 - doctor answers without

    said = [each["instrumentation"] for each in bootstrap_gen.libraries]
    said += bootstrap_gen.default_instrumentations
    return {each.partition("==")[0]: each for each in said if "==" in each}


def _is_of_a_library_here(maker: str) -> bool:
    name = maker.removeprefix(_PACKAGE)
    return name in _IN_PYTHON or _is_installed(_LIBRARIES.get(name, name))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


_SHIPPED: Final = "rule set "
_MODULE: Final = "opentelemetry.instrumentation."
_PACKAGE: Final = "opentelemetry-instrumentation-"
_IN_PYTHON: Final = frozenset({"sqlite3", "urllib"})
_LIBRARIES: Final = {
    "aiohttp-client": "aiohttp",
    "genai-openai": "openai",
    "mysql": "mysql-connector-python",
    "openai-v2": "openai",
    "psycopg2": "psycopg2-binary",
    "tortoiseorm": "tortoise-orm",
}
"""Libraries that are not called like their instrumentation."""
