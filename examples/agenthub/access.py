"""Who asks, and whether they may: the dependencies that routes are guarded with.

Promises: the user becomes the request's actor only through a valid session,
and whoever is turned away for want of a permission leaves a record.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Cookie, Depends, HTTPException, Request

from examples.agenthub.accounts import User
from examples.agenthub.services import Services
from otel_audit import get_audit_logger, set_actor

audit = get_audit_logger(__name__)

COOKIE: Final = "agenthub_session"


def services_of(request: Request) -> Services:
    """Return the parts that this application was built with."""
    services: Services = request.app.state.services
    return services


Parts = Annotated[Services, Depends(services_of)]
Token = Annotated[str | None, Cookie(alias=COOKIE)]


def visitor(parts: Parts, token: Token = None) -> User | None:
    """Return the signed-in user, if there is one, and make them the request's actor."""
    user = parts.accounts.user_of(token) if token else None
    if user is not None:
        set_actor(user.name)
    return user


Visitor = Annotated[User | None, Depends(visitor)]


def signed_in(user: Visitor) -> User:
    """Return the signed-in user; 401 without one."""
    if user is None:
        raise HTTPException(401, "sign in first: POST /api/login")
    return user


SignedIn = Annotated[User, Depends(signed_in)]


class Allow:
    """Let users with a permission through; note down who tried without it.

    As an access to a credential that was denied, where it was one: so that one
    question finds who had the credential, and who did not get it.
    """

    def __init__(
        self, permission: str, event: str = "access_denied", resource_type: str = "route"
    ) -> None:
        self._permission = permission
        self._event = event
        self._resource_type = resource_type

    def __call__(self, request: Request, user: SignedIn) -> User:
        """Return the user; 403 without the permission."""
        if user.may(self._permission):
            return user
        refusal = f"the role {user.role.value} has no permission for {self._permission}"
        route = self._resource_type == "route"
        audit.audit_event(
            self._event,
            request.method,
            self._resource_type,
            request.url.path if route else request.path_params["name"],
            "denied",
            error=refusal,
            permission=self._permission,
            role=user.role,
        )
        raise HTTPException(403, refusal)
