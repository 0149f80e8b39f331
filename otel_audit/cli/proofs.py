"""`prove` and `check-proof`: one record, provable without the trail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import (
    Directory,
    Json,
    RecordName,
    open_reader,
    opened_trail,
    read_bytes,
    settings_for,
    verifiers_in,
)
from otel_audit.cli.outcome import AbsentError, UsageError
from otel_audit.cli.records import print_fields

if TYPE_CHECKING:
    from rich.text import Text

    from otel_audit.cli.evidence import Proven
    from otel_audit.settings import Settings
    from otel_audit.trail.proof import CheckedProof
    from otel_audit.trail.reader import Leaf

_RECORD_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")


def prove(
    record: RecordName,
    directory: Directory = None,
    *,
    out: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default="RECORD_ID.tlog-proof",
            help="Where to write the proof; '-' is stdout.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file of --output if it is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a file that proves one record to whoever has the public key.

    The file holds the record, its way to the root of a signed checkpoint, and
    that checkpoint (C2SP tlog-proof). Reading the trail is enough; only when no
    checkpoint covers the record yet, one is signed, if the key is at hand.
    """
    from otel_audit.cli.evidence import (
        checkpoint_json,
        claimed_verifiers,
        covering,
        find_leaf,
        prove_leaf,
    )

    # The file that a record names itself can only be an earlier proof of it. Asked before
    # anything is signed.
    if out is not None and not force and Path(out).is_file():
        message = f"{out} is there already; name another file, or replace it with --force"
        raise UsageError(message)
    settings = settings_for(directory)
    with open_reader(settings) as reader:
        leaf = find_leaf(reader, record)
        covered = covering(reader, leaf.sequence)
    note = _sign(leaf, settings) if covered is None else covered.note
    # Opened anew: to sign for the first time adds the public keys.
    with open_reader(settings) as reader:
        proven = prove_leaf(reader, leaf, note, claimed_verifiers(reader))
    text = proven.proof.text()
    if out == "-":
        typer.echo(text, nl=False)
        return
    path = Path(out or f"{_file_name(leaf)}.tlog-proof")
    # Into what is there, not in its place: it may be a pipe, or closed to others; a proof can be made again.
    path.write_text(text, encoding="utf-8")
    if as_json:
        output.write_json(
            {
                "file": str(path),
                "sequence": leaf.sequence,
                "record_id": (output.parsed(leaf.record) or {}).get("record_id"),
                "checkpoint": checkpoint_json(proven.checkpoint),
            }
        )
    else:
        _print_written(path, leaf, proven)


def check_proof(
    proof: Annotated[
        str, typer.Argument(metavar="FILE", help="The proof ('-': stdin).", show_default=False)
    ],
    key: Annotated[
        list[str],
        typer.Option(
            "--key",
            "--public-key",
            metavar="KEY|FILE",
            show_default=False,
            help="A public key of the trail, or a file with one a line, from a source that you "
            "trust. May be repeated; the cosigner's adds the time.",
        ),
    ],
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The record's bytes, such as its line of audit.log, when they must be these.",
        ),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check, without a trail, that a record is in the log that was signed.

    Prints the record that is proven, and by which checkpoint.
    """
    from otel_audit.errors import ProofError
    from otel_audit.trail.proof import check

    verifiers = verifiers_in(key)
    text = read_bytes(proof)
    # A line of audit.log ends in a newline, which is not part of the record.
    given = None if record is None else read_bytes(record).removesuffix(b"\n")
    try:
        checked = check(text, given, verifiers)
    except ProofError as error:
        message = f"{proof} proves nothing: {error}"
        raise ProofError(message) from error
    if as_json:
        output.write_json(_checked_json(checked))
    else:
        _print_checked(checked)


# prove


def _sign(leaf: Leaf, settings: Settings) -> str:
    """Sign a checkpoint, or say how to come by one. Raises `AbsentError`."""
    from otel_audit.errors import TrailError

    try:
        with opened_trail(settings) as trail:
            return trail.signer.sign()
    except TrailError as error:
        message = (
            f"no checkpoint covers record {leaf.sequence} yet, and none can be signed here: "
            f"{error}. The agent signs one within a second of each record: see `otel-audit "
            "doctor` where the trail is written"
        )
        raise AbsentError(message) from error


def _file_name(leaf: Leaf) -> str:
    """Name the file by the record's id, unless that is no name for a file."""
    record_id = str((output.parsed(leaf.record) or {}).get("record_id", ""))
    return record_id if _RECORD_ID.fullmatch(record_id) else f"record-{leaf.sequence}"


def _print_written(path: Path, leaf: Leaf, proven: Proven) -> None:
    from rich.text import Text

    head = proven.checkpoint.checkpoint
    target = output.console()
    output.write_facts(
        target,
        [
            ("written", str(path)),
            ("proves", f"record {leaf.sequence} of {output.visible(head.origin)}"),
            ("by", _by(proven.checkpoint.timestamp, head.size)),
            ("check with", Text(f"otel-audit check-proof {path} --key KEY", "bold")),
        ],
    )


def _by(timestamp: int | None, size: int) -> str:
    when = "" if timestamp is None else f", signed {output.moment(timestamp)}"
    return f"the checkpoint of {output.count(size, 'record')}{when}"


# check-proof


def _checked_json(checked: CheckedProof) -> dict[str, Any]:
    from otel_audit.cli.evidence import checkpoint_json

    return {
        "ok": True,
        "sequence": checked.index,
        "record": output.parsed(checked.record),
        "bytes": checked.record.decode(errors="backslashreplace"),
        "checkpoint": checkpoint_json(checked.checkpoint),
    }


def _print_checked(checked: CheckedProof) -> None:
    from rich.text import Text

    head, signed = checked.checkpoint.checkpoint, checked.checkpoint.timestamp
    no_time: Text | str = Text("unknown: give the cosigner's public key as well", "yellow")
    target = output.console()
    output.write_facts(
        target,
        [
            ("result", Text("proven: this record is in the log, as it stands here", "bold green")),
            ("log", output.visible(head.origin)),
            ("sequence", str(checked.index)),
            ("checkpoint", f"of {output.count(head.size, 'record')}"),
            ("signed", no_time if signed is None else output.moment(signed)),
        ],
    )
    target.print()
    fields = output.parsed(checked.record)
    if fields is None:
        target.print(output.visible(checked.record.decode(errors="replace")))
    else:
        print_fields(target, fields)
