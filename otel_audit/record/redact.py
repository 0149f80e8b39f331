"""Takes secrets out of what a caller said, before it becomes evidence.

Promises: after `Redactor.fields` no value stands under a name that means a
secret, and no text or name holds a secret of a known shape (docs/redaction.md
lists both, with what they find and what they take wrongly). Everything else
stays as it was. Redacting twice changes nothing more. The rules are in
secret_names.py and secret_shapes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from otel_audit.record.coerce import MAX_NAME
from otel_audit.record.secret_names import SecretNames, Verdict, is_decision
from otel_audit.record.secret_search import SecretSearch
from otel_audit.record.shorten import BEYOND

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_audit.record.shorten import JsonValue

REDACTED: Final = "[REDACTED]"
"""What stands for the value under a secret's name."""

_SEEN: Final = 4_096
_SHOWING: Final = frozenset({Verdict.INNOCENT, Verdict.REVEALING})
_HARMLESS: Final = frozenset({int, bool, type(None)})


class Redactor:
    """The built-in rules, with ``keys`` and ``patterns`` of the policy's own.

    ``keys`` are names whose values are secrets (``"patient_name"`` also means
    ``patientName`` and ``old.patient-name``); ``patterns`` are regular
    expressions for texts. A pattern with a named group takes away what that
    group matches and calls it by the group's name; without one it takes the
    whole match and calls it ``custom``. Raises `AuditSettingsError`, which
    names the key or pattern that cannot be used.
    """

    def __init__(self, keys: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        """Compile the rules; a redactor may be used by several threads."""
        self._names = SecretNames(keys)
        self._search = SecretSearch(self._names, patterns)
        # Most names are innocent each time they come: a set answers that fastest.
        self._innocent: set[str] = set()

    def fields(self, fields: dict[str, JsonValue], *beside: str) -> tuple[str, ...]:
        """Redact plain JSON values in place, at every depth; return the texts ``beside`` them.

        Under a secret's name everything goes but None, booleans and the empty
        text, which hold no secret; under a plural (``tokens``) numbers stay,
        as they count. Elsewhere, and in names, only the secret part of a text
        is replaced, by ``[REDACTED:kind]``; also in ``beside``, which have no name.
        Each field keeps its place, also where its name changes.
        """
        if self.knows(fields) and self.passes(fields, *beside):
            return beside  # as nearly always
        texts = list(beside)
        self._by_name(fields, texts)
        if not texts or not self._search.suspect(texts):
            return beside
        self._by_shape(fields)
        return tuple(map(self._without_secrets, beside))

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all names were met before and are innocent."""
        return self._innocent.issuperset(names)

    def passes(self, fields: dict[str, JsonValue], *beside: str) -> bool:
        """Whether `fields` would change nothing, given that it `knows` the names.

        Quick, and never wrongly yes. No for whatever is no plain value, nor JSON: NaN.
        """
        texts = list(beside)
        for value in fields.values():
            kind = type(value)
            if kind is str:
                texts.append(value)  # type: ignore[arg-type] # a call of cast() for each would be felt
            elif kind is float:
                if value - value:  # type: ignore[operator] # NaN, as of infinities, which JSON cannot hold
                    return False
            elif kind not in _HARMLESS:
                return False
        # One search over everything: the call costs more than the characters.
        return not self._search.suspect(texts)

    def text(self, value: str) -> str:
        """Redact a text that has no name, by shape only."""
        return self._without_secrets(value) if self._search.suspect((value,)) else value

    def beginning(self, text: str, kept: int) -> str:
        """Return the first ``kept`` characters without secrets, nor parts of one that goes on.

        For whoever cuts a text: what is left of a secret may be too short to be known.
        """
        return self._without_secrets(text[: kept + BEYOND], kept)

    def under(self, name: str | None, value: JsonValue) -> JsonValue:
        """Return what may be shown of a value under a name; None: nobody knows the name.

        For whoever cuts a name: what is left of it may say nothing of a secret any more.
        """
        return _hidden(value, Verdict.SECRET if name is None else self._names[name])

    def _by_name(self, fields: dict[str, JsonValue], texts: list[str]) -> None:
        """Hide what stands under secrets' names; collect the other texts in ``texts``."""
        innocent = self._innocent
        renamed = False
        for name, value in fields.items():
            if name not in innocent and (verdict := self._verdict(name)):
                renamed |= verdict is Verdict.REVEALING
                fields[name] = value = _hidden(value, verdict)  # noqa: PLW2901 - goes on with it
            kind = type(value)
            if kind is str:
                texts.append(cast("str", value))
            elif kind is dict or kind is list:
                self._below(value, texts)
        if renamed:
            self._rename(fields)

    def _verdict(self, name: str) -> Verdict:
        """Judge a name that is not known as innocent."""
        if any(self._search.find(name)):
            return Verdict.REVEALING
        verdict = self._names[name]
        # A long name is cut by coerce.py, and named as altered, each time it comes.
        if verdict is Verdict.INNOCENT and len(name) <= MAX_NAME:
            if len(self._innocent) >= _SEEN:
                self._innocent.clear()
            self._innocent.add(name)
        return verdict

    def _below(self, value: JsonValue, texts: list[str]) -> None:
        if isinstance(value, dict):
            self._by_name(value, texts)
        elif isinstance(value, list):
            self._in_turn(value)
            for element in value:
                self._below(element, texts)
        elif isinstance(value, str):
            texts.append(value)

    def _in_turn(self, values: list[JsonValue]) -> None:
        """Redact what the text before it names: ``["--pin", "123456"]``, ``[["pin", "123456"]]``."""
        if all(map(_is_pair, values)):
            for pair in cast("list[list[JsonValue]]", values):
                pair[1] = self._behind(f"{pair[0]}: ", pair[1])
        for place, option in enumerate(values[:-1], 1):
            if isinstance(option, str) and option.startswith("--"):
                values[place] = self._behind(f"{option} ", values[place])

    def _behind(self, before: str, value: JsonValue) -> JsonValue:
        """Redact a text as if it stood in one with what is ``before`` it."""
        if not isinstance(value, str):
            return value
        clean = self._without_secrets(before + value)
        return clean[len(before) :] if clean.startswith(before) else value

    def _rename(self, fields: dict[str, JsonValue]) -> None:
        """Take secrets out of names, in the same order and without losing a value."""
        entries = list(fields.items())
        fields.clear()
        alike: dict[str, int] = {}
        for name, value in entries:
            clean = free = self._without_secrets(name)
            while free in fields:
                # Counted on, not tried from the start: thousands may be alike.
                alike[clean] = alike.get(clean, 1) + 1
                free = f"{clean}~{alike[clean]}"
            fields[free] = value

    def _by_shape(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return self._without_secrets(value)
        if isinstance(value, dict):
            for name, below in value.items():
                value[name] = self._by_shape(below)
        elif isinstance(value, list):
            value[:] = map(self._by_shape, value)
        return value

    def _without_secrets(self, text: str, kept: int | None = None) -> str:
        kept = len(text) if kept is None else kept
        parts: list[str] = []
        done = 0
        for start, end, kind in self._search.find(text):
            if start >= kept:
                break
            parts += text[done:start], f"[REDACTED:{kind}]"
            done = end
        return "".join([*parts, text[done:kept]])


def _is_pair(value: JsonValue) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)  # noqa: PLR2004 - a pair


def _hidden(value: JsonValue, verdict: Verdict) -> JsonValue:
    """Return what may be shown of a value under a name with this verdict."""
    if verdict in _SHOWING or value is None or value == "" or isinstance(value, bool):
        return value
    if verdict is Verdict.PLURAL:
        return _counts(value)
    if verdict is Verdict.DECISION and (
        isinstance(value, (dict, list)) or (isinstance(value, str) and is_decision(value))
    ):
        return value
    return REDACTED


def _counts(value: JsonValue) -> JsonValue:
    """Keep the numbers of ``tokens: {"input": 200, "output": 31}``, and nothing else."""
    if isinstance(value, dict):
        return {name: _counts(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_counts(element) for element in value]
    return REDACTED if isinstance(value, str) and value else value
