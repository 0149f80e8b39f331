"""Tokens on the command line: shown once, listed without their secrets, revoked at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from otel_audit.trail.layout import TOKENS
from otel_audit.web.access import RefusedError
from otel_audit.web.tokens import TokenFile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli


def test_a_token_is_made_listed_and_revoked(cli: Cli, trail: Path) -> None:
    assert "there are no tokens" in cli("token", "list").out
    shown = cli("token", "create", "alice", "--scope", "read", "--scope", "proof")
    text = shown.out.strip()
    assert "it is not shown again" in shown.err
    file = TokenFile(trail / TOKENS)
    assert file.check(text).scopes == {"read", "proof"}
    listed = cli("token", "list").out
    assert text not in listed
    assert listed.split()[1:3] == ["alice", "active"]
    assert cli("token", "revoke", "alice").out.startswith("revoked ")
    with pytest.raises(RefusedError, match="revoked"):
        file.check(text)
    assert "revoked" in cli("token", "list").out
    identifier = listed.split()[0]
    for name in ("alice", identifier):
        again = cli("token", "revoke", name).out
        assert again == f"already revoked: {identifier} of alice\n"
    assert "no token in" in cli("token", "revoke", "bob", code=4).err


def test_who_may_see_personal_fields_may_read(cli: Cli, trail: Path) -> None:
    text = cli("token", "create", "alice", "--scope", "read:pii").out.strip()
    assert TokenFile(trail / TOKENS).check(text).scopes == {"read", "read:pii"}
    text = cli("token", "create", "bob", "--scope", "proof").out.strip()
    assert TokenFile(trail / TOKENS).check(text).scopes == {"proof"}


def test_what_was_revoked_before_is_told_from_what_is_now(cli: Cli) -> None:
    cli("token", "create", "alice")
    cli("token", "revoke", "alice")
    cli("token", "create", "alice")
    shown = cli("token", "revoke", "alice").out
    assert shown.startswith("revoked ")
    assert len(shown.splitlines()) == 1


def test_without_a_trail_there_are_no_tokens_unless_a_file_is_named(
    fresh: Cli, tmp_path: Path
) -> None:
    for arguments in (("create", "alice"), ("list",), ("revoke", "alice")):
        assert "there is no trail in" in fresh("token", *arguments, code=3).err
        assert not fresh.directory.exists()
    fresh("token", "create", "alice", "--file", str(tmp_path / "t.json"))


def test_tokens_of_a_damaged_trail_can_be_revoked(cli: Cli, trail: Path) -> None:
    cli("token", "create", "alice")
    (trail / "trail.db").write_bytes(b"rubbish" * 1_000)
    assert cli("token", "revoke", "alice").out.startswith("revoked ")


def test_tokens_as_json(cli: Cli, tmp_path: Path) -> None:
    where = ("--file", str(tmp_path / "t.json"))
    made = json.loads(cli("token", "create", "bob", "--expires", "never", "--json", *where).out)
    assert made["expires"] is None
    assert made["scopes"] == ["read"]
    listed = json.loads(cli("token", "list", "--json", *where).out)
    assert listed["file"] == where[1]
    assert listed["tokens"][0]["id"] == made["id"]
    assert "token" not in listed["tokens"][0]
    gone = json.loads(cli("token", "revoke", made["id"], "--json", *where).out)
    assert gone["tokens"][0]["state"] == "revoked"


def test_the_settings_name_the_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_READ_TOKEN_FILE", str(tmp_path / "elsewhere.json"))
    text = cli("token", "create", "alice").out.strip()
    assert TokenFile(tmp_path / "elsewhere.json").check(text).name == "alice"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("destroy",), "none of create, list and revoke"),
        (("create",), "say whose"),
        (("revoke",), "say whose"),
        (("create", "alice", "--scope", "write"), "no scope"),
        (("create", "alice", "--expires", "soon"), "length of time"),
        (("create", ""), "printable"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    assert said in cli("token", *arguments, code=2).err
