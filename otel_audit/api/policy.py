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
from otel_audit.record.event import LEVELS

if TYPE_CHECKING:
    from otel_audit.record.event import Draft

HTTP_REQUEST: Final = "http.request"
"""The type of the activity log's events: one a request."""

DEFAULT_RETENTION: Final = "1y"
ON_FAILURE: Final = ("fail", "continue", "shutdown")
HTTP_ACTIVITY: Final = ("all", "mutating", "off")
_CACHED: Final = 4_096

_T = TypeVar("_T")


class Decision(NamedTuple):
    """What the policy says about one event."""

    record: bool
    level: str | None
    retention: str
    on_failure: str


@dataclass(frozen=True)
class Rule:
    """For events that match all three patterns (shell-style); None leaves a matter open."""

    event: str = "*"
    event_type: str = "*"
    action: str = "*"
    record: bool | None = None
    level: str | None = None
    retention: str | None = None
    on_failure: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no record could have. Raises `AuditSettingsError`."""
        _check("level", self.level, LEVELS)
        _check("on_failure", self.on_failure, ON_FAILURE)

    def matches(self, event: str, event_type: str, action: str) -> bool:
        """Whether the rule speaks about this event."""
        return (
            fnmatchcase(event, self.event)
            and fnmatchcase(event_type, self.event_type)
            and fnmatchcase(action, self.action)
        )


@dataclass(frozen=True)
class Policy:
    """The rules of one provider; for each matter the first rule that says something counts.

    Below all rules: an http.request is activity, not evidence, so its failure
    never costs a response (``continue``); event classes have their own
    retention; everything else is kept for a year and fails as ``on_failure``
    says.
    """

    on_failure: str = "fail"
    http_activity: str = "all"
    rules: tuple[Rule, ...] = ()
    _decisions: dict[tuple[str, str, str], Decision] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """Refuse unknown words. Raises `AuditSettingsError`."""
        _check("on_failure", self.on_failure, ON_FAILURE)
        _check("http_activity", self.http_activity, HTTP_ACTIVITY)

    def __call__(self, draft: Draft) -> None:
        """Be a stage: write the decision into the draft."""
        key = (draft.event, draft.event_type, draft.action)
        decision = self._decisions.get(key) or self.decide(*key)
        draft.wanted = decision.record
        draft.on_failure = decision.on_failure
        draft.level = draft.level or decision.level
        draft.retention = draft.retention or decision.retention

    def decide(self, event: str, event_type: str, action: str) -> Decision:
        """Return what holds for an event."""
        matching = [rule for rule in self.rules if rule.matches(event, event_type, action)]
        decision = Decision(
            record=_first([rule.record for rule in matching], default=True),
            level=_first([rule.level for rule in matching], default=None),
            retention=_first([rule.retention for rule in matching], default=_retention(event_type)),
            on_failure=_first(
                [rule.on_failure for rule in matching],
                default="continue" if event_type == HTTP_REQUEST else self.on_failure,
            ),
        )
        if len(self._decisions) >= _CACHED:
            # Names made of user input must not fill the memory.
            self._decisions.clear()
        self._decisions[event, event_type, action] = decision
        return decision


def _retention(event_type: str) -> str:
    known = CLASSES.get(event_type)
    return DEFAULT_RETENTION if known is None else known.retention


def _first(said: list[_T | None], *, default: _T) -> _T:
    return next((value for value in said if value is not None), default)


def _check(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        message = f"the policy's {name} is {value!r}; it must be one of {', '.join(choices)}"
        raise AuditSettingsError(message)
