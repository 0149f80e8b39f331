"""The global provider of a process: the one that loggers use which were given none.

Promises: there is one at most, also when several threads ask for the first; it
is made from the environment when nobody has configured one.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from otel_audit.api.companions import changed
from otel_audit.api.provider import AuditProvider, providers
from otel_audit.errors import AuditSettingsError
from otel_audit.settings import Settings

if TYPE_CHECKING:
    from otel_audit.api.derived import SpanRule
    from otel_audit.api.policy import Policy
    from otel_audit.record.redact import Redactor
    from otel_audit.trail.keys import TrailKeys

_global: AuditProvider | None = None
_global_mutex = threading.RLock()


def configure(
    settings: Settings | None = None,
    *,
    policy: Policy | None = None,
    redactor: Redactor | None = None,
    keys: TrailKeys | None = None,
    **overrides: object,
) -> AuditProvider:
    """Set up the global provider; ``overrides`` are settings by name.

    They win over the environment; beside ``settings``, which are complete, there
    can be none. ``policy`` stands for the one of the settings, ``redactor`` for
    the built-in rules, ``keys`` for a signing key that is kept elsewhere. A
    provider that was configured before is closed. Raises `AuditSettingsError`
    and `TrailError`, and then changes nothing.
    """
    if settings is not None and overrides:
        message = (
            f"{', '.join(overrides)} would be dropped beside complete settings: give them to "
            "Settings.from_env() instead"
        )
        raise AuditSettingsError(message)
    with _global_mutex:
        provider = AuditProvider(
            Settings.from_env(**overrides) if settings is None else settings,
            policy=policy,
            redactor=redactor,
            keys=keys,
        )
        before = set_audit_provider(provider)
    if before is not None:
        before.close()
    return provider


def set_audit_provider(provider: AuditProvider | None) -> AuditProvider | None:
    """Make a provider the global one: one with a policy, rules or keys of its own.

    Returns the one before, which stays open, or None.
    """
    global _global
    with _global_mutex:
        before, _global = _global, provider
    for follow in tuple(changed):
        follow(provider)
    return before


def get_audit_provider() -> AuditProvider:
    """Return the global provider, made from the environment on first use."""
    provider = _global
    if provider is not None:
        return provider
    with _global_mutex:
        return _global or configure()


def provider_for(settings: Settings) -> AuditProvider:
    """Return this process's open provider for exactly these settings, or make one."""
    with _global_mutex:
        for provider in providers():
            if provider.settings == settings and not provider.closed:
                return provider
        return AuditProvider(settings)


def is_configured() -> bool:
    """Whether there is a global provider."""
    return _global is not None


def span_rules_of(provider: AuditProvider | None) -> tuple[SpanRule, ...]:
    """Return the rules of a provider that have to be looked at when spans end."""
    if provider is None or provider.disabled:
        return ()
    return _unless_left_out(provider.settings, provider.policy.spans)


def span_rules_ahead() -> tuple[SpanRule, ...]:
    """Return those of the provider that the environment will give, while nobody has asked for it.

    What cannot be used has none: who makes the provider is told why.
    """
    if is_configured():
        return ()
    try:
        settings = Settings.from_env()
        if settings.disabled or not (settings.policy_file or settings.rule_sets):
            return ()
        from otel_audit.api.policy_file import policy_for  # noqa: PLC0415 - YAML is for those who use it

        return _unless_left_out(settings, policy_for(settings)[0].spans)
    except AuditSettingsError:
        return ()


def _unless_left_out(settings: Settings, rules: tuple[SpanRule, ...]) -> tuple[SpanRule, ...]:
    return () if "spans" in settings.disabled_instrumentations else rules


def reset() -> None:
    """Close all providers of this process and forget the global one: for tests."""
    set_audit_provider(None)
    for provider in providers():
        provider.close()


def _after_fork_in_child() -> None:
    global _global_mutex  # noqa: PLW0603 - the parent's may be held by a thread that is not here
    _global_mutex = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
