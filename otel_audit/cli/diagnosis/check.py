"""One check and its outcome, and what all checks look at."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from otel_audit.errors import AuditSettingsError
    from otel_audit.settings import Settings
    from otel_audit.trail.reader import TrailReader

State: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """An outcome: what was looked at, how it is, and what to do about it."""

    name: str
    state: State
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined.

    ``reader`` is None when the trail cannot be opened; ``refusal`` says why, and
    ``closed`` names what this user may not read, which one check tells for all.
    """

    settings: Settings
    unusable: tuple[AuditSettingsError, ...] = ()
    reader: TrailReader | None = None
    refusal: Exception | None = None
    closed: Path | None = None
    now: int = field(default_factory=time.time_ns)

    @property
    def named(self) -> bool:
        """Whether the directory was named here and now: then it has to be there."""
        return self.settings.origins.get("directory") == "argument"

    @property
    def directory(self) -> Path:
        """The trail's directory."""
        return self.settings.trail_directory


Examination: TypeAlias = "Callable[[Subject], Iterable[Check]]"


def ok(name: str, message: str) -> Check:
    """Return the outcome of something that is in order."""
    return Check(name, "ok", message)


def warn(name: str, message: str, remedy: str) -> Check:
    """Return the outcome of something that works, but not as it should."""
    return Check(name, "warn", message, remedy)


def fail(name: str, message: str, remedy: str) -> Check:
    """Return the outcome of something that keeps a promise from being kept."""
    return Check(name, "fail", message, remedy)


def unseen(name: str, path: object) -> Check:
    """Return the outcome of something that this user may not look at."""
    return Check(name, "warn", f"not looked at: {path} is closed to this user")


def examine(subject: Subject, examinations: Iterable[tuple[str, Examination]]) -> Iterator[Check]:
    """Make all checks, whatever happens to one of them."""
    for name, examination in examinations:
        yield from _survive(name, examination, subject)


def _survive(name: str, examination: Examination, subject: Subject) -> list[Check]:
    try:
        return list(examination(subject))
    except PermissionError as error:
        return [unseen(name, error.filename)]
    except apsw.Error as error:
        message = f"a part of the database that this needs cannot be read: {error}"
        return [fail(name, message, "keep everything; otel-audit verify")]
    except Exception as error:  # noqa: BLE001 - a doctor must not faint
        message = f"cannot be checked: {type(error).__name__}: {error}"
        return [fail(name, message, "the other checks may tell the cause")]
