r"""From whatever a caller passes to plain JSON values, without ever raising.

Promises: `plain` returns what `orjson.dumps` takes, whatever a value is or
does (its ``__str__``, ``__repr__``, ``__iter__``, properties and metaclass may
raise; only KeyboardInterrupt and SystemExit pass). It names the fields that
lost something on the way. Its own work is bounded, whatever the size of the
value. Secrets are left to redact.py, which also says what may be shown where
something is cut; the record's length is left to `shorten`.

Converted, and not named, since nothing is lost: datetime, date and time
(RFC 3339; a naive one stays without offset), timedelta (seconds), Enum (its
value), UUID, path, IP address, Decimal and Fraction (text), UserString and
other sequences of characters (text), subclasses of str, int and float, numbers of other libraries, exceptions (``Type: message``),
NamedTuple, dataclass, attrs and pydantic objects and other mappings (an
object), tuple, set (sorted) and other sequences (an array).

Altered, and named: bytes (text where they are UTF-8, else ``base64:...``),
integers over 64 bits (digits), NaN and infinities (``"NaN"``, ...), lone
surrogates (``\ud800``), keys that are no text, colliding keys (``name~2``),
cycles, more than 16 levels, 10,000 elements or 65,536 characters, and any
other object (its repr, without addresses, at most 1,024 characters).
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
import re
from collections import UserString, deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from itertools import islice
from numbers import Integral, Real
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from uuid import UUID

import orjson

from otel_audit.record.shorten import (
    BEYOND,
    MARK_KEY,
    JsonValue,
    cut_characters,
    elements_mark,
    first_characters,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from otel_audit.record.redact import Redactor

MAX_DEPTH: Final = 16
"""Levels of objects and arrays within one field."""
MAX_ELEMENTS: Final = 10_000
"""Elements of one field, over all its levels; also the number of fields."""
MAX_CHARACTERS: Final = 65_536
"""Characters of one field: more than the longest record (65,535 bytes) could hold."""
MAX_NAME: Final = 256
"""Characters of a key."""
MAX_REPR: Final = 1_024
"""Characters of an unknown object's repr."""

# For all fields of one call together, shared out evenly when they are many.
_ALL_ELEMENTS: Final = 100_000
_ALL_CHARACTERS: Final = 1_048_576
# A text of this length need not be counted: 10,000 of them are bounded work too.
_SHORT: Final = 1_024

_LEAST: Final = -(2**63)
_GREATEST: Final = 2**64 - 1
# Python refuses to write longer ones in digits (sys.set_int_max_str_digits).
_WRITABLE_BITS: Final = 2_000
_ADDRESSES: Final = (
    IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network,
)  # fmt: skip
_MEMORY_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]{1,16}")
_PRINTABLE: Final = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*")

_Cover: TypeAlias = Callable[[JsonValue], JsonValue]
_NO_COVERS: Final[Mapping[str, _Cover]] = {}

# Not `type(x).__name__`: a metaclass may have made a property of it that raises.
_name_of_type: Final = cast("Callable[[type], str]", type.__dict__["__name__"].__get__)


def plain(  # noqa: C901 - on every record's way: one loop without a call is three times faster
    fields: Mapping[Any, Any], redactor: Redactor | None = None
) -> tuple[dict[str, JsonValue], list[str]]:
    """Return the fields as plain JSON values, and the names of those that were altered.

    What is cut is judged by ``redactor`` first, since nobody can judge it
    afterwards; everything else is left to it. Never raises, unless the stack
    has no room left for the call itself. The result is new; the values of the
    caller are not changed.
    """
    # Most calls have a dict of plain values: one loop finds that out, and who is not plain.
    if type(fields) is dict and len(fields) <= MAX_ELEMENTS:
        out = fields.copy()
        odd = []
        for key, value in out.items():
            if type(key) is not str or not key.isascii() or len(key) > MAX_NAME:
                break
            kind = type(value)
            if kind is str:
                if value.isascii() and len(value) <= _SHORT:
                    continue
            elif kind is int:
                if _LEAST <= value <= _GREATEST:
                    continue
            elif kind is bool or value is None or (kind is float and value - value == 0.0):
                continue
            odd.append(key)
        else:
            return (out, _convert(out, odd, redactor)) if odd else (out, [])
    out, renamed, covers = _renamed(fields, redactor)
    altered = _convert(out, list(out), redactor, covers)
    return out, list(dict.fromkeys(renamed + altered))


def _convert(
    out: dict[str, Any],
    names: list[str],
    redactor: Redactor | None,
    covers: Mapping[str, _Cover] = _NO_COVERS,
) -> list[str]:
    """Convert the named fields in place; return the names of those that lost something."""
    elements = max(10, min(MAX_ELEMENTS, _ALL_ELEMENTS // len(names))) if names else 0
    characters = max(64, min(MAX_CHARACTERS, _ALL_CHARACTERS // len(names))) if names else 0
    altered = []
    for name in names:
        walk = _Walk(elements, characters, redactor)
        try:
            value = walk.value(out[name], 0)
            out[name] = covers[name](value) if name in covers else value
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - at the end of the stack nothing can be called
            out[name] = "[unreadable]"
            walk.altered = True
        if walk.altered:
            altered.append(name)
    return altered


def _renamed(
    fields: object, redactor: Redactor | None
) -> tuple[dict[str, Any], list[str], dict[str, _Cover]]:
    """Give every field a key that is plain text; values stay as they are, some to be covered."""
    walk = _Walk(MAX_ELEMENTS, _ALL_CHARACTERS, redactor)
    out: dict[str, Any] = {}
    try:
        mapping = cast("Mapping[object, object]", fields)
        pairs = [(key, value) for key, value in islice(mapping.items(), MAX_ELEMENTS)]
        missing = len(mapping) - len(pairs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a mapping of the caller's may raise anything
        return {"fields": fields}, ["fields"], {}
    altered = []
    covers = {}
    for key, value in pairs:
        walk.altered = False
        name, cover = walk.name(key, out, 0)
        out[name] = value
        if cover is not None:
            covers[name] = cover
        if walk.altered:
            altered.append(name)
    if missing > 0:
        out[MARK_KEY] = elements_mark(missing)
        altered.append(MARK_KEY)
    return out, altered, covers


class _Walk:
    """The conversion of one field: what is left of its limits, and where it is."""

    __slots__ = (
        "altered", "characters", "cut", "elements", "parents", "redactor", "taken", "to_judge",
    )  # fmt: skip

    def __init__(self, elements: int, characters: int, redactor: Redactor | None) -> None:
        self.altered = False
        self.cut = False
        self.redactor = redactor
        self.to_judge = MAX_CHARACTERS
        self.elements = elements
        self.characters = characters
        self.parents: set[int] = set()
        self.taken: dict[str, int] = {}

    def value(self, value: object, depth: int) -> JsonValue:
        """Convert any value. Raises only at the very end of the stack."""
        kind = type(value)
        if kind is str:
            return self.text(cast("str", value))
        if value is None or kind is bool:
            return cast("bool | None", value)
        if kind is int and _LEAST <= cast("int", value) <= _GREATEST:
            return cast("int", value)
        try:
            return self._known(value, depth)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the code of a caller's object may raise anything
            return self._stranger(value, error)

    def text(self, value: str) -> str:
        """Take a text within the limit, without lone surrogates (RFC 8259, section 8.2)."""
        if len(value) > self.characters:
            value = self._cut_text(value, self.characters)
        self.characters = max(0, self.characters - len(value))
        return self._encodable(value)

    def _encodable(self, value: str) -> str:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            self.altered = True
            return value.encode("utf-8", "backslashreplace").decode()
        return value

    def _cut_text(self, text: str, kept: int) -> str:
        self.altered = self.cut = True
        return cut_characters(text, kept, self.beginning)

    def beginning(self, text: str, kept: int) -> str:
        """Return what may be shown of a text's first characters."""
        if self.redactor is None:
            return first_characters(text, kept)
        try:
            return self.redactor.beginning(text, kept)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - at the end of the stack nothing can be judged, nor shown
            return ""

    def name(
        self, key: object, taken: Mapping[str, object], depth: int
    ) -> tuple[str, _Cover | None]:
        """Make a key that is not among ``taken``, and what covers the value if it was cut."""
        before, self.cut = self.cut, False
        # Not isinstance(): what an object says of its class may be wrong, or raise.
        if issubclass(type(key), str):
            whole = str.__str__(cast("str", key))
            room = min(self.characters, MAX_NAME)
            self.characters -= min(self.characters, len(whole))
        else:
            self.altered = True
            converted = self.value(key, depth)
            whole = converted if type(converted) is str else orjson.dumps(converted).decode()
            room = MAX_NAME
        # Of what the conversion cut nobody knows the whole.
        known = None if self.cut else whole
        name = self._encodable(whole if len(whole) <= room else self._cut_text(whole, room))
        cover = self._cover(known) if self.cut else None
        self.cut |= before
        return (self._free(name, taken) if name in taken else name), cover

    def _cover(self, name: str | None) -> _Cover | None:
        """Return what looks at the value under a name that says less than it did."""
        if self.redactor is None:
            return None
        self.to_judge -= len(name or "")
        # Names without end are not read to the end: in doubt each means a secret.
        return partial(self.redactor.under, name if self.to_judge >= 0 else None)

    def _free(self, name: str, taken: Mapping[str, object]) -> str:
        """Give a colliding key a number, so that no value takes the place of another."""
        self.altered = True
        number = self.taken.get(name, 1) + 1
        while f"{name}~{number}" in taken:
            number += 1
        self.taken[name] = number
        return f"{name}~{number}"

    def _known(self, value: object, depth: int) -> JsonValue:
        if depth > MAX_DEPTH:
            return self._too_deep()
        if type(value) not in _PLAIN_CONTAINERS:
            # Before its own kind: an Enum may be a str or an int too.
            if isinstance(value, Enum):
                return self.value(value.value, depth + 1)
            for kinds, form in _LEAVES:
                if isinstance(value, kinds):
                    return form(self, value)
            if isinstance(value, Sequence) and _is_of_characters(value):
                return _as_text(self, value)
        if id(value) in self.parents:
            self.altered = True
            return "[cycle]"
        self.parents.add(id(value))
        try:
            return self._nested(value, depth)
        finally:
            self.parents.discard(id(value))

    def _too_deep(self) -> str:
        self.altered = True
        return f"[cut: deeper than {MAX_DEPTH} levels]"

    def _nested(self, value: object, depth: int) -> JsonValue:
        kind = type(value)
        if hasattr(kind, "model_dump"):
            dumped = cast("Any", value).model_dump(mode="python", warnings=False)
            return self.value(dumped, depth + 1)
        names = None if kind in _PLAIN_CONTAINERS else _attribute_names(kind)
        if names is None and not isinstance(value, _CONTAINERS):
            return self._stranger(value, None)
        if depth >= MAX_DEPTH:
            return self._too_deep()
        if names is not None:
            pairs = ((name, self._attribute(value, name)) for name in names)
            return self._object(pairs, len(names), depth)
        if isinstance(value, (dict, Mapping)):
            return self._object(value.items(), len(value), depth)
        return self._array(cast("Collection[object]", value), depth)

    def _attribute(self, value: object, name: str) -> object:
        """Read one attribute: where it raises, the others are still worth having."""
        try:
            return getattr(value, name)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a property may raise anything
            self.altered = True
            return f"[unreadable: {_name_of_type(type(error))}]"

    def _object(
        self, pairs: Iterable[tuple[object, object]], count: int, depth: int
    ) -> dict[str, JsonValue]:
        out: dict[str, JsonValue] = {}
        # One call into C, so that another thread cannot change the mapping in between.
        for key, item in list(islice(pairs, self.elements)):
            if self.elements <= 0:
                break
            self.elements -= 1
            name, cover = self.name(key, out, depth + 1)
            plain_item = self.value(item, depth + 1)
            out[name] = plain_item if cover is None else cover(plain_item)
        if count > len(out):
            self.altered = True
            name, _ = self.name(MARK_KEY, out, depth)
            out[name] = elements_mark(count - len(out))
        return out

    def _array(self, value: Collection[object], depth: int) -> list[JsonValue]:
        out: list[JsonValue] = []
        for item in list(islice(value, self.elements)):
            if self.elements <= 0:
                break
            self.elements -= 1
            out.append(self.value(item, depth + 1))
        missing = len(value) - len(out)
        if type(value) not in _PLAIN_CONTAINERS and isinstance(value, AbstractSet):
            out = _sorted(out)
        if missing > 0:
            self.altered = True
            out.append(elements_mark(missing))
        return out

    def _stranger(self, value: object, error: BaseException | None) -> str:
        """Show an object that has no form of its own, or whose form raised ``error``."""
        self.altered = True
        try:
            # A repr may be of any length: it is cut before anything looks at it.
            text = str.__str__(repr(value))[: MAX_REPR + BEYOND]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:  # noqa: BLE001 - a repr may raise anything
            error = error or raised
            what = _name_of_type(type(value))[:MAX_NAME]
            return self.text(f"[unreadable {what}: {_name_of_type(type(error))[:MAX_NAME]}]")
        text = _MEMORY_ADDRESS.sub("", text)
        if len(text) > MAX_REPR:
            self.cut = True
            text = self.beginning(text, MAX_REPR) + "…"
        return self.text(text)


def _sorted(values: list[JsonValue]) -> list[JsonValue]:
    """Put what was a set into an order that is the same in every process."""
    try:
        return sorted(cast("list[Any]", values))
    except TypeError:
        return sorted(values, key=orjson.dumps)


def _integer(walk: _Walk, value: int) -> JsonValue:
    number = int.__int__(value)
    if _LEAST <= number <= _GREATEST:
        return number
    walk.altered = True
    bits = number.bit_length()
    return str(number) if bits <= _WRITABLE_BITS else f"[integer of {bits} bits]"


def _real(walk: _Walk, value: float) -> JsonValue:
    number = float.__float__(value)
    if number - number == 0.0:
        return number
    walk.altered = True
    if number != number:  # noqa: PLR0124 - NaN is what differs from itself
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _bytes(walk: _Walk, value: bytes | bytearray | memoryview) -> str:
    walk.altered = True
    room = walk.characters
    count = value.nbytes if isinstance(value, memoryview) else len(value)
    raw = bytes(value[:room])
    missing = count - len(raw)
    try:
        # Not final where it was cut: the cut may stand in the middle of a character.
        text, read = codecs.utf_8_decode(raw, "strict", missing <= 0)
    except UnicodeDecodeError:
        text, read = "", 0
    if not (text and _PRINTABLE.fullmatch(text)) and raw:
        text = f"base64:{base64.b64encode(raw).decode()}"
    elif missing > 0:
        beyond = bytes(value[read : room + BEYOND]).decode("utf-8", "replace")
        text = walk.beginning(text + beyond, len(text))
    walk.cut |= missing > 0
    walk.characters = max(0, walk.characters - len(text))
    return f"{text}…[cut {missing} bytes]" if missing > 0 else text


def _exception(walk: _Walk, value: BaseException) -> str:
    message = str.__str__(str(value))
    name = _name_of_type(type(value))
    return walk.text(f"{name}: {message}" if message else name)


def _iso(walk: _Walk, value: date | time) -> str:
    return walk.text(str.__str__(value.isoformat()))


def _as_text(walk: _Walk, value: object) -> str:
    return walk.text(str.__str__(str(value)))


def _is_of_characters(value: Sequence[object]) -> bool:
    """Whether it is a text by another name: a character's first character is the character.

    As an array it would be arrays within arrays without an end.
    """
    kind = type(value)
    if isinstance(value, (list, tuple, deque)) or kind.__str__ is object.__str__ or not value:
        return False
    first = cast("Sequence[object]", value[0])
    return type(first) is kind and len(first) == 1 and first[0] == first


def _seconds(_: _Walk, value: timedelta) -> float:
    return value.total_seconds()


def _attribute_names(kind: type) -> list[str] | None:
    """List the attributes of a dataclass, an attrs class or a NamedTuple; None: it is none."""
    if dataclasses.is_dataclass(kind):
        return [one.name for one in dataclasses.fields(kind)]
    if hasattr(kind, "__attrs_attrs__"):
        return [one.name for one in kind.__attrs_attrs__]
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return list(kind._fields)
    return None


_PLAIN_CONTAINERS: Final = frozenset({dict, list, tuple})
_CONTAINERS: Final = (dict, list, tuple, Mapping, Sequence, AbstractSet, deque)

# The first that fits is taken: what has an exact form comes before what is merely similar.
_LEAVES: Final[tuple[tuple[Any, Callable[[_Walk, Any], JsonValue]], ...]] = (
    (int, _integer),
    (float, _real),
    (str, lambda walk, value: walk.text(str.__str__(value))),
    ((datetime, date, time), _iso),
    (timedelta, _seconds),
    ((UUID, PurePath, Decimal, Fraction, UserString, *_ADDRESSES), _as_text),
    ((bytes, bytearray, memoryview), _bytes),
    (BaseException, _exception),
    (Integral, lambda walk, value: _integer(walk, int(value))),
    (Real, lambda walk, value: _real(walk, float(value))),
)
