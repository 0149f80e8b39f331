"""`prove` and `check-proof`."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from otel_audit import TrailReader
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.proof import TlogProof
from otel_audit.trail.trail import Trail

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def keys(cli: Cli, tmp_path: Path) -> str:
    path = tmp_path / "trail.keys"
    path.write_text(cli("keys").out, encoding="utf-8")
    return str(path)


def test_a_proof_is_named_after_the_record_and_holds(cli: Cli, keys: str, tmp_path: Path) -> None:
    record_id = json.loads(cli("show", "3", "--json").out)["record"]["record_id"]
    shown = cli("prove", record_id).out
    file = f"{record_id}.tlog-proof"
    assert shown.splitlines()[0] == f"written     {file}"
    assert TlogProof.parse((tmp_path / file).read_bytes()).index == 3
    checked = cli.bare("check-proof", file, "--key", keys).out
    assert checked.startswith("result      proven: ")
    assert "resource_name   files-3\n" in checked
    assert "signed      20" in checked


def test_reading_the_trail_is_enough(trail: Path, cli: Cli, keys: str) -> None:
    (trail / "signing.key").unlink()
    trail.chmod(0o500)
    try:
        cli("prove", "5", "-o", "five")
    finally:
        trail.chmod(0o700)
    cli.bare("check-proof", "five", "--key", keys)


def test_a_file_that_was_named_is_replaced_only_when_asked(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    append(trail, b"{}")
    (tmp_path / "five").write_text("somebody's", encoding="utf-8")
    err = cli("prove", "12", "-o", "five", code=2).err
    assert err == (
        "otel-audit: five is there already; name another file, or replace it with --force\n"
    )
    assert (tmp_path / "five").read_text(encoding="utf-8") == "somebody's"
    with TrailReader(trail) as reader:
        last = reader.last_checkpoint()
        assert last is not None
        assert last.size == 12
    cli("prove", "5", "-o", "five", "--force")
    assert TlogProof.parse((tmp_path / "five").read_bytes()).index == 5
    cli("prove", "5", "-o", "/dev/null")
    cli("prove", "5")
    cli("prove", "5")


def test_json_names_file_record_and_checkpoint(cli: Cli, keys: str) -> None:
    written = json.loads(cli("prove", "5", "-o", "five", "--json").out)
    assert list(written) == ["file", "sequence", "record_id", "checkpoint"]
    assert (written["file"], written["sequence"], written["checkpoint"]["size"]) == ("five", 5, 12)
    checked = json.loads(cli.bare("check-proof", "five", "--key", keys, "--json").out)
    assert list(checked) == ["ok", "sequence", "record", "bytes", "checkpoint"]
    assert checked["ok"] is True
    assert checked["record"]["record_id"] == written["record_id"]
    assert checked["checkpoint"] == written["checkpoint"]


def test_a_proof_may_go_through_pipes(cli: Cli, keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = cli("prove", "5", "-o", "-").out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert "sequence    5\n" in cli.bare("check-proof", "-", "--key", keys).out


def test_the_record_may_be_given_as_a_line(cli: Cli, keys: str, tmp_path: Path) -> None:
    cli("prove", "11", "-o", "eleven")
    (tmp_path / "line").write_text(cli("tail", "--json", "-n", "1").out, encoding="utf-8")
    cli.bare("check-proof", "eleven", "--key", keys, "--record", "line")
    (tmp_path / "line").write_text("{}\n", encoding="utf-8")
    err = cli.bare("check-proof", "eleven", "--key", keys, "--record", "line", code=1).err
    assert err == (
        "otel-audit: eleven proves nothing: the proof carries another record than the one given\n"
    )


def test_without_the_cosigners_key_there_is_no_time(cli: Cli) -> None:
    cli("prove", "5", "-o", "five")
    key = cli("keys").out.split()[0]
    shown = cli.bare("check-proof", "five", "--key", key).out
    assert "signed      unknown: give the cosigner's public key as well" in shown


def test_a_key_is_named_as_verify_names_it_and_the_other_way_round(cli: Cli, keys: str) -> None:
    cli("prove", "5", "-o", "five")
    for option in ("--key", "--public-key"):
        assert cli.bare("check-proof", "five", option, keys).out.startswith("result      proven")
        assert "given with --public-key" in cli("verify", option, keys).out


def test_another_key_proves_nothing(cli: Cli) -> None:
    cli("prove", "5", "-o", "five")
    (key, _) = TrailKeys.generate("example.org/other").verifier_keys()
    assert "signed by no known key" in cli.bare("check-proof", "five", "--key", key, code=1).err


def test_a_proof_that_was_changed_anywhere_is_refused(cli: Cli, keys: str, tmp_path: Path) -> None:
    cli("prove", "5", "-o", "five")
    whole = (tmp_path / "five").read_bytes()
    for place in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "five").write_bytes(changed)
        cli.bare("check-proof", "five", "--key", keys, code=1)


def test_a_key_is_required(fresh: Cli) -> None:
    assert "--key" in fresh.bare("check-proof", "five", code=2).err


def test_a_proof_that_is_not_there(fresh: Cli) -> None:
    (key, _) = TrailKeys.generate("example.org/other").verifier_keys()
    err = fresh.bare("check-proof", "five", "--key", key, code=2).err
    assert err == "otel-audit: five cannot be read: No such file or directory\n"


def test_a_checkpoint_is_signed_where_none_covers_the_record(directory: Path, fresh: Cli) -> None:
    append(directory, b'{"record_id":"../x"}')
    assert "written     record-0.tlog-proof" in fresh("prove", "0").out
    with TrailReader(directory) as reader:
        last = reader.last_checkpoint()
    assert last is not None
    assert last.size == 1


def test_without_the_key_it_is_said_how_to_come_by_a_checkpoint(trail: Path, cli: Cli) -> None:
    append(trail, b"{}")
    (trail / "signing.key").unlink()
    err = cli("prove", "12", code=4).err
    assert "no checkpoint covers record 12 yet, and none can be signed here" in err
    assert "signing.key is missing" in err


def test_a_checkpoint_of_another_trail_proves_nothing(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    append(other, b"{}", sign=True)
    with TrailReader(other) as reader:
        last = reader.last_checkpoint()
        assert last is not None
        facts = dict(reader.meta)
    store = Trail.open(trail).store
    store.add_checkpoint(13, last.unix_nano, last.note)
    store.describe({"log_key": facts["log_key"], "cosigner_key": facts["cosigner_key"]})
    store.close()
    append_row(trail)
    assert "proves nothing here" in cli("prove", "12", code=1).err


def test_a_damaged_record_cannot_be_proved(trail: Path, cli: Cli, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(trail / "trail.db") as database:
        database.execute("UPDATE leaf SET record = CAST('{}' AS BLOB) WHERE seq = 5")
    database.close()
    assert "record 5 cannot be proved" in cli("prove", "5", code=1).err
    assert not list(tmp_path.glob("*.tlog-proof"))


def test_a_file_that_cannot_be_written(cli: Cli) -> None:
    err = cli("prove", "5", "-o", "/proc/none/such", code=2).err
    assert err == "otel-audit: /proc/none/such: No such file or directory\n"


def append(directory: Path, item: bytes, *, sign: bool = False) -> None:
    trail = Trail.open(directory)
    trail.store.append([item], {})
    if sign:
        trail.signer.sign()
    trail.close()


def append_row(directory: Path) -> None:
    """Append without opening keys, which belong to another trail by now."""
    from otel_audit.trail.store import TrailStore

    store = TrailStore(directory, new_origin=lambda: "unused")
    store.append([b"{}"], {})
    store.close()
