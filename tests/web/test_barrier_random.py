"""The commit barrier under applications, cancellations and disks of all kinds, drawn by chance.

What the other tests show one by one has to hold together: whatever an application does, in
whichever order, and however long the disk takes, no message of its answer passes before what was
emitted until then is durable, and whoever asked gets one answer.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.api.logger import AuditLogger
from otel_audit.api.receipt import PendingReceipt
from otel_audit.errors import AuditUnavailableError
from otel_audit.web.middleware import AuditMiddleware
from tests.web.driving import BODY, CHUNK, START, Wire, http

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_audit.api.provider import AuditProvider
    from otel_audit.api.receipt import Receipt
    from otel_audit.web.asgi import Message, Receive, Scope, Send
    from tests.web.conftest import Hold

SCRIPTS = (
    "emit start body",
    "start emit body",
    "emit start body emit",
    "emit thread start chunk emit chunk body",
    "emit start body pause emit",
    "emit child start body",
    "emit start body late",
    "emit await start body",
    "emit start body chatter",
    "emit start raise",
    "emit start body raise",
    "emit raise",
    "start body",
)
MESSAGES = {"start": START, "body": BODY, "chunk": CHUNK}
TIME_OUT = 0.25


class Asked:
    """One request: what its application does, what it emitted, and what passed the barrier."""

    def __init__(self, audit: AuditLogger, chance: random.Random) -> None:
        self.script = chance.choice(SCRIPTS)
        self.early: list[str] = []
        """Messages that passed before what was emitted until the application sent them."""
        self.wire = Wire({"type": "http.request"})
        self._audit = audit
        self._chance = chance
        self._emitted: list[Receipt | None] = []
        self._needed: list[int] = []
        self._passed = 0
        self._children: list[asyncio.Task[None]] = []

    async def app(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Be the application."""
        await receive()
        for step in self.script.split():
            if step in MESSAGES:
                self._needed.append(len(self._emitted))
                await send(MESSAGES[step])
            elif step == "thread":
                await asyncio.to_thread(self._emit)
            elif step == "raise":
                raise KeyError(step)
            elif step in ("child", "late", "chatter"):
                self._children.append(asyncio.create_task(getattr(self, f"_{step}")(send)))
            else:
                await self._step(step)

    async def send(self, message: Message) -> None:
        """Be the server: hold what comes against what was emitted."""
        await self.wire.send(message)
        if message.get("status", 200) == 200 and self._passed < len(self._needed):
            before = self._emitted[: self._needed[self._passed]]
            self._passed += 1
            if self.wire.status == 200 and not all(map(_durable, before)):
                self.early.append(message["type"])

    async def end(self) -> None:
        """End what the application has left."""
        for child in self._children:
            child.cancel()
        await asyncio.gather(*self._children, return_exceptions=True)

    def _emit(self) -> None:
        try:
            self._emitted.append(self._audit.audit_event("order", "place"))
        except AuditUnavailableError:
            self._emitted.append(None)

    async def _step(self, step: str) -> None:
        if step == "pause":
            await asyncio.sleep(self._chance.random() * TIME_OUT)
        elif step == "await":
            receipt = self._emitted[-1]
            with suppress(AuditUnavailableError):
                await receipt if receipt is not None else None
        else:
            self._emit()

    async def _child(self, _send: Send) -> None:
        self._emit()
        await self._step("pause")
        self._emit()

    async def _late(self, send: Send) -> None:
        await self._step("pause")
        with suppress(Exception):
            await send({"type": "http.response.debug", "info": {}})

    async def _chatter(self, _send: Send) -> None:
        while True:
            self._emit()
            await asyncio.sleep(0.005)


def _durable(receipt: Receipt | None) -> bool:
    if isinstance(receipt, PendingReceipt):
        return receipt.done() and receipt.error is None
    return receipt is not None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("held", [0.0, 0.1, 0.24, 0.4])
async def test_nothing_passes_too_early_and_nobody_goes_without_an_answer(
    make_provider: Callable[..., AuditProvider], hold: Hold, held: float, seed: int
) -> None:
    """Forty requests at a time, some of them cancelled, on a disk that takes ``held`` seconds."""
    provider = make_provider(timeout=TIME_OUT)
    audit = AuditLogger(provider=provider)
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    requests: dict[asyncio.Task[Any], Asked] = {}
    cancelled = set()
    with hold():
        for _ in range(40):
            asked = Asked(audit, chance)
            activity = chance.choice(["off", "all"])
            audited = AuditMiddleware(asked.app, provider=provider, http_activity=activity)
            task = asyncio.create_task(audited(http(), asked.wire.receive, asked.send))
            requests[task] = asked
            if chance.random() < 0.2:
                cancelled.add(task)
                loop.call_later(chance.random() * 2 * TIME_OUT, task.cancel)
        await asyncio.sleep(held)
    _, pending = await asyncio.wait(requests, timeout=10)
    for asked in requests.values():
        await asked.end()
    assert not pending
    for task, asked in requests.items():
        assert asked.early == [], asked.script
        starts = asked.wire.types.count(START["type"])
        assert starts <= 1, asked.script
        if task not in cancelled and "raise" not in asked.script:
            assert starts == 1, asked.script
            error = task.exception()
            # One that has begun is cut off when what comes next is not confirmed.
            cut_off = isinstance(error, AuditUnavailableError) and asked.wire.status == 200
            assert error is None or cut_off, asked.script
