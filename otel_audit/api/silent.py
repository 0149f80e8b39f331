"""Rules for spans that nothing here makes: they would be silent, and nobody would know.

Promises: a rule is called silent only where it is known which distributions make
its spans, by the shipped set or by the name of an instrumentation of
OpenTelemetry, and none of them is installed, or one is that does not take the
version of its library that is installed. Spans of the application's own are
not known: a rule for those may be called silent wrongly.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.instrumentation.dependencies import DependencyConflict

    from otel_audit.api.derived import SpanRule


class Silent(NamedTuple):
    """A rule set, or a rule of the file; ``remedy`` names what to install."""

    rules: str
    remedy: str
    why: str = "no instrumentation that could make such spans is installed"

    @property
    def finding(self) -> str:
        """What is wrong."""
        return f"{self.rules}: {self.why}"


def makers_of(scope: str | None) -> tuple[str, ...]:
    """Return the distribution of an instrumentation of OpenTelemetry; nothing for another scope."""
    if scope is None or not scope.startswith(_MODULE):
        return ()
    name = scope[len(_MODULE) :].partition(".")[0]
    return (_PACKAGE + name.replace("_", "-"),) if name.isidentifier() else ()


def silent_rules(rules: Iterable[SpanRule]) -> list[Silent]:
    """Return the rules whose spans are not made, or not all; those of a shipped set once."""
    found: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        if rule.made_by:
            shipped = rule.origin.startswith(_SHIPPED)
            which = rule.origin.partition(":")[0] if shipped else f"the rule at {rule.origin}"
            found[which] = rule.made_by
    return [silent for which, makers in found.items() for silent in _silent(which, makers)]


def _silent(rules: str, makers: tuple[str, ...]) -> list[Silent]:
    installed = [name for name in makers if _is_installed(name)]
    if not installed:
        usual = _fitting().get(makers[0], makers[0])
        return [Silent(rules, _to_install(makers) or f"pip install {usual}")]
    conflicts = {name: _conflict(name) for name in installed}
    working = next((name for name, conflict in conflicts.items() if conflict is None), None)
    silent = []
    for name, conflict in conflicts.items():
        # A library that is absent is used by nobody.
        if conflict is None or not (found := _found(conflict)):
            continue
        if working is None:
            instead = _to_install(one for one in makers if one not in installed)
        else:
            instead = f"pip uninstall {name}, where {working} sees the same"
        wanted = _wanted(conflict)
        why = f"{name} makes no spans, as it takes {wanted} and {found} is installed"
        remedy = f"pip install {wanted}"
        silent.append(Silent(rules, f"{remedy}, or {instead}" if instead else remedy, why))
    return silent


def _conflict(maker: str) -> DependencyConflict | None:
    """Return what keeps an instrumentation from working, if anything does."""
    from opentelemetry.instrumentation.dependencies import (  # noqa: PLC0415 - doctor answers without
        get_dist_dependency_conflicts,
    )

    return get_dist_dependency_conflicts(distribution(maker))


def _wanted(conflict: DependencyConflict) -> str:
    said = [conflict.required] if conflict.required else list(conflict.required_any or ())
    return " or ".join(f"'{str(one).partition(';')[0].strip()}'" for one in said)


def _found(conflict: DependencyConflict) -> str:
    """Name what is installed of what is wanted, if anything is."""
    return conflict.found or ", ".join(conflict.found_any or ())


def _to_install(makers: Iterable[str]) -> str | None:
    """Name those whose library is here."""
    fitting = _fitting()
    named = [fitting.get(name, name) for name in makers if _is_of_a_library_here(name)]
    if not named:
        return None
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
