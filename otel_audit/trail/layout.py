"""The names of all files in a trail's directory, whoever writes them.

`docs/operations.md` says what to do with each. SQLite keeps two more beside a
database, which `whole` names as well.
"""

from __future__ import annotations

from typing import Final

DATABASE: Final = "trail.db"
"""The trail."""

KEY: Final = "signing.key"
"""Its private keys, unless they are kept elsewhere."""

MEMORY: Final = "signed"
"""The last checkpoint that was signed here."""

SALT: Final = "session.salt"
"""What session ids are made unreadable with."""

CURSORS: Final = "cursors.db"
"""How far each reader has come."""

INDEX: Final = "index.db"
"""The index of queries, made from the trail and never needed."""

TOKENS: Final = "tokens.json"
"""Hashes of the tokens of those who may query over HTTP, where no other place is said."""

HEALTH: Final = "health"
"""One byte that is written to see whether it can be."""

LOCK: Final = "lock"
"""Held by the process that commits, for as long as that takes."""

AGENT_LOCK: Final = "agent.lock"
"""Held by the process that serves the trail, for as long as it does."""

SIGNER_LOCK: Final = "signed.lock"
"""Held by the process that signs: a key that is kept elsewhere may take its time."""

CONSOLE_LOCK: Final = "console.lock"
"""Held by the process that prints records."""

PREVIOUS: Final = "previous"
"""Where the trails before a new origin are kept, each in a directory of its own."""

NEXT: Final = ".next-origin"
"""Where a new trail is made before it takes its place."""


def whole(database: str) -> tuple[str, str, str]:
    """Return the names of a database, its write-ahead log, and its shared memory."""
    return database, f"{database}-wal", f"{database}-shm"
