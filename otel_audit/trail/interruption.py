"""Whether a signal handler or finalizer has interrupted what it wants to use.

Such code runs in the middle of what its thread was doing; to wait there for
that thread would be to wait for ever. A mark that is set and taken back cannot
tell by itself: the exception of another handler may strike after the last line
that would take it back. So a mark is believed only while the function that has
set it is on the stack.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_audit.errors import TrailError

if TYPE_CHECKING:
    from types import CodeType, FrameType


def on_the_stack(*codes: CodeType) -> bool:
    """Whether a function of one of these codes was running when the calling function was called.

    The calling function itself does not count.
    """
    frame: FrameType | None = sys._getframe(1).f_back  # noqa: SLF001 - documented, though for CPython only
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def refuse(*, interrupted: bool) -> None:
    """Raise `TrailError` where who asks has interrupted what it would have to wait for."""
    if interrupted:
        message = (
            "the trail is being written or signed by the very code that this signal handler or "
            "finalizer interrupted; do it when the handler has returned"
        )
        raise TrailError(message)
