"""The OTel Resource that records name: what their service is and where it ran."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Resource(NamedTuple):
    """An OTel Resource: its hash, which records name, and its JSON, stored once."""

    hash: str
    json: bytes

    @classmethod
    def of(cls, json: bytes) -> Resource:
        """Name a Resource by the first 32 hex digits of the SHA-256 of its JSON."""
        return cls(hashlib.sha256(json).hexdigest()[:32], json)
