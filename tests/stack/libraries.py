"""What the tests of the shipped rule sets run, under the launcher, in an environment of its own.

The first argument names the library, the second the address of its server, if it has one.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Use one library for real."""
    globals()[f"use_{sys.argv[1]}"](*sys.argv[2:])


def use_sqlalchemy() -> None:
    import sqlalchemy as sa

    with sa.create_engine("sqlite://").begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id int, name text)"))
        connection.execute(sa.text("INSERT INTO users VALUES (:id, 'Ann')"), {"id": 1})
        connection.execute(sa.text("SELECT * FROM users"))
        users = sa.table("users", sa.column("id"))
        gone = sa.select(users.c.id).where(users.c.id == 1).cte("gone")
        connection.execute(users.delete().where(users.c.id.in_(sa.select(gone.c.id))))
        connection.execute(sa.text('/* job */ UPDATE "users" SET name = "a secret"'))


def use_psycopg(address: str) -> None:
    import psycopg

    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE users (id int)")
        cursor.execute("INSERT INTO users VALUES (%s)", (1,))
        cursor.execute("SELECT * FROM users")


def use_redis(port: str) -> None:
    import redis

    client = redis.Redis(port=int(port))
    client.set("user:1", "a secret value")
    client.get("user:1")
    with client.pipeline() as pipeline:
        pipeline.get("user:1")
        pipeline.delete("user:1")
        pipeline.execute()
    client.expiretime("user:1")
    client.psetex("user:1", 1_000, "a secret value")


def use_httpx() -> None:
    import httpx

    address = serve()
    httpx.get(f"{address}/read")
    httpx.post(f"{address}/pay?token=secret", json={})


def use_boto3(address: str) -> None:
    import boto3  # type: ignore[import-not-found]  # in the environment only

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=address, **keys)
    s3.create_bucket(Bucket="bucket-one")
    s3.list_objects(Bucket="bucket-one")
    secrets = boto3.client("secretsmanager", endpoint_url=address, **keys)
    secrets.create_secret(Name="db", SecretString="a secret value")
    secrets.get_secret_value(SecretId="db")


def use_celery() -> None:
    from celery import Celery  # type: ignore[import-not-found]  # in the environment only
    from celery.contrib.testing.worker import (  # type: ignore[import-not-found]  # see above
        start_worker,
    )

    app = Celery("tasks", broker="memory://", backend="cache+memory://")

    @app.task(name="pay")  # type: ignore[untyped-decorator]  # Celery's own
    def pay(amount: int) -> int:
        if amount < 0:
            raise ValueError(amount)
        return amount

    @app.task(name="charge", bind=True, default_retry_delay=0)  # type: ignore[untyped-decorator]  # Celery's own
    def charge(task: Any) -> None:
        if not task.request.retries:
            raise task.retry()

    with start_worker(app, perform_ping_check=False):
        pay.delay(1).get(timeout=30)
        pay.delay(-1).get(timeout=30, propagate=False)
        charge.delay().get(timeout=30)


def use_openai() -> None:
    """Ask by each interface, as applications do: at once, awaited, as a stream, and in vain."""
    import asyncio

    import openai  # type: ignore[import-not-found]  # in the environment only

    where = {"base_url": f"{serve(language_model)}/v1", "api_key": "sk-secret", "max_retries": 0}
    client = openai.OpenAI(**where)
    asked = {"model": "gpt-x", "messages": QUESTION}
    assert client.chat.completions.create(**asked).choices[0].message.content == "the answer"
    assert asyncio.run(openai.AsyncOpenAI(**where).chat.completions.create(**asked))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert [*client.chat.completions.create(**asked, **options)][-1].usage
    assert client.responses.create(model="gpt-x", input=QUESTION[0]["content"]).output_text
    assert client.embeddings.create(model="embedding-x", input=QUESTION[0]["content"]).data
    with suppress(openai.NotFoundError):
        client.chat.completions.create(model="unknown", messages=QUESTION)


def use_anthropic() -> None:
    import anthropic  # type: ignore[import-not-found]  # in the environment only

    client = anthropic.Anthropic(base_url=serve(language_model), api_key="sk-secret", max_retries=0)
    answer = client.messages.create(model="claude-x", max_tokens=9, messages=QUESTION)
    assert answer.content[0].text == "the answer"


QUESTION = [{"role": "user", "content": "what a patient asked"}]
ANSWER = {"role": "assistant", "content": "the answer"}
TOKENS = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def language_model(path: str, asked: dict[str, Any]) -> Any:
    """Answer as OpenAI and Anthropic do; a stream is a list."""
    chat = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "gpt-x-2026"}
    if asked["model"] == "unknown":
        return 404, {"error": {"message": f"no such model, {asked['messages']}"}}
    if path.endswith("/messages"):
        return {
            "id": "message-1", "type": "message", "role": "assistant", "model": "claude-x-2026",
            "content": [{"type": "text", "text": "the answer"}], "stop_reason": "end_turn",
            "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 4},
        }  # fmt: skip
    if path.endswith("/embeddings"):
        vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        return {"object": "list", "model": "embedding-x", "data": [vector], "usage": usage}
    if path.endswith("/responses"):
        text = {"type": "output_text", "text": "the answer", "annotations": []}
        message = {"id": "message-1", "type": "message", "role": "assistant",
                   "status": "completed", "content": [text]}  # fmt: skip
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        return {"id": "response-1", "object": "response", "created_at": 1, "status": "completed",
                "model": "gpt-x-2026", "output": [message], "usage": usage, "tools": [],
                "tool_choice": "auto", "parallel_tool_calls": True}  # fmt: skip
    if asked.get("stream"):
        chunk = {**chat, "object": "chat.completion.chunk"}
        choice = {"index": 0, "delta": ANSWER, "finish_reason": "stop"}
        return [{**chunk, "choices": [choice]}, {**chunk, "choices": [], "usage": TOKENS}]
    choice = {"index": 0, "finish_reason": "stop", "message": ANSWER}
    return {**chat, "choices": [choice], "usage": TOKENS}


def serve(answer: Callable[[str, dict[str, Any]], Any] = lambda _path, _asked: {}) -> str:
    """Serve what ``answer`` says to path and body: an object, with or without a status, or a stream."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"
            said = answer(self.path, json.loads(asked))
            status, said = said if isinstance(said, tuple) else (200, said)
            kind, body = "application/json", json.dumps(said)
            if isinstance(said, list):
                events = [*map(json.dumps, said), "[DONE]"]
                kind, body = "text/event-stream", "".join(f"data: {one}\n\n" for one in events)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815 - http.server's way

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


if __name__ == "__main__":
    main()
