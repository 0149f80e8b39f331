"""Which applications are audited by themselves, whoever calls them.

The instrumentor of a framework notes the entry that it has put into the
framework's class; that of a server asks, and leaves such applications alone:
the framework's knows more of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

entries: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""What stands as ``__call__`` in a framework's class while that is instrumented."""


def audits_itself(app: object) -> bool:
    """Whether a call of the application enters there, and not by a subclass's own ``__call__``."""
    return type(app).__call__ in entries
