"""Every command has help, an example, and its place in docs/cli.md, and all of them agree."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from otel_audit.cli.app import app
from otel_audit.cli.outcome import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Cli

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def _flat(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name each command as it is typed: those of a group with the group's name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


COMMANDS: dict[str, Any] = dict(_flat(get_command(app)))
EVERYWHERE = {"--dir", "--json", "--help"}


def section(name: str) -> str:
    match = re.search(rf"^## otel-audit {name}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/cli.md has no section for {name}"
    return match[1]


def examples(name: str) -> tuple[str, ...]:
    shown: tuple[str, ...] = COMMANDS[name].examples
    return shown


def options(name: str) -> set[str]:
    declared = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    return {option for option in declared if option.startswith("--")}


def test_the_commands_are_those_that_the_page_lists() -> None:
    assert set(re.findall(r"^## otel-audit (.+)$", TEXT, re.MULTILINE)) == set(COMMANDS)
    linked = re.findall(r"\[([a-z -]+)\]\(#otel-audit-(\S+)\)", TEXT)
    assert {name for name, _ in linked} == set(COMMANDS)
    assert all(name.replace(" ", "-") == anchor for name, anchor in linked)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_the_page(name: str) -> None:
    cells = re.findall(r"^\| (`--.*?) \|", section(name), re.MULTILINE)
    assert set(re.findall(r"`(--[a-z-]+)", " ".join(cells))) == options(name) - EVERYWHERE


@pytest.mark.parametrize("name", COMMANDS)
def test_short_options_are_on_the_page(name: str) -> None:
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if re.fullmatch("-[a-z]", option):
                assert f"`{option}`" in section(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_on_the_page(name: str) -> None:
    assert examples(name)
    for example in examples(name):
        assert f"`{example}`" in " ".join(section(name).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_use_options_that_exist(name: str) -> None:
    for example in examples(name):
        words = shlex.split(example.partition(">")[0])
        start = words.index("otel-audit")
        size = len(name.split())
        assert words[start + 1 : start + 1 + size] == name.split()
        COMMANDS[name].make_context(name, words[start + 1 + size :]).close()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_summary_options_and_example(name: str) -> None:
    done = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(
        app, [*name.split(), "--help"]
    )
    assert done.exit_code == 0
    assert COMMANDS[name].help.splitlines()[0] in done.stdout
    for option in options(name) | {"--help"}:
        assert option in done.stdout
    for example in examples(name):
        assert example in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_can_be_copied_from_a_narrow_terminal(name: str) -> None:
    done = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(
        app, [*name.split(), "--help"]
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(" $ ")] == [
        f" $ {example}" for example in examples(name)
    ]


def test_the_help_lists_the_words_for_times() -> None:
    done = CliRunner().invoke(app, ["query", "-h"])
    # However wide the terminal is that the help believes in: without the frame around it.
    start = re.search(r"--start.*?--end", done.stdout, re.DOTALL)[0]  # type: ignore[index] # or it is not there
    for word in ("today", "yesterday", "now", "-15m", "2026-01-31"):
        assert word in start


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_everywhere(name: str) -> None:
    assert "--json" in options(name)
    without = {"check-proof", "health", "init", "policy"}
    assert ("--dir" in options(name)) is (name not in without)


def test_the_exit_codes_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \| \S", TEXT, re.MULTILINE)
    assert [int(code) for code in rows] == [int(code) for code in ExitCode]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("doctor", ()),
        ("show", ("0",)),
        ("verify", ()),
        ("prove", ("0", "-o", "proof")),
        ("checkpoint", ()),
        ("keys", ()),
        ("new-origin", ("--yes", "--reason", "a test")),
        ("init", ("policy.yaml",)),
        ("policy", ("check", "--file", "policy.yaml")),
        ("policy", ("explain", "--event", "login")),
        ("ship status", ()),
        ("ship requeue", ()),
        ("ship replay", ("--from", "0")),
    ],
)
def test_the_keys_of_the_json_are_on_the_page(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    call = cli if "--dir" in options(name) else cli.bare
    if name == "policy":
        cli.bare("init", "policy.yaml")
    monkeypatch.setenv("OTEL_AUDIT_EXPORTER", "otlp")
    shown = json.loads(call(*name.split(), *arguments, "--json").out)
    missing = [key for key in set(keys_of(shown)) if f"`{key}`" not in section(name)]
    assert missing == []


def keys_of(value: dict[str, Any]) -> Iterator[str]:
    """Give the keys, also those of the objects in lists; what is counted by name has other keys."""
    for key, item in value.items():
        yield key
        for entry in item if isinstance(item, list) else ():
            if isinstance(entry, dict):
                yield from entry
