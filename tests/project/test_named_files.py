"""Whoever reads a document or a docstring finds the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("otel_audit", "tests", "benchmarks", "examples", "collector", "docs")
NAMED = re.compile(r"(?<![\w/.-])(?:[a-z_]+/)+[a-z_]+\.py\b")
INVENTED = {
    Path("CONTRIBUTING.md"): {"examples/app.py"},
    Path("docs/repository-hygiene.md"): {"otel_audit/api/access_tokens.py"},
}
"""Files of examples, which nobody will look for."""
ONLY_INVENTED = {
    Path("tests/project/test_ignored_files.py"),
    Path("tests/project/test_named_files.py"),
}


def _files() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    wanted = [path for path in below if path.suffix in {".py", ".md", ".yml", ".yaml"}]
    names = (path.relative_to(ROOT) for path in [*wanted, *ROOT.glob("*.md")])
    return [name for name in names if name not in ONLY_INVENTED]


def _missing(name: Path, text: str) -> list[str]:
    """Return what is named and is not there, seen from the root, the package and the file's folders."""
    places = [ROOT, ROOT / "otel_audit", *(ROOT / place for place in name.parents)]
    found = set(NAMED.findall(text)) - INVENTED.get(name, set())
    return sorted(one for one in found if not any((place / one).exists() for place in places))


def test_the_files_that_are_named_exist() -> None:
    missing = {name: _missing(name, (ROOT / name).read_text(encoding="utf-8")) for name in _files()}
    assert {name: names for name, names in missing.items() if names} == {}


@pytest.mark.parametrize("text", ["see `web/nowhere.py`", "tests/nowhere/test_it.py runs it"])
def test_one_that_does_not_exist_is_found(text: str) -> None:
    assert len(_missing(Path("docs/fastapi.md"), text)) == 1
