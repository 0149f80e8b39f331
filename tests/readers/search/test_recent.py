"""The activity log: durable, shared by all workers, sync and async."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit import (
    AuditEvent,
    AuditLogger,
    AuditProvider,
    QueryError,
    Settings,
    aget_recent,
    get_recent,
)

if TYPE_CHECKING:
    from pathlib import Path


def record(provider: AuditProvider, number: int) -> None:
    fields = {"method": "GET", "path": f"/{number}", "status_code": 200, "duration_ms": 1.5}
    event = AuditEvent("http.request", "GET", event_type="http.request", fields=fields)
    AuditLogger(provider=provider).emit(event)


def test_requests_of_all_processes_are_there_also_after_a_restart(tmp_path: Path) -> None:
    settings = Settings.from_env({}, directory=tmp_path / "trail", service_name="hub", agent="off")
    before = AuditProvider(settings)
    record(before, 1)
    before.close()
    provider = AuditProvider(settings)
    AuditLogger(provider=provider).audit_event("login", "login")
    script = (
        "import sys; from pathlib import Path; from otel_audit import *;"
        "from tests.readers.search.test_recent import record;"
        "record(configure(directory=Path(sys.argv[1]), service_name='hub', agent='off'), 2)"
    )
    subprocess.run([sys.executable, "-c", script, str(provider.directory)], check=True)
    record(provider, 3)
    found = get_recent(provider=provider)
    assert [request.path for request in found] == ["/3", "/2", "/1"]
    newest = found[0]
    assert (newest.method, newest.status, newest.duration_ms) == ("GET", 200, 1.5)
    assert newest.outcome == "success"
    assert newest.record_id
    assert [request.path for request in get_recent(2, provider=provider)] == ["/3", "/2"]
    wrong: tuple[Any, ...] = (0, -1, 1_001, "5", None, 5.5)
    for limit in wrong:
        with pytest.raises(QueryError, match=rf"limit is {limit!r}; it can be a number, 1 to 1000"):
            get_recent(limit, provider=provider)
    provider.close()


async def test_a_coroutine_gets_the_same(tmp_path: Path) -> None:
    settings = Settings.from_env({}, directory=tmp_path / "trail", service_name="hub", agent="off")
    provider = AuditProvider(settings)
    event = AuditEvent("http.request", "GET", event_type="http.request")
    await AuditLogger(provider=provider).aemit(event)
    [request] = await aget_recent(provider=provider)
    assert request.path is None
    provider.close()


def test_a_provider_that_is_disabled_has_no_requests(tmp_path: Path) -> None:
    settings = Settings.from_env({"OTEL_AUDIT_DISABLED": "1"}, directory=tmp_path / "trail")
    assert get_recent(provider=AuditProvider(settings)) == []
