"""How a command ends: the exit codes, and errors as one line or as JSON.

docs/cli.md has the table of the codes; they are part of the interface and do
not change.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from enum import IntEnum

from otel_audit.cli.usage import usage_message
from otel_audit.errors import (
    AuditSettingsError,
    AuditUnavailableError,
    OtelAuditError,
    ProofError,
    QueryError,
    TrailError,
)


class ExitCode(IntEnum):
    """What the exit status of every command means."""

    OK = 0
    FOUND = 1
    """A check found something: the trail, a proof or the installation is not in order."""
    USAGE = 2
    """The command line, a setting or a file that was named cannot be used."""
    TRAIL = 3
    """The trail cannot be opened, read or written."""
    ABSENT = 4
    """What was asked for is not there: no such record, no checkpoint (yet)."""
    DECLINED = 5
    """A question was answered with no; nothing was done."""
    INTERNAL = 70
    """A defect of otel-audit itself, with a traceback."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """The reader of the output went away before the end."""


class AbsentError(OtelAuditError, LookupError):
    """What was asked for is not in the trail; the message says what to do."""


class UsageError(OtelAuditError, ValueError):
    """An argument cannot be used; the message says why."""


_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (AbsentError, ExitCode.ABSENT),
    (UsageError, ExitCode.USAGE),
    (AuditSettingsError, ExitCode.USAGE),
    (QueryError, ExitCode.USAGE),
    (ProofError, ExitCode.FOUND),
    (TrailError, ExitCode.TRAIL),
    (AuditUnavailableError, ExitCode.TRAIL),
)


def report(error: Exception, *, as_json: bool) -> int:
    """Say on stderr what went wrong, in one line, and return the exit code.

    What nobody foresaw keeps its traceback: it is a defect.
    """
    if isinstance(error, BrokenPipeError):
        silence()
        return ExitCode.BROKEN_PIPE
    code = _code(error)
    if code == ExitCode.INTERNAL:
        sys.excepthook(type(error), error, error.__traceback__)
    write_error(type(error).__name__, _message(error), code, as_json=as_json)
    return code


def write_error(kind: str, message: str, code: int, *, as_json: bool) -> None:
    """Write one error to stderr."""
    if as_json:
        line = json.dumps({"error": kind, "message": message, "exit_code": int(code)})
    else:
        line = f"otel-audit: {message}"
    sys.stderr.write(f"{line}\n")


def silence() -> None:
    """Let nothing more be written to stdout, whose reader is gone."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _code(error: Exception) -> int:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if _is_usage_error(error):
        return ExitCode.USAGE
    if _is_abort(error):
        return ExitCode.DECLINED
    if _is_database_error(error):
        return ExitCode.TRAIL
    if isinstance(error, OSError) and error.errno is not None:
        return ExitCode.USAGE
    return ExitCode.INTERNAL


def _message(error: Exception) -> str:
    if _is_usage_error(error):
        # Not part of Typer's typed interface, but what its own output is made of.
        context = getattr(error, "ctx", None)
        message = usage_message(error)
        return f"{message} (try '{context.command_path} --help')" if context else message
    if _is_abort(error):
        return "nothing was done"
    if _is_database_error(error):
        return (
            f"the database cannot be read: {error}; keep it, and run `otel-audit verify` to see "
            "what is left"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or errno.errorcode.get(error.errno or 0)}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_usage_error(error: Exception) -> bool:
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _is_abort(error: Exception) -> bool:
    import typer

    return isinstance(error, typer.Abort)


def _is_database_error(error: Exception) -> bool:
    """Whether SQLite refused; who never loaded it cannot have been refused by it."""
    apsw = sys.modules.get("apsw")
    return apsw is not None and isinstance(error, apsw.Error)
