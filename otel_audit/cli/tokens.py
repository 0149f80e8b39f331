"""`token create`, `list` and `revoke`: who may ask the trail over HTTP.

What a token is, and how it is kept, is the business of `web/tokens.py`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Directory, Json, check_there, own, settings_for
from otel_audit.cli.outcome import AbsentError, UsageError

if TYPE_CHECKING:
    from otel_audit.web.tokens import Token, TokenFile

_File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        show_default=False,
        help="The file of tokens. Default: OTEL_AUDIT_READ_TOKEN_FILE, else tokens.json in "
        "the trail's directory.",
    ),
]


def token(
    do: Annotated[
        str, typer.Argument(metavar="create|list|revoke", help="What to do.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Who gets it; for revoke, a name or a token's id.",
            show_default=False,
        ),
    ] = None,
    directory: Directory = None,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            show_default="read",
            help="read: records without personal fields; read:pii: records with them; proof: proofs. "
            "May be repeated.",
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it holds: 8h, 90d, or never.")
    ] = "90d",
    file: _File = None,
    as_json: Json = False,
) -> None:
    """Make, list or revoke the tokens of those who may ask over HTTP.

    A token is shown once, when it is made: the file keeps a hash of it. Changes
    count from the next request on.
    """
    tokens = _opened(directory, file)
    if do == "list":
        _list(tokens, as_json=as_json)
    elif do not in ("create", "revoke"):
        message = f"{do!r} is none of create, list and revoke"
        raise UsageError(message)
    elif name is None:
        message = f"say whose: otel-audit token {do} NAME"
        raise UsageError(message)
    elif do == "create":
        _create(tokens, name, scope or ["read"], expires, as_json=as_json)
    else:
        _revoke(tokens, name, as_json=as_json)


def _opened(directory: Path | None, file: Path | None) -> TokenFile:
    from otel_audit.trail.layout import TOKENS
    from otel_audit.web.tokens import TokenFile

    settings = settings_for(directory)
    if file is not None:
        return TokenFile(file)
    if settings.read_token_file is not None:
        return TokenFile(settings.read_token_file)
    check_there(settings)
    own(settings.trail_directory)
    return TokenFile(settings.trail_directory / TOKENS)


def _create(
    tokens: TokenFile, name: str, scopes: list[str], expires: str, *, as_json: bool
) -> None:
    from otel_audit.readers.query.times import duration

    seconds = None if expires == "never" else duration("--expires", expires) / 1e9
    text, made = tokens.create(name, scopes, seconds=seconds)
    if as_json:
        output.write_json({"token": text, **_described(made)})
        return
    sys.stdout.write(f"{text}\n")
    until = "for ever" if made.expires is None else f"until {output.moment(made.expires)}"
    sys.stderr.write(
        f"otel-audit: this token of {name} ({', '.join(made.scopes)}) holds {until}; it is not "
        f"shown again\n"
    )


def _list(tokens: TokenFile, *, as_json: bool) -> None:
    rows = [_described(entry) for entry in tokens.tokens()]
    if as_json:
        output.write_json({"file": str(tokens.path), "tokens": rows})
        return
    target = output.console()
    if not rows:
        target.print(f"there are no tokens in {tokens.path}; `otel-audit token create NAME`")
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        until = row["expires"] or "never"
        target.print(
            f"{row['id']}  {output.visible(row['name']):<{width}}  {row['state']:<7}  "
            f"{until:<20}  {' '.join(row['scopes'])}"
        )


def _revoke(tokens: TokenFile, name: str, *, as_json: bool) -> None:
    named = [entry for entry in tokens.tokens() if name in (entry.id, entry.name)]
    over = {entry.id for entry in named if entry.revoked is not None}
    # A token's id is revoked whatever its state; by its name, only those that hold.
    gone = tokens.revoke(name) or [entry for entry in named if entry.id in over]
    if not gone:
        message = (
            f"no token in {tokens.path} has the id or name {name}; see `otel-audit token list`"
        )
        raise AbsentError(message)
    if as_json:
        output.write_json(
            {"file": str(tokens.path), "tokens": [_described(entry) for entry in gone]}
        )
        return
    for entry in gone:
        done = "already revoked:" if entry.id in over else "revoked"
        sys.stdout.write(f"{done} {entry.id} of {entry.name}\n")


def _described(entry: Token) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "state": entry.state(time.time()),
        "scopes": list(entry.scopes),
        "created": _moment(entry.created),
        "expires": _moment(entry.expires),
        "revoked": _moment(entry.revoked),
    }


def _moment(seconds: int | None) -> str | None:
    return None if seconds is None else output.stamp(seconds * 1_000_000_000)[:19] + "Z"
