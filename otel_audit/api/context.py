"""Who asks, from where, in which request: carried by the OTel Context.

Promises: two operations at a time never see each other's context; it follows
tasks, threads (`asyncio.to_thread`; others through OTel's threading
instrumentation) and nothing else; there is no ContextVar of our own. Only
`set_actor` and the middleware's ``identify=`` hook make an actor.

A request's context is one mutable `RequestScope`, not a mapping that is
replaced: FastAPI runs dependencies in copies of the context, and what
authentication finds there must reach the whole request.

Who attaches another Context in a request stays in that request (`stay_in_requests`):
what OpenTelemetry's propagators extract from headers begins with an empty
Context, and its instrumentations of Flask, Django, WSGI and ASGI attach that.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_audit.errors import AuditEventError, AuditTimeoutError, AuditUnavailableError
from otel_audit.record.encode import members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextvars import Token

    from otel_audit.api.receipt import PendingReceipt

_SCOPE: Final = otel_context.create_key("otel-audit-scope")
_ACTOR: Final = otel_context.create_key("otel-audit-actor")
_BROUGHT: Final = otel_context.create_key("otel-audit-brought")
"""The scope of a Context that was attached by somebody who is not in that request."""

_ACTOR_TYPES: Final = ("user", "service", "system")


class Actor(NamedTuple):
    """Who acts; ``verified`` only after authentication."""

    id: str
    type: str = "user"
    verified: bool = True


class _Acting(NamedTuple):
    """Who acts in a context, as long as that is in ``scope`` (None: in no request)."""

    actor: Actor
    scope: RequestScope | None


class RequestScope:
    """One request: its context, its actor, and its records on the way to the disk.

    `barrier` MUST be awaited before anything of the answer leaves: it returns
    only when every record that was emitted in the scope so far is durable.
    """

    __slots__ = (
        "_members", "actor", "asked", "client_id", "client_ip", "closed", "failure", "inside",
        "pending", "request_id", "route", "session_id", "user_agent",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        *,
        client_id: str = "anonymous",
        client_ip: str = "unknown",
        session_id: str | None = None,
        user_agent: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.client_id = client_id
        self.client_ip = client_ip
        self.session_id = session_id
        self.user_agent = user_agent
        self.actor: Actor | None = None
        self.pending: list[PendingReceipt] = []
        self.failure: AuditUnavailableError | None = None
        self.closed = False
        self.asked: tuple[str, str | None, str | None, str] | None = None
        """Interface, method, root's path and path, for who has to know the request again."""
        self.inside: Mapping[str, Any] | None = None
        """What the other side of a bridge knows of it, in the shape of an ASGI scope."""
        self._members: str | None = None
        self.route: Callable[[], str] | None = None
        """Tells the route's template, once it is known; set where the policy asks for it."""

    def attach(self) -> Token[Context]:
        """Make this the current scope; give the token to `detach`."""
        attach = otel_context._RUNTIME_CONTEXT.attach  # noqa: SLF001 - see stay_in_requests()
        # The code that does this is in the request.
        original = attach.original if isinstance(attach, _Attach) else attach
        return original(Context({**otel_context.get_current(), _SCOPE: self}))

    @staticmethod
    def detach(token: Token[Context]) -> None:
        """Restore what was before `attach`."""
        otel_context.detach(token)

    @property
    def newest(self) -> PendingReceipt | None:
        """What was emitted last of all that is pending. Once it is settled, so are those before."""
        return self.pending[-1] if self.pending else None

    async def barrier(
        self, last: PendingReceipt | None = None, expired: AuditTimeoutError | None = None
    ) -> None:
        """Wait until all that was emitted in this scope until now is durable, or until ``last``.

        Raises `AuditUnavailableError` when a record is not confirmed whose
        policy is to fail, also when the code that emitted it swallowed the
        error, and from then on each time. It waits for one time-out at most,
        however many records there are. ``expired`` says that ``last`` has been
        waited for, in vain.
        """
        pending = self.pending
        last = self.newest if last is None else last
        while batch := _up_to(last, pending):
            settling = None if expired else batch[-1].settling()
            if settling is not None:
                try:
                    await settling
                except AuditTimeoutError as error:
                    expired = error
            for receipt in batch:
                if not receipt.settled or receipt.error is not None:
                    await self._settle(receipt, expired)
                # Only now: who comes meanwhile, or after we were cancelled, must wait as well.
                if pending and pending[0] is receipt:
                    del pending[0]
            expired = None
        # Whoever else waits, or comes later, must hear of it too.
        if self.failure is not None:
            raise self.failure

    async def _settle(self, receipt: PendingReceipt, expired: AuditTimeoutError | None) -> None:
        """Find out how one record went; its failure must not keep us from the others."""
        try:
            if receipt.settled or expired is not None:
                receipt.expire(expired)
            else:
                await receipt
        except AuditUnavailableError as error:
            self.failure = self.failure or error

    def in_session(self, session_id: str) -> None:
        """Say which session it is, in the form in which that is stored, once somebody knows."""
        self.session_id = session_id
        self._members = None

    def close(self) -> None:
        """End the request: tasks that outlive it belong to no request."""
        self.closed = True

    def facts(self) -> dict[str, Any]:
        """Return what is known, under the record's names."""
        facts = {
            "request_id": self.request_id,
            "client_id": self.client_id,
            "client_ip": self.client_ip,
            "session_id": self.session_id,
            "user_agent": self.user_agent,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def members(self) -> str:
        """Write `facts` as members of a JSON object, each after a comma. Raises `TypeError`."""
        if self._members is None:
            self._members = members(self.facts())
        return self._members


def _up_to(
    last: PendingReceipt | None, pending: list[PendingReceipt]
) -> tuple[PendingReceipt, ...]:
    """Return what is pending until ``last``, if that is there."""
    return tuple(pending[: pending.index(last) + 1]) if last in pending else ()


class _Attach:
    """The runtime context's ``attach``, which takes the request along that the code is in."""

    def __init__(self, runtime: Any) -> None:  # noqa: ANN401 - its class is private
        self._current: Callable[[], Context] = runtime.get_current
        self.original: Callable[[Context], Token[Context]] = runtime.attach

    def __call__(self, context: Context) -> Token[Context]:
        current = self._current()
        here, scope = current_scope(current), current_scope(context)
        if scope is None:
            if here is not None and current.get(_BROUGHT) is not here:
                # Who acts goes with it: an actor of a block is one of the same request.
                kept = {key: current[key] for key in (_SCOPE, _ACTOR) if key in current}
                context = Context({**context, **kept})
        elif scope is not here:
            context = Context({**context, _BROUGHT: scope})
        return self.original(context)


def stay_in_requests() -> None:
    """See to it that a Context that is attached in a request belongs to it; harmless again.

    Else its records would be nobody's, and the answer would not wait for them.
    A Context that belongs to another request stays that one's until it ends.

    A thread that is not in a request may still have its Context, brought by
    whoever started it (OpenTelemetry's threading instrumentation): threads of
    pools stay. What is attached there next does not belong to that request.
    """
    runtime: Any = otel_context._RUNTIME_CONTEXT  # noqa: SLF001 - nothing public sees all of them
    if not isinstance(runtime.attach, _Attach):
        runtime.attach = _Attach(runtime)


def current_scope(context: Context | None = None) -> RequestScope | None:
    """Return the request that the calling code belongs to, if any."""
    scope = (otel_context.get_current() if context is None else context).get(_SCOPE)
    return scope if type(scope) is RequestScope and not scope.closed else None


def current_actor(context: Context | None = None) -> Actor | None:
    """Return the actor set for the current block, the current request, or the current context."""
    return actor_in(current_scope(context), context)


def actor_in(scope: RequestScope | None, context: Context | None = None) -> Actor | None:
    """Return who acts, given the current request."""
    acting = (otel_context.get_current() if context is None else context).get(_ACTOR)
    # An actor from outside, or of another request, does not act in this one.
    if type(acting) is _Acting and acting.scope is scope:
        return acting.actor
    return None if scope is None else scope.actor


def get_audit_context() -> Mapping[str, Any]:
    """Return what the next record will say about request, client and actor.

    An immutable mapping with the record's names, without what is unknown. It
    may be passed along: ``audit_event(..., **get_audit_context())``.
    """
    context = otel_context.get_current()
    scope = current_scope(context)
    facts = {} if scope is None else scope.facts()
    actor = current_actor(context)
    if actor is not None:
        facts.update(actor_id=actor.id, actor_type=actor.type, actor_verified=actor.verified)
    return MappingProxyType(facts)


def set_actor(actor_id: str, actor_type: str = "user", *, verified: bool = True) -> None:
    """Say who acts, after authentication.

    In a request it holds for the whole request, whichever task or thread says
    it; elsewhere for the current OTel Context (`acting_as` ends by itself).
    ``actor_type`` is user, service or system. Raises `AuditEventError`.
    """
    actor = checked_actor(actor_id, actor_type, verified=verified)
    context = otel_context.get_current()
    scope = current_scope(context)
    if scope is not None:
        scope.actor = actor
    else:
        otel_context.attach(otel_context.set_value(_ACTOR, _Acting(actor, None), context))


@contextmanager
def acting_as(actor_id: str, actor_type: str = "user", *, verified: bool = True) -> Iterator[None]:
    """Act for somebody during the block: a job, a consumer, a part of a request.

    It holds in this task or thread, and in those that it starts meanwhile;
    others of the same request do not see it.
    """
    acting = _Acting(checked_actor(actor_id, actor_type, verified=verified), current_scope())
    token = otel_context.attach(otel_context.set_value(_ACTOR, acting))
    try:
        yield
    finally:
        otel_context.detach(token)


def checked_actor(actor_id: str, actor_type: str, *, verified: object) -> Actor:
    """Return an actor that a record can name. Raises `AuditEventError`."""
    if not actor_id or not isinstance(actor_id, str):
        message = (
            f"actor_id is {actor_id!r}, but a record must say who acted: pass the "
            "authenticated user's id as a non-empty string"
        )
        raise AuditEventError(message)
    if actor_type not in _ACTOR_TYPES:
        message = f"actor_type {actor_type!r} is not one of {', '.join(_ACTOR_TYPES)}"
        raise AuditEventError(message)
    if not isinstance(verified, bool):
        message = (
            f"verified is {verified!r}, but a record says yes or no: pass True only after "
            "authentication, else False"
        )
        raise AuditEventError(message)
    return Actor(actor_id, actor_type, verified)
