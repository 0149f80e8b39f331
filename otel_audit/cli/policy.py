"""`init` and `policy`: a policy file is begun, checked, and asked what it means.

What a file may say is in `otel_audit.api.policy_file`; what is printed here is
what the application would do, because it is the same code.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Json
from otel_audit.cli.outcome import UsageError

if TYPE_CHECKING:
    from otel_audit.api.policy import Policy, Rule
    from otel_audit.settings import Settings

_DEFAULT: Final = Path("otel-audit-policy.yaml")
_TEMPLATE: Final = "policy_template.yaml"


class What(str, Enum):
    """What `policy` does."""

    check = "check"
    explain = "explain"


def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write.", show_default=True)
    ] = _DEFAULT,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a policy file with comments, which changes nothing until you change it."""
    from importlib.resources import files

    text = (files("otel_audit.cli") / _TEMPLATE).read_text(encoding="utf-8")
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        message = f"{file} is there already; name another file, or replace it with --force"
        raise UsageError(message) from error
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}"
        raise UsageError(message) from error
    if as_json:
        output.write_json({"file": str(file)})
    else:
        output.console().print(
            f"wrote {file}; set OTEL_AUDIT_POLICY_FILE={file.absolute()}, and check what you "
            "change with `otel-audit policy check`"
        )


def policy(  # noqa: PLR0913 - each is an option of the command line
    what: Annotated[
        What, typer.Argument(metavar="check|explain", help="Check the file, or explain an event.")
    ],
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="The file. Default: OTEL_AUDIT_POLICY_FILE."
        ),
    ] = None,
    event: Annotated[
        str | None, typer.Option(metavar="NAME", help="The event to explain.", show_default=False)
    ] = None,
    event_type: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its type. Default: the event.", show_default=False),
    ] = None,
    action: Annotated[str, typer.Option(metavar="NAME", help="Its action.")] = "",
    resource_type: Annotated[str, typer.Option(metavar="NAME", help="Of what kind it is.")] = "",
    resource_name: Annotated[
        str,
        typer.Option("--resource-name", "--resource", metavar="NAME", help="On what it is done."),
    ] = "",
    actor: Annotated[str, typer.Option(metavar="ID", help="Who does it.")] = "",
    route: Annotated[
        str, typer.Option(metavar="TEMPLATE", help="In a request to which route.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check a policy file, or say what would happen to an event.

    Without a file, `explain` shows what holds by default.
    """
    from otel_audit.api.policy_file import policy_for
    from otel_audit.settings import Settings

    settings = Settings.from_env(policy_file=file)
    if what is What.check and settings.policy_file is None:
        message = (
            "there is no policy file to check: name one with --file, or set OTEL_AUDIT_POLICY_FILE"
        )
        raise UsageError(message)
    loaded, _ = policy_for(settings)
    if what is What.check:
        _check(loaded, settings, as_json=as_json)
        return
    if not event:
        message = "name the event that is to be explained: otel-audit policy explain --event login"
        raise UsageError(message)
    where = (resource_type, resource_name, actor, route)
    subject = (event, event_type or event, action, *where)
    _explain(loaded, subject, _unheard(loaded, settings, subject), as_json=as_json)


def _check(policy: Policy, settings: Settings, *, as_json: bool) -> None:
    from rich.text import Text

    from otel_audit.api.odd_retentions import REMEDY, odd_retentions

    warnings = [f"{odd.finding}; {REMEDY}" for odd in odd_retentions(policy)]
    shown = {
        "file": str(settings.policy_file),
        "on_failure": policy.on_failure,
        "http_activity": policy.http_activity,
        "rules": len(policy.rules),
        "routes": len(policy.routes),
        "spans": len(policy.spans),
    }
    if as_json:
        output.write_json({**shown, "warnings": warnings})
        return
    target = output.console()
    target.print(f"{shown['file']} is in order")
    rows: list[Any] = [(name, str(value)) for name, value in list(shown.items())[1:]]
    rows += [("warning", Text(output.visible(warning), "yellow")) for warning in warnings]
    output.write_facts(target, rows)


def _unheard(policy: Policy, settings: Settings, event: tuple[str, ...]) -> str | None:
    """Return why an event has no record whatever the rules say: it is not even asked about."""
    from otel_audit.api.policy import HTTP_REQUEST
    from otel_audit.web.activity import SAFE_METHODS

    if settings.disabled:
        return "OTEL_AUDIT_DISABLED is set, and nothing is recorded"
    _, event_type, action, *_ = event
    if event_type != HTTP_REQUEST:
        return None
    if policy.http_activity == "off":
        return "http_activity is off, and no request is recorded as such"
    if policy.http_activity == "mutating" and action.upper() in SAFE_METHODS:
        return f"http_activity is mutating, and {action.upper()} changes nothing"
    return None


def _explain(policy: Policy, event: tuple[str, ...], unheard: str | None, *, as_json: bool) -> None:
    decision = policy.decide(*event[:3], *event[3:])
    rules = policy.matching(*event[:3], *event[3:])
    shown: dict[str, Any] = {
        "event": event[0],
        "event_type": event[1],
        "record": decision.record and unheard is None,
        "reason": unheard,
        "level": decision.level,
        "retention": decision.retention,
        "on_failure": decision.on_failure,
        "redact": list(decision.redact),
        "rules": [_said(rule) for rule in rules],
    }
    if as_json:
        output.write_json(shown)
        return
    from otel_audit.api.policy import HTTP_REQUEST

    recorded = "yes" if decision.record else "NO: this event leaves no record"
    if (event[1], policy.http_activity, event[2]) == (
        HTTP_REQUEST,
        "mutating",
        "",
    ) and decision.record:
        recorded += ", but not of GET, HEAD, OPTIONS and TRACE: http_activity is mutating"
    meaning = {
        "record": recorded if unheard is None else f"NO: {unheard}",
        "level": decision.level or "as the caller says, else by the status",
        "retention": decision.retention,
        "on_failure": decision.on_failure,
        "redact": ", ".join(decision.redact) or "what is redacted everywhere",
    }
    rows: list[Any] = [("event", event[0]), ("event_type", event[1]), *meaning.items()]
    rows += [("rule", _said(rule)) for rule in rules] or [
        ("rule", "none matches; these are the defaults")
    ]
    output.write_facts(output.console(), rows)


def _said(rule: Rule) -> str:
    said = {
        name: getattr(rule, name)
        for name in ("record", "level", "retention", "on_failure", "redact")
    }
    words = (f"{name}={value}" for name, value in said.items() if value not in {None, ()})
    return f"{rule.origin} {' '.join(words)}"
