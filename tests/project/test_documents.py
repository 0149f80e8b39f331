"""The examples of README.md and docs/ work as they are printed, and so does what runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.project.documents import ROOT, Block, DocumentError, Runner, blocks, commands, matches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)


def blocks_of(document: str) -> list[Block]:
    return list(blocks(document, (ROOT / document).read_text(encoding="utf-8")))


EXEMPT = [
    block for document in DOCUMENTS for block in blocks_of(document) if block.directive == "not run"
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_work(document: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.project.documents", document],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", EXEMPT, ids=lambda block: block.place)
def test_what_is_not_run_says_why(block: Block) -> None:
    block.check()
    pytest.skip(f"{block.place} is not run: {block.value}")


# From here on: that the above can fail.


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.chdir(tmp_path)
    runner = Runner()
    yield runner
    runner.close()


def run(runner: Runner, text: str) -> None:
    for block in blocks("made-up.md", text):
        runner.run(block)


def test_python_blocks_share_one_namespace_and_their_output_is_compared(runner: Runner) -> None:
    run(
        runner,
        "```python\nvalue = 1\n```\ntext\n```python\nprint(value)\n```\n\n```text\n1\n```\n",
    )


def test_an_example_is_compiled_as_the_reader_would(runner: Runner) -> None:
    # Without the future imports of the module that runs it.
    run(
        runner,
        "```python\ndef f(a: int): ...\nprint(f.__annotations__)\n```\n"
        "```text\n{'a': <class 'int'>}\n```\n",
    )


def test_text_that_follows_no_code_is_not_output(runner: Runner) -> None:
    run(runner, "```python\nprint(1)\n```\nA picture:\n```text\n+--+\n```\n")


def test_an_example_that_raises_fails_with_its_line(runner: Runner) -> None:
    with pytest.raises(DocumentError, match=r"made-up\.md:4") as caught:
        run(runner, "# Title\n\n```python\n\n1 / 0\n```\n")
    assert 'made-up.md", line 5' in str(caught.value)


def test_output_that_differs_fails(runner: Runner) -> None:
    with pytest.raises(DocumentError, match="printed was\n2"):
        run(runner, "```python\nprint(2)\n```\n```text\n1\n```\n")


def test_a_shell_stays_for_the_whole_document(runner: Runner, tmp_path: Path) -> None:
    run(runner, "```bash\nmkdir a\ncd a\nexport WORD=hello\n```\n```console\n$ pwd\n...a\n```\n")
    run(runner, '```console\n$ printf "$WORD"\nhello\n$ touch here \\\n>   there\n```\n')
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["here", "there"]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("```console\n$ false\n```", "exit status 1 of: false"),
        ("```bash\nexit 3\n```", "the shell ended at"),
        ("```console\n$ echo a\nb\n```", "printed was\na"),
        ("```console\nls\n```", "starts with a line"),
        ("```sh\nls\n```", "unknown language 'sh'"),
        ("```\nls\n```", "unknown language ''"),
        ("<!-- not run -->\n```bash\nls\n```", "needs a value"),
        ("<!-- from: LICENSE -->\n```text\nMIT License\n```", "no longer what LICENSE says"),
        ("```python\n1\n", "never closed"),
    ],
)
def test_what_cannot_be_held_fails(runner: Runner, block: str, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        run(runner, block + "\n")


def test_a_block_may_be_exempt_be_a_file_or_come_from_one(runner: Runner, tmp_path: Path) -> None:
    run(runner, "<!-- not run: needs a root shell -->\n```bash\nfalse\n```\n")
    run(runner, "<!-- file: app.py -->\n\n```python\n1 / 0\n```\n")
    run(runner, "<!-- from: LICENSE -->\n```text\n      http://www.apache.org/licenses/\n```\n")
    assert (tmp_path / "app.py").read_text(encoding="utf-8") == "1 / 0\n"


def test_a_directive_does_not_reach_past_text() -> None:
    (block,) = blocks("x.md", "<!-- not run: why -->\nprose\n```bash\nls\n```\n")
    assert block.directive == ""


def test_three_dots_stand_for_anything() -> None:
    assert matches("a ... c\n", "a b c")
    assert matches("first\n...\nlast\n", "first\n2\n3\nlast  \n")
    assert not matches("a ... c\n", "a b d")
    assert not matches("a.c\n", "abc")


def test_a_fence_in_a_list_loses_its_indent() -> None:
    (block,) = blocks("x.md", "1. One\n\n   ```console\n   $ ls\n   a\n   ```\n")
    assert list(commands(block)) == [("ls", "a\n")]
