"""The options that commands share, and what they choose.

Promises: ``--dir`` wins over OTEL_AUDIT_DIR, everything else comes from
`Settings`; a trail that is not there is an error that names those that are.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from otel_audit.cli.access import account, as_user, closed
from otel_audit.cli.outcome import UsageError
from otel_audit.errors import TrailError, TrailFileSystemError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_audit.settings import Settings
    from otel_audit.trail.note import Verifier
    from otel_audit.trail.reader import TrailReader
    from otel_audit.trail.trail import Trail

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIRECTORY",
        show_default=False,
        readable=False,  # what cannot be read is explained in our own words
        help="The trail's directory. Default: OTEL_AUDIT_DIR, else LOG_DIR/trail, else the "
        "user's state directory.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for programs; errors too, on stderr.")
]
RecordName = Annotated[
    str,
    typer.Argument(metavar="RECORD", help="A record id, or a sequence number.", show_default=False),
]

_STDIN: Final = "-"
_SEQUENCE: Final = re.compile(r"#?([0-9]{1,18})")


def sequence_in(text: str) -> int | None:
    """Return the sequence number that a text is, None where it is something else."""
    match = _SEQUENCE.fullmatch(text.strip())
    return int(match[1]) if match else None


def settings_for(directory: Path | None) -> Settings:
    """Read the settings, with the directory that was asked for. Raises `AuditSettingsError`."""
    from otel_audit.settings import Settings

    return Settings.from_env(directory=directory)


def open_reader(settings: Settings) -> TrailReader:
    """Open the trail for reading. Raises `TrailError`, which names other trails if there are any."""
    from otel_audit.trail.layout import DATABASE
    from otel_audit.trail.reader import TrailReader

    directory = settings.trail_directory
    _check_access(directory)
    if directory.is_file():
        raise TrailError(_of_file(directory, DATABASE))
    if not (directory / DATABASE).is_file():
        others = ", ".join(map(str, _others(settings, DATABASE)))
        if others:
            message = f"there is no trail in {directory}; there is one in {others}: use --dir"
            raise TrailError(message)
    return TrailReader(directory)


def _of_file(path: Path, database: str) -> str:
    parent = path.parent
    if (parent / database).is_file():
        return f"{path} is a file; name the trail's directory: --dir {parent}"
    return (
        f"{path} is a file, and there is no trail in {parent}; name the trail's directory by --dir"
    )


def check_there(settings: Settings) -> None:
    """Raise `TrailError` unless there is a trail, whatever state it is in."""
    from otel_audit.trail.layout import DATABASE

    _check_access(settings.trail_directory)
    if not (settings.trail_directory / DATABASE).is_file():
        open_reader(settings).close()


@contextmanager
def opened_trail(settings: Settings) -> Iterator[Trail]:
    """Open the trail that the settings name, for writing; it has to be there already.

    So a misspelt directory does not become a new trail. Raises `TrailError`.
    """
    from otel_audit.trail.keys import TrailKeys
    from otel_audit.trail.trail import Trail

    open_reader(settings).close()
    own(settings.trail_directory)
    keys = TrailKeys.from_text(settings.signing_key) if settings.signing_key else None
    trail = Trail.open(
        settings.trail_directory,
        keys=keys,
        key_file=settings.signing_key_file,
        timeout=settings.timeout,
    )
    try:
        yield trail
    finally:
        trail.close()


def own(directory: Path) -> None:
    """Refuse to write into a trail of another user, whose owner would be locked out.

    Files that root makes there cannot be opened by the application. Raises
    `TrailFileSystemError`.
    """
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.geteuid():
        message = (
            f"the trail in {directory} belongs to the user {account(owner)}, and this is "
            f"{account(os.geteuid())}: run it as {account(owner)} "
            f"({as_user(owner, '...', directory)}), because files made by another user would lock "
            "its owner out"
        )
        raise TrailFileSystemError(message)


def read_bytes(name: str) -> bytes:
    """Read a file that was named on the command line; ``-`` is standard input.

    Raises `UsageError`.
    """
    import sys

    if name == _STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise UsageError(message) from error


def verifiers_in(keys: Iterable[str]) -> list[Verifier]:
    """Read public keys: each item is a verifier key, or a file with one a line.

    Empty lines and lines that start with ``#`` do not count. One of a log has to
    be among them: a cosigner vouches for the time. Raises `UsageError`.
    """
    from otel_audit.errors import ProofError
    from otel_audit.trail.note import COSIGNATURE, Verifier

    found: list[Verifier] = []
    for key in keys:
        lines = _lines(key)
        if not lines:
            message = f"{key} holds no public key"
            raise UsageError(message)
        try:
            found += map(Verifier.parse, lines)
        except ProofError as error:
            message = f"{error} (or is {key!r} a file that is not there?)"
            raise UsageError(message if lines == [key] else f"{key}: {error}") from error
    if all(key.algorithm == COSIGNATURE for key in found):
        names = ", ".join(dict.fromkeys(key.name for key in found))
        message = (
            f"only the cosigner's key is given ({names}), which vouches for the time alone; give "
            "the log's key as well, the first line of `otel-audit keys`"
        )
        raise UsageError(message)
    return list(dict.fromkeys(found))


def _lines(key: str) -> list[str]:
    if key != _STDIN and not Path(key).exists():
        return [key]
    text = read_bytes(key).decode(errors="replace")
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def _check_access(directory: Path) -> None:
    """Tell what cannot be looked into from a directory without a trail."""
    barrier = closed(directory)
    if barrier is not None:
        owner = barrier.stat().st_uid
        message = (
            f"{barrier} cannot be read by this user: run it as {account(owner)} "
            f"({as_user(owner, '...', directory)})"
        )
        raise TrailError(message)


def _others(settings: Settings, database: str) -> list[Path]:
    """Find the trails of other services, when nothing said which one is meant."""
    if settings.directory is not None or settings.log_dir is not None:
        return []
    home = settings.state_home / "otel-audit"
    return sorted(path.parent for path in home.glob(f"*/{database}"))
