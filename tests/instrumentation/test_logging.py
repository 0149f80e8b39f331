"""logging.getLogger("audit") writes the trail."""

from __future__ import annotations

import asyncio
import fcntl
import io
import logging
import logging.config
import queue
import sys
import threading
import time
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit import AuditUnavailableError, get_audit_context
from otel_audit.api.context import RequestScope
from otel_audit.instrumentation.logging import AuditHandler
from otel_audit.readers.console import Console
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_audit.testing import AuditTrail


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Give the logger as dictConfig would make it."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"audit": {"class": "otel_audit.AuditHandler"}},
            "loggers": {"audit": {"handlers": ["audit"], "level": "DEBUG", "propagate": False}},
        }
    )
    logger = logging.getLogger("audit")
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def test_a_message_becomes_a_record_with_its_extra_fields(
    trail: AuditTrail, logger: logging.Logger
) -> None:
    logger.info(
        "server_lifecycle_event",
        extra={"action": "start", "resource_name": "db", "port": 80, "status": "initiated"},
    )
    record = trail.record(event="server_lifecycle_event")
    said = {name: record[name] for name in ("action", "resource_name", "port", "status", "level")}
    assert said == {"action": "start", "resource_name": "db", "port": 80, "status": "initiated",
                    "level": "info"}  # fmt: skip
    assert record["logger"] == "audit"
    assert "msg" not in record


def test_arguments_events_and_levels(trail: AuditTrail, logger: logging.Logger) -> None:
    logger.debug("removed %s", "a.txt")
    logger.warning("removed a file", extra={"event": "file.removed"})
    logger.log(35, "between")
    logger.critical("")
    try:
        raise ValueError("wrong")  # noqa: EM101, TRY301 - what is logged
    except ValueError:
        logger.exception("failed")
    said = [(r["event"], r["level"], r["outcome"], r.get("message")) for r in trail.records()]
    assert said == [
        ("removed %s", "debug", "success", "removed a.txt"),
        ("file.removed", "warning", "success", "removed a file"),
        ("between", "warning", "success", None),
        ("log", "critical", "failure", None),
        ("failed", "error", "failure", None),
    ]
    last = trail.record(event="failed")
    assert (last["error"], last["error_type"]) == ("wrong", "ValueError")


ONE = {"name": "audit", "levelno": logging.INFO}


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def said_in_full(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["event"], record.get("message"), record.get("arguments")


def test_odd_input_neither_raises_nor_costs_the_record(
    trail: AuditTrail, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("removed %d of %s", "x", "y", extra={"action": "remove"})
    logger.info("removed %s", "x", "y")  # noqa: PLE1205 - what is tested
    logger.info("no place", "x", extra={"arguments": "mine"})  # noqa: PLE1205 - what is tested
    logger.info("%(name)d", {"name": "x"}, extra={"event": "named"})
    logger.info(Unreadable())
    logger.info("a %s", Unreadable())
    unreadable = "[unreadable Unreadable: RuntimeError]"
    assert [said_in_full(record) for record in trail.records()] == [
        ("removed %d of %s", "removed %d of %s", ["x", "y"]),
        ("removed %s", "removed %s", ["x", "y"]),
        ("no place", "no place", "mine"),
        ("named", "%(name)d", {"name": "x"}),
        (unreadable, None, None),
        ("a %s", "a %s", [unreadable]),
    ]
    assert trail.record(event="no place")["arguments~2"] == ["x"]


class Undecided(Unreadable):
    def __bool__(self) -> bool:
        raise RuntimeError


@pytest.mark.parametrize(
    "extra",
    [
        {name: Undecided()}
        for name in ("event", "action", "status", "error", "event_type", "resource_type", "field")
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_an_odd_field_costs_nothing_but_itself(
    trail: AuditTrail, logger: logging.Logger, extra: dict[str, Any]
) -> None:
    logger.info("said", extra=extra)
    (record,) = trail.records()
    assert record["logger"] == "audit"
    assert "[unreadable Undecided: RuntimeError]" in record.values()


def test_an_exception_in_odd_form_is_found_or_passed_over(trail: AuditTrail) -> None:
    """Handed to the handler alone: pytest's own raises."""
    for exc_info in ((1,), (ValueError, ValueError("wrong"))):
        AuditHandler().handle(logging.makeLogRecord({**ONE, "msg": "said", "exc_info": exc_info}))
    assert [record.get("error_type") for record in trail.records()] == [None, "ValueError"]


def test_our_own_lines_and_what_is_said_meanwhile_are_no_records(trail: AuditTrail) -> None:
    root = logging.getLogger()
    handler = AuditHandler(logging.ERROR)
    root.addHandler(handler)

    class Talkative:
        def __str__(self) -> str:
            logging.getLogger("library").error("said while a record is made")
            return "talkative"

    try:
        logging.getLogger("otel_audit").error("ours")
        logging.getLogger("otel_audit.web").error("ours as well")
        logging.getLogger("otel_auditor").error("not ours", extra={"value": Talkative()})
    finally:
        root.removeHandler(handler)
    assert [record["event"] for record in trail.records()] == ["not ours"]


def test_what_an_argument_says_while_the_text_is_made_is_no_record(trail: AuditTrail) -> None:
    """Handed to the handler alone: pytest's own makes the text as well."""
    handler = AuditHandler()

    class Talkative:
        def __str__(self) -> str:
            handler.handle(logging.makeLogRecord({**ONE, "msg": "said while the text is made"}))
            return "talkative"

    handler.handle(logging.makeLogRecord({**ONE, "msg": "by %s", "args": (Talkative(),)}))
    assert trail.record()["message"] == "by talkative"


class Redirected(io.TextIOBase):
    """What a Celery worker puts in the place of stderr."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("redirected").warning(text)
        return len(text)


def test_the_console_s_lines_are_no_records_where_stderr_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with audit_trail() as trail:
        monkeypatch.setattr(sys, "stderr", Redirected())
        handler = AuditHandler()
        logging.getLogger().addHandler(handler)
        console = Console(trail.directory, trail.provider.reader)
        console.start()
        try:
            while not console._leading:
                time.sleep(0.01)
            logging.getLogger("application").warning("once")
            assert console.flush(5)
            time.sleep(0.3)  # the console looks ten times a second
            assert trail.record()["event"] == "once"
        finally:
            console.close()
            logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    ("thread", "recorded"), [("otel-audit-ship-loki", 0), ("otel-audit-health-probe-1", 1)]
)
def test_what_libraries_log_in_our_threads_is_no_record_except_in_probes(
    trail: AuditTrail, thread: str, recorded: int
) -> None:
    record = logging.makeLogRecord({**ONE, "msg": "said"})
    worker = threading.Thread(target=AuditHandler().handle, args=(record,))
    record.threadName = thread
    worker.start()
    worker.join()
    assert len(trail.records()) == recorded


def test_a_record_that_is_not_confirmed_raises_at_the_call(logger: logging.Logger) -> None:
    with audit_trail() as trail:
        trail.provider.close()
        with pytest.raises(AuditUnavailableError):
            logger.info("event")


@pytest.fixture
def queued(logger: logging.Logger) -> Iterator[QueueListener]:
    """Have a QueueListener do what the logger's handler did."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue()
    (handler,) = logger.handlers
    listener = QueueListener(waiting, handler)
    logger.handlers = [QueueHandler(waiting)]
    listener.start()
    yield listener
    if listener._thread is not None:
        listener.stop()


def test_a_listener_outlives_a_record_that_is_not_confirmed(
    logger: logging.Logger, queued: QueueListener, caplog: pytest.LogCaptureFixture
) -> None:
    with audit_trail(timeout=0.2) as trail:
        with (trail.directory / "lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            logger.info("lost")
            while "is not confirmed" not in caplog.text:
                time.sleep(0.01)
        logger.info("later")
        queued.stop()
        assert "what 'audit' logged is not confirmed: " in caplog.text
        assert trail.provider.flush(30)  # a disk that stalls may take longer than the time-out
        assert trail.records(event="later")


def test_a_queue_s_traceback_is_no_event(
    trail: AuditTrail, logger: logging.Logger, queued: QueueListener
) -> None:
    try:
        raise ValueError("wrong")  # noqa: EM101, TRY301 - what is logged
    except ValueError:
        logger.exception("failed %s", "x", extra={"action": "pay"})
    queued.stop()
    record = trail.record(event="failed x")
    assert (record["action"], record["outcome"]) == ("pay", "failure")
    assert record["message"].startswith("failed x\nTraceback ")
    assert record["message"].endswith("ValueError: wrong")


async def test_in_an_event_loop_the_request_waits(
    trail: AuditTrail, logger: logging.Logger
) -> None:
    scope = RequestScope("r-1")
    token = scope.attach()
    logger.info("event", extra={**get_audit_context()})
    assert len(scope.pending) == 1
    await scope.barrier()
    scope.detach(token)
    record = await asyncio.to_thread(trail.record, event="event")
    assert record["request_id"] == "r-1"
    assert "field_request_id" not in record
