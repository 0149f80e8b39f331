"""What the tests of the shipped rule sets run, under the launcher, in an environment of its own.

The first argument names the library, the second the address of its server, if it has one.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def main() -> None:
    """Use one library for real."""
    globals()[f"use_{sys.argv[1]}"](*sys.argv[2:])


def use_sqlalchemy() -> None:
    import sqlalchemy as sa

    with sa.create_engine("sqlite://").begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id int, name text)"))
        connection.execute(sa.text("INSERT INTO users VALUES (:id, 'Ann')"), {"id": 1})
        connection.execute(sa.text("SELECT * FROM users"))


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

    with start_worker(app, perform_ping_check=False):
        pay.delay(1).get(timeout=30)
        pay.delay(-1).get(timeout=30, propagate=False)


def use_genai() -> None:
    """Make the span that instrumentations make by the semantic conventions."""
    from opentelemetry import trace

    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.response.model": "gpt-x-2026",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.input.messages": "what a patient asked",
    }
    tracer = trace.get_tracer("opentelemetry.instrumentation.some_llm")
    with tracer.start_as_current_span("chat", kind=trace.SpanKind.CLIENT, attributes=attributes):
        pass


def serve() -> str:
    """Serve an empty object to whoever asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.dumps({}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - http.server's way

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


if __name__ == "__main__":
    main()
