"""How a session is named in records: so that one can follow it, and nobody can take it over.

Promises: the same session of the same trail has the same name, whichever
process writes it; who has the records cannot tell the session's id.
"""

from __future__ import annotations

import hmac
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from otel_audit.trail import durable
from otel_audit.trail.layout import SALT

if TYPE_CHECKING:
    from pathlib import Path


def session_salt(directory: Path) -> bytes:
    """Read the trail's salt, or make it: only once, as several processes may come first."""
    path = directory / SALT
    if not path.exists():
        with suppress(FileExistsError):
            durable.write(path, secrets.token_bytes(32), replace=False)
    return path.read_bytes()


def hashed_session(salt: bytes, session_id: str) -> str:
    """Return the form in which a session id is stored: 32 hex digits of an HMAC-SHA256."""
    return hmac.new(salt, session_id.encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:32]
