"""All commands, with their examples, and how the program runs them.

Promises: to show help or to complete a command loads neither OpenTelemetry nor
a trail; each command imports what it needs.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand
from typer.main import get_command

from otel_audit.cli import (
    doctor,
    health,
    outcome,
    policy,
    proofs,
    publication,
    questions,
    reconciliation,
    records,
    shipping,
    tokens,
    upkeep,
    verification,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAM: Final = "otel-audit"

_LOOK: Final = "Look"
_PROVE: Final = "Prove"
_RUN: Final = "Run"

app = typer.Typer(
    name=PROGRAM,
    help="See, prove and keep an audit trail.",
    epilog="Exit codes: 0 done, 1 a check found something, 2 wrong usage or setting, 3 the trail "
    "cannot be used, 4 not there. All of it: docs/cli.md",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


ship = typer.Typer(
    help="See what was shipped, and send again.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.add_typer(ship, name="ship", rich_help_panel=_RUN)


def _add(
    command: Callable[..., None], panel: str, *examples: str, group: typer.Typer = app
) -> None:
    group.command(cls=_with(examples), rich_help_panel=panel)(command)


def _with(shown: tuple[str, ...]) -> type[TyperCommand]:
    """Return a command whose help ends with examples as they are to be copied.

    Rich would break them at the terminal's width, and a shell would run the pieces.
    """
    title = "Examples:" if len(shown) > 1 else "Example:"

    class _Command(TyperCommand):
        examples = shown

        def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - of Typer's own, private Click
            super().format_help(ctx, formatter)
            typer.echo("\n".join((f" {title}", *(f" $ {example}" for example in shown), "")))

    return _Command


_add(doctor.doctor, _LOOK, "otel-audit doctor", "LOG_DIR=/var/log/app otel-audit doctor --json")
_add(
    records.tail,
    _LOOK,
    "otel-audit tail -f",
    "otel-audit tail -n 50 --where outcome=failure --where 'event=login*'",
)
_add(
    records.show,
    _LOOK,
    "otel-audit show 17",
    "otel-audit show 5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11 --json",
)
_add(
    health.health,
    _LOOK,
    "otel-audit health",
    "otel-audit health --watch http://127.0.0.1:9000/health",
)
_add(
    questions.query,
    _LOOK,
    "otel-audit query --event-type credential_access --resource openai --start -7d",
    "otel-audit query --event authentication --outcome failure --start -24h --per 1h",
    "otel-audit query --start -24h --count-by actor_id --json",
)
_add(
    questions.timeline,
    _LOOK,
    "otel-audit timeline --request-id 5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11",
    "otel-audit timeline --actor alice --start -1h",
)
_add(
    verification.verify,
    _PROVE,
    "otel-audit verify",
    "otel-audit verify --public-key trail.keys --checkpoint kept.checkpoint",
)
_add(proofs.prove, _PROVE, "otel-audit prove 17", "otel-audit prove 17 -o record.tlog-proof")
_add(
    proofs.check_proof,
    _PROVE,
    "otel-audit check-proof record.tlog-proof --key trail.keys",
    "sed -n 18p audit.log | otel-audit check-proof record.tlog-proof --key trail.keys --record -",
)
_add(
    publication.checkpoint,
    _PROVE,
    "otel-audit checkpoint -o /mnt/elsewhere/kept.checkpoint",
    "otel-audit checkpoint --sign",
)
_add(publication.keys, _PROVE, "otel-audit keys > trail.keys")
_add(policy.init, _RUN, "otel-audit init", "otel-audit init /etc/app/audit-policy.yaml --force")
_add(
    policy.policy,
    _RUN,
    "otel-audit policy check --file otel-audit-policy.yaml",
    "otel-audit policy explain --event phi_access --action read --actor u-17",
)
_add(
    reconciliation.reconcile,
    _PROVE,
    "otel-audit reconcile --loki http://localhost:3100",
    "otel-audit reconcile --from 2026-01-31T08:00:00Z --repair",
)
_add(shipping.status, _RUN, "otel-audit ship status", group=ship)
_add(
    shipping.replay,
    _RUN,
    "otel-audit ship replay --from 1200",
    "otel-audit ship replay --from 2026-01-31T08:00:00Z --destination siem",
    group=ship,
)
_add(shipping.requeue, _RUN, "otel-audit ship requeue", "otel-audit ship requeue 17 18", group=ship)
_add(upkeep.agent, _RUN, "otel-audit agent --dir /var/lib/app/trail")
_add(
    tokens.token,
    _RUN,
    "otel-audit token create alice --scope read --scope read:pii --expires 8h",
    "otel-audit token list",
    "otel-audit token revoke alice",
)
_add(upkeep.new_origin, _RUN, "otel-audit new-origin --reason 'restored the backup of Tuesday'")


def _version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if wanted:
        from otel_audit._version import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """See, prove and keep an audit trail."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(outcome.ExitCode.USAGE)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    _open_what_is_closed()
    # What a terminal's encoding lacks is shown as an escape instead of ending the command.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(arguments)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - this is where every error becomes an exit code
        return outcome.report(error, as_json="--json" in arguments)
    return status if isinstance(status, int) else outcome.ExitCode.OK


def _main(arguments: Sequence[str]) -> object:
    """Run the command line; raise BrokenPipeError when the reader of the output went away.

    Typer, and Rich in its help, exit with 1 then, which is what a check that
    found something ends with.
    """
    try:
        return _program()(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise


@cache
def _program() -> Callable[..., object]:
    """Build the tree of commands: it takes 20 ms, so once a process."""
    return get_command(app).main


def _open_what_is_closed() -> None:
    """Write to nowhere where the caller closed stdout or stderr: the exit code still says it all.

    Else the next file that is opened, such as the trail, would get their number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
            setattr(sys, name, nowhere)
