"""`doctor` judges the policy, and says when a running service has other settings than are judged."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.cli.diagnosis.check import Subject
from otel_audit.cli.diagnosis.environment import environment
from otel_audit.settings import Settings
from otel_audit.trail.layout import AGENT_LOCK
from otel_audit.trail.lock import FileLock
from otel_audit.trail.occupants import holders

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Cli


def checks(cli: Cli, name: str, code: int = 0) -> list[dict[str, Any]]:
    found = json.loads(cli("doctor", "--json", code=code).out)
    assert found["ok"] is (code == 0)
    return [check for check in found["checks"] if check["name"] == name]


def test_no_policy_is_what_holds_without_one(cli: Cli) -> None:
    (check,) = checks(cli, "policy")
    assert check["state"] == "ok"
    assert check["message"] == (
        "no file (OTEL_AUDIT_POLICY_FILE): 0 rules, 0 of routes, 0 of spans; "
        "on_failure fail, http_activity all"
    )


def test_a_policy_in_order_is_summed_up(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("on_failure: shutdown\nrules:\n  - match: {event: login}\n    retention: 3y\n")
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(path))
    monkeypatch.setenv("OTEL_AUDIT_RULE_SETS", "logins,genai")
    check, silent = checks(cli, "policy")
    assert check["state"] == "ok"
    assert check["message"] == (
        f"{path}, rule sets logins, genai: 1 rule, 2 of routes, 1 of spans; "
        "on_failure shutdown, http_activity all"
    )
    assert silent["state"] == "warn"
    assert silent["message"] == (
        "rule set genai: no instrumentation that could make such spans is installed"
    )
    assert silent["remedy"] == "pip install opentelemetry-instrumentation-genai-openai"


def test_a_retention_without_a_length_is_warned_about(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules:\n  - match: {event: login}\n    retention: 6 years\n")
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(path))
    _, odd = checks(cli, "policy")
    assert odd["state"] == "warn"
    assert odd["message"].startswith(f"{path}:2:5: the retention '6 years' is not a number and")
    assert odd["remedy"].startswith("write for example 90d")


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (
            "rules:\n  - match: {event: login}\n    retenshun: 3y\n",
            "{path}:3:5: unknown key 'retenshun'",
            "did you mean 'retention'?",
        ),
        (
            "rules:\n  - match: {event: login}\n    level: loud\n",
            "{path}:3:12: level: 'loud' is not one of debug, info, warning, error, critical",
            "write one of them",
        ),
        (
            "rules: no\n",
            "{path}:1:8: rules: expected a list (each item on a line, after `- `)",
            "correct it there, and try it with `otel-audit policy check`",
        ),
        (
            "rules: [",
            "{path}:1:9: this is not YAML: expected the node content, but found '<stream end>'",
            "correct the line, or the one before it",
        ),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_used(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    message: str,
    remedy: str,
) -> None:
    """File, line, column, key and remedy; for people as well, and neither ends with 0."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(path))
    (check,) = checks(cli, "policy", 1)
    assert check["state"] == "fail"
    assert check["message"] == message.format(path=path)
    assert check["remedy"] == remedy
    shown = " ".join(cli("doctor", code=1).out.split())
    assert f"policy fail {message.format(path=path)}" in shown
    assert f"to do: {remedy}" in shown


def test_a_file_that_is_not_there_and_a_set_that_nobody_ships(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its finding, so that one correction is enough."""
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(tmp_path / "nowhere.yaml"))
    monkeypatch.setenv("OTEL_AUDIT_RULE_SETS", "sql,sequel")
    file, sets = checks(cli, "policy", 1)
    assert file["message"].startswith(f"the policy file {tmp_path / 'nowhere.yaml'} cannot be read")
    assert file["remedy"].startswith("correct OTEL_AUDIT_POLICY_FILE")
    assert sets["message"] == "OTEL_AUDIT_RULE_SETS names 'sequel', which is no rule set"
    assert sets["remedy"].startswith("name some of aws, ")


# What a running service was started with


def served(cli: Cli, spawn: Callable[..., subprocess.Popen[str]], **said: str) -> int:
    """Start an agent with these variables, and wait until it has the lease."""
    child = spawn("agent", "--dir", str(cli.directory), environment=said)
    assert child.stdout is not None
    child.stdout.readline()
    deadline = time.monotonic() + 10
    while not checks(cli, "environment"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(child.pid)


def test_other_settings_of_the_service_are_named(
    trail: Path, cli: Cli, spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """What is judged here may not be what the service does; a value may be a secret."""
    pid = served(cli, spawn, OTEL_AUDIT_TIMEOUT="7", LOG_DIR=str(tmp_path / "hidden"))
    (check,) = checks(cli, "environment")
    assert check["state"] == "warn"
    assert check["message"] == (
        f"process {pid} (python), which serves the trail, was started with other settings than "
        "are judged here: LOG_DIR, OTEL_AUDIT_TIMEOUT"
    )
    assert "hidden" not in str(check)
    assert trail.is_dir()


def test_the_same_settings(
    trail: Path,
    cli: Cli,
    spawn: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path is the same one wherever it is seen from."""
    monkeypatch.chdir(trail.parent)
    served(cli, spawn, LOG_DIR="logs")
    monkeypatch.setenv("LOG_DIR", str(trail.parent / "logs"))
    (check,) = checks(cli, "environment")
    assert check["state"] == "ok"
    assert check["message"].endswith("was started with the same settings")


def test_a_variable_for_other_signals_that_is_replaced(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    (check,) = checks(cli, "settings")
    assert check["state"] == "warn"
    assert check["message"].endswith("cannot be used for audit records, http/protobuf is")
    assert check["remedy"].startswith("set OTEL_EXPORTER_OTLP_AUDIT_PROTOCOL=http/protobuf")


def test_destinations_with_names_of_their_own(
    cli: Cli, spawn: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their variables mean something together only, here and in the service."""
    endpoint = "OTEL_EXPORTER_OTLP_AUDIT_SIEM_ENDPOINT"
    said = {"OTEL_AUDIT_DESTINATIONS": "siem", endpoint: "http://127.0.0.1:9"}
    served(cli, spawn, **said)
    (check,) = checks(cli, "environment")
    assert check["state"] == "warn"
    assert check["message"].endswith(f"judged here: OTEL_AUDIT_DESTINATIONS, {endpoint}")
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    assert [each["state"] for each in checks(cli, "environment")] == ["ok"]
    assert [each["state"] for each in checks(cli, "settings")] == ["ok"]
    (check,) = checks(cli, "shipping")
    assert check["message"].startswith("siem is ")


def test_a_process_that_cannot_be_asked(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user, or gone: it says that it does not know."""
    nobody = 4_194_305  # over the kernel's highest process id
    monkeypatch.setattr("otel_audit.cli.diagnosis.environment.holders", lambda _path: (nobody,))
    (check,) = environment(Subject(Settings.from_env({}, directory=trail)))
    assert check.state == "ok"
    assert "cannot be asked for its settings" in check.message


def test_a_directory_that_the_service_names_in_code(
    trail: Path,
    cli: Cli,
    spawn: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands need the variable then, and it is no other setting; a policy would be one."""
    served(cli, spawn)
    monkeypatch.setenv("LOG_DIR", str(trail.parent))
    assert [check["state"] for check in checks(cli, "environment")] == ["ok"]
    monkeypatch.setenv("OTEL_AUDIT_RULE_SETS", "sql")
    (check,) = checks(cli, "environment")
    assert check["message"].endswith("judged here: OTEL_AUDIT_RULE_SETS")


def test_this_process_is_no_other(trail: Path, cli: Cli) -> None:
    lock = FileLock(trail / AGENT_LOCK)
    lock.acquire(1)
    assert holders(trail / AGENT_LOCK) == (os.getpid(),)
    assert checks(cli, "environment") == []
    lock.close()
