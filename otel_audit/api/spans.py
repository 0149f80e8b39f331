"""A block or a function as one span and its audit records.

Promises: the record's outcome is the block's: success, failure by exception
(which is raised again), or the status that the block set. With
``write_ahead`` a record with status ``initiated`` is durable *before* the
block runs. In ``async with`` nothing blocks the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import string
import time
from collections.abc import Collection, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar, cast

from opentelemetry import trace

from otel_audit._version import __version__
from otel_audit.api.logger import get_audit_logger
from otel_audit.api.stages import plain
from otel_audit.errors import AuditEventError
from otel_audit.record.event import AuditEvent, Draft

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from opentelemetry.trace import Span

    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.receipt import Receipt

P = ParamSpec("P")
R = TypeVar("R")


class AuditSpan:
    """What ``audit_span`` gives: set ``status``, add fields, look at the receipt.

    ``error`` replaces an exception's text, which may hold what nobody should
    read in a trail.
    """

    def __init__(self, event: AuditEvent, logger: AuditLogger, *, write_ahead: bool) -> None:
        self._event = event
        self._logger = logger
        self._write_ahead = write_ahead
        self._fields: dict[str, Any] = dict(event.fields)
        self._initiated: str | None = None
        self._span: Span = trace.INVALID_SPAN
        self._current: AbstractContextManager[Span] | None = None
        self._goes_on = False
        self._started = 0.0
        self.status: str | None = None
        self.error: str | None = None
        self.receipt: Receipt | None = None

    def set(self, /, **fields: Any) -> None:
        """Add fields to the record that ends the block."""
        self._fields.update(fields)

    def __enter__(self) -> AuditSpan:  # noqa: PYI034 - typing.Self comes with Python 3.11
        """Start the span; with ``write_ahead`` the first record is durable now."""
        if self._write_ahead and _in_event_loop():
            message = (
                f"audit_span({self._event.event!r}, write_ahead=True) must wait for the disk, "
                "which would block the event loop: write `async with` instead of `with`"
            )
            raise AuditEventError(message)
        self._start()
        if self._write_ahead:
            try:
                self._initiated = self._initiate().record_id
            except BaseException as error:
                self._stop(error)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        """Emit the record of how it went, inside the span, then end the span."""
        if self._goes_on:
            self._leave(error)
            return
        try:
            self.receipt = self._logger.emit(self._outcome(error))
        finally:
            self._stop(error)

    async def __aenter__(self) -> AuditSpan:  # noqa: PYI034 - typing.Self comes with Python 3.11
        """Start the span; with ``write_ahead`` the first record is durable now."""
        if self._goes_on:
            self._goes_on = False
            self._enter()
            return self
        self._start()
        if self._write_ahead:
            try:
                self._initiated = (await self._initiate()).record_id
            except BaseException as error:
                self._stop(error)
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        """Emit the record and wait until it is durable, then end the span."""
        try:
            self.receipt = await self._logger.emit(self._outcome(error))
        finally:
            self._stop(error)

    def _start(self) -> None:
        try:
            tracer = trace.get_tracer("otel_audit", __version__)
        except Exception:  # noqa: BLE001 - whatever keeps OTEL_PYTHON_TRACER_PROVIDER from being loaded
            tracer = trace.NoOpTracer()
        self._span = tracer.start_span(self._event.event)
        self._enter()
        self._started = time.perf_counter()

    def _stop(self, error: BaseException | None) -> None:
        self._leave(error)
        self._span.end()

    def _enter(self) -> None:
        self._current = trace.use_span(self._span)
        self._current.__enter__()

    def _leave(self, error: BaseException | None) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.__exit__(type(error) if error else None, error, None)

    def _go_on(self) -> None:
        """Let ``with`` end without a record: an ``async with`` after it, in whichever task, ends the block."""
        self._goes_on = True

    def _initiate(self) -> Receipt:
        return self._logger.emit(self._said("initiated", dict(self._fields)))

    def _outcome(self, error: BaseException | None) -> AuditEvent:
        fields = dict(self._fields)
        fields.setdefault("duration_ms", round((time.perf_counter() - self._started) * 1e3, 3))
        if self._initiated is not None:
            fields["initiated_record_id"] = self._initiated
        if error is None:
            event = self._said(self.status or self._event.status, fields)
        else:
            fields["error_type"] = type(error).__name__
            cancelled = isinstance(error, asyncio.CancelledError)
            event = self._said("cancelled" if cancelled else self.status or "failed", fields)
        event.error = self.error or error
        return event

    def _said(self, status: str, fields: dict[str, Any]) -> AuditEvent:
        event = self._event
        return AuditEvent(
            event=event.event,
            action=event.action,
            event_type=event.event_type,
            status=status,
            level=event.level,
            resource_type=event.resource_type,
            resource_name=event.resource_name,
            retention=event.retention,
            fields=fields,
        )


def audit_span(
    event: str,
    action: str,
    *,
    resource_type: str | None = None,
    resource_name: str | None = None,
    event_type: str | None = None,
    write_ahead: bool = False,
    logger: AuditLogger | None = None,
    **fields: Any,
) -> AuditSpan:
    """Audit a block, by ``with`` or ``async with``: a span and a record of how it went.

    ``write_ahead`` makes a record with status ``initiated`` durable before the
    block runs, so that even a block that never ends is on record. ``severity=``
    (or ``level=``) and ``retention=`` among the fields are the record's. Raises
    `AuditEventError` here, before the block has run without a record.
    """
    level = fields.pop("severity", None)
    if level is None:
        level = fields.pop("level", None)
    retention = fields.pop("retention", None)
    said = AuditEvent(
        event,
        action,
        event_type=event_type,
        level=level,
        resource_type=resource_type,
        resource_name=resource_name,
        retention=retention,
        fields=fields,
    )
    draft = Draft(said, "", "")
    # Where it is a member of an enum: the span needs a name, too.
    said.event = draft.event
    plain(draft)
    return AuditSpan(said, logger or get_audit_logger(), write_ahead=write_ahead)


def audited(
    event: str,
    action: str,
    *,
    resource_type: str | None = None,
    resource_name: str | None = None,
    event_type: str | None = None,
    write_ahead: bool = False,
    capture: tuple[str, ...] = (),
    logger: AuditLogger | None = None,
    **fields: Any,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Audit each call of a function, sync or async, as `audit_span` does a block.

    ``resource_name`` may name arguments: ``"{server_id}"``. ``capture`` lists
    arguments that become fields. What a plain function leaves to be awaited, a
    coroutine or a future of asyncio, is part of the call: what is returned
    instead is one as well. Above or below ``@classmethod`` and ``@staticmethod``
    is the same. Raises `AuditEventError` at decoration when
    there is no such argument, when the function is a generator (it would have
    returned before it ran), and for what could not become a record.
    """
    audit_span(event, action, event_type=event_type, **fields)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if isinstance(function, (classmethod, staticmethod)):
            return cast("Callable[P, R]", type(function)(decorate(function.__func__)))
        _check_function(function)
        signature = inspect.signature(function)
        _check_arguments(function, signature, resource_name, capture)

        def span(*args: P.args, **kwargs: P.kwargs) -> AuditSpan:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            audit = audit_span(
                event,
                action,
                resource_type=resource_type,
                resource_name=resource_name and _filled_in(resource_name, bound.arguments),
                event_type=event_type,
                write_ahead=write_ahead,
                logger=logger,
                **fields,
            )
            # Not by keyword above: an argument may have the name of a parameter of ours.
            audit.set(**{name: bound.arguments[name] for name in capture})
            return audit

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: ANN401 - the function's own
                async with span(*args, **kwargs):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", run)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(*args, **kwargs) as audit:
                result = function(*args, **kwargs)
                if not _is_unfinished(result):
                    return result
                audit._go_on()  # noqa: SLF001 - of this module
            return cast("R", _continued(audit, result))

        return call

    return decorate


def _is_unfinished(result: object) -> TypeGuard[Awaitable[Any]]:
    """Whether what a function returned has yet to run: a coroutine, or a future of this event loop.

    Others that can be awaited, such as receipts, may be results as they are.
    """
    return isinstance(result, Coroutine) or (asyncio.isfuture(result) and _in_event_loop())


def _continued(audit: AuditSpan, result: Awaitable[R]) -> Awaitable[R]:
    """Return what awaits the result within the block; a future for a future, as nobody need await that."""

    async def awaited() -> R:
        async with audit:
            return await result

    return asyncio.ensure_future(awaited()) if asyncio.isfuture(result) else awaited()


def _check_function(function: Any) -> None:  # noqa: ANN401 - whatever was decorated
    """Raise `AuditEventError` for what cannot be called, or would return before it runs."""
    if not callable(function):
        message = (
            f"@audited is on a {type(function).__name__}, which is no function: put it below "
            "(@property above @audited), next to the function itself"
        )
        raise AuditEventError(message)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        message = (
            f"{function.__qualname__} is a generator, which returns before it runs, so @audited "
            "would record nothing true; put audit_span() inside it"
        )
        raise AuditEventError(message)


def _check_arguments(
    function: Callable[..., Any],
    signature: inspect.Signature,
    resource_name: str | None,
    capture: object,
) -> None:
    names = capture if isinstance(capture, Collection) and not isinstance(capture, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        message = (
            f"@audited on {function.__qualname__}: capture is {capture!r}, but it lists names of "
            'arguments: write capture=("name",)'
        )
        raise AuditEventError(message)
    named = _named(function, resource_name)
    unknown = sorted(named.union(names).difference(signature.parameters))
    if unknown:
        message = (
            f"@audited on {function.__qualname__} names {unknown[0]!r}, which is not one of its "
            f"arguments ({', '.join(signature.parameters) or 'none'})"
        )
        raise AuditEventError(message)


def _named(function: Callable[..., Any], resource_name: str | None) -> set[str]:
    """Return the arguments that a template names. Raises `AuditEventError` for what is none."""
    if resource_name is None:
        return set()
    roots = set()
    try:
        for _, name, _, conversion in string.Formatter().parse(resource_name):
            if name is not None:
                roots.add(name.replace("[", ".").split(".")[0])
            if conversion not in (None, "a", "r", "s"):
                message = f"there is no conversion !{conversion}"
                raise ValueError(message)  # noqa: TRY301 - as the formatter does for the rest
    except (TypeError, ValueError) as error:
        message = (
            f"@audited on {function.__qualname__}: resource_name is {resource_name!r}, which "
            f"cannot be filled in ({error}): write a text, in it {{argument}} for an argument "
            "and {{ for a brace"
        )
        raise AuditEventError(message) from None
    return roots


def _filled_in(template: str, arguments: Mapping[str, Any]) -> str:
    """Fill in the arguments; the template itself where one of them refuses.

    The audited function must run even if ``{server.name}`` has no name this time.
    """
    try:
        return template.format_map(arguments)
    except Exception:  # noqa: BLE001 - formatting runs code of the arguments' authors
        return template


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - the documented get_running_loop() raises instead
