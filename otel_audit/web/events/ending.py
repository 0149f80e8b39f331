"""Whether the server is about to end, which ASGI tells nobody whose response is open.

A response that never ends by itself has to know: a server that shuts down waits
for it, and cancels it in the end. uvicorn - alone, with workers, or under
gunicorn - handles the signals by a method of its server, which notes there that
it should exit; so there is nothing to replace, and nothing to install.
"""

from __future__ import annotations

import signal
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def server_ends() -> bool:
    """Whether the server of this process was told to end; False where that cannot be known."""
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    servers = [getattr(handler, "__self__", None) for handler in handlers]
    return any(getattr(server, "should_exit", None) is True for server in servers)
