"""What the hub says when it cannot start, and what can be pasted when it has started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from examples.agenthub.__main__ import FIRST_PORT, HOST, _free_port
from examples.agenthub.config import Config, ConfigError
from tests.examples.hubs import ROOT, running_hub

if TYPE_CHECKING:
    from pathlib import Path


def started(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.agenthub", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "AGENTHUB_DATA": str(data), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_AUDIT_ON_FAILURE", "maybe"),
        ("OTEL_AUDIT_POLICY_FILE", "/nonexist"),
        ("AGENTHUB_SESSION_SECONDS", "abc"),
        ("AGENTHUB_DATA", "/proc/x"),
        ("OTEL_AUDIT_DIR", "/proc/x"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    tmp_path: Path, variable: str, value: str
) -> None:
    done = started(tmp_path / "data", **{variable: value})
    assert done.returncode == 78
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("agenthub: ")
    assert value in line


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--port", "x"), ("--workers", "0")]
)
def test_an_option_that_cannot_be_used_is_named(tmp_path: Path, option: str, value: str) -> None:
    done = started(tmp_path / "data", option, value)
    assert done.returncode == 2
    assert f"argument {option}: {value!r} is no whole number from " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AGENTHUB_ATTEMPTS", "0"),
        ("AGENTHUB_ATTEMPTS", "1.5"),
        ("AGENTHUB_LOCK_SECONDS", "-1"),
        ("AGENTHUB_LOCK_SECONDS", "nan"),
        ("AGENTHUB_SESSION_SECONDS", "inf"),
        ("AGENTHUB_HEALTH_PORTS", "http"),
        ("AGENTHUB_HEALTH_PORTS", "9003-9000"),
        ("AGENTHUB_HEALTH_PORTS", "70000"),
    ],
)
def test_a_variable_of_the_hub_is_refused_by_its_name(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{variable}='{value}' cannot be used: expected "):
        Config.from_env({variable: value})


def test_an_empty_variable_counts_as_not_set() -> None:
    names = ("DATA", "ATTEMPTS", "LOCK_SECONDS", "SESSION_SECONDS", "HEALTH_PORTS")
    assert Config.from_env({f"AGENTHUB_{name}": "" for name in names}) == Config.from_env({})


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        # Somebody else may have it, which is as good.
        with suppress(OSError):
            taken.bind((HOST, FIRST_PORT))
            taken.listen()
        port, said = _free_port(HOST, None)
        assert port > FIRST_PORT
        assert said == f"port {FIRST_PORT} is taken, so {port}"
        with pytest.raises(ConfigError, match="is taken; name another one with --port"):
            _free_port(HOST, FIRST_PORT)
    assert _free_port(HOST, 0)[1] == ""
    with pytest.raises(ConfigError, match="cannot listen on port 8000 of 192"):
        _free_port("192.0.2.1", 8000)


def test_make_run_passes_options_on() -> None:
    command = ["make", "--no-print-directory", "--dry-run", "run", "ARGS=--port 8080"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("python -m examples.agenthub --port 8080")


def test_what_is_printed_can_be_pasted_on_each_start(tmp_path: Path) -> None:
    """Where the password is not known any more, the driver asks for it."""
    data = tmp_path / "data"
    with running_hub(data, AGENTHUB_PASSWORD="") as first:
        made = re.search(r"Password      (\S+)\n", first.banner)
        assert made
        assert f"Play traffic  AGENTHUB_PASSWORD={made[1]} " in first.banner
        login = {"name": "olga", "password": made[1]}
        assert httpx.post(f"{first.url}/api/login", json=login).status_code == 200
    with running_hub(data, AGENTHUB_PASSWORD="") as second:
        assert made[1] not in second.banner
        assert "AGENTHUB_PASSWORD" not in second.banner
        assert "..." not in second.banner
        assert "/python -m examples.agenthub --new-password\n" in second.banner
        assert httpx.post(f"{second.url}/api/login", json=login).status_code == 200
    with running_hub(data, "--new-password", AGENTHUB_PASSWORD="") as third:
        assert "Play traffic  AGENTHUB_PASSWORD=" in third.banner
        assert httpx.post(f"{third.url}/api/login", json=login).status_code == 401
