"""`checkpoint` and `keys`: what is handed out, so that others can check.

Promises: private keys are never printed; a checkpoint that was kept in a file
is only replaced by one that continues it, so that a trail that was set back
does not destroy the evidence against itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json, open_reader, opened_trail, settings_for
from otel_audit.cli.outcome import AbsentError, UsageError

if TYPE_CHECKING:
    from otel_audit.settings import Settings
    from otel_audit.trail.checkpoint import Checkpoint
    from otel_audit.trail.reader import TrailReader


def checkpoint(
    directory: Directory = None,
    *,
    sign: Annotated[
        bool, typer.Option("--sign", help="Sign a new one first, of all records that there are.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default="stdout",
            help="Keep it in this file. One that is there is replaced only by one that continues "
            "it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the newest signed checkpoint, to be kept where the trail's host cannot reach it.

    Whoever has it can find out that the trail was cut off, set back or
    rewritten afterwards: otel-audit verify --checkpoint FILE.
    """
    settings = settings_for(directory)
    if sign:
        with opened_trail(settings) as trail:
            trail.signer.sign()
    with open_reader(settings) as reader:
        note = _newest(reader)
        if out is not None:
            _keep(reader, note, Path(out))
    if as_json:
        _print_json(note)
    elif out is None:
        typer.echo(note, nl=False)


def keys(directory: Directory = None, *, as_json: Json = False) -> None:
    """Print the public keys of the trail, one a line, to be handed out.

    The first is the log's, the second the cosigner's, which adds the time (C2SP
    verifier keys). Where the private ones are is said on stderr; they are never
    shown.
    """
    settings = settings_for(directory)
    with open_reader(settings) as reader:
        public = reader.claimed_keys
        origin = reader.origin
    if not public:
        message = (
            f"the trail in {settings.trail_directory} has no keys yet: they are made when it is "
            "first opened by the application, or by `otel-audit checkpoint --sign`"
        )
        raise AbsentError(message)
    private = _private(settings)
    if as_json:
        output.write_json({"origin": origin, "public_keys": list(public), "private_key": private})
        return
    for key in public:
        typer.echo(output.visible(key))
    # On stderr, so that stdout can become the file that `verify --public-key` reads.
    output.console(stderr=True).print(f"private: {private}", style="dim")


def _newest(reader: TrailReader) -> str:
    last = reader.last_checkpoint()
    if last is None:
        message = (
            f"the trail in {reader.directory} has no checkpoint yet: the agent signs one within a "
            "second of the first record; --sign signs one now"
        )
        raise AbsentError(message)
    return last.note


def _print_json(note: str) -> None:
    from otel_audit.trail.checkpoint import read_checkpoint

    head = read_checkpoint(note)
    output.write_json(
        {"origin": head.origin, "size": head.size, "root": head.root.hex(), "note": note}
    )


def _keep(reader: TrailReader, note: str, path: Path) -> None:
    """Write the checkpoint to a file, whole or not at all.

    Raises `ProofError` when the one that is there contradicts the trail, and
    `UsageError` when it cannot be written.
    """
    from otel_audit.trail import durable
    from otel_audit.trail.checkpoint import read_checkpoint

    if path.exists() and not path.is_file():
        message = f"{path} is no file; without --output the checkpoint is printed"
        raise UsageError(message)
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        kept = b""
    if kept:
        try:
            before = read_checkpoint(kept)
        except ValueError as error:
            message = f"{path} is there already and is no checkpoint; name another file"
            raise UsageError(message) from error
        _continues(reader, before, read_checkpoint(note), path)
    try:
        durable.write(path, note.encode(), replace=True, public=True)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise UsageError(message) from error


def _continues(reader: TrailReader, before: Checkpoint, after: Checkpoint, path: Path) -> None:
    from otel_audit.errors import ProofError
    from otel_audit.trail import merkle

    if before.origin != after.origin:
        trouble = f"is of another trail, {before.origin}"
    elif before.size > after.size:
        trouble = f"covers {before.size} records, the newest of the trail only {after.size}"
    elif merkle.edge_root(merkle.edge_at(before.size, reader.hash_at)) != before.root:
        trouble = f"has another root than the trail's first {before.size} records"
    else:
        return
    message = (
        f"the checkpoint in {path} {trouble}, so it was not replaced: it may be evidence that the "
        f"trail was set back or rewritten; run `otel-audit verify --checkpoint {path}`"
    )
    raise ProofError(message)


def _private(settings: Settings) -> str:
    """Say where the private keys are, never what they are."""
    from otel_audit.trail.layout import KEY

    if settings.signing_key:
        return "in OTEL_AUDIT_SIGNING_KEY"
    path = settings.signing_key_file or settings.trail_directory / KEY
    return str(path) if path.exists() else f"not here ({path} is missing)"
