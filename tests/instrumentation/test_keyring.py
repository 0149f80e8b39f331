"""The keyring library: every access is in the trail, and no value ever is."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

import keyring
import keyring.backends.fail
import keyring.errors
import pytest
from keyring import get_password
from keyring.backend import KeyringBackend

from otel_audit import AuditedKeyring, AuditUnavailableError
from otel_audit.instrumentation.keyring import KeyringInstrumentor
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.testing import AuditTrail

SECRET = "s3cret-value-of-nobody"


class Memory(KeyringBackend):
    """A backend in memory; a text beginning with ! makes it raise."""

    priority = 0.1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        if username == "!locked":
            raise keyring.errors.KeyringLocked(SECRET)
        if username == "!denied":
            raise PermissionError(SECRET)
        if username == "!broken":
            raise OSError(SECRET)
        return self.values.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.values[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.values.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError(SECRET)


@pytest.fixture
def backend() -> Iterator[Memory]:
    before = keyring.get_keyring()
    backend = Memory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


@pytest.fixture
def instrumented() -> Iterator[None]:
    instrumentor = KeyringInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


def said(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["event"], record["action"], record["outcome"], record.get("reason")


@pytest.mark.usefixtures("backend", "instrumented")
def test_every_access_is_recorded_without_its_value(trail: AuditTrail) -> None:
    keyring.set_password("hub", "github", SECRET)
    assert keyring.get_password("hub", "github") == SECRET
    assert get_password("hub", "github") == SECRET
    assert keyring.get_credential("hub", "github").password == SECRET  # type: ignore[union-attr]
    assert keyring.get_keyring().get_password("hub", "none") is None
    keyring.delete_password("hub", "github")
    records = trail.records()
    assert [said(record) for record in records] == [
        ("credential_modified", "modify", "success", None),
        ("credential_accessed", "read", "success", None),
        ("credential_accessed", "read", "success", None),
        ("credential_accessed", "read", "success", None),
        ("credential_not_found", "read", "unknown", None),
        ("credential_deleted", "delete", "success", None),
    ]
    first = records[0]
    assert (first["event_type"], first["resource_type"], first["resource_name"]) == (
        "credential_access", "credential", "hub/github",
    )  # fmt: skip
    assert (first["credential_key"], first["service"]) == ("github", "hub")
    assert first["backend"].endswith(".Memory")
    assert first["context"].endswith(":test_every_access_is_recorded_without_its_value")
    assert SECRET not in str(records)


@pytest.mark.usefixtures("backend", "instrumented")
@pytest.mark.parametrize(
    ("key", "kind", "event", "reason"),
    [
        ("!locked", keyring.errors.KeyringLocked, "credential_access_denied", "keyring_locked"),
        ("!denied", PermissionError, "credential_access_denied", "permission_denied"),
        ("!broken", OSError, "credential_access_error", "backend_error"),
    ],
)
def test_an_access_that_fails_is_recorded_and_raises(
    trail: AuditTrail, key: str, kind: type[Exception], event: str, reason: str
) -> None:
    with pytest.raises(kind):
        keyring.get_password("hub", key)
    record = trail.record(event=event)
    assert (record["reason"], record["outcome"], record["error"]) == (
        reason, "failure", kind.__name__,
    )  # fmt: skip
    assert SECRET not in str(record)


@pytest.mark.usefixtures("instrumented")
def test_without_a_keyring_the_access_is_denied(trail: AuditTrail, backend: Memory) -> None:
    keyring.set_keyring(keyring.backends.fail.Keyring())  # type: ignore[no-untyped-call]
    with pytest.raises(keyring.errors.NoKeyringError):
        keyring.get_password("hub", "github")
    assert trail.record(event="credential_access_denied")["reason"] == "keyring_unavailable"
    keyring.set_keyring(backend)
    with pytest.raises(keyring.errors.PasswordDeleteError):
        keyring.delete_password("hub", "none")
    assert trail.record(event="credential_access_error")["action"] == "delete"


def test_the_wrapper_alone(trail: AuditTrail, backend: Memory) -> None:
    wrapped = AuditedKeyring(context="payroll")
    assert isinstance(wrapped, KeyringBackend)
    keyring.set_keyring(wrapped)
    instrumentor = KeyringInstrumentor()
    instrumentor.instrument()
    try:
        keyring.set_password("hub", "github", SECRET)
    finally:
        instrumentor.uninstrument()
    assert backend.values == {("hub", "github"): SECRET}
    assert trail.record(event="credential_modified")["context"] == "payroll"


def test_uninstrumenting_restores_everything(trail: AuditTrail, backend: Memory) -> None:
    before = keyring.get_keyring, keyring.core.get_keyring
    instrumentor = KeyringInstrumentor()
    instrumentor.instrument()
    instrumentor.uninstrument()
    assert (keyring.get_keyring, keyring.core.get_keyring) == before
    assert keyring.get_keyring() is backend
    assert trail.records() == []


@pytest.mark.usefixtures("instrumented")
def test_no_value_is_given_out_without_a_record(backend: Memory) -> None:
    backend.values["hub", "github"] = SECRET
    with audit_trail(timeout=0.2) as trail:
        with (trail.directory / "lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(AuditUnavailableError):
                keyring.get_password("hub", "github")
        trail.provider.close()
        with pytest.raises(AuditUnavailableError):
            keyring.set_password("hub", "github", "changed")
    assert backend.values == {("hub", "github"): SECRET}
