"""The policy as a YAML file, checked down to the last key.

Promises: what cannot be used is an `AuditSettingsError` with the file, line
and column, the key, what is wrong there, and what would be right; there are no
silent defaults. Two rules that say different things about the same events are an
error too, since the second would never count, as are two that make the same
record. What rules mean is in `policy` and `derived`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NoReturn

import yaml
import yaml.composer
import yaml.reader

from otel_audit.api.derived import KINDS, OUTCOMES, SPAN_STATUSES, RouteRule, Saying, SpanRule
from otel_audit.api.policy import (
    HTTP_ACTIVITY,
    ON_FAILURE,
    OWN,
    PATTERNS,
    Policy,
    Rule,
    can_be_taken_out,
)
from otel_audit.api.route_facts import unknown_fact
from otel_audit.api.silent import makers_of
from otel_audit.api.slow_patterns import length_that_takes_too_long
from otel_audit.api.template import Placeholder, Template, placeholder
from otel_audit.errors import AuditSettingsError
from otel_audit.record.event import LEVELS, RESERVED
from otel_audit.record.redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from otel_audit.settings import Settings

_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})
_ACTIVITY: Final = {**dict.fromkeys(_TRUE, "all"), **dict.fromkeys(_FALSE, "off")}
_KEYS: Final = (
    "version", "on_failure", "http_activity", "redact", "rules", "rule_sets", "routes", "spans",
)  # fmt: skip
_WORDS: Final = (
    "event_type", "status", "level", "resource_type", "resource_name", "retention", "error",
)  # fmt: skip
_METHODS: Final = frozenset({
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY",
    # WebDAV
    "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
})  # fmt: skip
_VARIABLE: Final = "OTEL_AUDIT_POLICY_FILE"
_WILD: Final = re.compile(r"[*?\[]")
_DEEPEST: Final = 50
_SETS: Final = files("otel_audit.api") / "rule_sets"


@dataclass(frozen=True)
class PolicyFile:
    """What a file says; None where it says nothing."""

    policy: Policy
    redactor: Redactor
    on_failure: str | None = None
    http_activity: str | None = None
    rule_sets: tuple[str, ...] = ()
    """The shipped sets that it names; their rules are among the policy's."""


def policy_for(settings: Settings) -> tuple[Policy, Redactor]:
    """Return the policy that the settings name, or what holds without a file.

    A variable that is set wins over the file; rule sets of both count, once each.
    Raises `AuditSettingsError`.
    """
    said = PolicyFile(Policy(), Redactor())
    if settings.policy_file is not None:
        named = settings.origins.get("policy_file") == "argument"
        said = read_policy(settings.policy_file, "the path" if named else _VARIABLE)
    added = [name for name in dict.fromkeys(settings.rule_sets) if name not in said.rule_sets]
    sets = [rule_set(name, "OTEL_AUDIT_RULE_SETS") for name in added]
    return (
        Policy(
            on_failure=_wins(settings, "on_failure", said.on_failure),
            http_activity=_wins(settings, "http_activity", said.http_activity),
            rules=said.policy.rules,
            routes=_all(said.policy.routes, (one.policy.routes for one in sets)),
            spans=_all(said.policy.spans, (one.policy.spans for one in sets)),
            redact=said.policy.redact,
        ),
        said.redactor,
    )


def read_policy(path: Path, named_by: str = _VARIABLE) -> PolicyFile:
    """Read a policy file; ``named_by`` is what to correct. Raises `AuditSettingsError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        message = (
            f"the policy file {path} cannot be read: {error.strerror or error}; correct {named_by}, "
            "or write one with `otel-audit init`"
        )
        raise AuditSettingsError(message) from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        message = (
            f"{path}:{_line_and_column(before)}: this is not UTF-8 but the byte "
            f"{content[error.start]:#04x}; save the file as UTF-8"
        )
        raise AuditSettingsError(message) from None
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str, *, shipped: bool = False) -> PolicyFile:
    """Parse the text of a policy; ``name`` is the file's in errors. Raises `AuditSettingsError`.

    What is ``shipped`` also says which distributions make the spans of its rules.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        message = (
            f"{name}:{_line_and_column(text[: error.position])}: YAML cannot have the character "
            f"U+{ord(text[error.position]):04X}; take it out"
        )
        raise AuditSettingsError(message) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        what = getattr(error, "problem", None) or error
        message = f"{where}: this is not YAML: {what}; correct the line, or the one before it"
        raise AuditSettingsError(message) from None
    if node is None:
        message = (
            f"{name}:1:1: the policy says nothing, as a file that was cut off or never filled; write at "
            "least `version: 1`, or take the one of `otel-audit init`"
        )
        raise AuditSettingsError(message)
    return _Reader(name, shipped=shipped).policy(node)


class _Loader(yaml.SafeLoader):
    """Composes no more levels than Python can call."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - whatever the parent calls its items
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stubs leave it open
            problem = f"it is nested deeper than {_DEEPEST} levels, and no policy is"
            raise yaml.composer.ComposerError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _line_and_column(before: str) -> str:
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def rule_set(name: str, where: str) -> PolicyFile:
    """Return a shipped set of rules; ``where`` is what named it. Raises `AuditSettingsError`."""
    known = rule_set_names()
    if name not in known:
        message = f"{where} names {name!r}, which is no rule set; name some of {', '.join(known)}"
        raise AuditSettingsError(message)
    text = (_SETS / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_policy(text, f"rule set {name}", shipped=True)


def rule_set_names() -> list[str]:
    """Return the names of the shipped sets."""
    return sorted(one.name[:-5] for one in _SETS.iterdir() if one.name.endswith(".yaml"))


def _wins(settings: Settings, name: str, said: str | None) -> str:
    chosen: str = getattr(settings, name)
    unset = settings.origins.get(name, "argument") == "default"
    return said if said is not None and unset else chosen


def _all(first: tuple[Any, ...], others: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return (*first, *(rule for rules in others for rule in rules))


class _Reader:
    """Turns nodes of YAML into rules; each error has the place of its node."""

    def __init__(self, name: str, *, shipped: bool) -> None:
        self._name = name
        self._known = (*_KEYS, "made_by") if shipped else _KEYS
        self._keys: dict[yaml.Node, str] = {}
        """Under which key a node was met: errors name it."""

    def policy(self, node: yaml.Node) -> PolicyFile:
        said = self._mapping(node, self._known)
        if "version" in said and self._text(said["version"]) != "1":
            self._refuse(
                said["version"], "this version of otel-audit reads version 1 only; write 1"
            )
        rules = tuple(self._rule(one) for one in self._items(said.get("rules")))
        routes = [self._route(one) for one in self._items(said.get("routes"))]
        made_by = self._texts(said.get("made_by"))
        spans = [self._span(one, made_by) for one in self._items(said.get("spans"))]
        self._check_doubles(said.get("routes"), routes)
        self._check_doubles(said.get("spans"), spans)
        sets: list[str] = []
        for one in self._items(said.get("rule_sets")):
            try:
                shipped = rule_set(self._text(one), "the list").policy
            except AuditSettingsError as error:
                self._refuse(one, str(error))
            if one.value in sets:
                self._refuse(one, f"{one.value!r} is named twice, which would double its records")
            sets.append(one.value)
            routes += shipped.routes
            spans += shipped.spans
        self._check_conflicts(said.get("rules"), rules)
        keys, redactor = self._everywhere(said.get("redact"))
        on_failure = self._choice(said.get("on_failure"), ON_FAILURE)
        http_activity = self._choice(said.get("http_activity"), HTTP_ACTIVITY, _ACTIVITY)
        return PolicyFile(
            Policy(
                on_failure=on_failure or "fail",
                http_activity=http_activity or "all",
                rules=rules,
                routes=tuple(routes),
                spans=tuple(spans),
                # A redactor looks at callers' fields only.
                redact=tuple(name for name in keys if name in OWN),
            ),
            redactor,
            on_failure,
            http_activity,
            tuple(sets),
        )

    def _rule(self, node: yaml.Node) -> Rule:
        said = self._mapping(
            node, ("match", "record", "level", "retention", "on_failure", "redact"), ("match",)
        )
        if len(said) == 1:
            self._refuse(
                node,
                "this rule matches, but says nothing; give it record, level, retention, on_failure or redact",
            )
        match = self._mapping(said["match"], PATTERNS)
        if not match:
            self._refuse(said["match"], f"it is empty; name one of {', '.join(PATTERNS)}")
        return Rule(
            **{
                name: self._filled(pattern, "write one rule for each, or a pattern such as 'log*'")
                for name, pattern in match.items()
            },
            record=self._boolean(said.get("record")),
            level=self._choice(said.get("level"), LEVELS),
            retention=self._filled(said["retention"]) if "retention" in said else None,
            on_failure=self._choice(said.get("on_failure"), ON_FAILURE),
            redact=self._redacted(said["redact"]) if "redact" in said else (),
            origin=self._place(node),
        )

    def _route(self, node: yaml.Node) -> RouteRule:
        said = self._mapping(
            node, ("match", "outcome", "event", "action", "fields", *_WORDS), ("match", "event")
        )
        matches = said["match"]
        nodes = self._items(matches) if isinstance(matches, yaml.SequenceNode) else [matches]
        if not nodes:
            self._refuse(matches, "it is empty; name a method and a route")
        routes = tuple(self._method_and_route(one) for one in nodes)
        return RouteRule(
            routes,
            self._saying(said, "{method}", [route for _, route in routes]),
            outcome=self._choice(said.get("outcome"), OUTCOMES),
            origin=self._place(node),
        )

    def _method_and_route(self, node: yaml.Node) -> tuple[tuple[str, ...], str]:
        match = self._text(node)
        methods, space, route = match.partition(" ")
        if not space or not route.lstrip().startswith(("/", "*")):
            self._refuse(
                node,
                f"{match!r} is no method and route; write for example 'GET /patients/{{id}}' "
                "or '* /admin/*'",
            )
        found = tuple(method.strip().upper() for method in methods.split(","))
        for method in found:
            if method not in _METHODS | {"*"}:
                near = difflib.get_close_matches(method, sorted(_METHODS), 1) or ["GET"]
                self._refuse(
                    node,
                    f"{method!r} is no HTTP method; write for example {near[0]}, or * for all",
                )
        return found, route.strip()

    def _span(self, node: yaml.Node, made_by: tuple[str, ...]) -> SpanRule:
        said = self._mapping(
            node, ("match", "event", "action", "fields", *_WORDS), ("match", "event")
        )
        match = self._mapping(said["match"], ("name", "kind", "scope", "attributes", "status"))
        if not any(node.value for node in match.values()):
            self._refuse(
                said["match"],
                "it is empty and would make a record of every span; name a scope, a name or a kind",
            )
        kinds = self._some(match["kind"]) if "kind" in match else ()
        for kind in kinds:
            self._chosen(match["kind"], kind, KINDS)
        scope = self._optional(match.get("scope"))
        return SpanRule(
            self._saying(said, "{name}"),
            name=self._optional(match.get("name")),
            kinds=kinds,
            scope=scope,
            attributes=self._attributes(match["attributes"]) if "attributes" in match else {},
            status=self._choice(match.get("status"), SPAN_STATUSES),
            origin=self._place(node),
            made_by=made_by or makers_of(scope),
        )

    def _attributes(self, node: yaml.Node) -> dict[Placeholder, tuple[str, ...]]:
        attributes = {}
        for name, patterns in self._pairs(node).items():
            try:
                looked_up = placeholder(name)
            except ValueError as error:
                self._refuse(patterns, str(error))
            attributes[looked_up] = tuple(pattern.lower() for pattern in self._some(patterns))
        if not attributes:
            self._refuse(node, "it is empty; name an attribute, or leave it out")
        return attributes

    def _saying(
        self, said: Mapping[str, yaml.Node], action: str, routes: Sequence[str] = ()
    ) -> Saying:
        """Read what a rule says; of one of requests, ``routes`` tell which facts there are."""
        fields = self._pairs(said["fields"]) if "fields" in said else {}
        for name in fields:
            if name in RESERVED:
                self._refuse(
                    said["fields"],
                    f"a field cannot be called {name!r}: the record has that key itself; call it otherwise",
                )
        if "level" in said and "{" not in self._text(said["level"]):
            self._choice(said["level"], LEVELS)
        return Saying(
            self._template(said["event"], routes),
            self._template(said["action"], routes) if "action" in said else Template(action),
            {name: self._template(said[name], routes) for name in _WORDS if name in said},
            {name: self._template(value, routes, empty=True) for name, value in fields.items()},
        )

    def _everywhere(self, node: yaml.Node | None) -> tuple[tuple[str, ...], Redactor]:
        """Read what is taken out of all records: the names, and who finds them in callers' fields."""
        if node is None:
            return (), Redactor()
        said = self._mapping(node, ("keys", "patterns"))
        keys = self._redacted(said["keys"]) if "keys" in said else ()
        patterns = self._texts(said.get("patterns"))
        try:
            redactor = Redactor(keys, patterns)
        except AuditSettingsError as error:
            self._refuse(node, str(error))
        for pattern in patterns:
            length = length_that_takes_too_long(pattern)
            if length is not None:
                self._refuse(
                    said["patterns"],
                    f"{pattern!r} takes twice as long with each character or two, milliseconds with {length}, and would "
                    "stop the application; let no repetition contain another one of the same characters",
                )
        return keys, redactor

    def _check_conflicts(self, node: yaml.Node | None, rules: tuple[Rule, ...]) -> None:
        """Refuse a rule of which something can never count: an earlier one says otherwise."""
        by_event: dict[str, list[Rule]] = {}
        of_several: list[Rule] = []
        for one, rule in zip(self._items(node), rules, strict=True):
            alike = by_event.setdefault(rule.event, [])
            for before in (*of_several, *alike):
                matter = rule.overruled_by(before)
                if matter is not None:
                    first, second = getattr(before, matter), getattr(rule, matter)
                    self._refuse(
                        one,
                        f"this rule says {matter}: {_yaml(second)}, and the one at {before.origin} says {matter}: {_yaml(first)} "
                        "of all these events before; keep one, or put this one first",
                    )
            (of_several if _WILD.search(rule.event) else alike).append(rule)

    def _check_doubles(self, node: yaml.Node | None, rules: Sequence[RouteRule | SpanRule]) -> None:
        """Refuse a rule that makes the record of an earlier one once more, whatever else it says."""
        made: dict[object, str] = {}
        for one, rule in zip(self._items(node), rules, strict=True):
            makes = rule.makes()
            for same in makes:
                if same in made:
                    self._refuse(
                        one,
                        f"this rule has the match, event, action and resource of the one at {made[same]}, so "
                        "there would be two records each time; keep one, or let them differ in one of these",
                    )
            made.update(dict.fromkeys(makes, rule.origin))

    # What a node has to be

    def _mapping(
        self, node: yaml.Node, known: tuple[str, ...], required: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        said = self._pairs(node, known)
        for name in required:
            if name not in said:
                among = f"there have to be {' and '.join(required)}" if required[1:] else "add it"
                self._refuse(node, f"{name!r} is missing; {among}")
        return said

    def _pairs(self, node: yaml.Node, known: tuple[str, ...] | None = None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, "expected keys with values (`key: value`)")
        said: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._text(key)
            if known is not None and name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                self._refuse(key, f"unknown key {name!r}; {hint}")
            if name in said:
                self._refuse(key, f"{name!r} is said twice; keep one")
            said[name] = value
            self._keys[value] = name
        return said

    def _items(self, node: yaml.Node | None) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._refuse(node, "expected a list (each item on a line, after `- `)")
        items: list[yaml.Node] = node.value
        if node in self._keys:
            self._keys.update(dict.fromkeys(items, self._keys[node]))
        return items

    def _text(self, node: yaml.Node, instead: str = "write one") -> str:
        """Read one text; of a list, ``instead`` is what would be right."""
        if not isinstance(node, yaml.ScalarNode):
            found = "keys with values" if isinstance(node, yaml.MappingNode) else "a list"
            self._refuse(node, f"expected a text, not {found}; {instead}")
        if node.tag.endswith(":null"):
            self._refuse(
                node, "expected a text, and nothing is said; say something, or leave it out"
            )
        return str(node.value)

    def _optional(self, node: yaml.Node | None) -> str | None:
        return None if node is None else self._text(node)

    def _texts(self, node: yaml.Node | None) -> tuple[str, ...]:
        """Read a list of texts, or one text as a list of one."""
        if isinstance(node, yaml.ScalarNode):
            return (self._text(node),)
        return tuple(self._text(item) for item in self._items(node))

    def _some(self, node: yaml.Node) -> tuple[str, ...]:
        texts = self._texts(node)
        if not texts:
            self._refuse(node, "the list is empty; name something, or leave it out")
        return texts

    def _filled(self, node: yaml.Node, instead: str = "write one") -> str:
        text = self._text(node, instead)
        if not text:
            self._refuse(node, "the text is empty; say something, or leave it out")
        return text

    def _redacted(self, node: yaml.Node) -> tuple[str, ...]:
        """Read which fields are taken out; of the record's own keys some can be."""
        names = self._some(node)
        for name in names:
            if not can_be_taken_out(name):
                own = ", ".join(sorted(OWN))
                self._refuse(
                    node,
                    f"{name!r} is a key of the record itself, which cannot be taken out; of these name some of {own}",
                )
        return names

    def _boolean(self, node: yaml.Node | None) -> bool | None:
        if node is None:
            return None
        text = self._text(node).lower()
        if text not in _TRUE | _FALSE:
            self._refuse(node, f"{text!r} is neither true nor false; write one of them")
        return text in _TRUE

    def _choice(
        self,
        node: yaml.Node | None,
        choices: tuple[str, ...],
        also: Mapping[str, str] | None = None,
    ) -> str | None:
        if node is None:
            return None
        text = self._text(node)
        return self._chosen(node, (also or {}).get(text.lower(), text), choices)

    def _chosen(self, node: yaml.Node, text: str, choices: tuple[str, ...]) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text.lower(), choices, 1)
            hint = f"did you mean {near[0]!r}?" if near else "write one of them"
            self._refuse(node, f"{text!r} is not one of {', '.join(choices)}; {hint}")
        return text

    def _template(self, node: yaml.Node, routes: Sequence[str], *, empty: bool = False) -> Template:
        text = self._text(node) if empty else self._filled(node)
        try:
            template = Template(text)
        except ValueError as error:
            self._refuse(node, str(error))
        trouble = unknown_fact(sorted(template.names), routes) if routes else None
        if trouble is not None:
            self._refuse(node, trouble)
        return template

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _refuse(self, node: yaml.Node, what: str) -> NoReturn:
        key = self._keys.get(node)
        message = f"{self._place(node)}: {'' if key is None else f'{key}: '}{what}"
        raise AuditSettingsError(message)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
