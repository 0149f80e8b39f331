"""Which events are recorded, how long they are kept, and what a failure means.

`Policy.decide` promises the same answer for the same event, in one dictionary
look-up after the first time. There is no sampling: an event is wanted or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from otel_audit.errors import AuditSettingsError
from otel_audit.record.classes import CLASSES
from otel_audit.record.event import LEVELS, RESERVED
from otel_audit.record.redact import REDACTED

if TYPE_CHECKING:
    from otel_audit.api.derived import RouteRule, SpanRule
    from otel_audit.record.event import Draft

HTTP_REQUEST: Final = "http.request"
"""The type of the activity log's events: one a request."""

DEFAULT_RETENTION: Final = "1y"
ON_FAILURE: Final = ("fail", "continue", "shutdown")
HTTP_ACTIVITY: Final = ("all", "mutating", "off")
OWN: Final = frozenset({
    "client_id", "client_ip", "error", "request_id", "resource_name", "session_id", "user_agent",
})  # fmt: skip
"""Keys of the record itself that a policy may take out."""

_MATTERS: Final = ("record", "level", "retention", "on_failure")
"""What a rule can say of which the first that is said counts."""

PATTERNS: Final = (
    "event", "event_type", "action", "resource_type", "resource_name", "actor", "route",
)  # fmt: skip
"""By what a rule chooses its events."""

_CACHED: Final = 4_096

_T = TypeVar("_T")


class Decision(NamedTuple):
    """What the policy says about one event."""

    record: bool
    level: str | None
    retention: str
    on_failure: str
    redact: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """For events that match all patterns (shell-style); None leaves a matter open.

    ``actor`` is the actor's id, ``route`` the template of the request's route; an
    event that has none of what a pattern asks for matches ``*`` only. ``redact``
    names fields whose values are taken out; those of all matching rules are.
    """

    event: str = "*"
    event_type: str = "*"
    action: str = "*"
    record: bool | None = None
    level: str | None = None
    retention: str | None = None
    on_failure: str | None = None
    resource_type: str = "*"
    resource_name: str = "*"
    actor: str = "*"
    route: str = "*"
    redact: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse what no record could have. Raises `AuditSettingsError`."""
        _check("level", self.level, LEVELS)
        _check("on_failure", self.on_failure, ON_FAILURE)
        _check_redacted(self.redact)

    def overruled_by(self, earlier: Rule) -> str | None:
        """Return a matter of which this rule never counts: an earlier one says otherwise of all."""
        for matter in _MATTERS:
            first, second = getattr(earlier, matter), getattr(self, matter)
            if first is not None and second is not None and first != second:
                covered = (_covers(getattr(earlier, one), getattr(self, one)) for one in PATTERNS)
                return matter if all(covered) else None
        return None

    @property
    def narrow(self) -> bool:
        """Whether it asks for more than names that the code chose."""
        patterns = (self.resource_type, self.resource_name, self.actor, self.route)
        return any(pattern != "*" for pattern in patterns)

    def matches(self, event: str, event_type: str, action: str, *where: str) -> bool:
        """Whether the rule speaks about this event; ``where``: resource type, name, actor, route."""
        return (
            fnmatchcase(event, self.event)
            and fnmatchcase(event_type, self.event_type)
            and fnmatchcase(action, self.action)
            and (not self.narrow or self._is_there(*where))
        )

    def _is_there(
        self, resource_type: str = "", resource_name: str = "", actor: str = "", route: str = ""
    ) -> bool:
        return (
            fnmatchcase(resource_type, self.resource_type)
            and fnmatchcase(resource_name, self.resource_name)
            and fnmatchcase(actor, self.actor)
            and fnmatchcase(route, self.route)
        )


@dataclass(frozen=True)
class Policy:
    """The rules of one provider; for each matter the first rule that says something counts.

    Below all rules: an http.request is activity, not evidence, so its failure
    never costs a response (``continue``); event classes have their own
    retention, which is how long copies are kept; everything else has ``1y`` and
    fails as ``on_failure`` says.
    """

    on_failure: str = "fail"
    http_activity: str = "all"
    rules: tuple[Rule, ...] = ()
    routes: tuple[RouteRule, ...] = ()
    spans: tuple[SpanRule, ...] = ()
    redact: tuple[str, ...] = ()
    """What is taken out of every event, like the ``redact`` of a rule."""
    _decisions: dict[tuple[str, ...], Decision] = field(
        default_factory=dict, compare=False, repr=False
    )
    _narrow: bool = field(default=False, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse unknown words. Raises `AuditSettingsError`."""
        _check("on_failure", self.on_failure, ON_FAILURE)
        _check("http_activity", self.http_activity, HTTP_ACTIVITY)
        _check_redacted(self.redact)
        object.__setattr__(self, "_narrow", any(rule.narrow for rule in self.rules))

    @property
    def asks_for_routes(self) -> bool:
        """Whether a rule depends on the route of the request that an event happens in."""
        return any(rule.route != "*" for rule in self.rules)

    @property
    def narrow(self) -> bool:
        """Whether a rule asks for more than an event's own words."""
        return self._narrow

    def __call__(self, draft: Draft) -> Decision:
        """Be a stage: write the decision into the draft. Return it."""
        key: tuple[str, ...] = (draft.event, draft.event_type, draft.action)
        if self._narrow:
            key += _where(draft)
        decision = self._decisions.get(key) or self.decide(*key)
        draft.wanted = decision.record
        draft.on_failure = decision.on_failure
        draft.level = draft.level or decision.level
        draft.retention = draft.retention or decision.retention
        if decision.redact:
            _take_out(draft, decision.redact)
        return decision

    def matching(self, event: str, event_type: str, action: str, *where: str) -> list[Rule]:
        """Return the rules that speak about an event, in their order."""
        return [rule for rule in self.rules if rule.matches(event, event_type, action, *where)]

    def decide(self, event: str, event_type: str, action: str, *where: str) -> Decision:
        """Return what holds for an event; ``where``: resource type, name, actor and route."""
        matching = self.matching(event, event_type, action, *where)
        decision = Decision(
            record=_first([rule.record for rule in matching], default=True),
            level=_first([rule.level for rule in matching], default=None),
            retention=_first([rule.retention for rule in matching], default=_retention(event_type)),
            on_failure=_first(
                [rule.on_failure for rule in matching],
                default="continue" if event_type == HTTP_REQUEST else self.on_failure,
            ),
            redact=tuple(
                dict.fromkeys((*self.redact, *(name for rule in matching for name in rule.redact)))
            ),
        )
        if len(self._decisions) >= _CACHED:
            # Names made of user input must not fill the memory.
            self._decisions.clear()
        key = (event, event_type, action, *where)
        self._decisions[key] = decision
        return decision


def can_be_taken_out(name: str) -> bool:
    """Whether a rule can take out what stands under a name: any field, of the record's keys some."""
    return name in OWN or name not in RESERVED


def _covers(pattern: str, other: str) -> bool:
    """Whether a pattern certainly matches whatever the other one does."""
    if pattern in {"*", other}:
        return True
    if "[" in other or (("[" in pattern or "?" in pattern) and ("*" in other or "?" in other)):
        return False
    # The other's own wildcards can only be matched by a `*` here, which matches whatever they do.
    return fnmatchcase(other, pattern)


def _where(draft: Draft) -> tuple[str, ...]:
    route = draft.fields.get("route")
    if route is None and draft.scope is not None and draft.scope.route is not None:
        route = draft.scope.route()
    return (
        draft.resource_type or "",
        draft.resource_name or "",
        draft.actor_id or "",
        route if isinstance(route, str) else "",
    )


def _take_out(draft: Draft, names: tuple[str, ...]) -> None:
    for name in names:
        if name in draft.fields:
            draft.fields[name] = REDACTED
        elif name in OWN and getattr(draft, name) is not None:
            setattr(draft, name, REDACTED)


def _retention(event_type: str) -> str:
    known = CLASSES.get(event_type)
    return DEFAULT_RETENTION if known is None else known.retention


def _first(said: list[_T | None], *, default: _T) -> _T:
    return next((value for value in said if value is not None), default)


def _check(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        message = f"the policy's {name} is {value!r}; it must be one of {', '.join(choices)}"
        raise AuditSettingsError(message)


def _check_redacted(names: tuple[str, ...]) -> None:
    for name in names:
        if not can_be_taken_out(name):
            message = (
                f"the policy takes out {name!r}, a key of the record itself, which none can; of these "
                f"there are {', '.join(sorted(OWN))}"
            )
            raise AuditSettingsError(message)
