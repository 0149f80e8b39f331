"""The provider: what it says aloud, what a failure does, and who shares which trail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import otel_audit
from otel_audit.api.current import configure, get_audit_provider, is_configured, provider_for, reset
from otel_audit.api.logger import AuditLogger, get_audit_logger
from otel_audit.api.policy import Policy, Rule
from otel_audit.api.provider import AuditProvider
from otel_audit.api.receipt import AuditReceipt
from otel_audit.errors import (
    AuditBackpressureError,
    AuditClosedError,
    AuditSettingsError,
    AuditUnavailableError,
    ProofError,
    TrailError,
    TrailKeyError,
)
from otel_audit.record.event import AuditEvent
from otel_audit.record.redact import Redactor
from otel_audit.settings import Settings
from otel_audit.trail import proof
from otel_audit.trail.checkpoint import read_checkpoint
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.lock import FileLock
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENT = AuditEvent("order", "create")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trail"


@pytest.fixture
def make(directory: Path) -> Iterator[Callable[..., AuditProvider]]:
    """Make a provider on ``directory``, without an agent; ``parts`` go to it, the rest are settings."""
    made = []

    def make_one(parts: dict[str, Any] | None = None, **settings: Any) -> AuditProvider:
        settings = {"directory": directory, "agent": "off", "timeout": 0.15, **settings}
        made.append(AuditProvider(Settings.from_env(**settings), **parts or {}))
        return made[-1]

    yield make_one
    for provider in made:
        provider.close()


@pytest.fixture
def provider(make: Callable[..., AuditProvider]) -> AuditProvider:
    return make()


def emit(provider: AuditProvider, event: AuditEvent = EVENT) -> AuditReceipt:
    receipt = AuditLogger(provider=provider).emit(event)
    assert isinstance(receipt, AuditReceipt)
    return receipt


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep the writers' lock, as a stopped process would: the trail takes no records."""
    lock = FileLock(directory / "lock")
    assert lock.try_acquire()
    try:
        yield
    finally:
        lock.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def run(program: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What it says aloud


def test_the_default_directory_is_named_once_on_stderr(
    isolated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = configure(agent="off", service_name="shop")
    for _ in range(3):
        get_audit_logger().emit(EVENT)
    assert provider.directory == isolated / "state" / "otel-audit" / "shop"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"otel-audit: the audit trail is in {provider.directory} (set LOG_DIR or "
        "OTEL_AUDIT_DIR to choose)\n"
    )


@pytest.mark.parametrize("name", ["directory", "log_dir"])
def test_a_directory_that_was_chosen_is_not_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    chosen: dict[str, Any] = {name: tmp_path / "chosen"}
    configure(agent="off", **chosen)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_daemon_whose_stderr_is_closed_or_full_audits_all_the_same(redirection: str) -> None:
    program = (
        "import otel_audit\n"
        "otel_audit.configure(agent='off')\n"
        "print(bool(otel_audit.get_audit_logger().info('order', 'create')))"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, program],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True\n"


async def test_disabled_is_loud_and_its_receipts_are_false(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DISABLED", "true")
    provider = configure(directory=directory)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"NOTHING is audited in process {os.getpid()}" in caplog.text
    for receipt in (await get_audit_logger().emit(EVENT), await get_audit_logger().aemit(EVENT)):
        assert not receipt
        assert receipt.sequence_number == -1
        with pytest.raises(ProofError, match="was not stored"):
            receipt.proof()
    assert provider.disabled
    assert provider.flush()
    assert provider.refusal() is None
    assert provider.statistics == {"not_recorded": 0}
    with pytest.raises(AuditClosedError, match="OTEL_AUDIT_DISABLED is set"):
        provider.checkpoint()
    provider.close()


def test_disabled_makes_no_directory(make: Callable[..., AuditProvider], directory: Path) -> None:
    assert not emit(make(disabled=True))
    assert not directory.exists()


def test_a_setting_that_does_not_exist_is_warned_about(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_ON_FAILUER", "shutdown")
    monkeypatch.setenv("OTEL_AUDIT_ZZZZZ", "1")
    for _ in range(2):  # as an application that makes another provider for its start
        configure(directory=directory, agent="off")
    misspelt, unlike = (record.message for record in caplog.records)
    what = "is not a setting of otel-audit"
    assert misspelt == f"OTEL_AUDIT_ON_FAILUER {what}; did you mean OTEL_AUDIT_ON_FAILURE?"
    assert unlike == f"OTEL_AUDIT_ZZZZZ {what}; unset it, if nothing else reads it"


# What a failure does


def test_fail_raises_names_the_record_and_goes_on_afterwards(
    provider: AuditProvider, directory: Path
) -> None:
    with held(directory), pytest.raises(AuditUnavailableError, match="is not confirmed") as caught:
        emit(provider)
    assert caught.value.record_id
    assert caught.value.record_id in str(caught.value)
    assert "the policy" not in str(caught.value)
    assert emit(provider).sequence_number == 0


def test_continue_counts_and_logs_and_gives_a_false_receipt(
    make: Callable[..., AuditProvider], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = make(on_failure="continue")
    with held(directory):
        receipt = emit(provider)
    assert not receipt
    assert provider.statistics["not_recorded"] == 1
    told = [record for record in caplog.records if "the policy says continue" in record.message]
    assert [record.levelno for record in told] == [logging.ERROR]
    assert receipt.record_id in told[0].message
    assert emit(provider)


async def test_continue_holds_for_a_coroutine_too(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    provider = make(on_failure="continue")
    with held(directory):
        assert not await AuditLogger(provider=provider).aemit(EVENT)
    assert provider.statistics["not_recorded"] == 1


def test_a_rule_decides_for_its_event_only(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    provider = make({"policy": Policy(rules=(Rule(event="metric", on_failure="continue"),))})
    with held(directory):
        assert not emit(provider, AuditEvent("metric", "read"))
        with pytest.raises(AuditUnavailableError):
            emit(provider)


_SHUTDOWN = """
import asyncio, signal, sys
from pathlib import Path
from otel_audit import AuditUnavailableError, configure, get_audit_logger
from otel_audit.trail.lock import FileLock
directory, how = Path(sys.argv[1]), sys.argv[2]
configure(directory=directory, agent="off", timeout=0.2, on_failure="shutdown")
lock = FileLock(directory / "lock")
lock.acquire(1.0)
if how == "handled":
    signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
async def forget():
    get_audit_logger().info("order", "create")
    await asyncio.sleep(20)
try:
    if how == "forgotten":
        asyncio.run(forget())
    get_audit_logger().info("order", "create")
except AuditUnavailableError:
    print("raised", flush=True)
"""


def test_shutdown_sends_sigterm_to_the_process_itself(directory: Path) -> None:
    done = run(_SHUTDOWN, directory, "default")
    assert done.returncode == -signal.SIGTERM
    assert "the policy says shutdown" in done.stderr


def test_shutdown_is_orderly_where_sigterm_is_handled_and_the_caller_is_told(
    directory: Path,
) -> None:
    assert run(_SHUTDOWN, directory, "handled").stdout == "asked to end\nraised\n"


def test_shutdown_also_when_nobody_awaits_the_receipt(directory: Path) -> None:
    assert run(_SHUTDOWN, directory, "forgotten").returncode == -signal.SIGTERM


def test_refusal_says_why_while_it_is_broken_and_heals_by_itself(
    provider: AuditProvider, directory: Path
) -> None:
    assert provider.refusal() is None
    with held(directory):
        with pytest.raises(AuditUnavailableError):
            emit(provider)
        began = time.monotonic()
        refusals = [provider.refusal() for _ in range(100)]
        assert time.monotonic() - began < 5.0, "100 time-outs are 15 s"
        refusal = refusals[0]
        assert isinstance(refusal, AuditUnavailableError)
        assert f"held for 0.15 s by process {os.getpid()}" in str(refusal)
        assert provider.statistics["failed"] == 1
    wait_until(lambda: provider.refusal() is None)
    assert provider.statistics["committed"] == 0
    assert emit(provider).sequence_number == 0


async def test_a_receipt_that_nobody_awaits_is_counted_and_logged_when_it_fails(
    provider: AuditProvider, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with held(directory):
        forgotten = AuditLogger(provider=provider).emit(EVENT)
        await _until(lambda: provider.statistics["not_recorded"] == 1)
    assert "nobody awaits their receipts" in caplog.text
    assert forgotten.record_id in caplog.text


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def test_back_pressure_is_an_error_of_its_own_and_is_counted(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    provider = make(queue_size=3, timeout=5.0)
    audit = AuditLogger(provider=provider)
    with held(directory):
        receipts = [audit.emit(EVENT) for _ in range(3)]
        with pytest.raises(AuditBackpressureError, match="OTEL_AUDIT_QUEUE_SIZE") as caught:
            audit.emit(EVENT)
        assert caught.value.record_id
        assert provider.statistics["waiting"] == 3
    assert [(await receipt).sequence_number for receipt in receipts] == [0, 1, 2]
    assert provider.statistics["refused"] == 1


def test_statistics_count_each_record_once(provider: AuditProvider, directory: Path) -> None:
    for _ in range(3):
        emit(provider)
    with held(directory), pytest.raises(AuditUnavailableError):
        emit(provider)
    assert provider.statistics == {
        "not_recorded": 0,
        "committed": 3,
        "failed": 1,
        "refused": 0,
        "groups": 4,
        "waiting": 0,
    }


def test_a_closed_provider_refuses(provider: AuditProvider) -> None:
    provider.close()
    provider.close()
    with pytest.raises(AuditClosedError, match=r"configure\(\) a new one"):
        emit(provider)
    assert isinstance(provider.refusal(), AuditClosedError)


# Who shares what


def test_two_providers_on_one_directory_share_its_trail(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    first, second = make(), make()
    taken = [emit(second if number % 3 else first).sequence_number for number in range(30)]
    assert taken == list(range(30))
    assert first.keys.verifier_keys() == second.keys.verifier_keys()
    first.checkpoint()
    second.checkpoint()
    with TrailReader(directory) as reader:
        report = verify(reader)
    assert report.ok
    assert (report.size, report.covered, report.checkpoints) == (30, 30, 2)


def test_two_providers_close_one_after_the_other(make: Callable[..., AuditProvider]) -> None:
    first, second = make(), make()
    emit(first)
    first.close()
    assert emit(second).sequence_number == 1


def test_configure_again_closes_the_former_and_loggers_follow(tmp_path: Path) -> None:
    audit = get_audit_logger("shop")
    former = configure(directory=tmp_path / "a", agent="off")
    assert audit.provider is former
    latter = configure(directory=tmp_path / "b", agent="off")
    assert former.closed
    assert not latter.closed
    assert audit.provider is latter
    assert emit(latter).sequence_number == 0
    with pytest.raises(AuditClosedError):
        emit(former)


def test_configure_takes_policy_rules_and_keys_of_the_application(tmp_path: Path) -> None:
    keys = TrailKeys.generate("svc.example/1")
    provider = configure(
        log_dir=tmp_path,
        agent="off",
        policy=Policy(rules=(Rule(event="noise", record=False),)),
        redactor=Redactor(keys=["nickname"]),
        keys=keys,
    )
    audit = get_audit_logger()
    assert not audit.log_event("noise", "a")
    assert audit.log_event("login", "a", nickname="Bo")
    assert provider.keys.origin == "svc.example/1"
    with provider.reader() as reader:
        (leaf,) = reader.leaves()
    assert b'"nickname":"[REDACTED]"' in leaf.record


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("settings", "log_dir="),
        ("policy", "policy_file="),
        ("redactor", r"Redactor\(keys="),
        ("keys", "signing_key_file="),
    ],
)
def test_what_is_no_object_of_its_kind_is_refused_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "logs"))
    given: Any
    for given in ("p.yaml", "", Path("p.yaml"), 5):
        for call in (configure, AuditProvider):
            with pytest.raises(AuditSettingsError, match=f"^{name}= cannot be used: .*{remedy}"):
                call(**{name: given})
    assert not is_configured()
    assert not (tmp_path / "logs").exists()


def test_a_configure_that_fails_changes_nothing(tmp_path: Path) -> None:
    former = configure(directory=tmp_path / "a", agent="off")
    (tmp_path / "file").touch()
    with pytest.raises(TrailError):
        configure(directory=tmp_path / "file" / "trail")
    with pytest.raises(AuditSettingsError):
        configure(on_failure="panic")
    assert get_audit_provider() is former
    assert emit(former)


def test_configure_takes_settings_or_overrides_and_never_drops_either(tmp_path: Path) -> None:
    settings = Settings.from_env(directory=tmp_path / "a", agent="off")
    with pytest.raises(AuditSettingsError, match=r"queue_size.*Settings\.from_env"):
        configure(settings, queue_size=3)
    assert not is_configured()
    assert configure(settings).settings is settings


def test_a_provider_that_could_not_start_leaves_no_file_open(directory: Path) -> None:
    (directory.parent / "file").touch()
    settings = Settings.from_env(
        directory=directory, mirror=directory.parent / "file" / "audit.log"
    )
    with pytest.raises((AuditSettingsError, OSError)):
        AuditProvider(settings)
    links = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert not [link for link in links if link.startswith(str(directory))]


def test_a_logger_made_before_configure_opens_nothing_and_uses_what_comes(
    directory: Path, isolated: Path
) -> None:
    audit = get_audit_logger()
    assert not is_configured()
    assert not (isolated / "state").exists()
    provider = configure(directory=directory, agent="off")
    audit.emit(EVENT)
    assert provider.statistics["committed"] == 1
    assert not (isolated / "state").exists()


def test_without_configure_the_first_record_opens_the_trail_of_the_environment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(directory))
    monkeypatch.setenv("OTEL_AUDIT_AGENT", "off")
    assert get_audit_logger().emit(EVENT)
    assert get_audit_provider() is get_audit_provider()
    assert get_audit_provider().directory == directory


def test_threads_that_come_first_together_get_one_provider(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(directory))
    monkeypatch.setenv("OTEL_AUDIT_AGENT", "off")
    barrier = threading.Barrier(8)
    got: list[AuditProvider] = []

    def first() -> None:
        barrier.wait()
        got.append(get_audit_provider())

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(map(id, got))) == 1


def test_the_same_settings_share_a_provider_until_it_is_closed(tmp_path: Path) -> None:
    settings = Settings.from_env(directory=tmp_path / "a", agent="off")
    same = Settings.from_env(directory=str(tmp_path / "a"), agent="off")
    other = Settings.from_env(directory=tmp_path / "b", agent="off")
    first = provider_for(settings)
    assert provider_for(same) is first
    assert provider_for(other) is not first
    first.close()
    assert provider_for(same) is not first


def test_loggers_of_one_log_dir_share_a_provider(tmp_path: Path) -> None:
    one, two = (AuditLogger(log_dir=tmp_path, enable_loki=False) for _ in range(2))
    assert one.provider is two.provider
    assert one.provider.directory == tmp_path / "trail"
    assert not is_configured()


def test_reset_closes_every_provider(tmp_path: Path) -> None:
    one = configure(directory=tmp_path / "a", agent="off")
    two = provider_for(Settings.from_env(directory=tmp_path / "b", agent="off"))
    reset()
    assert one.closed
    assert two.closed
    assert not is_configured()


# OpenTelemetry's switches


def test_what_disables_opentelemetry_does_not_disable_the_audit_trail(directory: Path) -> None:
    program = (
        "import sys\n"
        "from otel_audit import audit_span, get_audit_logger\n"
        "assert get_audit_logger().info('order', 'create')\n"
        "with audit_span('order', 'ship'): pass\n"
    )
    done = run(
        program,
        OTEL_AUDIT_DIR=str(directory),
        OTEL_SERVICE_NAME="shop",
        OTEL_SDK_DISABLED="true",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*",
        OTEL_LOGS_EXPORTER="none",
        OTEL_TRACES_SAMPLER="always_off",
    )
    assert done.returncode == 0, done.stderr
    with TrailReader(directory) as reader:
        assert [b'"service_name":"shop"' in leaf.record for leaf in reader.leaves()] == [True] * 2


# Keys


def keys_of(directory: Path) -> TrailKeys:
    return TrailKeys.load(directory / "signing.key")


def test_the_key_can_come_from_the_environment(
    make: Callable[..., AuditProvider], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = TrailKeys.generate("example.com/shop")
    monkeypatch.setenv("OTEL_AUDIT_SIGNING_KEY", keys.to_text())
    provider = make()
    emit(provider)
    assert provider.keys.verifier_keys() == keys.verifier_keys()
    assert read_checkpoint(provider.checkpoint()).origin == "example.com/shop"
    assert not (directory / "signing.key").exists()
    assert keys.to_text().split()[0] not in repr(provider.settings)
    with TrailReader(directory) as reader:
        assert verify(reader, verifiers=keys.verifiers()).ok


def test_the_key_can_be_in_a_file_elsewhere(
    make: Callable[..., AuditProvider], directory: Path, tmp_path: Path
) -> None:
    keys = TrailKeys.load_or_create(tmp_path / "secrets", "example.com/shop")
    provider = make(signing_key_file=tmp_path / "secrets")
    assert provider.keys.verifier_keys() == keys.verifier_keys()
    assert not (directory / "signing.key").exists()


def test_the_key_can_stay_in_a_kms(make: Callable[..., AuditProvider], directory: Path) -> None:
    log, cosigner = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    asked = []

    def sign(message: bytes) -> bytes:
        asked.append(message)
        return log.sign(message)

    keys = TrailKeys.from_signers(
        "example.com/kms",
        log_sign=sign,
        log_public=log.public_key().public_bytes_raw(),
        cosigner_sign=cosigner.sign,
        cosigner_public=cosigner.public_key().public_bytes_raw(),
    )
    provider = make({"keys": keys})
    emit(provider)
    assert provider.checkpoint().startswith("example.com/kms\n1\n")
    assert len(asked) == 1
    assert not (directory / "signing.key").exists()
    with TrailReader(directory) as reader:
        report = verify(reader, verifiers=keys.verifiers())
    assert (report.ok, report.covered) == (True, 1)


def test_a_kms_that_fails_costs_the_checkpoint_and_no_record(
    make: Callable[..., AuditProvider], caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(_: bytes) -> bytes:
        message = "the KMS cannot be reached"
        raise ConnectionError(message)

    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    keys = TrailKeys.from_signers(
        "example.com/kms",
        log_sign=unreachable,
        log_public=public,
        cosigner_sign=unreachable,
        cosigner_public=public,
    )
    provider = make({"keys": keys})
    with pytest.raises(ConnectionError):
        provider.checkpoint()
    assert emit(provider)
    provider.close()
    assert "could not sign the last checkpoint; the next start will" in caplog.text
    assert provider.statistics["committed"] == 1


@pytest.mark.parametrize("how", ["exposed", "missing", "foreign", "other origin", "malformed"])
def test_a_wrong_key_is_refused_and_the_trail_stays_as_it_was(
    make: Callable[..., AuditProvider], directory: Path, how: str
) -> None:
    provider = make()
    emit(provider)
    provider.checkpoint()
    origin = provider.keys.origin
    provider.close()
    path = directory / "signing.key"
    before = path.read_bytes()
    path.unlink()
    if how == "exposed":
        path.write_bytes(before)
        path.chmod(0o640)
    elif how == "foreign":
        TrailKeys.load_or_create(path, origin)
    elif how == "other origin":
        TrailKeys.load_or_create(path, "example.com/other")
    elif how == "malformed":
        path.touch(0o600)
    with pytest.raises(TrailKeyError):
        make()
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(before)
    again = make()
    assert emit(again).sequence_number == 1
    with TrailReader(directory) as reader:
        assert verify(reader).ok


# Proofs and checkpoints


def test_a_receipt_proves_its_record_to_whoever_has_the_public_key(
    provider: AuditProvider, directory: Path
) -> None:
    receipts = [emit(provider) for _ in range(5)]
    with TrailReader(directory) as reader:
        leaf = reader.leaf(3)
    assert leaf is not None
    text = receipts[3].proof()
    checked = proof.check(text, leaf.record, provider.keys.verifiers())
    assert checked.index == 3
    with pytest.raises(ProofError):
        proof.check(text, leaf.record.replace(b"create", b"delete"), provider.keys.verifiers())


def test_close_signs_all_that_was_emitted(provider: AuditProvider, directory: Path) -> None:
    for _ in range(3):
        emit(provider)
    provider.close()
    with TrailReader(directory) as reader:
        last = reader.last_checkpoint()
    assert last is not None
    assert last.size == 3


def test_an_application_that_ends_signs_once_and_may_go_on(
    provider: AuditProvider, directory: Path
) -> None:
    emit(provider)
    provider.settle_down()
    provider.settle_down()
    assert emit(provider)
    with TrailReader(directory) as reader:
        assert [checkpoint.size for checkpoint in reader.checkpoints()] == [1]


def test_times_never_go_back_with_a_clock_that_does(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    second = 1_000_000_000
    now = [5_000 * second]
    provider = make({"clock": lambda: now[0]})
    for time_ in (5_000, 4_000, 6_000, 10):
        now[0] = time_ * second
        emit(provider)
        provider.checkpoint()
    with TrailReader(directory) as reader:
        committed = [leaf.committed_unix_nano // second for leaf in reader.leaves()]
        signed = [checkpoint.unix_nano // second for checkpoint in reader.checkpoints()]
        assert committed == signed == [5_000, 5_000, 6_000, 6_000]
        assert verify(reader).ok


# The salt of session ids


def test_the_salt_is_secret_and_stays_the_same(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    previous = os.umask(0)
    try:
        salt = make().session_salt
    finally:
        os.umask(previous)
    assert len(salt) == 32
    assert make().session_salt == salt
    path = directory / "session.salt"
    assert path.read_bytes() == salt
    assert path.stat().st_mode & 0o777 == 0o600


def test_those_who_come_first_together_get_one_salt(
    make: Callable[..., AuditProvider], directory: Path
) -> None:
    providers = [make() for _ in range(4)]
    barrier = threading.Barrier(4)
    salts = []

    def ask(provider: AuditProvider) -> None:
        barrier.wait()
        salts.append(provider.session_salt)

    for _ in range(20):
        (directory / "session.salt").unlink(missing_ok=True)
        salts.clear()
        threads = [threading.Thread(target=ask, args=(provider,)) for provider in providers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(salts) == 4
        assert len(set(salts)) == 1
    assert [path.name for path in directory.glob("session.salt*")] == ["session.salt"]


def test_the_public_surface_is_this_one() -> None:
    assert otel_audit.configure is configure
    assert otel_audit.AuditProvider is AuditProvider


@pytest.mark.parametrize("released", [True, False])
def test_a_close_that_is_interrupted_goes_on_at_the_next_call(
    make: Callable[..., AuditProvider], caplog: pytest.LogCaptureFixture, *, released: bool
) -> None:
    """Ctrl-C in the middle of it must not cost what is queued, nor hide that it is lost."""
    provider = make(timeout=1.0)
    lock = FileLock(provider.directory / "lock")
    lock.acquire(1.0)

    async def emit_and_go() -> None:
        for _ in range(5):
            AuditLogger(provider=provider).emit(EVENT)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    asyncio.run(emit_and_go())
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            provider.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert provider.closed
    if released:
        lock.release()
    provider.close()
    lock.release()
    with TrailReader(provider.directory) as reader:
        last = reader.last_checkpoint()
        assert reader.tree().size == (5 if released else 0)
        assert (last.size if last else 0) == reader.tree().size
    assert ("5 audit records are not confirmed" in caplog.text) is not released
    provider.close()


def test_what_fails_at_the_end_costs_nothing_else(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged cursors.db keeps nobody from signing and from emptying the log."""
    directory.mkdir(mode=0o700)
    (directory / "cursors.db").write_bytes(b"x" * 8192)
    provider = AuditProvider(Settings.from_env({}, directory=directory, mirror=True))
    emit(provider)
    assert provider.flush(1.0) is False
    provider.close()
    with TrailReader(directory) as reader:
        last = reader.last_checkpoint()
        assert last is not None
        assert last.size == 1
    assert "could not sign" not in caplog.text
    assert "cursors.db cannot be used: file is not a database" in caplog.text
