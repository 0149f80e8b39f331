"""`init` and `policy`: a file that is written, checked, and asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli

RULES = """
rules:
  - match: {event: login, actor: "u-*"}
    record: no
  - match: {event_type: phi_access}
    redact: [diagnosis]
"""


def test_what_init_writes_is_in_order_and_says_nothing(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    assert f"wrote {file}" in fresh.bare("init", str(file)).out
    shown = json.loads(fresh.bare("policy", "check", "--file", str(file), "--json").out)
    assert (shown["rules"], shown["routes"], shown["spans"]) == (0, 0, 0)


def test_every_line_that_init_comments_out_is_in_order(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    fresh.bare("init", str(file))
    lines = file.read_text().splitlines()
    said = [line.removeprefix("# ") if _is_yaml(line) else line for line in lines]
    file.write_text("\n".join(said))
    out = fresh.bare("policy", "check", "--file", str(file)).out
    assert f"{file} is in order" in out
    assert "rules          3" in out


def _is_yaml(line: str) -> bool:
    """Whether a comment is an example: a key, or indented."""
    text = line.removeprefix("# ")
    return line.startswith("# ") and (text.startswith(" ") or text.split(" ")[0].endswith(":"))


def test_init_replaces_nothing_unasked(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("on_failure: fail")
    assert "--force" in fresh.bare("init", str(file), code=2).err
    fresh.bare("init", str(file), "--force")
    assert "version: 1" in file.read_text()
    assert "cannot be written" in fresh.bare("init", str(file / "below"), code=2).err


def test_check_names_the_place(fresh: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n- record: no\n  match: {evnt: x}")
    assert (
        f"{file}:3:11: unknown key 'evnt'"
        in fresh.bare("policy", "check", "--file", str(file), code=2).err
    )
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(file))
    assert "unknown key" in fresh.bare("policy", "check", code=2).err
    monkeypatch.delenv("OTEL_AUDIT_POLICY_FILE")
    assert "there is no policy file" in fresh.bare("policy", "check", code=2).err


def test_a_retention_without_a_length_is_warned_about(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules:\n"
        "  - {match: {event: a}, retention: 6 years}\n"
        "  - {match: {event: b}, retention: 6y}\n"
        "routes:\n"
        "  - {match: '* /c', event: c, retention: '{query.kept}'}\n"
        "  - {match: '* /d', event: d, retention: forever}\n"
    )
    shown = fresh.bare("policy", "check", "--file", str(file)).out
    assert f"{file} is in order" in shown
    warnings = json.loads(fresh.bare("policy", "check", "--file", str(file), "--json").out)[
        "warnings"
    ]
    assert [warning.split(" is not ")[0] for warning in warnings] == [
        f"{file}:2:5: the retention '6 years'",
        f"{file}:6:5: the retention 'forever'",
    ]
    assert warnings[0].endswith(
        "; write for example 90d, 1y or 6y, unless it is a word of your own"
    )
    assert " ".join(shown.split()).count("warning ") == 2
    explained = fresh.bare("policy", "explain", "--file", str(file), "--event", "a", "--json").out
    assert json.loads(explained)["retention"] == "6 years"


def test_a_file_that_is_not_there_is_named_once(
    fresh: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nofile.yaml"
    said = (
        f"otel-audit: the policy file {file} cannot be read: No such file or directory; correct "
        "{}, or write one with `otel-audit init`\n"
    )
    shown = fresh.bare("policy", "check", "--file", str(file), code=2).err
    assert shown == said.format("the path")
    monkeypatch.setenv("OTEL_AUDIT_POLICY_FILE", str(file))
    assert fresh.bare("policy", "check", code=2).err == said.format("OTEL_AUDIT_POLICY_FILE")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{}]", ":1:9: rules: 'match' is missing; add it\n"),
        (
            "routes: [{match: FETCH /x, event: e}]",
            ":1:18: match: 'FETCH' is no HTTP method; write for example PATCH, or * for all\n",
        ),
        ("routes: [{match: 'GET,PSOT /x', event: e}]", "for example POST, or * for all\n"),
        ("routes: [{match: ', /x', event: e}]", "'' is no HTTP method; write for example GET"),
    ],
)
def test_check_says_what_would_be_right(fresh: Cli, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    assert said in fresh.bare("policy", "check", "--file", str(file), code=2).err


def test_methods_are_taken_in_any_case(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("routes: [{match: ['get,Post /x', '* /y', PROPFIND /z], event: e}]")
    fresh.bare("policy", "check", "--file", str(file))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--event", "login"), ("record      yes", "none matches")),
        (("--event", "login", "--actor", "u-1"), ("NO: this event", ":3:5 record=False")),
        (
            ("--event", "seen", "--event-type", "phi_access"),
            ("retention   3y", "redact      diagnosis", ":5:5 redact="),
        ),
    ],
)
def test_explain(
    fresh: Cli, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(RULES)
    out = fresh.bare("policy", "explain", "--file", str(file), *arguments).out
    for part in parts:
        assert part in out


def test_what_it_is_done_to_is_named_as_query_names_it(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{match: {resource_name: openai}, retention: 9y}]")
    for option in ("--resource", "--resource-name"):
        shown = fresh.bare(
            "policy", "explain", "--file", str(file), "--event", "login", option, "openai"
        )
        assert "retention   9y" in shown.out


def test_the_usage_says_what_policy_does(fresh: Cli) -> None:
    shown = fresh.bare("policy", "check", "--help").out
    assert "check|explain" in shown.splitlines()[1]
    assert "{what}" not in shown


@pytest.mark.parametrize(
    ("activity", "action", "record"),
    [
        ("off", "", "NO: http_activity is off"),
        ("off", "POST", "NO: http_activity is off"),
        ("mutating", "get", "NO: http_activity is mutating, and GET changes nothing"),
        ("mutating", "POST", "yes\n"),
        ("mutating", "", "yes, but not of GET, HEAD, OPTIONS and TRACE"),
        ("all", "GET", "yes\n"),
    ],
)
def test_explain_knows_which_requests_are_recorded(
    fresh: Cli, tmp_path: Path, activity: str, action: str, record: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(f"http_activity: {activity}")
    said = ("policy", "explain", "--file", str(file), "--event", "http.request", "--action", action)
    assert f"record      {record}" in fresh.bare(*said).out
    shown = json.loads(fresh.bare(*said, "--json").out)
    assert shown["record"] is record.startswith("yes")
    assert (shown["reason"] is None) is shown["record"]
    others = fresh.bare("policy", "explain", "--file", str(file), "--event", "login").out
    assert "record      yes" in others


def test_explain_says_one_reason_at_a_time(fresh: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "http_activity: mutating\nrules: [{match: {event_type: http.request}, record: no}]"
    )
    out = fresh.bare("policy", "explain", "--file", str(file), "--event", "http.request").out
    assert "record      NO: this event leaves no record\n" in out


def test_explain_knows_when_nothing_is_recorded(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DISABLED", "1")
    out = fresh.bare("policy", "explain", "--event", "login").out
    assert "record      NO: OTEL_AUDIT_DISABLED is set" in out


def test_explain_needs_an_event(fresh: Cli) -> None:
    assert "--event" in fresh.bare("policy", "explain", code=2).err
