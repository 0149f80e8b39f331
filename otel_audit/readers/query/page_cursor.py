"""Cursors: where an answer goes on, as text without meaning for whoever passes it on.

`CursorSigner` promises that what it opens it has signed, for this very query,
and for whoever may see the same fields.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from otel_audit.errors import QueryError

if TYPE_CHECKING:
    from otel_audit.readers.query.model import Query

_CURSOR: Final = struct.Struct(">qqq16s")
_UNSET: Final = -(1 << 63)


class CursorSigner:
    """Writes and reads cursors: text without meaning for whoever passes it on."""

    def __init__(self, key: bytes) -> None:
        """Take a secret that all workers share."""
        self._key = hashlib.sha256(b"otel-audit cursor\0" + key).digest()

    def sign(self, query: Query, position: int) -> str:
        """Return the cursor of a position in the answer to a query."""
        payload = _CURSOR.pack(position, _packed(query.start), _packed(query.end), query.identity)
        return base64.urlsafe_b64encode(payload + self._mac(payload)).decode().rstrip("=")

    def open(self, query: Query, cursor: str) -> tuple[Query, int]:
        """Return the query, with the times it was first asked with, and the position.

        Raises `QueryError` for a cursor that is not of this query.
        """
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        payload, mac = raw[: _CURSOR.size], raw[_CURSOR.size :]
        if not hmac.compare_digest(self._mac(payload), mac) or len(payload) != _CURSOR.size:
            message = "this is no cursor of this trail, or it was changed; begin without a cursor"
            raise QueryError(message, parameter="cursor")
        position, start, end, identity = _CURSOR.unpack(payload)
        if not hmac.compare_digest(identity, query.identity):
            message = (
                "this cursor belongs to another query; pass exactly the parameters of the first "
                "page with it, or begin without a cursor"
            )
            raise QueryError(message, parameter="cursor")
        return replace(query, start=_unpacked(start), end=_unpacked(end)), position

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, "sha256").digest()[:16]


def _packed(moment: int | None) -> int:
    return _UNSET if moment is None else moment


def _unpacked(moment: int) -> int | None:
    return None if moment == _UNSET else moment
