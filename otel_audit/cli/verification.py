"""`verify`: the whole trail, offline, and what came of it in plain words."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import (
    Directory,
    Json,
    open_reader,
    read_bytes,
    settings_for,
    verifiers_in,
)
from otel_audit.cli.outcome import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.text import Text

    from otel_audit.trail.checkpoint import Checkpoint
    from otel_audit.trail.reader import TrailReader
    from otel_audit.trail.verify import Finding, Report

_SHOWN: Final = 20
"""Findings that are printed for people; a ruined trail has thousands."""


def verify(
    directory: Directory = None,
    *,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Hold the trail against a checkpoint that was kept elsewhere ('-': stdin).",
        ),
    ] = None,
    public_key: Annotated[
        list[str] | None,
        typer.Option(
            "--public-key",
            "--key",
            metavar="KEY|FILE",
            show_default=False,
            help="A public key that was kept elsewhere, or a file with one a line, as printed by "
            "`otel-audit keys`. May be repeated. Default: the keys that the trail claims.",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes that share the work of a long trail.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Check every record against the tree and the signed checkpoints.

    Finds each change, removal, insertion and reordering of records that a
    checkpoint covers. Who can replace the whole trail can only be found with a
    public key and a checkpoint that were kept elsewhere.
    """
    from otel_audit.errors import ProofError
    from otel_audit.trail.checkpoint import read_checkpoint
    from otel_audit.trail.verify import verify as verify_trail

    verifiers = None if not public_key else verifiers_in(public_key)
    against = None if checkpoint is None else read_bytes(checkpoint)
    kept = None
    if against is not None:
        try:
            kept = read_checkpoint(against)
        except ProofError as error:
            message = f"{checkpoint}: {error}"
            raise UsageError(message) from error
    with open_reader(settings_for(directory)) as reader, _progress() as progress:
        report = verify_trail(
            reader,
            verifiers=verifiers,
            against=against,
            progress=progress,
            processes=processes,
        )
    if as_json:
        output.write_json(_as_json(report, kept))
    else:
        _print(report, reader, kept)
    if not report.ok:
        raise typer.Exit(ExitCode.FOUND)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Lend a function that moves a progress bar on stderr, on a terminal only."""
    target = output.console(stderr=True)
    if not target.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _as_json(report: Report, kept: Checkpoint | None) -> dict[str, Any]:
    signed = report.last_checkpoint
    return {
        "ok": report.ok,
        "proven": report.proven,
        "origin": report.origin,
        "size": report.size,
        "covered": report.covered,
        "root": report.root,
        "checkpoints": report.checkpoints,
        "last_checkpoint_at": None if signed is None else output.stamp(signed * 1_000_000_000),
        "kept": None if kept is None else _kept_json(report, kept),
        "keys": list(report.keys),
        "self_asserted": report.self_asserted,
        "finding_count": report.finding_count,
        "findings_complete": _complete(report),
        "counts": report.counts,
        "findings": [asdict(finding) for finding in report.findings],
        "warnings": list(report.warnings),
    }


def _print(report: Report, reader: TrailReader, kept: Checkpoint | None) -> None:
    from rich.text import Text

    target = output.console()
    for finding in report.findings[:_SHOWN]:
        target.print(_finding_text(finding))
    hidden = len(report.findings) - _SHOWN
    if hidden > 0:
        listed = "all of them" if _complete(report) else f"the first {len(report.findings):,}"
        more = output.count(hidden, "more line") if _complete(report) else "many more lines"
        target.print(f"and {more}; --json lists {listed}")
    if report.findings:
        target.print()
    rows: list[tuple[str, str | Text]] = [
        ("trail", f"{output.visible(report.origin)}  ({reader.directory})"),
        ("records", f"{report.size:,}"),
        ("covered", _covered_text(report)),
        ("after it", _after_text(report)),
    ]
    if kept is not None:
        rows.append(("kept", _kept_text(report, kept)))
    rows.append(("keys", _keys_text(report)))
    rows += [("warning", Text(output.visible(warning), "yellow")) for warning in report.warnings]
    rows.append(("result", _result_text(report)))
    output.write_facts(target, rows)


def _complete(report: Report) -> bool:
    """Whether all findings are listed.

    One that is about a range counts as many as the range has: more may be
    counted than there are findings, and none is left out.
    """
    from otel_audit.trail.findings import LISTED

    return len(report.findings) < LISTED or report.finding_count == LISTED


def _continues(report: Report, kept: Checkpoint) -> bool:
    """Whether nothing that was found is about the checkpoint that was kept elsewhere."""
    return _complete(report) and all(
        finding.checkpoint_size != kept.size for finding in report.findings
    )


def _kept_json(report: Report, kept: Checkpoint) -> dict[str, Any]:
    return {
        "origin": kept.origin,
        "size": kept.size,
        "root": kept.root.hex(),
        "continued": _continues(report, kept),
    }


def _kept_text(report: Report, kept: Checkpoint) -> str:
    said = "the trail continues it" if _continues(report, kept) else "see the findings"
    return f"checkpoint of {output.count(kept.size, 'record')}: {said}"


def _finding_text(finding: Finding) -> Text:
    from rich.text import Text

    return Text.assemble((finding.kind, "bold red"), "  ", output.visible(finding.message))


def _covered_text(report: Report) -> str:
    if not report.covered:
        return "none: no valid checkpoint covers any record"
    if not report.checkpoints:
        return f"{_first(report.covered)}, by a checkpoint that is not in the database"
    if report.last_checkpoint is None:
        when = ""
    else:
        when = f", the newest signed {output.moment(report.last_checkpoint)}"
    return (
        f"{_first(report.covered)}, by {output.count(report.checkpoints, 'valid checkpoint')}{when}"
    )


def _first(number: int) -> str:
    return "the first record" if number == 1 else f"the first {number:,} records"


def _after_text(report: Report) -> str:
    left = report.size - report.covered
    return f"{output.count(left, 'record')}, not covered yet" if left else "no records"


def _keys_text(report: Report) -> str:
    """Name the keys by name and id; the whole of them is for `keys` and --json."""
    names = [output.visible("+".join(key.split("+", 2)[:2])) for key in report.keys] or ["none"]
    source = "claimed by the trail itself" if report.self_asserted else "given with --public-key"
    return f"{', '.join(names)} ({source})"


def _result_text(report: Report) -> Text:
    from rich.text import Text

    if not report.ok:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in report.counts.items())
        found, lines = output.count(report.finding_count, "finding"), len(report.findings)
        if _complete(report) and lines < report.finding_count:
            found += f" in {output.count(lines, 'line')}"
        return Text(f"NOT IN ORDER: {found} ({kinds})", "bold red")
    if not report.size:
        return Text("in order: the trail is empty", "green")
    if not report.covered:
        return Text("nothing found, but nothing is proven either: see the warnings", "yellow")
    return Text(
        f"in order: nothing was changed, removed, inserted or moved in {_first(report.covered)}",
        "bold green",
    )
