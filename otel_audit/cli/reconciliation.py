"""`reconcile`: whether Loki has what the trail has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json, open_reader, own, settings_for
from otel_audit.cli.outcome import ExitCode, UsageError
from otel_audit.cli.times import FirstRecord, RecordAfter, position_of

if TYPE_CHECKING:
    from otel_audit.readers.reconciliation.compare import Findings

_SHOWN = 10


def reconcile(
    directory: Directory = None,
    *,
    loki: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Loki's address. Default: OTEL_AUDIT_RECONCILE_LOKI.",
            show_default=False,
        ),
    ] = None,
    start: FirstRecord = "0",
    stop: RecordAfter = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the missing records be sent again.")
    ] = False,
    destination: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The destination that leads to this Loki. Default: loki, else otlp.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the records back out of Loki and check each against the tree.

    Reports what is missing, altered or foreign, and checkpoints in Loki that
    this trail contradicts. Ends with 1 if there is anything.
    """
    from otel_audit.readers.reconciliation.schedule import (
        compare,
        counted,
        destination_to,
        send_again,
    )
    from otel_audit.readers.shipping.standing import known
    from otel_audit.settings import Settings

    settings = Settings.from_env(directory=directory, reconcile_loki=loki)
    where = settings.reconcile_with
    if where is None:
        message = "which Loki? Name it with --loki URL, or set OTEL_AUDIT_RECONCILE_LOKI"
        raise UsageError(message)
    with open_reader(settings_for(directory)) as reader:
        names = known(reader.directory, (each.name for each in settings.destinations))
        target = destination or destination_to(names)
        if repair:
            own(reader.directory)
        first = position_of(reader, start)
        end = None if stop is None else position_of(reader, stop)
        if end is not None and end < first:
            message = f"nothing lies between: --from is record {first}, and --to is record {end}"
            raise UsageError(message)
        findings = compare(reader, where, target, first, end)
        again = send_again(reader, target, findings) if repair and findings.missing else 0
    if as_json:
        output.write_json(
            {"ok": findings.ok, **counted(findings), "sent_again": again, **_named(findings)}
        )
    else:
        _print(findings, target, again)
    if not findings.ok:
        raise typer.Exit(ExitCode.FOUND)


def _named(findings: Findings) -> dict[str, Any]:
    return {
        "missing_records": findings.missing,
        "altered_entries": findings.altered,
        "foreign_entries": findings.foreign,
        "contradicted_checkpoints": findings.contradicted,
    }


def _print(findings: Findings, destination: str, again: int) -> None:
    from rich.text import Text

    facts: list[tuple[str, str | Text]] = [
        ("records", f"{findings.start:,} to before {findings.stop:,}"),
        ("looked for", output.count(findings.checked, "record")),
        ("in Loki", output.count(findings.found, "record")),
    ]
    if findings.expired:
        facts.append(("not looked for", f"{findings.expired:,}, as their retention is over"))
    if findings.missing:
        facts.append(("missing", f"{findings.missing_count:,}: {_first(findings.missing)}"))
    facts += [
        (name, f"{number:,}: {output.visible(_first(examples))}")
        for name, number, examples in (
            ("altered", findings.altered_count, findings.altered),
            ("foreign", findings.foreign_count, findings.foreign),
            ("contradicted", len(findings.contradicted), findings.contradicted),
        )
        if number
    ]
    if again:
        waiting = output.count(again, "record")
        facts.append(("to be sent again", f"{waiting}, to {output.visible(destination)}"))
    if not findings.ok:
        verdict = Text("Loki differs from the trail", "bold red")
    elif findings.checked:
        verdict = Text("Loki has what the trail has", "bold green")
    else:
        verdict = Text("there was nothing to compare", "bold yellow")
    facts.append(("result", verdict))
    output.write_facts(output.console(), facts)


def _first(examples: list[Any]) -> str:
    shown = ", ".join(map(str, examples[:_SHOWN]))
    return f"{shown}, ..." if len(examples) > _SHOWN else shown
