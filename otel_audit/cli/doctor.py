"""`doctor`: what is set, what is there, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json
from otel_audit.cli.outcome import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from otel_audit.cli.diagnosis.check import Check, Subject

_JUDGED: Final = "of this environment; a service has those that it was started with"
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    directory: Directory = None,
    *,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show the settings that have their defaults, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at settings, policy, files, key, clock, agent, mirror and shipping, and say what to do.

    Writes nothing and works on a trail that is broken or not there. Fails when
    a check fails; warnings alone do not count. Whether the records themselves
    are in order is the business of `verify`.
    """
    from otel_audit.cli.diagnosis import setup
    from otel_audit.cli.diagnosis.trail import subject_of
    from otel_audit.settings import Settings

    settings, unusable = Settings.salvage(directory=directory)
    subject = subject_of(settings, unusable)
    try:
        checks = _examine(subject)
    finally:
        if subject.reader is not None:
            subject.reader.close()
    versions = setup.versions()
    failed = any(check.state == "fail" for check in checks)
    if as_json:
        output.write_json(
            {
                "ok": not failed,
                "directory": str(subject.directory),
                "checks": [asdict(check) for check in checks],
                "settings": settings.describe(),
                "versions": versions,
            }
        )
    else:
        _print(settings.describe(), checks, versions, show_all=show_all)
    if failed:
        raise typer.Exit(ExitCode.FOUND)


def _examine(subject: Subject) -> list[Check]:
    from otel_audit.cli.diagnosis import (
        environment,
        naming,
        place,
        policy,
        processes,
        setup,
        shipping,
        trail,
    )
    from otel_audit.cli.diagnosis.check import examine

    return list(
        examine(
            subject,
            (
                ("settings", setup.settings),
                ("environment", environment.environment),
                ("policy", policy.policy),
                ("directory", place.directory),
                ("files", place.files),
                ("file system", place.file_system),
                ("disk space", place.space),
                ("trail", trail.opens),
                ("service", naming.service),
                ("signing key", trail.key),
                ("signed", trail.memory),
                ("checkpoint", trail.checkpoint),
                ("clock", trail.clock),
                ("lock", processes.lock),
                ("agent", processes.agent),
                ("mirror", processes.mirror),
                ("shipping", shipping.shipping),
                ("reconciled", shipping.reconciled),
            ),
        )
    )


def _print(
    settings: Sequence[dict[str, str]],
    checks: Sequence[Check],
    versions: dict[str, str],
    *,
    show_all: bool,
) -> None:
    target = output.console()
    target.print("Checks", style="bold")
    _print_checks(target, checks)
    target.print()
    target.print("Settings", style="bold")
    target.print(f"  {_JUDGED}", style="dim")
    shown = [row for row in settings if show_all or row["origin"] != "default"]
    _print_settings(target, shown)
    left = len(settings) - len(shown)
    if left:
        more = f"{left} more have" if shown else f"all {left} have"
        target.print(f"  {more} their defaults (--all shows them)", style="dim")
    target.print()
    target.print("Versions", style="bold")
    output.write_facts(target, [(f"  {name}", number) for name, number in versions.items()])
    target.print()
    target.print(_summary(checks))


def _print_settings(target: Console, settings: Sequence[dict[str, str]]) -> None:
    """Print the variables; those that nobody set are dim."""
    from rich.text import Text

    names = max((len(row["variable"]) for row in settings), default=0)
    values = max((len(output.visible(row["value"]) or "-") for row in settings), default=0)
    for row in settings:
        value = output.visible(row["value"]) or "-"
        # Only --dir can be an argument here, and the variable's name is in the first column.
        origin = {"argument": "--dir", "default": "default"}.get(row["origin"], "environment")
        line = f"  {row['variable']:<{names}}  {value:<{values}}  {origin}"
        target.print(Text(line, style="dim" if row["origin"] == "default" else ""))


def _print_checks(target: Console, checks: Sequence[Check]) -> None:
    from rich.text import Text

    rows: list[tuple[str | Text, str | Text]] = []
    names = max(len(check.name) for check in checks)
    for check in checks:
        label = Text.assemble(
            (f"  {check.name:<{names}}  ", "dim"), (f"{check.state:<4}", _STYLES[check.state])
        )
        rows.append((label, output.visible(check.message)))
        if check.remedy:
            rows.append(("", f"to do: {output.visible(check.remedy)}"))
    output.write_facts(target, rows)


def _summary(checks: Sequence[Check]) -> Any:  # noqa: ANN401 - a text of Rich, which is loaded late
    from rich.text import Text

    failed = sum(check.state == "fail" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    if failed:
        return Text(f"{failed} failed, {output.count(warned, 'warning')}", "bold red")
    if warned:
        return Text(f"Nothing failed, {output.count(warned, 'warning')}", "yellow")
    return Text("All is well", "green")
