"""Credentials: kept encrypted, in the hub's own keyring, every access recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import keyring
import keyring.errors
import pytest

from examples.agenthub.vault import CredentialMissingError, FileKeyring, Vault
from tests.examples.hubs import ROOT, all_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.examples.conftest import Records


@pytest.fixture
def vault(records: Callable[[], Records], tmp_path: Path) -> Vault:
    assert records() == []
    return Vault(tmp_path / "vault")


def test_each_access_is_recorded_and_no_value_is(
    vault: Vault, records: Callable[[], Records], tmp_path: Path
) -> None:
    vault.store("weather", "s3cret-value")
    assert vault.holds("weather")
    assert vault.read("weather", "start the server") == "s3cret-value"
    vault.delete("weather")
    assert not vault.holds("weather")
    with pytest.raises(CredentialMissingError, match="no credential is stored for 'weather'"):
        vault.read("weather", "curiosity")
    with pytest.raises(CredentialMissingError):
        vault.delete("weather")
    assert [(record["action"], record["status"]) for record in records()] == [
        ("store", "success"),
        ("read", "success"),
        ("delete", "success"),
        ("read", "failed"),
        ("delete", "failed"),
    ]
    assert {record["event"] for record in records()} == {"credential_access"}
    assert {record["resource_name"] for record in records()} == {"weather"}
    assert records()[1]["purpose"] == "start the server"
    assert b"s3cret-value" not in all_bytes(tmp_path)


def test_it_is_the_keyring_of_the_process_and_lies_in_the_data_directory(
    vault: Vault, tmp_path: Path, isolated: Path
) -> None:
    keyring.set_password("agenthub", "through-the-library", "value")
    assert vault.read("through-the-library", "test") == "value"
    assert {path.name for path in (tmp_path / "vault").iterdir()} == {
        "keyring.json",
        "keyring.key",
        "keyring.lock",
    }
    assert (tmp_path / "vault" / "keyring.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "vault" / "keyring.json").stat().st_mode & 0o777 == 0o600
    assert not list(isolated.rglob("*keyring*"))


def test_a_value_moved_to_another_name_is_refused(tmp_path: Path) -> None:
    backend = FileKeyring(tmp_path)
    backend.set_password("agenthub", "low", "harmless")
    backend.set_password("agenthub", "high", "precious")
    stored = tmp_path / "keyring.json"
    values = json.loads(stored.read_text())
    stored.write_text(json.dumps({"agenthub/low": values["agenthub/high"]}))
    with pytest.raises(keyring.errors.KeyringError, match="put there from agenthub/high"):
        backend.get_password("agenthub", "low")


def test_threads_and_processes_do_not_lose_each_others_values(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from examples.agenthub.vault import FileKeyring\n"
        "backend = FileKeyring(pathlib.Path(sys.argv[1]))\n"
        "for n in range(25): backend.set_password('s', f'{sys.argv[2]}-{n}', str(n))"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT)
        for name in ("one", "two")
    ]
    backend = FileKeyring(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: backend.set_password("s", f"here-{n}", str(n)), range(25)))
    assert [other.wait(timeout=30) for other in others] == [0, 0]
    for name in ("one", "two", "here"):
        for n in range(25):
            assert backend.get_password("s", f"{name}-{n}") == str(n)
