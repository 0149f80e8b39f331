"""Each shipped rule set, with the real library, its real instrumentation and a real server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from collector.stack.servers import free_port
from tests.stack.environments import environment
from tests.stack.launched import Launched
from tests.stack.servers import postgres, served

PROGRAM = Path(__file__).parent / "libraries.py"
SETS = "sql,redis,http,aws,celery,genai"

pytestmark = pytest.mark.timeout(900)


def used(directory: Path, *arguments: str, **said: Any) -> list[dict[str, Any]]:
    """Use a library under the launcher, with a sampler that drops every span."""
    shutil.copy(PROGRAM, directory)
    launched = Launched(
        environment("libraries"), directory, "python", PROGRAM.name, *arguments,
        OTEL_TRACES_SAMPLER="always_off", OTEL_AUDIT_RULE_SETS=SETS, **said,
    )  # fmt: skip
    assert launched.process.wait(300) == 0, launched.said()
    launched.verify()
    records = launched.records()
    for record in records:
        assert int(record["trace_id"], 16), record
        assert "rule_failed" not in record
    return records


def said(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("event", "action", "resource_name", "outcome"))


def test_sqlalchemy(tmp_path: Path) -> None:
    created, inserted, deleted, updated = used(tmp_path, "sqlalchemy")
    assert said(created) == ("database_change", "CREATE", "users", "success")
    assert said(inserted) == ("database_write", "INSERT", "users", "success")
    assert inserted["statement"] == "INSERT INTO users VALUES (?, ?)"
    assert inserted["database_system"] == "sqlite"
    assert said(deleted) == ("database_write", "DELETE", "users", "success")
    assert deleted["statement"].startswith("WITH gone AS")
    assert said(updated) == ("database_write", "UPDATE", "users", "success")
    assert updated["statement"] == 'UPDATE "users" SET name = ?'


def test_psycopg(tmp_path: Path) -> None:
    with postgres() as port:
        address = f"host=127.0.0.1 port={port} user=audit dbname=postgres"
        created, inserted = used(tmp_path, "psycopg", address)
    assert said(created) == ("database_change", "CREATE", "users", "success")
    assert said(inserted) == ("database_write", "INSERT", "users", "success")
    assert (inserted["database_system"], inserted["database"]) == ("postgresql", "postgres")


def test_redis(tmp_path: Path) -> None:
    port = free_port()
    command = ("redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1")
    with served(port, *command, cwd=tmp_path):
        first, second, third = used(tmp_path, "redis", str(port))
    assert said(first) == ("cache_write", "SET", "localhost", "success")
    assert said(second) == ("cache_write", "DEL", "localhost", "success")
    assert second["command"] == "GET ?\nDEL ?"
    assert said(third) == ("cache_write", "PSETEX", "localhost", "success")
    assert "secret" not in str((first, third))


def test_httpx(tmp_path: Path) -> None:
    (record,) = used(tmp_path, "httpx")
    assert said(record) == ("outgoing_request", "POST", "127.0.0.1", "success")
    assert record["url"].endswith("/pay")
    assert record["status_code"] == 200


def test_boto3_with_moto_s_server(tmp_path: Path) -> None:
    port = free_port()
    moto = environment("libraries") / "moto_server"
    with served(port, str(moto), "-H", "127.0.0.1", "-p", str(port), cwd=tmp_path):
        records = used(tmp_path, "boto3", f"http://127.0.0.1:{port}")
    assert [said(record) for record in records] == [
        ("cloud_change", "CreateBucket", "S3", "success"),
        ("cloud_change", "CreateSecret", "Secrets Manager", "success"),
        ("credential_accessed", "GetSecretValue", "Secrets Manager", "success"),
    ]
    assert records[2]["event_type"] == "credential_access"
    assert "a secret value" not in str(records)


def test_celery(tmp_path: Path) -> None:
    good, bad, again, done = used(tmp_path, "celery")
    assert said(good) == ("task_execution", "execute", good["task_id"], "success")
    assert (good["task_name"], good["state"], "duration_ms" in good) == ("pay", "SUCCESS", True)
    assert (bad["state"], bad["outcome"]) == ("FAILURE", "failure")
    assert (again["state"], again["status"], again["outcome"]) == ("RETRY", "retried", "unknown")
    assert (done["state"], done["outcome"]) == ("SUCCESS", "success")


def called(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of language models; the requests that they are made of are beside them."""
    sent = {record["trace_id"] for record in records if record["event"] == "outgoing_request"}
    calls = [record for record in records if record["event"] == "ai_provider_call"]
    assert {record["trace_id"] for record in calls} == sent
    text = str(records)
    assert [word for word in ("patient", "the answer", "sk-secret") if word in text] == []
    return calls


CALL = ("event", "action", "outcome", "provider", "model", "operation", "tokens_used")


def test_genai_with_openai(tmp_path: Path) -> None:
    """By OpenTelemetry's instrumentation, which has been told to put the messages into its spans."""
    said = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"}
    records = called(used(tmp_path, "openai", **said))
    call = ("ai_provider_call", "call", "success", "openai")
    assert [tuple(record.get(name) for name in CALL) for record in records] == [
        (*call, "gpt-x-2026", "chat", 7),
        (*call, "gpt-x-2026", "chat", 7),
        (*call, "gpt-x-2026", "chat", 7),
        (*call, "gpt-x-2026", "chat", 7),
        (*call, "embedding-x", "embeddings", 5),
        ("ai_provider_call", "call", "failure", "openai", "unknown", "chat", None),
    ]
    for record in records:
        assert record["latency_ms"] > 0
        assert record["resource_type"] == "ai_model"
        assert record["resource_name"] == record["model"]
        assert record["server_address"] == "127.0.0.1"
    ids = ["chat-1", "chat-1", "chat-1", "response-1", None, None]
    assert [record.get("response_id") for record in records] == ids
    assert records[-1]["error"] == "openai.NotFoundError"


def test_genai_with_anthropic(tmp_path: Path) -> None:
    """By the spans that the library makes itself."""
    (record,) = called(used(tmp_path, "anthropic"))
    assert tuple(record.get(name) for name in CALL) == (
        "ai_provider_call", "call", "success", "anthropic", "claude-x-2026", "chat", 7,
    )  # fmt: skip
    assert record["response_id"] == "message-1"
