"""Runs the examples of a document, as CONTRIBUTING.md says that they are run.

Usage: python -m tests.project.documents DOCUMENT   (in an empty directory)

Promises that an example that does not work fails, with the document's name and line, and that
nothing is passed over in silence: a block is run, is not of a language that can be run, or says
why it is not. One document is one process, so that what it configures is gone afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
RUN: Final = frozenset({"python", "console", "bash"})
SHOWN: Final = frozenset(
    {
        "css",
        "diff",
        "dockerfile",
        "go",
        "html",
        "http",
        "ini",
        "javascript",
        "json",
        "jsonl",
        "logql",
        "mermaid",
    }
    | {"nginx", "promql", "sql", "text", "toml", "xml", "yaml"}
)
DIRECTIVES: Final = frozenset({"not run", "file", "from"})

_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^`]*)$")
_DIRECTIVE: Final = re.compile(r"^ *<!-- *(?P<name>[a-z ]+?) *(?:: *(?P<value>.*?))? *-->$")
_DONE: Final = "(the command ended with status "


class DocumentError(Exception):
    """An example does not do what the document says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: ``line`` is that of its first line of text, from 1."""

    document: str
    line: int
    language: str
    text: str
    directive: str = ""
    value: str = ""
    follows_code: bool = False

    @property
    def place(self) -> str:
        """Where it is, in the form that editors follow."""
        return f"{self.document}:{self.line}"

    def check(self) -> None:
        """Refuse what could be passed over by mistake; raises `DocumentError`."""
        if self.language not in RUN | SHOWN:
            known = ", ".join(sorted(RUN | SHOWN))
            message = f"{self.place}: unknown language {self.language!r}; known are {known}"
            raise DocumentError(message)
        if self.directive and not self.value:
            message = f"{self.place}: <!-- {self.directive} --> needs a value after a colon"
            raise DocumentError(message)


def blocks(document: str, text: str) -> Iterator[Block]:
    """Find the fenced blocks, each with the directive right above it."""
    lines = iter(enumerate(text.splitlines(), 1))
    directive: tuple[str, str] = ("", "")
    previous = ""
    for _, line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            directive = _directive(line) or (directive if not line.strip() else ("", ""))
            previous = previous if not line.strip() else ""
            continue
        found = _block(document, opened, lines, directive, previous)
        yield found
        directive, previous = ("", ""), found.language


def _directive(line: str) -> tuple[str, str] | None:
    match = _DIRECTIVE.match(line)
    if match is None or match["name"] not in DIRECTIVES:
        return None
    return match["name"], match["value"] or ""


def _block(
    document: str,
    opened: re.Match[str],
    lines: Iterator[tuple[int, str]],
    directive: tuple[str, str],
    previous: str,
) -> Block:
    first, body = 0, []
    for number, line in lines:
        first = first or number
        if line.strip() == opened["fence"]:
            break
        body.append(line.removeprefix(opened["indent"]))
    else:
        message = f"{document}:{first}: the block is never closed"
        raise DocumentError(message)
    language = opened["language"].strip()
    text = "".join(f"{line}\n" for line in body)
    return Block(document, first, language, text, *directive, follows_code=previous == "python")


def matches(expected: str, actual: str) -> bool:
    """Compare line by line without trailing blanks; `...` stands for anything, also lines."""
    pattern = re.escape(_trimmed(expected)).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, _trimmed(actual), re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Split a console block into commands and what each is said to print."""
    command, output = "", ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], ""
        elif command.endswith("\\"):
            command += "\n" + line.removeprefix("> ")
        elif command:
            output += line + "\n"
        else:
            message = f"{block.place}: a console block starts with a line '$ command'"
            raise DocumentError(message)
    yield command, output


class Shell:
    """One bash for the whole document: directory, variables and jobs stay, as in a terminal."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Give the exit status and everything that was printed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError
        # On a line of its own even after output without a newline.
        stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n{_DONE}%s)\\n' $?\n")
        stdin.flush()
        printed = ""
        for line in stdout:
            if line.startswith(_DONE):
                return int(line.removeprefix(_DONE).rstrip(")\n")), printed.removesuffix("\n")
            printed += line
        message = f"the shell ended at: {command}\n{printed}"
        raise DocumentError(message)

    def close(self) -> None:
        """End the shell and what it left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate()


class Runner:
    """Runs the blocks of one document in order, in the current directory."""

    def __init__(self) -> None:
        self._module = types.ModuleType("document")
        sys.modules["document"] = self._module
        self._shell: Shell | None = None
        self._printed = ""

    def close(self) -> None:
        """End what the examples started."""
        if self._shell is not None:
            self._shell.close()

    def run(self, block: Block) -> None:
        """Do with the block what its directive or its language says."""
        block.check()
        if block.directive == "not run":
            return
        if block.directive == "file":
            Path(block.value).write_text(block.text, encoding="utf-8")
        elif block.directive == "from":
            self._compare_with_file(block)
        else:
            self._run_language(block)

    def _run_language(self, block: Block) -> None:
        if block.language == "python":
            self._run_python(block)
        elif block.language == "bash":
            self._run_command(block, block.text.rstrip(), "")
        elif block.language == "console":
            for command, output in commands(block):
                self._run_command(block, command, output)
        elif block.language == "text" and block.follows_code:
            self._expect(block, "the code above", block.text, self._printed)

    def _compare_with_file(self, block: Block) -> None:
        if block.text not in (ROOT / block.value).read_text(encoding="utf-8"):
            message = f"{block.place}: this is no longer what {block.value} says; copy it anew"
            raise DocumentError(message)

    def _run_python(self, block: Block) -> None:
        # Blank lines in front make the line numbers of a traceback those of the document.
        source = "\n" * (block.line - 1) + block.text
        path = str(ROOT / block.document)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                code = compile(source, path, "exec", dont_inherit=True)
                exec(code, vars(self._module))  # noqa: S102 - the examples are ours, and running them is the purpose
            except Exception as error:
                message = f"{block.place}: the example raised\n{traceback.format_exc()}"
                raise DocumentError(message) from error
        self._printed = printed.getvalue()

    def _run_command(self, block: Block, command: str, output: str) -> None:
        self._shell = self._shell or Shell()
        status, printed = self._shell.run(command)
        if status:
            message = f"{block.place}: exit status {status} of: {command}\n{printed}"
            raise DocumentError(message)
        if output.strip():
            self._expect(block, command, output, printed)

    @staticmethod
    def _expect(block: Block, source: str, expected: str, actual: str) -> None:
        if not matches(expected, actual):
            message = (
                f"{block.place}: {source}\n"
                f"--- the document says\n{expected}--- printed was\n{actual}"
            )
            raise DocumentError(message)


def run(document: str) -> None:
    """Run all blocks of a document, named from the project's root; raises `DocumentError`."""
    runner = Runner()
    try:
        for block in blocks(document, (ROOT / document).read_text(encoding="utf-8")):
            runner.run(block)
    finally:
        runner.close()


if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except DocumentError as error:
        sys.exit(str(error))
