"""The trail itself: whether it opens, its key, its clock, its checkpoints."""

from __future__ import annotations

import ctypes
import os
import re
import stat
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.cli.access import closed
from otel_audit.cli.diagnosis import rows
from otel_audit.cli.diagnosis.check import Check, Subject, fail, ok, unseen, warn
from otel_audit.cli.output import count, moment, span, visible
from otel_audit.errors import ProofError, TrailKeyError, TrailVersionError
from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import OVERDUE_NANO, open_checkpoint, read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.layout import DATABASE, KEY, MEMORY, PREVIOUS
from otel_audit.trail.nearby import nearby
from otel_audit.trail.note import Verifier
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.scan import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.errors import AuditSettingsError
    from otel_audit.settings import Settings
    from otel_audit.trail.checkpoint import Checkpoint

_SECOND: Final = 1_000_000_000
_SLACK: Final = 2 * _SECOND

_FIRST_RELEASE: Final = 1_704_067_200 * _SECOND
"""2024: no clock that is right shows an earlier time to this software."""

_UNSYNCHRONISED: Final = 5
"""TIME_ERROR of adjtimex(2)."""

_TIMEX_SIZE: Final = 512
_REMEDY: Final = re.compile(r": (?=run |put back )")
_VERIFY: Final = "keep everything; otel-audit verify says what else"
_RIGHT_ONE: Final = "put the right file in its place, from the backup, and keep this one"
_NEW_ORIGIN: Final = "keep everything; otel-audit verify; then otel-audit new-origin"


def subject_of(settings: Settings, unusable: tuple[AuditSettingsError, ...] = ()) -> Subject:
    """Open the trail, if that is possible. Close the reader after use."""
    try:
        reader = TrailReader(settings.trail_directory)
    except Exception as error:  # noqa: BLE001 - why it cannot be opened is the first finding
        barrier = closed(settings.trail_directory)
        return Subject(settings, unusable, refusal=error, closed=barrier)
    return Subject(settings, unusable, reader)


def refusals(settings: Settings) -> list[str]:
    """Return why a writer would refuse this trail, as far as reading tells."""
    subject = subject_of(settings)
    try:
        found = [*opens(subject), *key(subject), *memory(subject)]
        return [check.message for check in found if check.state == "fail"]
    finally:
        if subject.reader is not None:
            subject.reader.close()


def opens(subject: Subject) -> Iterator[Check]:
    """Whether there is a trail, this version can read it, and what is read of it fits."""
    path = subject.directory / DATABASE
    if subject.reader is not None:
        yield _rows(subject, subject.reader)
    elif subject.closed is not None:
        yield unseen("trail", subject.closed)
    elif isinstance(subject.refusal, TrailVersionError):
        message, _, remedy = str(subject.refusal).partition(": ")
        yield fail("trail", message, remedy)
    elif path.exists():
        yield _refused(path, subject.refusal)
    elif left := [name for name in (KEY, MEMORY) if (subject.directory / name).exists()]:
        yield fail(
            "trail",
            f"{path} is missing, but {' and '.join(left)} {'is' if len(left) == 1 else 'are'} there: "
            "it was removed or not restored",
            f"restore {DATABASE}, or begin a new origin: otel-audit new-origin",
        )
    elif subject.named or nearby(subject.directory):
        message, _, remedy = str(subject.refusal).partition("; ")
        yield fail("trail", message, remedy)
    else:
        yield warn(
            "trail",
            f"there is none in {subject.directory} yet",
            "it is made when the application first starts; is this the right directory?",
        )


def _refused(path: Path, refusal: Exception | None) -> Check:
    """Tell a file that is no trail, which is no evidence of anything, from one that is damaged."""
    cause = None if refusal is None else refusal.__cause__
    if isinstance(cause, apsw.NotADBError):
        return fail("trail", f"{path} is no database, and so no trail", _RIGHT_ONE)
    if cause is None:
        return fail("trail", str(refusal), _RIGHT_ONE)
    return fail("trail", str(refusal), _NEW_ORIGIN)


def _rows(subject: Subject, reader: TrailReader) -> Check:
    try:
        odd = reader.oddities()
        if odd:
            shown = "; ".join(one.what for one in odd)
            return fail("trail", f"{reader.path} is not as a trail is made: {shown}", _VERIFY)
        tree = reader.tree()
    except UNREADABLE as error:
        return fail("trail", f"{reader.path} cannot be read: {error}", _VERIFY)
    said = f"{visible(reader.origin)}: {count(tree.size, 'record')}"
    found = rows.look(reader, tree)
    if found.trouble:
        return fail("trail", f"{said}, but {found.trouble}", _VERIFY)
    if tree.size:
        said += f", the newest at {moment(tree.committed_unix_nano / 1e9)}"
        fit = "was read and fits its hash" if found.read == 1 else "were read and fit their hashes"
        said += f"; {found.read:,} {fit}; all else: otel-audit verify"
    return ok("trail", said + _earlier(subject))


def _earlier(subject: Subject) -> str:
    previous = subject.directory / PREVIOUS
    number = len(list(previous.iterdir())) if previous.is_dir() else 0
    return f"; {count(number, 'earlier trail')} in {PREVIOUS}/" if number else ""


def key(subject: Subject) -> Iterator[Check]:
    """Whether the signing key is there, closed to others, and this trail's."""
    where = _where(subject)
    claimed = () if subject.reader is None else subject.reader.claimed_keys
    try:
        keys = _load(subject)
    except FileNotFoundError:
        if claimed:
            yield fail(
                "signing key",
                f"{where} is missing, but the trail was signed with it",
                "put it back from the backup; if it is lost: otel-audit new-origin",
            )
        elif subject.reader is not None:
            yield ok("signing key", f"{where} is made on first use")
        return
    except PermissionError:
        yield warn(
            "signing key",
            f"{where} cannot be read by this user, and so not be checked",
            "that is right, unless this is the user that writes the trail",
        )
        return
    except TrailKeyError as error:
        message, *remedy = _REMEDY.split(str(error), maxsplit=1)
        yield fail("signing key", message, *(remedy or ["restore it"]))
        return
    yield _compared(subject, keys, claimed, where)


def _compared(subject: Subject, keys: TrailKeys, claimed: tuple[str, ...], where: str) -> Check:
    public = keys.verifier_keys()
    reader = subject.reader
    if reader is not None and keys.origin != reader.origin:
        message = f"{where} belongs to {keys.origin}, the trail is {visible(reader.origin)}"
    elif claimed and claimed != public:
        message = f"{where} is {public[0]}, the trail was begun with {visible(claimed[0])}"
    else:
        return ok("signing key", f"{where}; public: {public[0]}")
    return fail("signing key", message, "put back the key that was made with the trail")


def _where(subject: Subject) -> str:
    if subject.settings.signing_key:
        return "OTEL_AUDIT_SIGNING_KEY"
    path = subject.settings.signing_key_file or subject.directory / KEY
    try:
        return f"{path} (mode {stat.S_IMODE(path.stat().st_mode):04o})"
    except OSError:
        return str(path)


def _load(subject: Subject) -> TrailKeys:
    """Load the key; raises `OSError` as it is, and `TrailKeyError` for the rest."""
    if subject.settings.signing_key:
        return TrailKeys.from_text(subject.settings.signing_key)
    path = subject.settings.signing_key_file or subject.directory / KEY
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return TrailKeys.load(path)


def memory(subject: Subject) -> Iterator[Check]:
    """Whether the trail still has everything that was signed here."""
    reader, path = subject.reader, subject.directory / MEMORY
    if reader is None or (note := reader.last_signed()) is None:
        return
    try:
        signed = read_checkpoint(note)
    except ProofError as error:
        yield fail("signed", f"{path} is damaged: {error}", _NEW_ORIGIN)
        return
    try:
        message = _unlike(signed, reader)
    except UNREADABLE:
        told = f"{count(signed.size, 'record')} at last, which the trail cannot be compared with"
        yield fail("signed", f"{told}: what is missing or damaged, its own check says", _VERIFY)
        return
    if message:
        shown = f"{message}: an older copy was restored, or records were changed"
        yield fail("signed", shown, _NEW_ORIGIN)
        return
    yield ok(
        "signed",
        f"{count(signed.size, 'record')} at last, whose hashes the trail has; whether all records "
        "fit them: otel-audit verify",
    )


def _unlike(signed: Checkpoint, reader: TrailReader) -> str:
    """Return how the trail differs from what was signed, or nothing."""
    size = reader.tree().size
    if signed.size > size:
        return f"it has {count(size, 'record')}, but {signed.size:,} were signed"
    if merkle.edge_root(merkle.edge_at(signed.size, reader.hash_at)) != signed.root:
        return f"its first {signed.size:,} records are not those that were signed"
    return ""


def checkpoint(subject: Subject) -> Iterator[Check]:
    """Whether the newest checkpoint is valid and covers what it should by now."""
    reader = subject.reader
    if reader is None:
        return
    size, last = reader.tree().size, reader.last_checkpoint()
    covered, shown = 0, "none yet"
    if last is not None:
        try:
            open_checkpoint(last.note, [Verifier.parse(item) for item in reader.claimed_keys])
        except ProofError as error:
            yield fail("checkpoint", f"the newest is not valid: {error}", "otel-audit verify")
            return
        covered = last.size
        age = span(max(0, subject.now - last.unix_nano) / _SECOND)
        shown = f"{age} old, of {count(covered, 'record')}"
    waiting = size - covered
    oldest = reader.leaf(covered) if waiting > 0 else None
    if oldest is None:
        yield ok("checkpoint", f"{shown}; no records after it")
        return
    shown += f"; {count(waiting, 'record')} after it"
    age_of_oldest = subject.now - oldest.committed_unix_nano
    if age_of_oldest <= OVERDUE_NANO:
        yield ok("checkpoint", shown)
        return
    yield warn(
        "checkpoint",
        f"{shown}, the first waiting for {span(age_of_oldest / _SECOND)}: no agent signs them",
        "see the agent's check; otel-audit checkpoint --sign signs once",
    )


def clock(subject: Subject) -> Iterator[Check]:
    """Whether the clock can be right."""
    reader = subject.reader
    times = [(_FIRST_RELEASE, "this software was released")]
    if reader is not None:
        times.append((reader.tree().committed_unix_nano, "the newest record was committed"))
        last = reader.last_checkpoint()
        times.append((last.unix_nano if last else 0, "the newest checkpoint was signed"))
    latest, what = max(times)
    shown = moment(subject.now / _SECOND)
    if subject.now < latest - _SLACK:
        yield fail(
            "clock",
            f"{shown}, which is {span((latest - subject.now) / _SECOND)} before {what}",
            "set the clock; until it has caught up, records get the time of the newest one",
        )
    elif _synchronised():
        yield ok("clock", f"{shown}, synchronised according to the kernel")
    else:
        yield warn(
            "clock",
            f"{shown}, not known to the kernel to be synchronised",
            "run a time service on the host (chrony, systemd-timesyncd)",
        )


def _synchronised() -> bool:
    """Ask adjtimex(2), which changes nothing when all of its argument is zero."""
    buffer = ctypes.create_string_buffer(_TIMEX_SIZE)
    try:
        answer = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):  # pragma: no cover - other systems than Linux
        return False
    return 0 <= int(answer) != _UNSYNCHRONISED
