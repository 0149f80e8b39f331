"""What is not known to only read changes something: a command that is new is not missed."""

from __future__ import annotations

import pytest

from otel_audit.api.redis_commands import redis_write


@pytest.mark.parametrize(
    "command",
    [
        "SET", "PSETEX", "SETEX", "PFADD", "PFMERGE", "GEOADD", "SUNIONSTORE", "SINTERSTORE",
        "ZUNIONSTORE", "ZRANGESTORE", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZPOPMIN", "LMPOP", "BLMPOP",
        "ZMPOP", "MOVE", "SWAPDB", "MIGRATE", "SORT", "BITOP", "BITFIELD", "XGROUP", "XACK", "XCLAIM",
        "SCRIPT LOAD", "SCRIPT FLUSH", "FUNCTION LOAD", "ACL SETUSER", "CONFIG SET", "JSON.SET",
        "HEXPIRE", "HSETNX", "GEOSEARCHSTORE", "XSETID", "XAUTOCLAIM", "XREADGROUP", "PEXPIREAT",
        "RENAMENX", "MSETNX", "SMOVE", "SHUTDOWN", "EVALSHA", "FCALL", "GETEX", "NEW.COMMAND",
    ],
)  # fmt: skip
def test_commands_that_change_something(command: str) -> None:
    assert redis_write(f"{command.lower()} ? ?") == command
    assert redis_write(f"GET ?\n{command} ?\nDEL ?") == command


@pytest.mark.parametrize(
    "commands",
    [
        "GET ?", "MGET ? ?", "EXPIRETIME ?", "SORT_RO ?", "EVAL_RO ?", "BITFIELD_RO ?", "PING",
        "CONFIG GET ?", "ACL WHOAMI", "SCRIPT EXISTS ?", "CLIENT SETINFO ? ?", "HELLO ?", "MULTI",
        "XINFO STREAM ?", "JSON.GET ?", "GET ?\nHGETALL ?\n", "", "\n", "COMMAND",
    ],
)  # fmt: skip
def test_commands_that_only_read(commands: str) -> None:
    assert redis_write(commands) is None
