"""Whoever switches a rule off says why; nothing of a machine is committed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Put together from parts, so that this file does not find itself.
MACHINE_PATHS = ["/" + name + "/" for name in ("root", "work")]
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("npmjs", "org"),
        ("static", "crates", "io"),
        ("maven", "org"),
        ("deb", "debian", "org"),
        ("debian", "org/debian"),
    )
]

SWITCHED_OFF = re.compile(r"# *(noqa|type: *ignore|pragma: *no|ruff: *noqa|mypy: )")
WITH_REASON = re.compile(
    r"# noqa: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* +[-#(] ?\w.+"
    r"|# type: ignore\[[a-z, -]+\] +# \w.+"
    r"|# pragma: no (cover|branch) - \w.+"
)
# A test that calls with wrong types, or writes what is frozen, says so by being that test.
WITH_REASON_IN_TESTS = re.compile(r"# type: ignore\[[a-z, -]+\]")


def committed(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def unreasoned(source: str) -> list[str]:
    """Lines that switch a rule off and do not say why."""
    return [
        line.strip()
        for line in source.splitlines()
        if (off := SWITCHED_OFF.search(line)) and not WITH_REASON.match(line, off.start())
    ]


@pytest.mark.parametrize("name", committed("*.py", "*.pyi"))
def test_a_rule_is_switched_off_for_a_reason(name: str) -> None:
    if Path(name) == Path(__file__).relative_to(ROOT):
        return
    found = unreasoned((ROOT / name).read_text(encoding="utf-8"))
    if name.startswith("tests/"):
        found = [line for line in found if not WITH_REASON_IN_TESTS.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("line", "reasoned"),
    [
        ("x = 1  # noqa: S102 - the examples are ours", True),
        ("x = 1  # noqa: S102, S103 - the examples are ours", True),
        ("x = 1  # type: ignore[arg-type]  # the stubs are wrong", True),
        ("x = 1  # pragma: no cover - needs a full disk", True),
        ("x = 1  # noqa: S102", False),
        ("x = 1  # noqa", False),
        ("x = 1  # type: ignore[arg-type]", False),
        ("x = 1  # type: ignore", False),
        ("x = 1  # pragma: no cover", False),
        ("# mypy: ignore-errors", False),
        ("# ruff: noqa: S101", False),
    ],
)
def test_a_missing_reason_is_found(line: str, reasoned: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert (unreasoned(line) == []) is reasoned


def test_each_rule_that_is_switched_off_for_all_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rule = re.compile(r'^ +"[A-Z]+[0-9]+",(?P<rest>.*)$', re.MULTILINE)
    found = list(rule.finditer(text))
    assert found
    assert [match[0] for match in found if not re.match(r" +# \w.+", match["rest"])] == []


@pytest.mark.parametrize("needle", [*MACHINE_PATHS, *REGISTRY_HOSTS])
def test_no_committed_file_names_a_machine_or_a_registry(needle: str) -> None:
    naming = subprocess.run(
        ["git", "grep", "--fixed-strings", "--text", "--line-number", "-e", needle],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert naming.stderr == ""
    assert naming.stdout == ""


def test_the_constraints_hold_names_and_versions_only() -> None:
    line = re.compile(
        r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*"
        r'( ; python_version (<|>=) "3\.\d+"( and python_version < "3\.\d+")?)?'
    )
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wrong = [
        found
        for found in text.splitlines()
        if not found.startswith("#") and not line.fullmatch(found)
    ]
    assert wrong == []
