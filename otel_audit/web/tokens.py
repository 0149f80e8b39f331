"""Bearer tokens in a file: made, listed and revoked by `otel-audit token`.

Promises: the file holds no token, only the SHA-256 of its secret part, which is
256 random bits, so that no slower hash is needed; who reads the file cannot
query. A token is compared in constant time, also one that is unknown. Changes
of the file count from the next request on, in all workers. A file that others
could write is not believed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from otel_audit.errors import AuditSettingsError
from otel_audit.trail import durable
from otel_audit.web.access import Access, RefusedError, bearer, checked_scopes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from otel_audit.web.asgi import Scope

_PREFIX: Final = "oat"
_TOKEN: Final = re.compile(rf"{_PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")
_NOBODY: Final = hashlib.sha256(b"no token has this hash").hexdigest()
_LONGEST_NAME: Final = 128


@dataclass(frozen=True, slots=True)
class Token:
    """What the file knows of one token; times are seconds since 1970, None for never."""

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created: int
    expires: int | None = None
    revoked: int | None = None

    def state(self, now: float) -> str:
        """Return active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


class TokenFile:
    """The tokens of one file; usable from several processes."""

    def __init__(self, path: Path) -> None:
        """Remember where it is, or will be."""
        self.path = path
        self._read: tuple[tuple[int, int, int, int], dict[str, Token]] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    def tokens(self) -> list[Token]:
        """Return all tokens, also those that hold no more. Raises `AuditSettingsError`."""
        return list(self._known().values())

    def create(
        self, name: str, scopes: Iterable[str], *, seconds: float | None = None
    ) -> tuple[str, Token]:
        """Make a token that holds for ``seconds``; return it, which is not kept, and its entry.

        Raises `AuditSettingsError`.
        """
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            message = "a token needs the name of whoever gets it: 1 to 128 printable characters"
            raise AuditSettingsError(message)
        given = tuple(dict.fromkeys(checked_scopes(scopes)))
        now = int(time.time())
        secret = secrets.token_urlsafe(32)
        with self._changing() as tokens:
            identifier = secrets.token_hex(6)
            token = Token(
                identifier,
                name,
                _hash(secret),
                given,
                now,
                None if seconds is None else now + int(seconds),
            )
            tokens[identifier] = token
        return f"{_PREFIX}_{identifier}_{secret}", token

    def revoke(self, name: str) -> list[Token]:
        """Revoke the token with this id, or those with this name that hold; return them.

        Raises `AuditSettingsError`.
        """
        now = time.time()
        revoked = []
        with self._changing() as tokens:
            for token in list(tokens.values()):
                if token.id == name or (token.name == name and token.state(now) == "active"):
                    tokens[token.id] = replace(token, revoked=token.revoked or int(now))
                    revoked.append(tokens[token.id])
        return revoked

    async def __call__(self, scope: Scope) -> Access | None:
        """Recognise who asks (an `Authorize`)."""
        text = bearer(scope)
        return None if text is None else self.check(text)

    def check(self, text: str) -> Access:
        """Return whose token this is. Raises `RefusedError` and `AuditSettingsError`."""
        match = _TOKEN.fullmatch(text)
        identifier, secret = match.groups() if match else ("", "")
        token = self._known().get(identifier)
        # The same work for a token that is unknown, so that its time says nothing.
        right = hmac.compare_digest(_hash(secret), token.hash if token else _NOBODY)
        if token is None or not right:
            message = "this token is not known here"
            raise RefusedError(message)
        state = token.state(time.time())
        if state != "active":
            message = f"this token is {state}: ask whoever gave it to you for a new one"
            raise RefusedError(message)
        return Access(token.name, frozenset(token.scopes))

    def _known(self) -> dict[str, Token]:
        """Read the file, if it changed since it was read."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise AuditSettingsError(self._unusable(str(error.strerror))) from error
        seen = (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
        if self._read is None or self._read[0] != seen:
            self._read = (seen, self._parsed(status))
        return self._read[1]

    def _parsed(self, status: os.stat_result) -> dict[str, Token]:
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AuditSettingsError(self._unusable("others can write it: chmod 600"))
        if status.st_uid not in (0, os.geteuid()):
            raise AuditSettingsError(self._unusable("it belongs to another user: chown it"))
        try:
            rows: list[dict[str, Any]] = orjson.loads(self.path.read_bytes())["tokens"]
            tokens = [Token(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AuditSettingsError(self._unusable(str(error))) from error
        return {token.id: token for token in tokens}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """Give the tokens to be changed, and replace the file by them, one process at a time."""
        try:
            lock = os.open(
                self.path.with_name(f"{self.path.name}.lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
        except OSError as error:
            raise AuditSettingsError(self._unusable(str(error.strerror))) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = dict(self._known())
            yield tokens
            self._write(tokens)
        finally:
            os.close(lock)

    def _write(self, tokens: dict[str, Token]) -> None:
        content = {"version": 1, "tokens": [asdict(token) for token in tokens.values()]}
        text = orjson.dumps(content, option=orjson.OPT_INDENT_2)
        durable.write(self.path, text, replace=True)

    def _unusable(self, why: str) -> str:
        return f"the tokens in {self.path} cannot be used: {why}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
