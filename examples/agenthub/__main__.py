"""Start the hub: ``python -m examples.agenthub`` (which is what ``make run`` does).

What keeps it from starting is one line on stderr and exit code 78 (EX_CONFIG
of sysexits.h), or 2 for an option.
"""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn

from examples.agenthub import banner
from examples.agenthub.config import PORTS, Config, ConfigError
from examples.agenthub.services import Services
from otel_audit import OtelAuditError, get_audit_provider
from otel_audit.trail.layout import TOKENS
from otel_audit.web.access import SCOPES
from otel_audit.web.tokens import TokenFile

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 8000
TRIED: Final = 50
OPERATOR: Final = "operator"
EX_CONFIG: Final = 78


def main() -> None:
    """Prepare the data, say what can be done, and serve until Ctrl-C."""
    arguments = _arguments()
    try:
        config = Config.from_env()
        port, taken = _free_port(arguments.host, arguments.port)
        os.environ["AGENTHUB_DATA"] = str(config.data)
        password = _prepare(config, new_password=arguments.new_password)
        operator = _Operator(port)
    except (ConfigError, OtelAuditError, OSError) as error:
        print(f"agenthub: {error}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    start = banner.Start(f"http://{arguments.host}:{port}", operator.token, password, taken)
    print(banner.at_start(config, start), flush=True)
    with operator:
        uvicorn.run(
            "examples.agenthub.app:create_app",
            factory=True,
            host=arguments.host,
            port=port,
            workers=arguments.workers,
            # The trail has a record of each request already.
            access_log=False,
            log_level="warning",
        )
    print(banner.at_end(), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.agenthub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host",
        default=HOST,
        help=f"address to listen on (default: {HOST}; a container's: 0.0.0.0)",
    )
    parser.add_argument(
        "--port",
        type=_whole(0, PORTS[-1]),
        help=f"port (default: the first free one from {FIRST_PORT}; 0: any)",
    )
    parser.add_argument(
        "--workers", type=_whole(1, 1_000), default=1, help="processes (default: 1)"
    )
    parser.add_argument(
        "--new-password", action="store_true", help="give the demo users a new password"
    )
    return parser.parse_args()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(said: str) -> int:
        if not said.isdecimal() or not least <= int(said) <= most:
            message = f"{said!r} is no whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(message)
        return int(said)

    return parse


def _free_port(host: str, wanted: int | None) -> tuple[int, str]:
    """Return a port, and which one was taken, in words. Raises `ConfigError`."""
    candidates = range(FIRST_PORT, FIRST_PORT + TRIED) if wanted is None else (wanted,)
    for port in candidates:
        with socket.socket() as attempt:
            # As uvicorn will bind it: connections that linger from before are no obstacle.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                message = f"the hub cannot listen on port {port} of {host}: {error.strerror}; see --host and --port"
                raise ConfigError(message) from None
            first = candidates[0]
            taken = "" if port == first or not first else f"port {first} is taken, so {port}"
            return int(attempt.getsockname()[1]), taken
    message = f"port {candidates[0]} on {host} is taken; name another one with --port"
    raise ConfigError(message)


def _prepare(config: Config, *, new_password: bool) -> str | None:
    """Make the demo data on the first start; return the demo users' password if it was made up.

    One that was named counts, whatever it was before.
    """
    named = os.environ.get("AGENTHUB_PASSWORD")
    password = named or "-".join(secrets.token_hex(2) for _ in range(3))
    # uvicorn opens everything anew in the processes that serve.
    services = Services.build(config)
    try:
        is_new = services.add_demo_data(password)
        if not is_new and (new_password or named):
            services.reset_demo_password(password)
        return password if not named and (is_new or new_password) else None
    finally:
        get_audit_provider().close()


class _Operator:
    """A token for who started the hub, which holds no longer than the hub runs, or this evening."""

    def __init__(self, port: int) -> None:
        """Make it; that of an earlier hub on this port, which was killed, holds no more."""
        self._tokens = TokenFile(get_audit_provider().directory / TOKENS)
        # Another hub may serve the same data on another port.
        self._name = f"{OPERATOR}-{port}"
        self._tokens.revoke(self._name)
        self.token, _ = self._tokens.create(self._name, SCOPES, seconds=12 * 3_600)

    def __enter__(self) -> None:
        # uvicorn raises the signal again when all else has ended, and nothing runs after it.
        signal.signal(signal.SIGTERM, self._told_to_end)

    def __exit__(self, *_: object) -> None:
        # The data may be gone, and with it the file.
        with suppress(OtelAuditError, OSError):
            self._tokens.revoke(self._name)

    def _told_to_end(self, number: int, _frame: FrameType | None) -> None:
        self.__exit__()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


if __name__ == "__main__":
    main()
