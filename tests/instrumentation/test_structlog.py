"""structlog writes the trail, by one processor or by setup_logging()."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from otel_audit import (
    AuditSettingsError,
    TrailError,
    get_audit_context,
    get_audit_provider,
    is_configured,
)
from otel_audit.api.context import RequestScope
from otel_audit.instrumentation.structlog import AuditProcessor, setup_logging
from otel_audit.testing import audit_trail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_audit.testing import AuditTrail


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    for logger in (root, logging.getLogger("audit")):
        for handler in list(logger.handlers):
            if handler not in before[0]:
                logger.removeHandler(handler)
                handler.close()
    root.setLevel(before[1])
    logging.getLogger("audit").propagate = True


class Printed(list[Any]):
    """The end of the chain: keeps what gets there."""

    def __call__(self, _logger: Any, _method: str, event: Any) -> Any:
        self.append(dict(event))
        raise structlog.DropEvent


@pytest.fixture
def printed() -> Printed:
    """Configure structlog as its documentation does, with the processor in it."""
    printed = Printed()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, AuditProcessor(), printed],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    return printed


def test_an_audit_logger_writes_the_trail_and_nothing_else(
    trail: AuditTrail, printed: Printed
) -> None:
    structlog.contextvars.bind_contextvars(tenant="t-1")
    audit = structlog.get_logger("audit").bind(region="eu")
    audit.info("server_lifecycle_event", action="start", resource_type="server", port=80)
    structlog.get_logger("audit.billing").info("invoice", action="send")
    structlog.get_logger("application").info("request", action="start")
    first, second = trail.records()
    said = {name: first[name] for name in ("event", "action", "resource_type", "port", "region",
                                           "tenant", "level", "status", "logger")}  # fmt: skip
    assert said == {
        "event": "server_lifecycle_event", "action": "start", "resource_type": "server",
        "port": 80, "region": "eu", "tenant": "t-1", "level": "info", "status": "success",
        "logger": "audit",
    }  # fmt: skip
    assert second["logger"] == "audit.billing"
    assert [event["event"] for event in printed] == ["request"]


def test_a_field_decides_only_where_the_logger_has_no_name_and_nothing_else_says_it(
    trail: AuditTrail, printed: Printed
) -> None:
    structlog.configure(
        processors=[AuditProcessor(), printed], logger_factory=structlog.PrintLoggerFactory()
    )
    nameless: Any = structlog.get_logger("audit")
    nameless.info("said", action="do", logger="other")
    nameless.info("named", logger="audit.billing")
    nameless.info("neither", logger="other")
    nameless.info("nothing")
    assert [(one["event"], one["logger"]) for one in trail.records()] == [
        ("said", "other"),
        ("named", "audit.billing"),
    ]
    assert [one["event"] for one in printed] == ["neither", "nothing"]


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize(
    ("method", "level", "outcome"),
    [
        ("debug", "debug", "success"),
        ("info", "info", "success"),
        ("warning", "warning", "success"),
        ("error", "error", "failure"),
        ("critical", "critical", "failure"),
        ("fatal", "critical", "failure"),
        ("msg", "info", "success"),
    ],
)
def test_all_levels(trail: AuditTrail, method: str, level: str, outcome: str) -> None:
    getattr(structlog.get_logger("audit"), method)("event")
    record = trail.record(event="event")
    assert (record["level"], record["outcome"], record["action"]) == (level, outcome, "event")


@pytest.mark.usefixtures("printed")
def test_exceptions(trail: AuditTrail) -> None:
    audit = structlog.get_logger("audit")
    error = KeyError("passed")
    audit.info("given", exc_info=error)
    audit.info("a tuple", exc_info=(KeyError, error, None))
    try:
        raise ValueError("wrong")  # noqa: EM101, TRY301 - what is logged
    except ValueError:
        audit.exception("raised")
        audit.info("current", exc_info=True)
    assert [(record["error_type"], record["outcome"]) for record in trail.records()] == [
        ("KeyError", "failure"),
        ("KeyError", "failure"),
        ("ValueError", "failure"),
        ("ValueError", "failure"),
    ]


class Undecided:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError


@pytest.mark.usefixtures("printed")
def test_odd_input_neither_raises_nor_costs_the_record(trail: AuditTrail) -> None:
    audit = structlog.get_logger("audit")
    unreadable = "[unreadable Undecided: RuntimeError]"
    audit.info(Undecided(), action="do")
    audit.info("one", exc_info=(1,))
    audit.info("two", exc_info=Undecided())
    audit.info("three", level=Undecided(), action=Undecided(), error=Undecided())
    first, *_, last = trail.records()
    assert (first["event"], first["action"]) == (unreadable, "do")
    assert (last["event"], last["action"], last["error"]) == ("three", unreadable, unreadable)
    assert len(trail.records()) == 4


def test_positional_arguments_are_said_in_full(trail: AuditTrail, tmp_path: Path) -> None:
    """By the stdlib's logger, which leaves them to a processor; the event stays the template."""
    setup_logging(tmp_path)
    for name in ("audit", "application"):
        logger = structlog.get_logger(name)
        logger.info("removed %s of %s", "bob", "team", action="remove")
        logger.info("removed %(who)s", {"who": "bob"})
        logger.info("removed %d", "bob")
        logger.info("removed %s", "bob", message="mine")
    asyncio.run(structlog.get_logger("audit").ainfo("later %s", "bob"))
    said = [(r["event"], r.get("message"), r.get("arguments")) for r in trail.records()]
    assert said == [
        ("removed %s of %s", "removed bob of team", None),
        ("removed %(who)s", "removed bob", None),
        ("removed %d", "removed %d", ["bob"]),
        ("removed %s", "mine", ["bob"]),
        ("later %s", "later bob", None),
    ]
    _, *lines = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    assert [(line["event"], line.get("positional_args")) for line in lines] == [
        ("removed bob of team", None),
        ("removed bob", None),
        ("removed %d", ["bob"]),
        ("removed bob", None),
    ]


@pytest.mark.usefixtures("printed")
async def test_async_methods_are_durable_when_they_return(trail: AuditTrail) -> None:
    scope = RequestScope("r-1")
    token = scope.attach()
    await structlog.get_logger("audit").ainfo("event", action="do", **get_audit_context())
    scope.detach(token)
    with trail.provider.reader() as reader:
        assert reader.tree().size == 1
    record = await asyncio.to_thread(trail.record, event="event")
    assert record["request_id"] == "r-1"
    assert "field_request_id" not in record


def test_where_names_are_forgotten_an_action_makes_an_audit_event(trail: AuditTrail) -> None:
    printed = Printed()
    structlog.configure(processors=[AuditProcessor(keep=True), printed])
    structlog.get_logger("audit").info("event", action="do")
    structlog.get_logger("audit").info("event without")
    structlog.configure(processors=[AuditProcessor(accepts=lambda *_: True), printed])
    structlog.get_logger().info(None)
    assert [record["event"] for record in trail.records()] == ["event", "log"]
    assert [event["event"] for event in printed] == ["event", "event without"]


def test_setup_logging_keeps_the_two_logs_apart(tmp_path: Path) -> None:
    setup_logging(tmp_path)
    structlog.get_logger("application").info("request", path="/")
    structlog.get_logger("application").debug("too much")
    logging.getLogger("library").warning("from %s", "logging")
    structlog.get_logger("audit").debug("by structlog", action="do")
    logging.getLogger("audit").debug("by logging", extra={"action": "do"})
    assert get_audit_provider().flush()
    lines = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["request", "from logging"]
    assert {"level", "logger", "timestamp"} <= lines[0].keys()
    audited = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["event"] for line in audited] == ["by structlog", "by logging"]


def test_setup_logging_replaces_nobody_s_configuration(tmp_path: Path) -> None:
    structlog.configure(processors=[])
    with pytest.raises(AuditSettingsError, match="AuditProcessor"):
        setup_logging(tmp_path)
    with audit_trail() as trail:
        setup_logging(tmp_path, force=True)
        setup_logging(tmp_path, force=True)
        logging.getLogger("library").warning("once")
        logging.getLogger("audit").info("once")
        assert len(trail.records()) == 1
    lines = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    where = f"the audit trail is in {trail.directory}, as configured before"
    assert [line["event"] for line in lines] == [where, where, "once"]


def test_setup_logging_means_the_directory_that_a_setting_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BASE", str(tmp_path / "var"))
    with pytest.raises(AuditSettingsError, match="names a variable that is not set"):
        setup_logging("$BASED/log")
    setup_logging("$BASE/log")
    structlog.get_logger("app").info("hello")
    assert "hello" in (tmp_path / "var" / "log" / "app.log").read_text()
    assert get_audit_provider().directory == tmp_path / "var" / "log" / "trail"
    assert [one.name for one in tmp_path.iterdir()] == ["var"]


def test_setup_logging_configures_nothing_unless_it_can_configure_all(tmp_path: Path) -> None:
    """So that it can be called again, once what is wrong has been put right."""
    in_the_way = tmp_path / "app.log"
    in_the_way.mkdir()
    before = list(logging.getLogger().handlers)
    with pytest.raises(AuditSettingsError, match="choose another log_dir"):
        setup_logging(tmp_path)
    in_the_way.rmdir()
    for level in ("LOUD", 1.5):
        with pytest.raises(AuditSettingsError, match="is none of logging's"):
            setup_logging(tmp_path, level)  # type: ignore[arg-type]
    (tmp_path / "trail").touch()
    with pytest.raises(TrailError):
        setup_logging(tmp_path)
    (tmp_path / "trail").unlink()
    assert logging.getLogger().handlers == before
    assert not structlog.is_configured()
    assert not is_configured()
    setup_logging(tmp_path, "WARNING")
    structlog.get_logger("audit").info("said", action="do")
    assert get_audit_provider().flush()
    assert "said" in (tmp_path / "audit.log").read_text()
