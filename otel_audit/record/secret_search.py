"""Finds secrets in texts, whatever their field is called.

Promises: `SecretSearch.find` returns the places of all secrets of the built-in
shapes, in order and without overlaps, in time linear in the text's length;
`SecretSearch.suspect` never says no where `find` would find something. A
caller's own patterns are as fast as they were written. What is put in place of
a secret is left to redact.py.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.errors import AuditSettingsError
from otel_audit.record.secret_names import SCHEMES, Verdict, is_decision
from otel_audit.record.secret_shapes import CARD, ESCAPE, GROUPS, SEARCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from otel_audit.record.secret_names import SecretNames


class Found(NamedTuple):
    """A secret in a text: from ``start`` up to, not including, ``end``."""

    start: int
    end: int
    kind: str


_TOKEN_CHARACTERS: Final = string.ascii_letters + string.digits + "_-"
_NAME_CHARACTERS: Final = _TOKEN_CHARACTERS + "."
_LONGEST_HEADER: Final = 8_192
_HEADER: Final = re.compile(r"e(?:y[AJ]|w[o0])")
_LONGEST_NUMBER: Final = 28
_URL_SAFE: Final = str.maketrans("-_", "+/")
_BRACKETS: Final = {"{": "}", "[": "]"}
_LONGEST_NAME: Final = 64
_LONGEST_GAP: Final = 64
_OPENING: Final = re.compile(r"[ \t]{0,64}(?:[bru]{0,2}(\\{0,3}[\"'`]))?")
_SCHEME: Final = re.compile(rf"(?i:{SCHEMES})[ ]{{1,4}}(?=\S)")
# Some are words that a password may be: they count after an authorization's name only.
_ANY_SCHEME: Final = re.compile(
    rf"(?i:{SCHEMES}|aws4-[0-9a-z-]{{4,40}}|dpop|geniekey|gnap|hawk|hoba|ntlm|oauth|privatetoken"
    rf"|scram-sha-[0-9]{{1,3}}|sharedkey(?:lite)?|splunk|ssws|vapid)[ ]{{1,4}}(?=\S)"
)
# Credentials may be parameters (RFC 9110, section 11.4): which of them is secret, the scheme knows.
_PARAMETER: Final = r"[\w-]{1,64}=(?:\\?\"[^\"\r\n]*\"?|[\w%/+.-][^\s,\"'<>]*)"
_PARAMETERS: Final = re.compile(rf"{_PARAMETER}(?:[ \t]{{0,4}},[ \t]{{0,4}}{_PARAMETER})*")
_OWN_SHAPE: Final = ("basic", "bearer")
# A separator ends a value only where something else begins: passwords contain commas.
_VALUE_END: Final = re.compile(r"[\s\"'`<>\x00]|[&;,)\]}](?=[\s\"'`&;,)\]}\x00]|\Z|[\w.-]{1,64}=)")
_QUOTES: Final = {quote: re.compile(rf"(?<!\\)\\*{quote}") for quote in "\"'`"}
_ELEMENT: Final = re.compile(r"<(?:[\w.-]{1,64}:)?([\w.-]{1,64})\Z")
_CONTENT: Final = re.compile(
    r"(?:<!\[CDATA\[)?([^<]*?)(?:\]\]>)?<\\?/(?:[\w.-]{1,64}:)?([\w.-]{1,64})\s{0,4}>"
)
_STATEMENT: Final = re.compile(
    r"""\b(?:PASSWORD|IDENTIFIED\s+(?:WITH\s+\S+\s+)?BY(?:\s+PASSWORD)?)\s+\Z
    |(?i:\b(?:with|encrypted)\s+password\s+\Z
    |\b(?:create|alter)\s+(?:group|login|role|user)\b.*
        \b(?:password|identified\s+(?:with\s+\S+\s+)?by(?:\s+password)?)\s+\Z)""",
    re.DOTALL | re.VERBOSE,
)
_LONGEST_STATEMENT: Final = 256
_SQL_TEXTS: Final = {
    quote: re.compile(rf"[^{quote}\\]*(?:(?:\\.|{quote}{quote})[^{quote}\\]*)*", re.DOTALL)
    for quote in "\"'"
}
_LINE_END: Final = re.compile(r"[\r\n\x00]|\Z")
_BEFORE_A_NAME: Final = frozenset(" \t\r\n\"'`([{<,;&?|>\\\x00")
_ESCAPING: Final = "\\%"
_NO_VALUES: Final = frozenset({"", "true", "false", "none", "null"})
_MARK: Final = "[REDACTED"
_SHORTEST_IN_PROSE: Final = 6
_MATCHES_NOTHING: Final = "it matches the empty text, which is everywhere"

# Digits become zeros, so that a card number of any digits is found without looking at each.
_ZEROS: Final = bytes.maketrans(b"0123456789", b"0" * 10)
_CARD_LIKE: Final = b"0" * 14


class SecretSearch:
    """The built-in shapes, and ``patterns`` of the caller's own.

    A pattern is a regular expression of Python's `re`; what it matches is the
    secret or, where it has a named group, what that group matches, and the
    group's name is the kind (else ``custom``). ``names`` judges what stands
    before ``=`` and ``:``. Raises `AuditSettingsError` for a pattern that
    cannot be used.
    """

    def __init__(self, names: SecretNames, patterns: Iterable[str] = ()) -> None:
        """Compile the patterns; the built-in shapes are compiled already."""
        self._names = names
        self._custom = tuple(_compiled(pattern) for pattern in patterns)

    def suspect(self, texts: Sequence[str]) -> bool:
        """Whether `find` may find something in one of the texts. Quick, and never wrongly no."""
        joined = "\0".join(texts)
        if SEARCH(joined) is not None or _may_have_card(joined):
            return True
        return bool(self._custom) and any(any(map(custom.search, texts)) for custom in self._custom)

    def find(self, text: str) -> Iterator[Found]:
        """Find all secrets: in order, without overlaps."""
        found = [*self._built_in(text), *_cards(text), *self._own(text)]
        found.sort(key=lambda one: (one.start, -one.end, one.kind))
        done = 0
        for start, end, kind in found:
            if end > done:
                yield Found(max(start, done), end, kind)
                done = end

    def _built_in(self, text: str) -> Iterator[Found]:
        position = assigned = 0
        while (match := SEARCH(text, position)) is not None:
            position = match.start() + 1
            kind, width = GROUPS[match.lastindex or 0]
            start, end = match.span(match.lastindex or 0)
            if kind == "assignment":
                # What stands after a name within a value would end where the value does.
                span = self._assigned(text, match.start(), end) if end >= assigned else None
            elif width == 0 and kind in _CHECKS:
                span = _CHECKS[kind](text, match.start(), start, end)
            else:
                span = (start - width, end)
            if span is None:
                continue
            yield Found(*span, kind)
            if kind == "assignment":
                # What begins within a value may go on where a comma seemed to end it.
                assigned = span[1]
            else:
                position = max(position, span[1])

    def _own(self, text: str) -> Iterator[Found]:
        for custom in self._custom:
            for match in custom.finditer(text):
                group = match.lastgroup or 0
                start, end = match.span(group)
                if start < end:
                    yield Found(start, end, match.lastgroup or "custom")

    def _assigned(self, text: str, anchor: int, position: int) -> tuple[int, int] | None:
        """Find the value that is assigned to a secret's name, in code, JSON or a header."""
        sign = text[anchor]
        name, before = _name_before(text, position if sign == "-" else anchor)
        verdict = self._names[name]
        if before in _ESCAPING:
            verdict = max(verdict, self._names[_unescaped(name, before)])
        opening = _OPENING.match(text, position)
        start = opening.end() if opening else position
        if verdict is Verdict.INNOCENT or text.startswith(_MARK, start):
            return None
        if sign == ">":
            return _content(text, anchor, verdict)
        if opening and opening[1]:
            # In '"password:" prompt' the quote ends what began before the name.
            closes = before == opening[1] and sign in ":=-"
            return None if closes else _quoted(text, start, opening[1], verdict)
        if sign == "-":
            return _argument(text, start, verdict, name)
        if sign != ":" or text.startswith(":=", anchor):
            return _bare(text, start, verdict)
        return _in_prose(text, start, verdict, name) if before in _BEFORE_A_NAME else None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        if compiled.match(""):
            raise re.error(_MATCHES_NOTHING)  # noqa: TRY301 - reported like every other fault
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        message = f"redaction pattern {pattern!r} cannot be used: {error}; correct it or remove it"
        raise AuditSettingsError(message) from None
    return compiled


def _name_before(text: str, anchor: int) -> tuple[str, str]:
    """Return the name that ends at ``anchor``, and the character before it."""
    window = text[max(0, anchor - _LONGEST_NAME - _LONGEST_GAP) : anchor]
    window = window.rstrip(" \t\\")[-_LONGEST_NAME - 3 :]
    rest = window.rstrip(_NAME_CHARACTERS)
    return window[len(rest) :], rest[-1:] or " "


def _unescaped(word: str, before: str) -> str:
    r"""Take off what belongs to an escape: of ``\npin`` after its backslash remains ``pin``."""
    escape = ESCAPE.match(before + word)
    return word[escape.end() - 1 :] if escape else word


def _quoted(text: str, start: int, quote: str, verdict: Verdict) -> tuple[int, int] | None:
    end = _closing(text, start, quote)
    return None if end == start or _is_decision(text[start:end], verdict) else (start, end)


def _closing(text: str, start: int, quote: str) -> int:
    """Find the end of a text in quotes that were escaped as often as ``quote`` tells."""
    escapes = len(quote) - 1
    for found in _QUOTES[quote[-1]].finditer(text, start):
        # Each time that a text is encoded doubles its backslashes, and adds one to a quote.
        if (found.end() - found.start() - 1) % (2 * escapes + 2) == escapes:
            return found.end() - len(quote)
    return len(text)


def _content(text: str, anchor: int, verdict: Verdict) -> tuple[int, int] | None:
    """Find what stands in an element of XML: "<password>x</password>"."""
    element = _ELEMENT.search(text[max(0, anchor - 2 * _LONGEST_NAME) : anchor])
    content = _CONTENT.match(text, anchor + 1) if element else None
    if element is None or content is None or element[1] != content[2]:
        return None
    value = content[1].strip()
    if value.lower() in _NO_VALUES or _is_decision(value, verdict):
        return None
    return None if verdict is Verdict.PLURAL and value.isdigit() else content.span(1)


def _argument(text: str, start: int, verdict: Verdict, name: str) -> tuple[int, int] | None:
    """Tell the argument of an option from the next one, and from a sentence about it."""
    if text.startswith("-", start) or name.endswith("stdin"):
        return None
    return _in_prose(text, start, verdict, name)


def _in_statement(text: str, quote: int, start: int, _: int) -> tuple[int, int] | None:
    """Find the password that a statement of SQL sets."""
    if _STATEMENT.search(text[max(0, quote - _LONGEST_STATEMENT) : quote]) is None:
        return None
    password = _SQL_TEXTS[text[quote]].match(text, start)
    return password.span() if password else None


def _bare(text: str, start: int, verdict: Verdict) -> tuple[int, int] | None:
    """Find the end of a value without quotes; None where it is no secret after all."""
    scheme = _scheme(text, start, verdict)
    start = scheme.end() if scheme else start
    value = _first_of(text, start)
    if value.lower() in _NO_VALUES or (not scheme and _is_decision(value, verdict)):
        return None
    if verdict is Verdict.PLURAL and value.isdigit():
        return None
    if value[0] in _BRACKETS:
        end = text.find(_BRACKETS[value[0]], start)
        return start, len(text) if end < 0 else end + 1
    end = _end(_VALUE_END, text, start)
    parameters = _PARAMETERS.match(text, start) if scheme else None
    return start, max(end, parameters.end()) if parameters else end


def _scheme(text: str, start: int, verdict: Verdict) -> re.Match[str] | None:
    scheme = _ANY_SCHEME if verdict is Verdict.DECISION else _SCHEME
    return scheme.match(text, start)


def _first_of(text: str, start: int) -> str:
    """Return a value's first characters: enough to judge it, however long it is."""
    limit = start + _LONGEST_NAME
    match = _VALUE_END.search(text, start, limit)
    return text[start : match.start() if match else limit]


def _is_decision(value: str, verdict: Verdict) -> bool:
    return verdict is Verdict.DECISION and is_decision(value)


def _in_prose(text: str, start: int, verdict: Verdict, name: str) -> tuple[int, int] | None:
    """Tell a value after a colon ("token: 7f3a91") from a sentence that goes on."""
    value = _first_of(text, start)
    if name.casefold().endswith("cookie") and "=" in value:
        return start, _end(_LINE_END, text, start)
    if scheme := _scheme(text, start, verdict):
        if scheme[0].casefold().startswith(_OWN_SHAPE):
            return None
        parameters = _PARAMETERS.match(text, scheme.end())
        value = parameters[0] if parameters else _first_of(text, scheme.end())
    if len(value) < _SHORTEST_IN_PROSE or value.startswith("arn:"):
        return None
    return _bare(text, start, verdict) if any(map(str.isdigit, value)) else None


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.search(text, start)
    return len(text) if match is None else match.start()


def _credentials(text: str, _: int, start: int, end: int) -> tuple[int, int] | None:
    """Tell credentials from "basic information": they decode to user:password (RFC 7617)."""
    user, colon, _password = _decoded(text[start:end]).partition(b":")
    try:
        return (start, end) if colon and user.decode().isprintable() else None
    except UnicodeDecodeError:
        return None


def _with_header(text: str, dot: int, start: int, end: int) -> tuple[int, int] | None:
    """Take the header of a JWT along: it ends at the dot where the search stopped."""
    header = _token_before(text, dot)
    begin = _HEADER.search(header)
    if begin is None:
        # Claims are claims without a header too; encrypted parts without one are just text.
        return None if text[start] == "." else (start, end)
    return dot - len(header) + begin.start(), end


def _with_number(text: str, dot: int, _: int, end: int) -> tuple[int, int] | None:
    """Tell a bot's token from three words with dots: the first part encodes digits."""
    number = _token_before(text, dot)[-_LONGEST_NUMBER:]
    digits = _decoded(number + "=" * (-len(number) % 4))
    return (dot - len(number), end) if digits.isdigit() else None


def _with_digits(text: str, colon: int, _: int, end: int) -> tuple[int, int]:
    """Take a bot's number along, which stands before the colon."""
    before = _token_before(text, colon)[-_LONGEST_NUMBER:]
    return colon - len(before) + len(before.rstrip(string.digits)), end


_CHECKS: Final[dict[str, Callable[[str, int, int, int], tuple[int, int] | None]]] = {
    "basic": _credentials,
    "discord": _with_number,
    "jwt": _with_header,
    "sql_password": _in_statement,
    "telegram": _with_digits,
}


def _token_before(text: str, dot: int) -> str:
    window = text[max(0, dot - _LONGEST_HEADER) : dot]
    rest = window.rstrip(_TOKEN_CHARACTERS)
    return _unescaped(window[len(rest) :], rest[-1:])


def _decoded(encoded: str) -> bytes:
    """Decode base64 of either alphabet; nothing where it is none."""
    try:
        return base64.b64decode(encoded.translate(_URL_SAFE), validate=True)
    except binascii.Error:
        return b""


def _may_have_card(text: str) -> bool:
    if len(text) < len(_CARD_LIKE):
        return False
    zeros = text.encode("utf-8", "surrogatepass").translate(_ZEROS, b" -")
    # Few texts have that many digits at all, and counting is quicker than searching.
    return zeros.count(b"0") >= len(_CARD_LIKE) and _CARD_LIKE in zeros


def _cards(text: str) -> Iterator[Found]:
    if not _may_have_card(text):
        return
    position = 0
    while (match := CARD.search(text, position)) is not None:
        position = match.start() + 1
        if _has_check_digit(match[0]):
            yield Found(*match.span(), "card")
            position = match.end()


def _has_check_digit(number: str) -> bool:
    """Check a card number by the formula of ISO/IEC 7812-1, annex B (Luhn)."""
    digits = [int(digit) for digit in reversed(number) if digit.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
