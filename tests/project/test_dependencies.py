"""Each dependency is justified on its page, and the page names none that is gone."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "dependencies.md").read_text(encoding="utf-8")
PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
NAME = r"[A-Za-z0-9.-]+"


def normal(name: str) -> str:
    """Write a name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Give the cells of the section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def packages(cell: str) -> set[str]:
    return {normal(name) for name in re.findall(rf"`({NAME})(?:\[[\w,]+\])?`", cell)}


def declared(extra: str | None) -> set[str]:
    """Read what the installed package asks for, on its own or for an extra."""
    found = set()
    for requirement in requires("otel-audit") or []:
        marker = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if (marker and marker[1]) == extra:
            found.add(normal(re.findall(NAME, requirement)[0]))
    return found


def grouped(group: str) -> set[str]:
    match = re.search(rf"^{group} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    assert match is not None
    return {normal(name) for name in re.findall(rf'"({NAME})', match[1])}


def test_what_an_install_brings_is_justified_in_one_line_each() -> None:
    justified = {
        name: why
        for cell, why in rows("What `pip install otel-audit` brings")
        for name in packages(cell)
    }
    assert set(justified) == declared(None)
    assert all(justified.values())


def test_the_extras_are_as_their_table_says() -> None:
    for extra, cell, _ in rows("Extras"):
        assert packages(cell) == declared(extra.strip("`"))


def test_the_development_groups_are_as_their_table_says() -> None:
    listed: dict[str, set[str]] = {}
    for group, cell, _ in rows("For development only"):
        listed.setdefault(group.strip("`"), set()).update(packages(cell))
    assert listed == {group: grouped(group) for group in ("lint", "test", "stack", "build")}


def test_all_of_them_are_pinned() -> None:
    pinned = {normal(line.split("==")[0]) for line in CONSTRAINTS.splitlines() if "==" in line}
    wanted = set().union(*(declared(extra) for extra in (None, "fastapi", "health", "example")))
    wanted |= grouped("lint") | grouped("test") | grouped("stack") | grouped("build")
    assert wanted - pinned == set()
