"""How worker processes of the hub reach each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.agenthub.peers import PeerGoneError, Peers


async def echo(question: dict[str, Any]) -> dict[str, Any]:
    return {"echo": question}


async def test_a_question_gets_its_answer() -> None:
    one, other = Peers(echo), Peers(echo)
    await one.open()
    await other.open()
    try:
        assert await one.alive(other.address)
        assert await one.ask(other.address, {"text": "ü" * 10_000}) == {
            "echo": {"text": "ü" * 10_000}
        }
    finally:
        await one.close()
        await other.close()


async def test_only_the_user_may_enter() -> None:
    peers = Peers(echo)
    assert Path(peers.address).parent.stat().st_mode & 0o077 == 0
    await peers.close()


async def test_who_is_gone_is_told_apart_from_who_is_silent() -> None:
    one, other = Peers(echo), Peers(echo)
    await other.open()
    await other.close()
    assert not await one.alive(other.address)
    with pytest.raises(PeerGoneError, match="is gone"):
        await one.ask(other.address, {})
    await one.close()


async def test_an_answer_that_fails_is_no_answer() -> None:
    async def fail(_question: dict[str, Any]) -> dict[str, Any]:
        raise ValueError

    one, other = Peers(fail), Peers(echo)
    await one.open()
    try:
        with pytest.raises(PeerGoneError, match="did not answer"):
            await other.ask(one.address, {})
    finally:
        await one.close()
        await other.close()
