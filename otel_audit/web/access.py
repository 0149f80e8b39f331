"""Who may query over HTTP, and what of the records they may see.

`Access` is the answer; who gives it is an `Authorize`: tokens from a file
(`tokens.py`), an OpenID provider (`Oidc`), or a hook of the application.
Promises: without any of them nobody has access; whatever goes wrong while it is
decided, the answer is no. What a scope opens is decided in `events`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from otel_audit.errors import AuditSettingsError
from otel_audit.web.asgi import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

READ: Final = "read"
PERSONAL_DATA: Final = "read:pii"
PROOF: Final = "proof"
SCOPES: Final = (READ, PERSONAL_DATA, PROOF)
_IMPLIED: Final = {PERSONAL_DATA: READ}
"""What a scope gives besides: who may see personal fields may see the others."""

_ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """Somebody who was recognised: ``name`` is the actor of what they ask.

    ``scopes`` hold what the given ones imply as well.
    """

    name: str
    scopes: frozenset[str]

    def __post_init__(self) -> None:
        """Add what is implied."""
        implied = {_IMPLIED[scope] for scope in self.scopes if scope in _IMPLIED}
        object.__setattr__(self, "scopes", self.scopes | implied)

    @classmethod
    def of(cls, name: str, scopes: Iterable[str]) -> Access:
        """Check and make one. Raises `AuditSettingsError` for a scope that is none."""
        return cls(name, frozenset(checked_scopes(scopes)))


class RefusedError(Exception):
    """The credentials do not hold; the message may be told to whoever sent them."""


Authorize: TypeAlias = Callable[[Scope], "Access | Awaitable[Access | None] | None"]
"""Recognises who asks: None when no credentials came, `RefusedError` when they do not hold."""


def checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes. Raises `AuditSettingsError` for one that is none."""
    given = tuple(scopes)
    for scope in given:
        if scope not in SCOPES:
            message = f"{scope!r} is no scope; there are {', '.join(SCOPES)}"
            raise AuditSettingsError(message)
    if not given:
        message = f"name at least one scope: {', '.join(SCOPES)}"
        raise AuditSettingsError(message)
    return given


def bearer(scope: Scope) -> str | None:
    """Return the bearer token of a request (RFC 6750, section 2.1), None without one.

    Raises `RefusedError` for two of them, and for other credentials.
    """
    found: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not found:
        return None
    kind, _, token = found[0].decode("latin-1").partition(" ")
    if len(found) > 1 or kind.lower() != "bearer" or not token.strip():
        message = "send one header: Authorization: Bearer TOKEN"
        raise RefusedError(message)
    return token.strip()


class Oidc:
    """Accepts access tokens (JWT) that an OpenID provider signed.

    Needs PyJWT (``pip install 'otel-audit[oidc]'``). Signature, issuer, audience
    and expiry MUST hold, and only signatures with public keys count, so that
    nobody can sign with what everybody may know. The actor is ``sub``. The provider's
    keys are kept for five minutes: as long may one hold that it has withdrawn.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        jwks_url: str,
        scopes: Mapping[str, str] | None = None,
        leeway: float = 10.0,
    ) -> None:
        """``scopes`` maps the provider's scopes to ours (default: the same names).

        They are read from the claims ``scope`` and ``scp``. ``leeway``: seconds
        that clocks may differ. Raises `AuditSettingsError`.
        """
        try:
            import jwt  # noqa: PLC0415 - an extra; others need no PyJWT
        except ImportError:
            message = "OIDC needs PyJWT: pip install 'otel-audit[oidc]'"
            raise AuditSettingsError(message) from None
        self._jwt = jwt
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._scopes = dict(scopes) if scopes else {scope: scope for scope in SCOPES}
        checked_scopes(self._scopes.values())
        # Its other cache, of single keys, never forgets one that the provider withdrew.
        self._keys = jwt.PyJWKClient(jwks_url, cache_keys=False, timeout=5)

    async def __call__(self, scope: Scope) -> Access | None:
        """Recognise who asks. The provider's keys are fetched in a thread.

        Raises `RefusedError`, and what says that the provider cannot be reached.
        """
        token = bearer(scope)
        return None if token is None else await asyncio.to_thread(self._check, token)

    def _check(self, token: str) -> Access:
        jwt = self._jwt
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token).key,
                algorithms=list(_ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            message = "the token has expired"
            raise RefusedError(message) from None
        except jwt.PyJWKClientConnectionError:
            raise  # which says nothing about the token
        except jwt.PyJWTError:
            message = "the token does not hold"
            raise RefusedError(message) from None
        given = {self._scopes[name] for name in _claimed(claims) if name in self._scopes}
        return Access(str(claims["sub"]), frozenset(given))


def _claimed(claims: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        found += value.split() if isinstance(value, str) else value or []
    return [str(name) for name in found]
