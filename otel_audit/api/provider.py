"""The provider: one trail, one policy, one queue, for all loggers of a process.

`AuditProvider` promises (MUST): a receipt is given only for a record that is
synced to disk; a record that cannot be stored raises, or is counted and
logged, as the policy says; nothing disables it but OTEL_AUDIT_DISABLED. It
touches none of OpenTelemetry's providers.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from otel_audit.api import companions, metrics
from otel_audit.api.arguments import check
from otel_audit.api.policy import Policy
from otel_audit.api.receipt import AuditReceipt, PendingReceipt
from otel_audit.api.resource import resource_of
from otel_audit.api.sessions import session_salt
from otel_audit.api.stages import Stages
from otel_audit.api.writing import RecordWriter
from otel_audit.errors import AuditClosedError, AuditUnavailableError, OtelAuditError
from otel_audit.record.encode import new_record_id
from otel_audit.record.redact import Redactor
from otel_audit.settings import Settings, first_to_say
from otel_audit.trail.committer import Committer
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_audit.api.companions import Companion
    from otel_audit.api.receipt import Receipt
    from otel_audit.trail.ticket import Ticket

_CLOSE_SECONDS: Final = 10.0
_HAND_OVER_SECONDS: Final = 3.0
"""A far end that hangs must not hold up the end of an application; the trail has everything."""

_logger = logging.getLogger("otel_audit")


class AuditProvider:
    """Everything that loggers of one trail share. Safe for threads and forks."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        policy: Policy | None = None,
        redactor: Redactor | None = None,
        keys: TrailKeys | None = None,
        clock: Callable[[], int] = time.time_ns,
        new_id: Callable[[], str] = new_record_id,
        vfs: str | None = None,
    ) -> None:
        """Open the trail that ``settings`` (default: the environment) name.

        ``keys`` stand for a signing key that is kept elsewhere. ``clock`` (Unix
        nanoseconds), ``new_id`` and ``vfs`` are for tests. Raises
        `AuditSettingsError` and `TrailError`.
        """
        _check_kinds(settings, policy, redactor, keys)
        self.settings = Settings.from_env() if settings is None else settings
        self.policy, redactor = _policy(self.settings, policy, redactor)
        self.not_recorded = 0
        self._mutex = threading.RLock()
        self._closed = False
        self._ending = False
        """Whether `close` is at work."""
        self._ended = False
        self._forked = False
        self._companions: list[Companion] = []
        self.resource, self.service_name = resource_of(self.settings)
        self.records = RecordWriter(
            Stages(
                policy=self.policy,
                redactor=redactor,
                service_name=self.service_name,
                resource=self.resource.hash,
                clock=clock,
                new_id=new_id,
            )
        )
        self._trail: Trail | None = None
        self._committer: Committer | None = None
        if self.settings.disabled:
            _logger.warning(
                "OTEL_AUDIT_DISABLED is set: NOTHING is audited in process %d", os.getpid()
            )
        else:
            self._trail = self._open(keys, clock, vfs)
            self._committer = Committer(
                self._trail.store,
                queue_size=self.settings.queue_size,
                timeout=self.settings.timeout,
                resources={self.resource.hash: self.resource.json},
                unattended=self._unattended,
                committed=metrics.committed,
            )
            try:
                self._accompany()
            except BaseException:
                self._trail.close()
                raise
        self._warn()
        _providers.add(self)
        _end_with_process()
        metrics.watch(self)

    @property
    def directory(self) -> Path:
        """The trail's directory."""
        return self.settings.trail_directory

    @property
    def disabled(self) -> bool:
        """Whether OTEL_AUDIT_DISABLED turned everything off."""
        return self._trail is None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def trail(self) -> Trail:
        """The open trail. Raises `AuditClosedError` when there is none."""
        if self._trail is None:
            message = "there is no trail: OTEL_AUDIT_DISABLED is set"
            raise AuditClosedError(message)
        return self._trail

    @property
    def keys(self) -> TrailKeys:
        """The keys that sign checkpoints."""
        return self.trail.keys

    @property
    def session_salt(self) -> bytes:
        """32 secret bytes of this trail, to store session ids as hashes."""
        return session_salt(self.directory)

    @property
    def statistics(self) -> dict[str, int]:
        """Counts of this process: records committed, failed, refused, waiting, not recorded; groups."""
        counts = {"not_recorded": self.not_recorded}
        if self._committer is not None:
            statistics = self._committer.statistics
            counts |= {
                "committed": statistics.committed,
                "failed": statistics.failed,
                "refused": statistics.refused,
                "groups": statistics.groups,
                "waiting": self._committer.waiting,
            }
        return counts

    def reader(self) -> TrailReader:
        """Return a new reader of the trail; close it after use."""
        return TrailReader(self.directory)

    def commit(self, record_id: str, record: bytes, on_failure: str) -> Receipt:
        """Block until the record is durable. Raises as the policy says.

        Returns a pending receipt where this thread must not wait: in a signal
        handler or finalizer that interrupted it in the middle of a commit.
        """
        if self._committer is None:
            return self.unrecorded(record_id)
        ticket = self._ticket(record_id, record, on_failure)
        try:
            if self._forked:
                self._revive()
            self._committer.commit(ticket)
        except AuditUnavailableError as error:
            return self._refused(ticket, error)
        return self.settle(ticket) if ticket.settled else ticket

    def submit(self, record_id: str, record: bytes, on_failure: str) -> Receipt:
        """Queue the record and return at once. Raises as the policy says."""
        if self._committer is None:
            return self.unrecorded(record_id)
        ticket = self._ticket(record_id, record, on_failure)
        try:
            if self._forked:
                self._revive()
            self._committer.submit(ticket)
        except AuditUnavailableError as error:
            return self._refused(ticket, error)
        return ticket

    def settle(
        self, ticket: PendingReceipt, expired: AuditUnavailableError | None = None
    ) -> AuditReceipt:
        """Turn a ticket that is settled into a receipt, or raise as the policy says.

        ``expired`` says why the waiting ended before it was done.
        """
        record_id = ticket.record_id
        failure = expired
        if ticket.error is not None:
            failure = AuditUnavailableError(str(ticket.error), record_id=record_id)
            failure.__cause__ = ticket.error
        if failure is not None:
            told, ticket.told = ticket.told, True
            return self._refused(ticket, failure, told=told)
        return AuditReceipt(
            record_id,
            ticket.sequence,
            ticket.leaf_hash,
            ticket.committed_unix_nano,
            self.trail.prove,
        )

    def unrecorded(self, record_id: str) -> AuditReceipt:
        """Return the (false) receipt of a record that is not wanted or not stored."""
        return AuditReceipt(record_id, -1, b"", 0)

    def refusal(self) -> AuditUnavailableError | None:
        """Return why the trail takes no records now, or None. Never blocks."""
        committer = self._committer
        if committer is None:
            return None
        if self._closed:
            return AuditClosedError("the audit provider is closed; configure() a new one")
        error = committer.broken
        if error is None:
            return None
        return AuditUnavailableError(f"the audit trail takes no records at present: {error}")

    def checkpoint(self) -> str:
        """Sign a checkpoint of all that is committed and return the note. Blocks."""
        return self.trail.signer.sign()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything emitted is durable, the mirror has it, and a checkpoint covers it.

        The checkpoint is no condition: it may be another process that signs.
        False when ``timeout`` (seconds, default: the settings') is up first, and
        at once in a signal handler or finalizer that has interrupted a commit of
        its own thread: that would be waiting for itself.
        """
        if self._committer is None:
            return True
        if self._committer.interrupted:
            return False
        limit = self.settings.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        if self._forked:
            self._revive()
        drained = self._committer.drain(limit)
        caught_up = [
            companion.flush(max(0.0, deadline - time.monotonic())) for companion in self._companions
        ]
        return drained and all(caught_up)

    def settle_down(self) -> None:
        """Flush, and sign a checkpoint if one is due: at the end of an application.

        The provider stays usable. Failures are logged: what was answered is
        durable already, and the next process signs it.
        """
        if self._committer is None:
            return
        if not self._committer.drain(_CLOSE_SECONDS):
            # To sign would wait behind the commit that hangs, without a limit.
            _logger.error("the last checkpoint is not signed, as records still wait for the disk")
            return
        trail = self.trail
        if not trail.store.path.exists():
            _logger.error("the last checkpoint is not signed: %s is gone", trail.store.path)
            return
        _try("sign the last checkpoint", trail.sign_if_grown)
        _try("complete the mirror", lambda: self.flush(_CLOSE_SECONDS))
        for companion in self._companions:
            _try("ship the last records", lambda c=companion: c.hand_over(_HAND_OVER_SECONDS))  # type: ignore[misc] # mypy knows no default in a lambda
        _try("empty the log", lambda: trail.store.wal.empty(reset=True))

    def close(self) -> None:
        """Commit what is queued, sign, let the mirror catch up, and close the trail.

        In a signal handler or finalizer that has interrupted a commit of its
        own thread, it only ends the taking of records; the rest is done when
        the process ends. One that an exception has interrupted (KeyboardInterrupt)
        goes on at the next call, of which the end of the process is one.
        """
        committer, trail = self._committer, self._trail
        if committer is None or trail is None:
            self._closed = True
            return
        if self._ended or self._ending:
            return
        if committer.interrupted or trail.signer.interrupted:
            committer.close(0.0)
            return
        self._closed = self._ending = True
        try:
            if not committer.close(_CLOSE_SECONDS):
                _logger.error("%d audit records are not confirmed at close", committer.waiting)
            self.settle_down()
            for companion in self._companions:
                companion.close()
            trail.close()
            self._ended = True
        finally:
            self._ending = False

    def _open(self, keys: TrailKeys | None, clock: Callable[[], int], vfs: str | None) -> Trail:
        settings = self.settings
        if keys is None and settings.signing_key:
            keys = TrailKeys.from_text(settings.signing_key)
        if settings.directory is None and settings.log_dir is None:
            _announce(
                f"otel-audit: the audit trail is in {self.directory} (set LOG_DIR or "
                "OTEL_AUDIT_DIR to choose)\n"
            )
        return Trail.open(
            self.directory,
            service=self.service_name,
            keys=keys,
            key_file=settings.signing_key_file,
            timeout=settings.timeout,
            clock=clock,
            vfs=vfs,
        )

    def _accompany(self) -> None:
        for factory in companions.factories:
            companion = factory(self)
            if companion is not None:
                self._companions.append(companion)
                companion.start()

    def _after_fork(self) -> None:
        """Count anew in a child; the parent's mutex may be held by a thread that is not here."""
        self._forked = True
        self._mutex = threading.RLock()
        self.not_recorded = 0

    def _revive(self) -> None:
        """Start the companions in a forked child, whose threads stayed in the parent."""
        self._forked = False
        _end_with_process()
        try:
            for companion in self._companions:
                companion.start()
        except RuntimeError as error:
            # No more threads: the records matter more, and another process may have an agent.
            _logger.error("the agent cannot run in process %d: %s", os.getpid(), error)  # noqa: TRY400 - where it happened says nothing

    def _warn(self) -> None:
        for text in self.settings.remarks:
            if first_to_say(text):
                _logger.warning("%s", text)

    def _ticket(self, record_id: str, record: bytes, on_failure: str) -> PendingReceipt:
        return PendingReceipt(record, record_id, on_failure, self)

    def _refused(
        self, ticket: PendingReceipt, error: AuditUnavailableError, *, told: bool = False
    ) -> AuditReceipt:
        """Do what the policy says about a record that is not confirmed.

        ``told``: it was counted and logged before.
        """
        record_id, on_failure = ticket.record_id, ticket.on_failure
        if error.record_id is None:
            error = _with_record(error, record_id)
        if on_failure == "continue":
            if not told:
                self._count(1)
                _logger.error("%s (the policy says continue)", error)
            return self.unrecorded(record_id)
        if on_failure == "shutdown" and not told:
            self._shut_down(error)
        raise error

    def _count(self, not_recorded: int) -> None:
        with self._mutex:
            self.not_recorded += not_recorded

    def _unattended(self, tickets: list[Ticket], error: Exception) -> None:
        """Log failures whose receipts nobody waits for."""
        self._count(len(tickets))
        receipts = cast("list[PendingReceipt]", tickets)  # the only tickets made here
        _logger.error(
            "%d audit records are not confirmed and nobody awaits their receipts: %s; ids: %s",
            len(tickets),
            error,
            ", ".join(receipt.record_id for receipt in receipts[:20]),
        )
        if any(receipt.on_failure == "shutdown" for receipt in receipts):
            self._shut_down(error)

    def _shut_down(self, error: Exception) -> None:
        _logger.critical("%s: the policy says shutdown, sending SIGTERM to ourselves", error)
        os.kill(os.getpid(), signal.SIGTERM)


def _check_kinds(settings: object, policy: object, redactor: object, keys: object) -> None:
    """Raise `AuditSettingsError` for what cannot be what it was given as."""
    check("settings", settings, Settings, "name the place by keyword: log_dir=, or directory=")
    check("policy", policy, Policy, "for the path of a policy's file write policy_file=")
    check("redactor", redactor, Redactor, "make one of names: Redactor(keys=[...])")
    check(
        "keys",
        keys,
        TrailKeys,
        "for a key's text write signing_key=, for its file signing_key_file=",
    )


def _policy(
    settings: Settings, policy: Policy | None, redactor: Redactor | None
) -> tuple[Policy, Redactor]:
    """Return what was given, else what the settings name."""
    if policy is None and (settings.policy_file or settings.rule_sets):
        from otel_audit.api.policy_file import policy_for  # noqa: PLC0415 - YAML is for those who use it

        policy, from_file = policy_for(settings)
        redactor = redactor or from_file
    if policy is None:
        policy = Policy(on_failure=settings.on_failure, http_activity=settings.http_activity)
    return policy, redactor or Redactor()


def _announce(text: str) -> None:
    """Write to stderr where there is one: a daemon's may be closed, full or a broken pipe."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)


def _try(what: str, work: Callable[[], object]) -> None:
    """Do one thing at the end of an application, whatever became of the others."""
    try:
        work()
    except OtelAuditError as error:
        _logger.error("could not %s; the next start will: %s", what, error)  # noqa: TRY400 - the message says all
    except Exception:
        _logger.exception("could not %s; the next start will", what)


def _with_record(error: AuditUnavailableError, record_id: str) -> AuditUnavailableError:
    named = type(error)(error.reason, record_id=record_id)
    named.__cause__ = error
    return named


_providers: weakref.WeakSet[AuditProvider] = weakref.WeakSet()


def providers() -> list[AuditProvider]:
    """Return all providers of this process that somebody still has, open or closed."""
    return list(_providers)


def _after_fork_in_child() -> None:
    for provider in providers():
        provider._after_fork()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)


def _at_exit() -> None:
    """Sign what a short program emitted last. A service must not rely on it (SIGTERM)."""
    for provider in providers():
        if not provider._forked:  # noqa: SLF001 - same module
            provider.close()


atexit.register(_at_exit)


def _end_with_process() -> None:
    """See to it that `_at_exit` is called in a process of multiprocessing, too.

    Forked ones end without atexit, but call multiprocessing's own finalizers.
    """
    modules = sys.modules
    util, process = modules.get("multiprocessing.util"), modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        # After all others, which may still emit; again it does nothing.
        util.Finalize(None, _at_exit, exitpriority=-1_000)
