"""One trail, opened for writing: store, reader, keys and signer together.

Promises: after `Trail.open` returned, records can be committed and signed; a
directory whose parts do not belong together, that a newer version wrote, or
whose key is missing or exposed, is refused with an error that says what to do.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from otel_audit.errors import TrailError, TrailKeyError
from otel_audit.trail.advice import readable
from otel_audit.trail.keys import TrailKeys, new_origin
from otel_audit.trail.layout import KEY
from otel_audit.trail.proof import prove
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.signer import CheckpointSigner
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Trail:
    """The parts of one trail, for whoever writes to it."""

    def __init__(self, store: TrailStore, reader: TrailReader, signer: CheckpointSigner) -> None:
        """Take the parts; `open` makes them."""
        self.store = store
        self.reader = reader
        self.signer = signer

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        service: str = "unknown_service",
        keys: TrailKeys | None = None,
        key_file: Path | None = None,
        timeout: float = 10.0,
        clock: Callable[[], int] = time.time_ns,
        vfs: str | None = None,
    ) -> Trail:
        """Open the trail in ``directory``; make it, and its key, on first use.

        ``keys`` or ``key_file`` stand for keys that are kept elsewhere, else
        they are in ``signing.key`` (mode 0600). ``service`` becomes part of a
        new trail's origin. Raises `TrailError` and its kinds.
        """
        if keys is None and key_file is not None:
            keys = TrailKeys.load(key_file)
        given = keys

        def origin() -> str:
            return given.origin if given else new_origin(service, socket.gethostname())

        store = TrailStore(directory, new_origin=origin, timeout=timeout, clock=clock, vfs=vfs)
        reader = None
        try:
            reader = TrailReader(directory)
            keys = keys or _own_keys(directory, store.origin, reader)
            _check_origin(keys, store)
            return cls(store, reader, CheckpointSigner(store, reader, keys, clock))
        except BaseException:
            if reader is not None:
                reader.close()
            store.close()
            raise

    @property
    def keys(self) -> TrailKeys:
        """The keys that sign this trail's checkpoints."""
        return self.signer.keys

    def sign_if_grown(self) -> str | None:
        """Sign a checkpoint if the last one does not cover all records."""
        with readable(self.store.path):
            last = self.reader.last_checkpoint()
            size = self.reader.tree().size
        if size == (last.size if last else 0):
            return None
        return self.signer.sign()

    def prove(self, sequence: int) -> str:
        """Return the C2SP tlog-proof of a record, signing a checkpoint when none covers it.

        Raises `TrailError`, or `ProofError` when the trail is damaged.
        """
        leaf = self.reader.leaf(sequence)
        if leaf is None:
            message = f"{self.store.path} has no record {sequence}"
            raise TrailError(message)
        last = self.reader.last_checkpoint()
        note = last.note if last and last.size > sequence else self.signer.sign()
        return prove(sequence, leaf.record, note, self.reader.hash_at).text()

    def close(self) -> None:
        """Close all parts."""
        self.reader.close()
        self.store.close()


def _check_origin(keys: TrailKeys, store: TrailStore) -> None:
    if keys.origin != store.origin:
        message = (
            f"the signing key belongs to {keys.origin}, the trail in {store.directory} is "
            f"{store.origin}: use the key that was made with this trail, or another directory "
            "for that key"
        )
        raise TrailKeyError(message)


def _own_keys(directory: Path, origin: str, reader: TrailReader) -> TrailKeys:
    path = directory / KEY
    if not path.exists() and reader.claimed_keys:
        message = (
            f"{path} is missing, but the trail has been signed with it: put it back from your "
            "backup. If it is lost for good, begin a new origin with `otel-audit new-origin`"
        )
        raise TrailKeyError(message)
    return TrailKeys.load_or_create(path, origin)
