"""The policy: whether the file and the rule sets that are named can be used, and are of use here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from otel_audit.api.odd_retentions import REMEDY, odd_retentions
from otel_audit.api.policy_file import policy_for, read_policy, rule_set
from otel_audit.api.silent import silent_rules
from otel_audit.cli.diagnosis.check import Check, fail, ok, warn
from otel_audit.cli.output import count
from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_audit.cli.diagnosis.check import Subject

_CORRECT: Final = "correct it there, and try it with `otel-audit policy check`"


def policy(subject: Subject) -> Iterator[Check]:
    """Whether an application that starts now could read its policy: else it would not start."""
    settings = subject.settings
    troubles: list[Check] = []
    if settings.policy_file is not None:
        troubles += _trouble(partial(read_policy, settings.policy_file))
    for name in settings.rule_sets:
        troubles += _trouble(partial(rule_set, name, "OTEL_AUDIT_RULE_SETS"))
    yield from troubles
    if troubles:
        return
    used, _ = policy_for(settings)
    rules = (
        count(len(used.rules), "rule"),
        f"{len(used.routes)} of routes",
        f"{len(used.spans)} of spans",
    )
    sets = ", ".join(settings.rule_sets)
    source = str(settings.policy_file or "no file (OTEL_AUDIT_POLICY_FILE)")
    if sets:
        source += f", rule sets {sets}"
    said = f"on_failure {used.on_failure}, http_activity {used.http_activity}"
    yield ok("policy", f"{source}: {', '.join(rules)}; {said}")
    for silent in silent_rules(used.spans):
        yield warn("policy", silent.finding, silent.remedy)
    for odd in odd_retentions(used):
        yield warn("policy", odd.finding, REMEDY)


def _trouble(read: Callable[[], object]) -> Iterator[Check]:
    try:
        read()
    except AuditSettingsError as error:
        message, _, remedy = str(error).partition("; ")
        yield fail("policy", message, remedy or _CORRECT)
