"""Credentials of MCP servers, through the `keyring` library.

Promises: a value is at rest only as Fernet's cipher text in the data
directory, the user's real keyring is never asked, every access - granted or
not - is in the trail, and no value ever is. Who may access is app.py's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import keyring
import keyring.errors
from cryptography.fernet import Fernet
from keyring.backend import KeyringBackend

from otel_audit import audited, events

SERVICE: Final = "agenthub"


class CredentialMissingError(LookupError):
    """No credential is stored for this server."""

    def __init__(self, server: str) -> None:
        super().__init__(f"no credential is stored for {server!r}")


class FileKeyring(KeyringBackend):
    """A keyring in one file of encrypted values, safe for several processes."""

    priority = 0.1  # never chosen by itself

    def __init__(self, directory: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # keyring has no annotations here
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = directory / "keyring.lock"
        self._values = directory / "keyring.json"
        with self._exclusive():
            key = directory / "keyring.key"
            if not key.exists():
                _write_private(key, Fernet.generate_key())
            self._fernet = Fernet(key.read_bytes())

    def get_password(self, service: str, username: str) -> str | None:
        """Return the value, or None."""
        entry = f"{service}/{username}"
        with self._exclusive():
            token = self._load().get(entry)
        if token is None:
            return None
        name, _, value = self._fernet.decrypt(token).decode().partition("\n")
        if name != entry:
            message = f"the value of {entry} was put there from {name}: the keyring was changed"
            raise keyring.errors.KeyringError(message)
        return value

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the value, instead of an older one."""
        entry = f"{service}/{username}"
        # The name is encrypted along, so that a value counts under its own name only.
        token = self._fernet.encrypt(f"{entry}\n{password}".encode()).decode()
        with self._exclusive():
            self._save({**self._load(), entry: token})

    def delete_password(self, service: str, username: str) -> None:
        """Forget the value; raises keyring's `PasswordDeleteError` when there is none."""
        with self._exclusive():
            values = self._load()
            if values.pop(f"{service}/{username}", None) is None:
                message = f"nothing is stored for {username}"
                raise keyring.errors.PasswordDeleteError(message)
            self._save(values)

    def knows(self, service: str, username: str) -> bool:
        """Tell whether there is a value, without decrypting it."""
        with self._exclusive():
            return f"{service}/{username}" in self._load()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Opened anew each time: flock excludes open files, so threads exclude each other too.
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _load(self) -> dict[str, str]:
        if not self._values.exists():
            return {}
        values: dict[str, str] = json.loads(self._values.read_bytes())
        return values

    def _save(self, values: dict[str, str]) -> None:
        _write_private(self._values, json.dumps(values).encode())


class Vault:
    """One credential for each server, each access in the trail."""

    def __init__(self, directory: Path) -> None:
        self._keyring = FileKeyring(directory)
        keyring.set_keyring(self._keyring)

    @audited(
        events.CREDENTIAL_ACCESS, "store", resource_type="credential", resource_name="{server}"
    )
    def store(self, server: str, value: str) -> None:
        """Keep the server's credential, instead of an older one."""
        keyring.set_password(SERVICE, server, value)

    @audited(
        events.CREDENTIAL_ACCESS,
        "read",
        resource_type="credential",
        resource_name="{server}",
        capture=("purpose",),
    )
    def read(self, server: str, purpose: str) -> str:  # noqa: ARG002 - the purpose is for the record
        """Return the credential; raises `CredentialMissingError`."""
        value = keyring.get_password(SERVICE, server)
        if value is None:
            raise CredentialMissingError(server)
        return value

    @audited(
        events.CREDENTIAL_ACCESS, "delete", resource_type="credential", resource_name="{server}"
    )
    def delete(self, server: str) -> None:
        """Forget the credential; raises `CredentialMissingError`."""
        try:
            keyring.delete_password(SERVICE, server)
        except keyring.errors.PasswordDeleteError:
            raise CredentialMissingError(server) from None

    def holds(self, server: str) -> bool:
        """Tell whether there is a credential, without touching its value."""
        return self._keyring.knows(SERVICE, server)


def _write_private(path: Path, content: bytes) -> None:
    """Replace the file at once, so that a crash leaves the old one or the new one."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
