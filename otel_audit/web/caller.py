"""What a request says about who sent it, read from the ASGI scope in one pass.

Promises that everything here is well formed and short, and nothing more: a
request id and a client id are claims, the user agent is a story, and the
session is known only by a salted hash, so that a trail cannot be used to take
a session over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from otel_audit.api.context import RequestScope
from otel_audit.api.sessions import hashed_session
from otel_audit.errors import AuditSettingsError
from otel_audit.record.encode import new_record_id
from otel_audit.web.proxies import normalized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_audit.web.proxies import TrustedProxies

# It goes into logs and back into a response header: no separators, nothing to escape.
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:+/=@~-]{1,128}")
_CLIENT_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")  # visible ASCII
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token (RFC 9110)
_COOKIE_NAME: Final = _HEADER_NAME  # a token as well (RFC 6265, section 4.1.1)
_LONGEST_USER_AGENT: Final = 256

_Found = list["bytes | None"]
_REQUEST, _CLIENT, _AGENT, _COOKIE = range(4)


class CallerReader:
    """Makes the `RequestScope` of an ASGI ``http`` or ``websocket`` scope."""

    __slots__ = ("_cookie", "_proxies", "_wanted", "request_id_header")

    def __init__(
        self,
        *,
        proxies: TrustedProxies,
        session_cookie: str | None,
        request_id_header: str,
        client_id_header: str | None,
    ) -> None:
        """Check the names once. Raises `AuditSettingsError`."""
        self._proxies = proxies or None
        self._cookie = _cookie_name(session_cookie) if session_cookie else None
        self.request_id_header = _header_name("request_id_header", request_id_header)
        self._wanted = {self.request_id_header: _REQUEST, b"user-agent": _AGENT}
        if client_id_header:
            self._wanted[_header_name("client_id_header", client_id_header)] = _CLIENT
        if self._cookie:
            self._wanted[b"cookie"] = _COOKIE

    def read(self, scope: Mapping[str, Any], salt: bytes) -> RequestScope:
        """Return the request's scope; what is missing or malformed is absent from it."""
        found: _Found = [None, None, None, None]
        wanted = self._wanted
        for name, value in scope["headers"]:
            if name in wanted:
                place = wanted[name]
                before = found[place]
                # A repeated header joins to what no id looks like, so that neither counts.
                found[place] = value if before is None else before + b"; " + value
        request_id, client_id, agent, cookie = found
        return RequestScope(
            _text(_REQUEST_ID, request_id) or new_record_id(),
            client_id=_text(_CLIENT_ID, client_id) or "anonymous",
            client_ip=self._client_ip(scope) or "unknown",
            session_id=None if cookie is None else self._session(cookie, salt),
            user_agent=agent.decode("latin-1")[:_LONGEST_USER_AGENT] if agent else None,
        )

    def _client_ip(self, scope: Mapping[str, Any]) -> str | None:
        client = scope.get("client")
        peer = client[0] if client else None
        proxies = self._proxies
        if proxies is None:
            return normalized(peer) if peer else None
        header = proxies.header
        return proxies.client_ip(
            peer, [value for name, value in scope["headers"] if name == header]
        )

    def _session(self, cookies: bytes, salt: bytes) -> str | None:
        """Hash the session cookie's value, the first of its name (RFC 6265, section 5.4)."""
        for pair in cookies.split(b";"):
            name, _, value = pair.partition(b"=")
            if name.strip() == self._cookie and (value := value.strip()):
                return hashed_session(salt, value.decode("latin-1"))
        return None


def _text(form: re.Pattern[bytes], value: bytes | None) -> str | None:
    if value is None or form.fullmatch(value) is None:
        return None
    return value.decode("ascii")


def _header_name(argument: str, name: str) -> bytes:
    if _HEADER_NAME.fullmatch(name) is None:
        message = f"{argument}={name!r} is no header's name (RFC 9110, section 5.1); correct it"
        raise AuditSettingsError(message)
    return name.lower().encode("ascii")


def _cookie_name(name: str) -> bytes:
    if _COOKIE_NAME.fullmatch(name) is None:
        message = (
            f"session_cookie={name!r} is no cookie's name (RFC 6265); correct it, or pass None"
        )
        raise AuditSettingsError(message)
    return name.encode("ascii")
