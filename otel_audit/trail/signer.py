"""Signing checkpoints of one trail, off the path of the records.

`CheckpointSigner.sign` promises: the tree that it signs is committed, is that of
the stored tiles and hashes, and continues the one that was signed last, by a
consistency proof; so nobody without the key gets a changed record signed. Sizes
and times never decrease, whichever process signs (one at a time); and no size
is ever signed with two roots, because the last checkpoint is also kept in the
file ``signed`` beside the database (written first, replaced atomically), and in
the process's own memory, where nobody takes it away. `check` holds the trail
against both. So a database restored from an older copy is noticed and refused
instead of being signed again. Who restores the whole directory is found by
whoever has a later checkpoint from elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

import apsw

from otel_audit.errors import ProofError, TrailError, TrailKeyError, TrailMismatchError
from otel_audit.trail import durable, merkle
from otel_audit.trail.advice import readable
from otel_audit.trail.checkpoint import (
    OVERDUE_NANO,
    Checkpoint,
    SignedCheckpoint,
    open_checkpoint,
    read_checkpoint,
    sign,
)
from otel_audit.trail.interruption import on_the_stack, refuse
from otel_audit.trail.layout import MEMORY, SIGNER_LOCK
from otel_audit.trail.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.trail.keys import TrailKeys
    from otel_audit.trail.reader import TrailReader, Tree
    from otel_audit.trail.store import TrailStore

_SECOND: Final = 1_000_000_000

_logger = logging.getLogger("otel_audit.trail")


class CheckpointSigner:
    """Signs what a store has committed with the keys of its origin."""

    def __init__(
        self,
        store: TrailStore,
        reader: TrailReader,
        keys: TrailKeys,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Bind keys to the trail.

        Raises `TrailKeyError` when the trail is another key's, and
        `TrailMismatchError` when it is older than what was signed.
        """
        self.keys = keys
        self._store = store
        self._reader = reader
        self._clock = clock
        self._memory = store.directory / MEMORY
        self._lock = FileLock(store.directory / SIGNER_LOCK)
        self._mutex = threading.Lock()
        self._signing: set[int] = set()
        """The threads that sign, or wait for their turn."""
        self._last: Checkpoint | None = None
        """What was signed last as far as this process knows, whatever the files say."""
        _signers.add(self)
        self._claim()
        # Before the file: it is written first, so that whoever signs now is no reason to warn.
        with readable(store.path):
            stored = reader.last_checkpoint() is not None
        signed = self._remembered()
        self.check(signed.checkpoint if signed else None)
        if signed is None and (stored or self._should_be_signed()):
            self._warn_without_memory()

    def sign(self) -> str:
        """Sign the tree as it is now, keep the checkpoint, and return the note.

        Raises `TrailError`.
        """
        refuse(interrupted=self.interrupted)
        return self._sign_in_turn()

    def _sign_in_turn(self) -> str:
        me = threading.get_ident()
        self._signing.add(me)
        try:
            with self._mutex:
                try:
                    self._lock.acquire(self._store.timeout)
                    return self._sign()
                finally:
                    self._lock.close()
        finally:
            self._signing.discard(me)

    @property
    def interrupted(self) -> bool:
        """Whether this thread signs or writes: a signal handler or finalizer asks, which cannot.

        Another thread that signs may be waiting for what this one has.
        """
        signing = threading.get_ident() in self._signing
        return (
            signing and on_the_stack(CheckpointSigner._sign_in_turn.__code__)
        ) or self._store.interrupted

    def check(self, signed: Checkpoint | None) -> Tree:
        """Return the tree as it is now, held against what was signed here last.

        ``signed`` is what the file says, and MUST have been read before: what was
        signed by then is in the tree, while what another process signs later may
        be of more records. What this process knows to be signed counts as well,
        so that the file cannot be taken away or set back under it. Raises
        `TrailMismatchError` when the tree is shorter than, or differs from, what
        was signed.
        """
        self._refuse_forgotten(signed)
        with readable(self._store.path), self._reader.moment():
            tree = self._reader.tree()
            # Nothing that was read before: it may have been changed since.
            hash_at = merkle.TileHashes(self._reader.tile)
            try:
                if list(tree.edge) != merkle.edge_at(tree.size, hash_at):
                    self._refuse_edge(tree)
                for known in {one for one in (signed, self._last) if one is not None}:
                    self._refuse_other(tree, known, hash_at)
            except ProofError as error:
                message = f"{self._store.path} cannot be signed: {error}"
                raise TrailMismatchError(message) from error
        self._last = signed
        return tree

    def _refuse_forgotten(self, signed: Checkpoint | None) -> None:
        """Raise `TrailMismatchError` where the file says less than this process knows."""
        last = self._last
        if last is None:
            return
        if signed is None:
            found = "was removed"
        elif signed.size < last.size:
            found = f"was set back to {signed.size} records"
        else:
            return
        message = (
            f"{self._memory} {found} under this process, which knows that {last.size} records were "
            "signed: find out by whom, keep everything as evidence and run `otel-audit verify`; "
            "when all is right there, restart this process"
        )
        raise TrailMismatchError(message)

    def _refuse_edge(self, tree: Tree) -> None:
        message = (
            f"{self._store.path} states a right edge of its tree that is not the one of its "
            f"{tree.size} records: it was changed, and would be signed with what was put in. Keep "
            "everything as evidence and run `otel-audit verify`; to go on recording, begin a new "
            "origin with `otel-audit new-origin`"
        )
        raise TrailMismatchError(message)

    def _refuse_other(self, tree: Tree, signed: Checkpoint, hash_at: merkle.HashAt) -> None:
        """Raise `TrailMismatchError` unless the signed tree is the beginning of this one.

        To compare the roots is not enough: the old one and the new one may be
        made of different tiles, which a consistency proof ties together.
        """
        if tree.size < signed.size:
            found = f"holds {tree.size} records"
        elif merkle.edge_root(merkle.edge_at(signed.size, hash_at)) != signed.root:
            found = f"has another root at {signed.size} records"
        else:
            proof = merkle.consistency_proof(signed.size, tree.size, hash_at)
            try:
                merkle.verify_consistency(signed.size, tree.size, signed.root, tree.root, proof)
            except ProofError:
                found = f"has a tree of {tree.size} records that does not continue what was signed"
            else:
                return
        message = (
            f"{self._store.path} {found}, but a checkpoint of {signed.size} records was signed "
            f"({self._memory}): an older copy was restored, or records were changed or removed. "
            "Keep everything as evidence and run `otel-audit verify`; to go on recording, begin "
            "a new origin with `otel-audit new-origin`"
        )
        raise TrailMismatchError(message)

    def _should_be_signed(self) -> bool:
        """Whether there are records for longer than their checkpoint takes."""
        try:
            first = self._reader.leaf(0)
            return first is not None and self._clock() - first.committed_unix_nano > OVERDUE_NANO
        except (apsw.Error, TrailError, TypeError, ValueError):  # damaged, and no reason to stop
            return True

    def _warn_without_memory(self) -> None:
        _logger.warning(
            "%s is missing, although checkpoints of this trail were signed, or should have been: "
            "nobody can tell here whether it is an older copy, or was changed. If it was restored "
            "from one, stop, and begin a new origin with `otel-audit new-origin`, so that no "
            "number is given twice. A process that was killed within its first second leaves a "
            "trail like this",
            self._memory,
        )

    def _sign(self) -> str:
        signed = self._remembered()
        tree = self.check(signed.checkpoint if signed else None)
        # Not after a time that only the database states: anybody may have written that.
        last = (signed.timestamp if signed else None) or 0
        now = max(self._clock(), last * _SECOND)
        checkpoint = Checkpoint(self._store.origin, tree.size, tree.root)
        note = sign(checkpoint, self.keys, now // _SECOND)
        self._remember(note)
        self._last = checkpoint
        self._store.add_checkpoint(tree.size, now, note)
        return note

    def _remembered(self) -> SignedCheckpoint | None:
        """Return what the file ``signed`` says; None where there is none."""
        try:
            text = self._memory.read_text("utf-8")
            origin = read_checkpoint(text).origin
            if origin == self._store.origin:
                return open_checkpoint(text, self.keys.verifiers())
            found = f"is of the trail {origin}, not of {self._store.origin}"
        except FileNotFoundError:
            return None
        except OSError as error:
            message = (
                f"{self._memory} cannot be read: {error.strerror}; it says up to where the trail "
                "was signed, and has to belong to the user that writes the trail"
            )
            raise TrailError(message) from error
        except ValueError as error:  # also of the decoding
            found = f"is damaged ({error})"
        message = (
            f"{self._memory} {found}: it says up to where the trail was signed. Keep it as "
            "evidence and run `otel-audit verify`; when all is right there, move it away"
        )
        raise TrailMismatchError(message)

    def _claim(self) -> None:
        """Write the public keys into the trail once; later they must be the same."""
        log_key, cosigner_key = self.keys.verifier_keys()
        claimed = self._reader.claimed_keys
        if claimed and claimed != (log_key, cosigner_key):
            message = (
                f"the signing key is {log_key}, but {self._store.path} was begun with "
                f"{claimed[0]}: put back the key that was made with the trail, or begin a new "
                "origin with `otel-audit new-origin`"
            )
            raise TrailKeyError(message)
        if not claimed:
            self._store.describe({"log_key": log_key, "cosigner_key": cosigner_key})

    def _remember(self, note: str) -> None:
        try:
            durable.write(self._memory, note.encode(), replace=True, for_owner=True)
        except OSError as error:
            message = (
                f"the checkpoint cannot be kept in {self._memory}: {error.strerror}; until it "
                "can, none is signed"
            )
            raise TrailError(message) from error


_signers: weakref.WeakSet[CheckpointSigner] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for signer in list(_signers):
        # The parent's may be held by a thread, such as the agent's, that is not here.
        signer._mutex = threading.Lock()  # noqa: SLF001 - same module
        signer._signing.clear()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork_in_child)
