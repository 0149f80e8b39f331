"""The parts of the hub, put together once for each process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from examples.agenthub.accounts import Accounts, Role
from examples.agenthub.config import Config, ConfigError
from examples.agenthub.hub import Hub
from examples.agenthub.members import Members
from examples.agenthub.store import Store
from examples.agenthub.trail import Trail
from examples.agenthub.vault import Vault
from otel_audit import Settings, configure

DEMO_USERS: Final = {
    "ada": Role.ADMIN,
    "olga": Role.OPERATOR,
    "stef": Role.STEWARD,
    "aurel": Role.AUDITOR,
}


@dataclass(frozen=True)
class Services:
    """What routes work with."""

    accounts: Accounts
    members: Members
    vault: Vault
    hub: Hub
    trail: Trail

    @classmethod
    def build(cls, config: Config) -> Services:
        """Open everything that lies in the data directory, and the audit trail first.

        Raises `ConfigError` where there cannot be such a directory.
        """
        try:
            config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Wherever it lies, git is to leave it alone: it holds keys, records and databases.
            (config.data / ".gitignore").write_text("*\n")
        except OSError as error:
            message = (
                f"AGENTHUB_DATA={str(config.data)!r} cannot be used: {error.strerror}; name a "
                "directory that can be made and written"
            )
            raise ConfigError(message) from None
        # The environment wins over what suits a demo.
        defaults = {"LOG_DIR": str(config.logs), "OTEL_SERVICE_NAME": "agenthub"}
        provider = configure(Settings.from_env({**defaults, **os.environ}))
        store = Store(config.data / "hub.db")
        vault = Vault(config.data / "vault")
        return cls(
            accounts=Accounts(store, config),
            members=Members(store),
            vault=vault,
            hub=Hub(store, vault, config.data / "servers"),
            trail=Trail(provider),
        )

    def add_demo_data(self, password: str) -> bool:
        """Fill an empty hub; False when it has users already."""
        if self.accounts.users():
            return False
        for name, role in DEMO_USERS.items():
            self.accounts.create(name, password, role, "demo account of a new hub")
        self.hub.add_demo_servers()
        self.members.add_demo_members()
        return True

    def reset_demo_password(self, password: str) -> None:
        """Give all demo users a new password."""
        existing = {user.name for user in self.accounts.users()}
        for name in DEMO_USERS.keys() & existing:
            self.accounts.set_password(name, password, "new demo password asked for")
