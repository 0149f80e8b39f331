"""The keyring library: every access is in the trail, and no value ever is."""

from __future__ import annotations

import copy
import fcntl
from typing import TYPE_CHECKING, Any

import keyring
import keyring.backends.fail
import keyring.errors
import pytest
from keyring import get_password
from keyring.backend import KeyringBackend
from keyring.backends.chainer import ChainerBackend

from otel_audit import AuditedKeyring, AuditUnavailableError
from otel_audit.instrumentation.keyring import KeyringInstrumentor
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        if username == "!interrupted":
            raise KeyboardInterrupt
        return self.values.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.values[service, username] = password
        if username == "!ended":
            raise SystemExit(1)

    def delete_password(self, service: str, username: str) -> None:
        if self.values.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError(SECRET)


class Inherited(Memory):
    """Defines nothing itself, and has a way of its own to its parent's method."""

    def of(self, service: str) -> str | None:
        return super().get_password(service, "github")


class Lookup:
    """Is no backend, but has what makes one."""

    def get_password(self, service: str, username: str) -> str | None:
        return SECRET if (service, username) == ("hub", "github") else None


class Mixed(Lookup, Memory):
    """A backend whose method is defined by what is none."""


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


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    "way",
    [
        lambda backend: backend.with_properties(name="copy").get_password("hub", "github"),
        lambda backend: copy.copy(backend).get_password("hub", "github"),
        lambda backend: copy.deepcopy(backend).get_password("hub", "github"),
        lambda backend: Memory.get_password(backend, "hub", "github"),
        lambda backend: backend.get_password(username="github", service="hub"),
        lambda backend: backend.get_credential("hub", "github").password,
        lambda _backend: filled(Inherited()).get_password("hub", "github"),
        lambda _backend: inherited().of("hub"),
        lambda _backend: Mixed().get_password("hub", "github"),
        lambda _backend: filled(type("Late", (Memory,), {})()).get_password("hub", "github"),
        lambda backend: chained(backend).get_password("hub", "github"),
        lambda backend: AuditedKeyring(backend).get_password("hub", "github"),
        lambda backend: copy.copy(AuditedKeyring(backend)).get_password("hub", "github"),
    ],
    ids=[
        "with properties", "copied", "deeply copied", "by the class", "by keywords", "credential",
        "a subclass", "by super()", "a mixin", "a class made later", "chained", "wrapped",
        "wrapped and copied",
    ],
)  # fmt: skip
def test_each_way_to_a_value_is_recorded_once(
    trail: AuditTrail, backend: Memory, way: Callable[[Any], str]
) -> None:
    filled(backend)
    assert way(backend) == SECRET
    (record,) = trail.records()
    assert said(record) == ("credential_accessed", "read", "success", None)
    assert record["resource_name"] == "hub/github"
    assert record["context"].partition(":")[0] == __name__


def filled(backend: Memory) -> Memory:
    backend.values["hub", "github"] = SECRET
    return backend


def inherited() -> Inherited:
    backend = Inherited()
    filled(backend)
    return backend


def chained(backend: Memory) -> Any:
    class Chain(ChainerBackend):
        backends = (backend,)
        priority = 0.1

    return Chain()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("instrumented")
def test_another_credential_that_an_access_needs_is_recorded_as_well(
    trail: AuditTrail, backend: Memory
) -> None:
    class Locked(Memory):
        def get_password(self, service: str, username: str) -> str | None:
            return f"{backend.get_password('locked', 'key')}: {service}/{username}"

    assert Locked().get_password("hub", "github") == "None: hub/github"
    assert [record["resource_name"] for record in trail.records()] == ["locked/key", "hub/github"]


@pytest.mark.usefixtures("backend", "instrumented")
def test_an_access_that_is_interrupted_is_recorded_and_ends_as_it_would(
    trail: AuditTrail, backend: Memory
) -> None:
    with pytest.raises(KeyboardInterrupt):
        keyring.get_password("hub", "!interrupted")
    with pytest.raises(SystemExit):
        keyring.set_password("hub", "!ended", SECRET)
    assert backend.values == {("hub", "!ended"): SECRET}
    assert [said(record) for record in trail.records()] == [
        ("credential_access_interrupted", "read", "unknown", None),
        ("credential_access_interrupted", "modify", "unknown", None),
    ]
    assert trail.record(action="modify")["error"] == "SystemExit"


@pytest.mark.usefixtures("backend", "instrumented")
def test_an_interrupt_is_not_held_up_by_a_trail_that_takes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with audit_trail(timeout=0.2) as trail, (trail.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            keyring.set_password("hub", "!ended", SECRET)
    assert "what was interrupted is not confirmed" in caplog.text


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


def test_a_copy_of_the_wrapper_is_one(trail: AuditTrail, backend: Memory) -> None:
    wrapped = AuditedKeyring(filled(backend), context="payroll")
    copies = [wrapped.with_properties(label="x"), copy.copy(wrapped), copy.deepcopy(wrapped)]
    for each in copies:
        assert each.__wrapped__ is not backend
        assert isinstance(each, KeyringBackend)
        assert each.get_password("hub", "github") == SECRET
    assert copies[0].label == "x"
    assert [record["context"] for record in trail.records()] == ["payroll"] * 3


def test_uninstrumenting_restores_everything(trail: AuditTrail, backend: Memory) -> None:
    classes = KeyringBackend, Memory, Mixed, type(KeyringBackend)
    before = [dict(vars(each)) for each in classes]
    instrumentor = KeyringInstrumentor()
    instrumentor.instrument()
    from keyring import get_keyring

    method = backend.get_password
    late: Any = type("Late", (Memory,), {})
    assert [dict(vars(each)) for each in classes] != before
    instrumentor.uninstrument()
    assert [dict(vars(each)) for each in classes] == before
    assert keyring.get_keyring() is get_keyring() is backend
    get_keyring().get_password("hub", "github")
    method("hub", "github")
    late().set_password("hub", "github", SECRET)
    assert trail.records() == []


def test_what_was_replaced_since_stays(trail: AuditTrail) -> None:
    class Replaced(Memory):
        def get_password(self, service: str, username: str) -> str | None:
            raise AssertionError(service, username)

    instrumentor = KeyringInstrumentor()
    instrumentor.instrument()
    Replaced.get_password = lambda *_: "theirs"  # type: ignore[method-assign]
    instrumentor.uninstrument()
    assert Replaced().get_password("hub", "github") == "theirs"
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


@pytest.mark.usefixtures("instrumented")
async def test_nor_in_an_event_loop(backend: Memory) -> None:
    filled(backend)
    with audit_trail() as trail:
        assert keyring.get_password("hub", "github") == SECRET
        with trail.provider.reader() as reader:
            assert reader.tree().size == 1
    with audit_trail(timeout=0.2) as trail, (trail.directory / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AuditUnavailableError):
            keyring.get_password("hub", "github")
