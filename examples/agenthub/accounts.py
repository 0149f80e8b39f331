"""Who may come in, and what each role may do.

Promises: a password is stored as scrypt's hash only; an account is locked
after too many failures in a row; a session's token is stored as a hash; and
every login, log-out, lock-out and change of privilege is in the trail, with
the reason when it failed. Which route needs which permission is app.py's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from examples.agenthub.config import Config
from examples.agenthub.store import Store
from otel_audit import audit_span, events, get_audit_logger, set_actor

audit = get_audit_logger(__name__)

# RFC 7914: 16 MiB and about 50 ms a guess.
SCRYPT_COST: Final = {"n": 2**14, "r": 8, "p": 1}


class Role(str, Enum):
    """What somebody is here for."""

    ADMIN = "admin"
    OPERATOR = "operator"
    STEWARD = "steward"
    AUDITOR = "auditor"


PERMISSIONS: Final[dict[Role, frozenset[str]]] = {
    Role.ADMIN: frozenset({"servers", "credentials", "members", "users", "trail"}),
    Role.OPERATOR: frozenset({"servers", "credentials"}),
    Role.STEWARD: frozenset({"members"}),
    Role.AUDITOR: frozenset({"trail"}),
}


@dataclass(frozen=True)
class User:
    """Somebody who has an account."""

    name: str
    role: Role
    locked: bool = False

    def may(self, permission: str) -> bool:
        """Tell whether the user's role has the permission."""
        return permission in PERMISSIONS[self.role]


class LoginError(Exception):
    """The login was refused; ``reason`` is for the trail, not for the one who tries."""

    def __init__(self, reason: str, *, locked: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.locked = locked


class AccountError(Exception):
    """The account does not exist, or exists already."""


class Accounts:
    """The tables users and sessions."""

    def __init__(
        self, store: Store, config: Config, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        # An unknown name costs as much time as a wrong password, so that nobody can probe names.
        self._nobody = hash_password(secrets.token_hex())

    def login(self, name: str, password: str) -> str:
        """Return the token of a new session; raises `LoginError`.

        The actor of the request is set only after the password was checked:
        until then the name is a claim.
        """
        with self._store.read() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
        correct = check_password(password, row["password"] if row else self._nobody)
        # People type passwords into the wrong box: a name is recorded only if an account has it.
        account = row["name"] if row else "(unknown account)"
        if (refusal := self._count_attempt(account, correct=correct)) is not None:
            self._record_refusal(account, refusal)
            raise refusal
        set_actor(name)
        token = self._open_session(name)
        _record_authentication("login", name, "success", method="password")
        return token

    def logout(self, token: str, user: User) -> None:
        """End the session."""
        with self._store.write() as connection:
            connection.execute("DELETE FROM sessions WHERE token_hash = ?", (_digest(token),))
        _record_authentication("logout", user.name, "success", method="session")

    def user_of(self, token: str) -> User | None:
        """Return whose session it is, or None when it is over."""
        with self._store.read() as connection:
            row = connection.execute(
                "SELECT users.* FROM sessions JOIN users ON users.name = sessions.user"
                " WHERE token_hash = ? AND expires > ?",
                (_digest(token), self._clock()),
            ).fetchone()
        return self._user(row) if row else None

    def users(self) -> list[User]:
        """Return all users, by name."""
        with self._store.read() as connection:
            rows = connection.execute("SELECT * FROM users ORDER BY name").fetchall()
        return [self._user(row) for row in rows]

    def create(self, name: str, password: str, role: Role, reason: str) -> User:
        """Add an account; raises `AccountError` when the name is taken."""
        with audit_span(
            events.PRIVILEGE_CHANGE,
            "create_user",
            resource_type="account",
            resource_name=name,
            privilege=role,
            reason=reason,
        ):
            try:
                with self._store.write() as connection:
                    connection.execute(
                        "INSERT INTO users (name, password, role) VALUES (?, ?, ?)",
                        (name, hash_password(password), role.value),
                    )
            except sqlite3.IntegrityError:
                message = f"an account named {name!r} exists already"
                raise AccountError(message) from None
        return User(name, role)

    def set_role(self, name: str, role: Role, reason: str) -> User:
        """Give a user another role, from the next request on; raises `AccountError`."""
        old = self._existing(name).role
        with audit_span(
            events.PRIVILEGE_CHANGE,
            "change_role",
            resource_type="account",
            resource_name=name,
            privilege=role,
            former_privilege=old,
            reason=reason,
        ):
            self._update(name, "role = ?", role.value)
        return User(name, role)

    def set_password(self, name: str, password: str, reason: str) -> None:
        """Replace a password and end the account's sessions; raises `AccountError`."""
        self._existing(name)
        with audit_span(
            events.ADMIN_ACTION,
            "reset_password",
            resource_type="account",
            resource_name=name,
            reason=reason,
        ):
            self._update(
                name, "failures = 0, locked_until = 0, password = ?", hash_password(password)
            )
            with self._store.write() as connection:
                connection.execute("DELETE FROM sessions WHERE user = ?", (name,))

    def unlock(self, name: str, reason: str) -> User:
        """Let a locked-out user try again; raises `AccountError`."""
        user = self._existing(name)
        with audit_span(
            events.ADMIN_ACTION,
            "unlock_account",
            resource_type="account",
            resource_name=name,
            reason=reason,
        ):
            self._update(name, "failures = 0, locked_until = ?", 0.0)
        return User(name, user.role)

    def _count_attempt(self, name: str, *, correct: bool) -> LoginError | None:
        """Decide and count in one transaction, so that guesses made in parallel all count."""
        now = self._clock()
        with self._store.write() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
            if row is None:
                return LoginError("unknown account")
            if row["locked_until"] > now:
                return LoginError("account is locked")
            failures = 0 if correct else row["failures"] + 1
            locked = failures >= self._config.attempts
            connection.execute(
                "UPDATE users SET failures = ?, locked_until = ? WHERE name = ?",
                (0 if locked else failures, now + self._config.lock_seconds if locked else 0, name),
            )
        return None if correct else LoginError("wrong password", locked=locked)

    def _record_refusal(self, account: str, refusal: LoginError) -> None:
        _record_authentication("login", account, "failed", method="password", error=refusal.reason)
        if refusal.locked:
            audit.log_security_event(
                event_type="account_locked",
                severity="warning",
                description=f"{account} is locked after {self._config.attempts} failures in a row",
                user_id=account,
            )

    def _open_session(self, name: str) -> str:
        token = secrets.token_urlsafe(32)
        expires = self._clock() + self._config.session_seconds
        with self._store.write() as connection:
            connection.execute("DELETE FROM sessions WHERE expires < ?", (self._clock(),))
            connection.execute(
                "INSERT INTO sessions (token_hash, user, expires) VALUES (?, ?, ?)",
                (_digest(token), name, expires),
            )
        return token

    def _existing(self, name: str) -> User:
        with self._store.read() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
        if row is None:
            message = f"there is no account named {name!r}"
            raise AccountError(message)
        return self._user(row)

    def _update(self, name: str, assignment: str, value: object) -> None:
        with self._store.write() as connection:
            connection.execute(f"UPDATE users SET {assignment} WHERE name = ?", (value, name))  # noqa: S608 - the assignment is a literal of this class

    def _user(self, row: sqlite3.Row) -> User:
        return User(row["name"], Role(row["role"]), locked=row["locked_until"] > self._clock())


def hash_password(password: str) -> str:
    """Return salt and hash, as `check_password` takes them."""
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **SCRYPT_COST).hex()}"


def check_password(password: str, stored: str) -> bool:
    """Compare in constant time."""
    salt, _, expected = stored.partition("$")
    actual = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **SCRYPT_COST)
    return hmac.compare_digest(actual, bytes.fromhex(expected))


def _record_authentication(
    action: str, account: str, status: str, *, method: str, error: str | None = None
) -> None:
    audit.audit_event(
        events.AUTHENTICATION,
        action,
        "account",
        account,
        status,
        error=error,
        user_id=account,
        method=method,
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
