"""`verify`: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from otel_audit import TrailReader
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.trail import Trail
from tests.cli.conftest import Cli, record

if TYPE_CHECKING:
    from pathlib import Path


def test_a_trail_in_order_in_a_few_lines(trail: Path, cli: Cli) -> None:
    lines = cli("verify").out.splitlines()
    with TrailReader(trail) as reader:
        assert lines[0] == f"trail     {reader.origin}  ({trail})"
    assert lines[1] == "records   12"
    assert lines[2].startswith("covered   the first 12 records, by 1 valid checkpoint, the newest")
    assert lines[3] == "after it  no records"
    assert lines[4].endswith("(claimed by the trail itself)")
    assert lines[-1] == (
        "result    in order: nothing was changed, removed, inserted or moved in the first 12 records"
    )


def test_the_trails_own_keys_are_named_as_no_proof(cli: Cli) -> None:
    assert "give a public key obtained from elsewhere" in cli("verify").out


@pytest.mark.parametrize("how", ["file", "texts", "log key only"])
def test_public_keys_from_elsewhere(cli: Cli, tmp_path: Path, how: str) -> None:
    public = cli("keys").out
    if how == "file":
        kept = tmp_path / "trail.keys"
        kept.write_text(f"# of the hub\n\n{public}", encoding="utf-8")
        options = ["--public-key", str(kept)]
    else:
        keys = public.split()[: 1 if how == "log key only" else 2]
        options = [part for key in keys for part in ("--public-key", key)]
    shown = cli("verify", *options).out
    assert "(given with --public-key)" in shown
    assert "warning" not in shown


def test_another_trails_key_is_found_out(cli: Cli) -> None:
    (key, _) = TrailKeys.generate("example.org/other").verifier_keys()
    shown = cli("verify", "--public-key", key, code=1).out
    assert "wrong-key" in shown
    assert "NOT IN ORDER" in shown


def test_the_cosigners_key_alone_is_not_enough(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cosigner = cli("keys").out.split()[1]
    cli("prove", "5", "-o", "five")
    for command in (("verify", "--dir", str(cli.directory)), ("check-proof", "five")):
        err = cli.bare(*command, "--public-key", cosigner, code=2).err
        assert "give the log's key as well" in err
        assert "/cosigner" in err


def test_a_trail_with_keys_of_its_own_is_found_out(trail: Path, cli: Cli, tmp_path: Path) -> None:
    """Replaced as a whole, under the same name: only the key from elsewhere tells."""
    kept = tmp_path / "trail.keys"
    kept.write_text(cli("keys").out, encoding="utf-8")
    with TrailReader(trail) as reader:
        origin = reader.origin
    trail.rename(tmp_path / "old")
    record(trail, 3, keys=TrailKeys.generate(origin))
    cli("verify")
    cli("verify", "--public-key", str(kept), code=1)


def test_a_file_that_is_no_regular_one_is_read(cli: Cli, tmp_path: Path) -> None:
    err = cli("verify", "--public-key", os.devnull, code=2).err
    assert err == f"otel-audit: {os.devnull} holds no public key\n"
    assert "cannot be read: Is a directory" in cli("verify", "--key", str(tmp_path), code=2).err
    keys = cli("keys").out
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(keys,))
    writer.start()
    assert "(given with --public-key)" in cli("verify", "--key", str(pipe)).out
    writer.join()


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "a file that is not there"), ("", "holds no public key"), ("x+y+z\n", "not base64")],
)
def test_keys_that_cannot_be_used(cli: Cli, tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "trail.keys"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert why in cli("verify", "--public-key", str(path), code=2).err


def test_a_changed_record_is_named(trail: Path, cli: Cli) -> None:
    record_id = json.loads(cli("show", "5", "--json").out)["record"]["record_id"]
    change(
        trail, "UPDATE leaf SET record = CAST(replace(record, 'u-2', 'u-0') AS BLOB) WHERE seq=5"
    )
    shown = cli("verify", code=1).out
    assert shown.splitlines()[0].startswith("record-changed  record 5 ")
    assert record_id in shown.splitlines()[0]
    assert shown.splitlines()[-1] == "result    NOT IN ORDER: 1 finding (1 record-changed)"
    (finding,) = json.loads(cli("verify", "--json", code=1).out)["findings"]
    assert (finding["kind"], finding["sequence"], finding["record_id"]) == (
        "record-changed",
        5,
        record_id,
    )


def test_many_findings_are_counted_and_not_all_printed(trail: Path, cli: Cli) -> None:
    record(trail, 50)
    change(trail, "UPDATE leaf SET record = x'7b7d' WHERE seq < 40")
    lines = cli("verify", code=1).out.splitlines()
    hidden = next(line for line in lines if line.startswith("and "))
    assert lines.index(hidden) == 20
    report = json.loads(cli("verify", "--json", code=1).out)
    assert hidden == f"and {len(report['findings']) - 20} more lines; --json lists all of them"
    assert report["findings_complete"] is True


def test_what_is_told_of_a_range_is_not_more_than_there_is(trail: Path, cli: Cli) -> None:
    """One finding is about 31 records; nothing else is held back."""
    record(trail, 50)
    change(trail, "DELETE FROM leaf WHERE seq BETWEEN 10 AND 40")
    lines = cli("verify", code=1).out.splitlines()
    assert lines[0].startswith("record-missing  records 10 to 40 ")
    assert lines[1] == ""
    assert lines[-1] == "result    NOT IN ORDER: 31 findings in 1 line (31 record-missing)"
    report = json.loads(cli("verify", "--json", code=1).out)
    assert (report["finding_count"], len(report["findings"])) == (31, 1)
    assert report["findings_complete"] is True


def test_a_cut_off_trail_is_told_in_a_line_for_the_rows_and_one_for_the_checkpoints(
    trail: Path, cli: Cli
) -> None:
    for _ in range(3):
        record(trail, 2)
    change(trail, "DELETE FROM leaf WHERE seq >= 10")
    lines = cli("verify", code=1).out.splitlines()
    assert lines[0].startswith("truncated  records 10 to 17 are missing or unreadable")
    assert lines[1] == (
        "truncated  4 signed checkpoints cover more records, up to 18, the trail has only 10: it "
        "was cut off, or replaced by an older copy"
    )
    assert lines[2] == ""
    assert lines[-1] == "result    NOT IN ORDER: 12 findings in 2 lines (12 truncated)"
    report = json.loads(cli("verify", "--json", code=1).out)
    assert (report["finding_count"], report["counts"]) == (12, {"truncated": 12})


def test_a_range_says_nothing_against_a_checkpoint_that_it_is_not_about(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    record(trail, 600)
    kept = tmp_path / "kept"
    kept.write_text(cli("checkpoint").out, encoding="utf-8")
    change(trail, "DELETE FROM tile WHERE level = 0")
    shown = cli("verify", "--checkpoint", str(kept), code=1).out
    assert "NOT IN ORDER: 2 findings in 1 line (2 tile-missing)" in shown
    assert "kept      checkpoint of 612 records: the trail continues it" in shown


def test_a_ruined_trail_has_more_findings_than_are_listed(trail: Path, cli: Cli) -> None:
    record(trail, 1_100)
    change(trail, "UPDATE leaf SET record = x'7b7d'")
    shown = cli("verify", code=1).out
    assert "\nand many more lines; --json lists the first 1,000\n" in shown
    assert "NOT IN ORDER: 1,112 findings (1,112 record-changed)" in shown
    report = json.loads(cli("verify", "--json", code=1).out)
    assert (report["finding_count"], len(report["findings"])) == (1_112, 1_000)
    assert report["findings_complete"] is False


def test_a_checkpoint_kept_elsewhere_finds_a_rollback(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    older = trail.rename(tmp_path / "older")
    copy(older, trail)
    record(trail, 3)
    kept = tmp_path / "kept"
    kept.write_text(cli("checkpoint").out, encoding="utf-8")
    against = ("verify", "--checkpoint", str(kept))
    assert "\nkept      checkpoint of 15 records: the trail continues it\n" in cli(*against).out
    told = json.loads(cli(*against, "--json").out)["kept"]
    assert list(told) == ["origin", "size", "root", "continued"]
    assert (told["size"], told["continued"]) == (15, True)
    copy(older, trail)
    assert "\nkept  " not in cli("verify").out
    shown = cli(*against, code=1).out
    assert "rolled-back" in shown
    assert "\nkept      checkpoint of 15 records: see the findings\n" in shown
    assert json.loads(cli(*against, "--json", code=1).out)["kept"]["continued"] is False


def test_an_older_copy_is_found_by_what_was_signed_here(
    trail: Path, cli: Cli, tmp_path: Path
) -> None:
    copy(trail, tmp_path / "older")
    record(trail, 3)
    signed = (trail / "signed").read_bytes()
    copy(tmp_path / "older", trail)
    cli("verify")
    (trail / "signed").write_bytes(signed)
    shown = cli("verify", code=1).out
    assert shown.startswith(
        f"rolled-back  the checkpoint signed last here ({trail}/signed) covers 15 records, the "
        "trail has only 12: it was cut off, or replaced by an older copy\n"
    )
    assert "result    NOT IN ORDER: 1 finding (1 rolled-back)\n" in shown
    (tmp_path / "kept").write_bytes(signed)
    both = cli("verify", "--checkpoint", str(tmp_path / "kept"), code=1).out
    assert "NOT IN ORDER: 1 finding (1 rolled-back)\n" in both


def test_a_copy_of_the_database_alone_is_in_order(trail: Path, cli: Cli, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "trail.db").write_bytes((trail / "trail.db").read_bytes())
    assert "moved in the first 12 records\n" in cli.bare("verify", "--dir", str(alone)).out


def test_what_was_signed_here_covers_what_the_database_has_no_checkpoint_for(
    trail: Path, cli: Cli
) -> None:
    change(trail, "DELETE FROM checkpoint")
    shown = cli("verify").out
    assert "covered   the first 12 records, by a checkpoint that is not in the database\n" in shown


def copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", f"{target}/"], check=True)
    target.chmod(0o700)


def test_a_file_that_is_no_checkpoint_is_a_usage_error(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert "cannot be read" in cli("verify", "--checkpoint", str(path), code=2).err
    path.write_text("nothing\n", encoding="utf-8")
    assert f"{path}: not a signed note" in cli("verify", "--checkpoint", str(path), code=2).err


def test_records_after_the_checkpoint_are_counted(trail: Path, cli: Cli) -> None:
    append(trail, b'{"record_id":"5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11"}')
    shown = cli("verify").out
    assert "records   13\n" in shown
    assert "after it  1 record, not covered yet\n" in shown
    assert (
        "in order: nothing was changed, removed, inserted or moved in the first 12 records" in shown
    )


def test_what_no_checkpoint_covers_is_not_called_in_order(directory: Path, fresh: Cli) -> None:
    append(directory, b'{"record_id":"5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11"}')
    shown = fresh("verify").out
    assert "covered   none: no valid checkpoint covers any record\n" in shown
    assert "result    nothing found, but nothing is proven either" in shown


def test_one_record_is_not_plural(directory: Path, fresh: Cli) -> None:
    record(directory, 1)
    assert "moved in the first record\n" in fresh("verify").out


def test_an_empty_trail_is_in_order(directory: Path, fresh: Cli) -> None:
    Trail.open(directory).close()
    assert "result    in order: the trail is empty\n" in fresh("verify").out


def test_the_json_is_the_documented_one(cli: Cli) -> None:
    report = json.loads(cli("verify", "--json").out)
    assert list(report) == [
        "ok",
        "proven",
        "origin",
        "size",
        "covered",
        "root",
        "checkpoints",
        "last_checkpoint_at",
        "kept",
        "keys",
        "self_asserted",
        "finding_count",
        "findings_complete",
        "counts",
        "findings",
        "warnings",
    ]
    assert (report["ok"], report["proven"]) == (True, True)
    assert (report["size"], report["covered"]) == (12, 12)
    assert report["last_checkpoint_at"].endswith(".000000000Z")


def test_several_processes(cli: Cli) -> None:
    assert cli("verify", "--processes", "2").out == cli("verify").out
    cli("verify", "--processes", "0", code=2)


def test_a_trail_cut_into_rubbish_is_refused_in_one_line(trail: Path, cli: Cli) -> None:
    (trail / "trail.db").write_bytes(b"rubbish" * 1_000)
    (trail / "trail.db-wal").unlink()
    err = cli("verify", code=3).err
    assert err.startswith("otel-audit: ")
    assert err.count("\n") == 1


def test_progress_is_shown_on_a_terminal_only(directory: Path) -> None:
    store = Trail.open(directory)
    item = b'{"record_id":"5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11"}'
    for _ in range(20):
        store.store.append([item] * 2_000, {})
    store.signer.sign()
    store.close()
    command = [sys.executable, "-m", "otel_audit.cli", "verify", "--dir", str(directory)]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""
    controller, terminal = pty.openpty()
    subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    shown = os.read(controller, 65_536)
    os.close(controller)
    assert b"verifying" in shown
    assert b"/40000" in shown


def append(directory: Path, item: bytes) -> None:
    store = Trail.open(directory)
    store.store.append([item], {})
    store.close()


def change(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "trail.db") as database:
        database.execute(statement)
    database.close()
