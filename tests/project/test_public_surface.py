"""The public surface is what its page lists, documented, and cheap to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import otel_audit

PAGE = Path(__file__).parents[2] / "docs" / "public-surface.md"


def listed() -> list[str]:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    return rows


def test_the_page_lists_the_public_names_once_and_no_others() -> None:
    assert sorted(listed()) == sorted(otel_audit.__all__)


def test_the_names_are_in_order_and_unique() -> None:
    assert otel_audit.__all__ == sorted(set(otel_audit.__all__))
    assert dir(otel_audit) == otel_audit.__all__


@pytest.mark.parametrize("name", otel_audit.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(otel_audit, name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)


@pytest.mark.parametrize("name", otel_audit.__all__)
def test_the_public_members_of_a_class_are_documented(name: str) -> None:
    value = getattr(otel_audit, name)
    if not inspect.isclass(value):
        return
    undocumented = [
        member
        for member, found in vars(value).items()
        if not member.startswith("_")
        and (inspect.isfunction(found) or isinstance(found, (property, classmethod, staticmethod)))
        and not inspect.getdoc(getattr(value, member))
    ]
    assert undocumented == []


def listed_elsewhere() -> set[tuple[str, str]]:
    rows = re.findall(
        r"^\| `(otel_audit\.[\w.]+)` \| (.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {(module, name) for module, names in rows for name in re.findall(r"`(\w+)`", names)}


def test_names_in_modules_of_their_own_are_there_and_documented() -> None:
    for module, name in listed_elsewhere():
        value = getattr(import_module(module), name)
        assert inspect.getdoc(value), f"{module}.{name}"


def test_what_documents_import_is_public() -> None:
    told = set()
    for page in [PAGE.parents[1] / "README.md", *PAGE.parent.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(
            r"^from (otel_audit[\w.]*) import (\w[\w, ]*)", text, re.MULTILINE
        ):
            told |= {(module, name) for name in names.split(", ")}
    assert len(told) > 10
    public = {("otel_audit", name) for name in otel_audit.__all__} | listed_elsewhere()
    assert told - public == set()


def test_an_unknown_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'otel_audit' has no attribute 'audit'"):
        _ = otel_audit.audit
    assert not hasattr(otel_audit, "__path_of_nothing__")


def test_the_version_is_that_of_the_distribution() -> None:
    assert otel_audit.__version__ == version("otel-audit")


def loaded_by(module: str) -> set[str]:
    """Tell what a new process loads with a module; unmeasured, as coverage loads its own."""
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    return set(output.split())


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    loaded = loaded_by("otel_audit")
    heavy = {"apsw", "cryptography", "fastapi", "opentelemetry", "orjson", "rich", "starlette"}
    assert heavy.isdisjoint(loaded)
    assert {"structlog", "typer", "grpc", "asyncio", "sqlite3"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "module", ["otel_audit.api.logger", "otel_audit.web.middleware", "otel_audit.trail.verify"]
)
def test_what_an_application_imports_brings_no_web_framework_and_no_terminal(module: str) -> None:
    assert {"fastapi", "starlette", "typer", "rich", "uvicorn"}.isdisjoint(loaded_by(module))
