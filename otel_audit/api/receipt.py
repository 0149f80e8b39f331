"""What a caller gets for a record.

An `AuditReceipt` MUST NOT exist before its record is committed and synced to
disk. A `PendingReceipt` is the promise of one, for callers that must not
block.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from otel_audit.errors import AuditTimeoutError, ProofError
from otel_audit.trail.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from otel_audit.errors import AuditUnavailableError


class AuditReceipt(NamedTuple):
    """A record's place in the trail.

    ``leaf_hash`` is SHA-256(0x00 || stored bytes) (RFC 6962, section 2.1);
    ``committed_unix_nano`` is when its group was committed. A receipt that is
    false (``if not receipt``) stands for a record that was *not* stored:
    because the policy says ``on_failure=continue`` or does not want the event,
    or because OTEL_AUDIT_DISABLED is set.
    """

    record_id: str
    sequence_number: int
    leaf_hash: bytes
    committed_unix_nano: int
    prover: Callable[[int], str] | None = None

    def __bool__(self) -> bool:
        """Whether the record is in the trail."""
        return self.sequence_number >= 0

    def __repr__(self) -> str:
        """Show what identifies the record, or that it was not stored."""
        if not self:
            return f"AuditReceipt(record_id={self.record_id!r}, not stored)"
        return (
            f"AuditReceipt(record_id={self.record_id!r}, "
            f"sequence_number={self.sequence_number}, leaf_hash={self.leaf_hash.hex()!r}, "
            f"committed_at={self.committed_at.isoformat()!r})"
        )

    def __reduce__(self) -> tuple[type[AuditReceipt], tuple[str, int, bytes, int]]:
        """Travel to other processes, which have to ask the trail there for a proof."""
        return AuditReceipt, (
            self.record_id,
            self.sequence_number,
            self.leaf_hash,
            self.committed_unix_nano,
        )

    def __await__(self) -> Generator[object, None, AuditReceipt]:
        """Be awaitable, so that one line of code serves threads and coroutines."""
        yield from ()
        return self

    @property
    def committed_at(self) -> datetime:
        """When the record was committed (UTC, to the microsecond)."""
        return datetime.fromtimestamp(self.committed_unix_nano / 1e9, timezone.utc)

    def proof(self) -> str:
        """Return a C2SP tlog-proof: anybody with the public key can check it offline.

        Signs a checkpoint first when none covers the record yet, so it blocks
        for a commit. Raises `ProofError` when the record was not stored.
        """
        if self.prover is None:
            why = (
                "it came from another process: run `otel-audit prove` there"
                if self
                else "it was not stored, so there is nothing to prove"
            )
            message = f"record {self.record_id} cannot be proved by this receipt: {why}"
            raise ProofError(message)
        return self.prover(self.sequence_number)


class Settler(Protocol):
    """Who knows what the fate of a ticket means to its caller."""

    def settle(
        self, ticket: PendingReceipt, expired: AuditUnavailableError | None = None
    ) -> AuditReceipt:
        """Return the receipt of a ticket that is settled or has ``expired``, or raise."""
        ...


class PendingReceipt(Ticket):
    """A receipt on its way; await it. Its record is in the queue, not yet on disk.

    It is the committer's `Ticket` itself: a second object for each record
    would cost more than it tells apart. Callers need `record_id`, `done` and
    ``await``.
    """

    __slots__ = ("_provider", "on_failure", "record_id")

    def __init__(
        self,
        record: bytes,
        record_id: str,
        on_failure: str,
        provider: Settler,
    ) -> None:
        super().__init__(record)
        self.record_id = record_id
        self.on_failure = on_failure
        self._provider = provider

    def __await__(self) -> Generator[object, None, AuditReceipt]:  # type: ignore[override]  # who awaits a bare ticket gets nothing
        """Wait until the record is durable.

        Raises `AuditUnavailableError` when it is not confirmed, unless the
        policy says to continue.
        """
        try:
            yield from super().__await__()
        except AuditTimeoutError as error:
            return self._provider.settle(self, error)
        return self._provider.settle(self)

    def expire(self, error: AuditTimeoutError | None) -> AuditReceipt:
        """Wait no longer; otherwise like ``await``. ``error`` counts unless it is settled."""
        return self._provider.settle(self, None if self.settled else error)

    def __repr__(self) -> str:
        """Show the record and whether its fate is known."""
        return f"<PendingReceipt {self.record_id} {'done' if self.done() else 'pending'}>"

    def done(self) -> bool:
        """Whether the record is durable or has failed."""
        return self.settled


Receipt: TypeAlias = AuditReceipt | PendingReceipt
"""What `emit` returns; either can be awaited."""
