"""How a session is named in records: so that one can follow it, and nobody can take it over.

Promises: the same session of the same trail has the same name, whichever
process writes it; who has the records cannot tell the session's id.
"""

from __future__ import annotations

import hmac
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def session_salt(directory: Path) -> bytes:
    """Read the trail's salt, or make it: atomically, as several processes may come first."""
    path = directory / "session.salt"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()


def hashed_session(salt: bytes, session_id: str) -> str:
    """Return the form in which a session id is stored: 32 hex digits of an HMAC-SHA256."""
    return hmac.new(salt, session_id.encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:32]
