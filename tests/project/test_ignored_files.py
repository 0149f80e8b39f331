"""What git keeps out, what it must let in, and that its history is clean."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.project.documents import blocks

ROOT = Path(__file__).parents[2]
HYGIENE = ROOT / "docs" / "repository-hygiene.md"

KEPT_OUT = [
    "audit.log",
    "audit.log.1",
    "audit.log-20260101.gz",
    "audit_2026-01-01.log",
    "deploy/audit_web.log",
    "logs/audit/today.jsonl",
    ".env",
    ".env.production",
    "examples/agenthub/.env",
    "tls/server.pem",
    "signing.key",
    "keystore.p12",
    "private_key",
    "private_key.txt",
    "id_rsa",
    "id_rsa.pub",
    "slack_token",
    "slack_token.txt",
    "github_token.json",
    "api_key",
    "api_key.txt",
    "api_key.py",
    "api_secret.yaml",
    "access_token.json",
    "refresh_token",
    "trail.db",
    "logs/trail/trail.db",
    "trail.db-wal",
    "trail.db-shm",
    "schema.sql",
    "users.dump",
    "users.backup",
    "backups/monday.tar",
    "db_dumps/users.csv",
    ".venv/bin/python",
    "otel_audit/__pycache__/errors.cpython-311.pyc",
    "otel_audit/trail/__pycache__/api_key.cpython-311.pyc",
    ".coverage",
    ".coverage.host.1.x",
    "dist/otel_audit-0.1.0.tar.gz",
]

LET_IN = [
    "otel_audit/trail/keys.py",
    "otel_audit/trail/private_keys.py",
    "otel_audit/api/access_tokens.py",
    "otel_audit/cli/keys.py",
    "otel_audit/exports/sql.py",
    "otel_audit/exports/dump.py",
    "otel_audit/readers/backup.py",
    "otel_audit/web/page/index.html",
    "otel_audit/instrumentation/sqlalchemy.py",
    "tests/record/test_redact.py",
    "tests/record/api_keys.py",
    "tests/trail/vectors/signed-note.txt",
    "tests/stack/noteverify/main.go",
    "examples/agenthub/api_keys.py",
    "benchmarks/audit_emit.py",
    "collector/builder.yaml",
    "docs/access_tokens.md",
    "docs/audit.md",
    "packaging/logrotate/otel-audit",
    "packaging/logrotate/audit.conf",
    "packaging/systemd/otel-audit-agent.service",
    "constraints.txt",
    "Makefile",
    ".env.example",
    ".ci/run",
]


def git(*arguments: str, at: Path = ROOT, stdin: str | None = None) -> str:
    """Run git and give its output; `check-ignore` says "none" by exit code 1."""
    done = subprocess.run(
        ["git", *arguments], cwd=at, input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def ignored(paths: list[str]) -> set[str]:
    return set(git("check-ignore", "--no-index", "--stdin", stdin="\n".join(paths)).splitlines())


@pytest.mark.parametrize("path", KEPT_OUT)
def test_logs_secrets_and_databases_are_kept_out(path: str) -> None:
    assert ignored([path]) == {path}


@pytest.mark.parametrize("path", LET_IN)
def test_sources_may_be_named_after_what_they_deal_with(path: str) -> None:
    assert ignored([path]) == set()


def test_every_pattern_that_the_issue_names_is_listed() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    named = (
        "audit.log audit.log.* audit_*.log logs/audit/ .env .env.production *.pem *.key *.p12 "
        "private_key* id_rsa* slack_token* github_token* api_key* api_secret* access_token* "
        "refresh_token* *.db *.sql *.dump *.backup backups/ db_dumps/"
    )
    assert [pattern for pattern in named.split() if pattern not in lines] == []


def test_no_committed_file_is_ignored() -> None:
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == ""


def test_no_file_of_the_sources_is_ignored() -> None:
    # What the tools leave behind may lie there and be ignored; nothing else may.
    left_behind = re.compile(r"(^|/)(__pycache__|\.\w+_cache)/")
    hidden = git(
        *("ls-files", "--others", "--ignored", "--exclude-standard", "--"),
        *("otel_audit", "tests", "examples", "benchmarks", "docs", "packaging", "collector"),
    ).splitlines()
    assert [path for path in hidden if not left_behind.search(path)] == []


def commands_of_the_document() -> list[str]:
    """Take the commands from the document, so that what is tested is what people run."""
    document = blocks(HYGIENE.name, HYGIENE.read_text(encoding="utf-8"))
    return [block.text for block in document if block.text.startswith("git log --all")]


def run_history_command(at: Path, number: int = 0) -> list[str]:
    command = commands_of_the_document()[number]
    done = subprocess.run(
        ["bash", "-c", command], cwd=at, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_whole_history_is_clean() -> None:
    assert run_history_command(ROOT) == []


def test_private_keys_are_in_no_file_but_tests() -> None:
    # Commits are listed as "hash subject", files by their name alone.
    listed = run_history_command(ROOT, 1)
    files = [line for line in listed if not re.match(r"[0-9a-f]{7,40} ", line)]
    assert [path for path in files if not path.startswith("tests/")] == []


def test_a_secret_that_was_committed_once_is_found_in_the_history(tmp_path: Path) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    git("init", "--quiet", at=tmp_path)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text("utf-8"), "utf-8")
    (tmp_path / "app.py").write_text("", "utf-8")
    git("add", ".", at=tmp_path)
    git(*identity, "commit", "--quiet", "-m", "Start", at=tmp_path)
    git("checkout", "--quiet", "-b", "side", at=tmp_path)
    (tmp_path / ".env").write_text("PASSWORD=x", "utf-8")
    git("add", "--force", ".env", at=tmp_path)
    git(*identity, "commit", "--quiet", "-m", "Add a secret", at=tmp_path)
    git("mv", ".env", "notes.txt", at=tmp_path)
    git(*identity, "commit", "--quiet", "-m", "Hide it", at=tmp_path)
    git("checkout", "--quiet", "-", at=tmp_path)

    assert run_history_command(tmp_path) == [".env"]
