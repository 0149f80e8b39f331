"""Signed notes: text that one or more keys have signed (C2SP signed-note).

Promises: what ``open_note`` returns was signed by at least one of the given
keys, and no signature of any of them is wrong; everything else raises. Reading
is as strict as the specification, so that one note has one spelling. Two kinds
of signature are known: plain Ed25519 (type 0x01), and the time-stamped
cosignature/v1 (type 0x04, C2SP tlog-cosignature). What the text means, and
which signatures it needs, is left to ``checkpoint``; private keys to ``keys``.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from otel_audit.errors import ProofError, TrailKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ED25519 = 0x01
"""Signature type: Ed25519 over the note's text (C2SP signed-note)."""
COSIGNATURE = 0x04
"""Signature type: Ed25519 over time and text (C2SP tlog-cosignature, v1)."""
PUBLIC_KEY_SIZE = 32
"""Bytes of an Ed25519 public key."""
SIGNATURE_SIZE = 64
"""Bytes of an Ed25519 signature."""
MAX_SIGNATURES = 100
"""Signatures that a note may have; the specification demands 16 at least."""
MAX_NOTE_SIZE = 1 << 20
"""Bytes that a note may have."""

_EM_DASH = "\N{EM DASH} "
_KEY_ID = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">Q")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f+]")
_KEY_ID_DIGITS = 8
_MAX_TIMESTAMP = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with the name and the signature type it is used for."""

    name: str
    algorithm: int
    public_key: bytes

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Read a verifier key: ``name+hex(key id)+base64(type || public key)``.

        Raises ``ProofError`` if it is malformed, of another type than 0x01 and
        0x04, or if its key id is not that of the key.
        """
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3:  # noqa: PLR2004 - name, key id and key
            msg = f"{vkey!r} is not a verifier key, which looks like name+0123abcd+base64"
            raise ProofError(msg)
        name, key_id, encoded = parts
        material = decode_base64(encoded, f"the key in verifier key {vkey!r}")
        check_key(name, material, vkey)
        verifier = cls(name, material[0], material[1:])
        if key_id != f"{verifier.key_id:08x}":
            msg = (
                f"verifier key {vkey!r} is damaged: its key id should be {verifier.key_id:08x}; "
                "copy it again from its source"
            )
            raise ProofError(msg)
        return verifier

    @property
    def key_id(self) -> int:
        """The 32-bit id that stands in signatures (C2SP signed-note, Signatures)."""
        return _key_id(self.name, bytes([self.algorithm]) + self.public_key)

    def __str__(self) -> str:
        """Return the verifier key, the form that ``parse`` reads."""
        material = bytes([self.algorithm]) + self.public_key
        return f"{self.name}+{self.key_id:08x}+{base64.b64encode(material).decode()}"

    def verify(self, text: str, signature: bytes) -> int | None:
        """Check one signature of ``text``; a cosignature's time is returned.

        Unix seconds; ``None`` for a plain signature. Raises ``ProofError`` if
        the signature is wrong.
        """
        message = text.encode()
        timestamp = None
        if self.algorithm == COSIGNATURE:
            timestamp, signature = self._split(signature)
            message = cosigned_message(text, timestamp)
        try:
            _public_key(self.public_key).verify(signature, message)
        except InvalidSignature:
            msg = (
                f"the signature of key {self.name}+{self.key_id:08x} is wrong: the note was changed"
            )
            raise ProofError(msg) from None
        return timestamp

    def _split(self, signature: bytes) -> tuple[int, bytes]:
        if len(signature) != _TIMESTAMP.size + SIGNATURE_SIZE:
            msg = f"the cosignature of key {self.name}+{self.key_id:08x} has a wrong length"
            raise ProofError(msg)
        (timestamp,) = _TIMESTAMP.unpack_from(signature)
        if timestamp > _MAX_TIMESTAMP:
            msg = f"the cosignature of key {self.name}+{self.key_id:08x} has an impossible time"
            raise ProofError(msg)
        return timestamp, signature[_TIMESTAMP.size :]


@dataclass(frozen=True, slots=True)
class Signer:
    """A verifier together with the callable that can sign for it.

    ``sign`` takes the message and returns the 64 bytes of an Ed25519 signature;
    it may ask a key store elsewhere.
    """

    verifier: Verifier
    sign: Callable[[bytes], bytes] = field(repr=False)

    def line(self, text: str, unix_seconds: int) -> str:
        """Return the signature line for ``text``, with its newline.

        The time is used by cosignatures only. The signature is checked before
        it is returned, so a key store that holds another key is found here:
        ``TrailKeyError``.
        """
        verifier = self.verifier
        prefix, message = b"", text.encode()
        if verifier.algorithm == COSIGNATURE:
            prefix = _TIMESTAMP.pack(unix_seconds)
            message = cosigned_message(text, unix_seconds)
        signature = prefix + self.sign(message)
        try:
            verifier.verify(text, signature)
        except ProofError:
            msg = (
                f"the signer of {verifier.name} made a signature that its public key does not "
                "verify; give the public key that belongs to the signer"
            )
            raise TrailKeyError(msg) from None
        blob = base64.b64encode(_KEY_ID.pack(verifier.key_id) + signature).decode()
        return f"{_EM_DASH}{verifier.name} {blob}\n"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it stands in a note, checked or not."""

    name: str
    key_id: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that was found right, and the time in it (Unix seconds)."""

    verifier: Verifier
    timestamp: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """A note's text (with its last newline) and what is known of its signatures."""

    text: str
    signatures: tuple[Signature, ...]
    verified: tuple[Verified, ...] = ()


def cosigned_message(text: str, unix_seconds: int) -> bytes:
    """Return what a cosignature/v1 signs (C2SP tlog-cosignature)."""
    return f"cosignature/v1\ntime {unix_seconds}\n{text}".encode()


def sign_note(text: str, signers: Iterable[Signer], unix_seconds: int) -> str:
    """Return the note of ``text``, signed by each of ``signers`` in turn.

    ``text`` must end in a newline and have no control character but newlines:
    ``ProofError`` otherwise.
    """
    _check_characters(text)
    if not text.endswith("\n"):
        msg = "a note's text must end in a newline"
        raise ProofError(msg)
    lines = "".join(signer.line(text, unix_seconds) for signer in signers)
    return f"{text}\n{lines}"


def parse_note(note: str | bytes) -> Note:
    """Split a note into text and signatures, without checking any signature.

    Raises ``ProofError`` if it is malformed.
    """
    whole = _decode(note)
    _check_characters(whole)
    middle = whole.rfind("\n\n")
    if middle < 0 or not whole.endswith("\n"):
        msg = "not a signed note: it must be text, an empty line, and signature lines"
        raise ProofError(msg)
    # Not splitlines(): that would also split at U+0085 and U+2028.
    lines = whole[middle + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        msg = f"the note has {len(lines)} signatures; {MAX_SIGNATURES} are allowed"
        raise ProofError(msg)
    return Note(whole[: middle + 1], tuple(_parse_line(line) for line in lines))


def open_note(note: str | bytes, verifiers: Iterable[Verifier]) -> Note:
    """Read a note and check the signatures of the known keys.

    Signatures of other keys are ignored. Raises ``ProofError`` if the note is
    malformed, if a signature of a known key is wrong, or if there is none.
    """
    parsed = parse_note(note)
    known = _by_id(verifiers)
    verified = tuple(_verify_known(parsed, known))
    if not verified:
        signers = ", ".join(f"{s.name}+{s.key_id:08x}" for s in parsed.signatures)
        msg = f"the note is signed by no known key, only by {signers}"
        raise ProofError(msg)
    return Note(parsed.text, parsed.signatures, verified)


def decode_base64(encoded: str, what: str) -> bytes:
    """Decode standard base64 (RFC 4648, section 4) in its one exact spelling.

    Raises ``ProofError`` that calls the value ``what``.
    """
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    # A decoder that takes other spellings (padding bits, for one) would let a
    # note be changed without breaking it.
    if not decoded or base64.b64encode(decoded).decode() != encoded:
        msg = f"{what} is not base64"
        raise ProofError(msg)
    return decoded


def check_name(name: str) -> None:
    """Raise ``ProofError`` unless ``name`` may name a key (C2SP signed-note)."""
    if not name or _NOT_IN_NAMES.search(name) or any(map(str.isspace, name)):
        msg = f"{name!r} cannot name a key: it must not be empty or have a space or a plus"
        raise ProofError(msg)


def check_key(name: str, material: bytes, shown: str) -> None:
    """Raise ``ProofError`` unless name and ``type || key`` can be a key.

    ``shown`` is what the message calls it.
    """
    check_name(name)
    if material[0] not in (ED25519, COSIGNATURE):
        msg = f"{shown!r} is of type 0x{material[0]:02x}; only 0x01 and 0x04 (Ed25519) are known"
        raise ProofError(msg)
    if len(material) != 1 + PUBLIC_KEY_SIZE:
        msg = f"{shown!r} holds {len(material) - 1} bytes of key instead of {PUBLIC_KEY_SIZE}"
        raise ProofError(msg)


def _decode(note: str | bytes) -> str:
    try:
        encoded = note.encode() if isinstance(note, str) else note
        if len(encoded) > MAX_NOTE_SIZE:
            msg = f"the note has {len(encoded)} bytes; {MAX_NOTE_SIZE} are allowed"
            raise ProofError(msg)
        return encoded.decode()
    except UnicodeError:
        msg = "not a signed note: it is not valid UTF-8"
        raise ProofError(msg) from None


def _check_characters(text: str) -> None:
    if _CONTROL.search(text):
        msg = "a note must not have control characters other than newlines"
        raise ProofError(msg)


def _parse_line(line: str) -> Signature:
    name, space, encoded = line.removeprefix(_EM_DASH).partition(" ")
    if not line.startswith(_EM_DASH) or not space:
        msg = f"{line!r} is not a signature line, which looks like \N{EM DASH} name base64"
        raise ProofError(msg)
    check_name(name)
    blob = decode_base64(encoded, f"the signature of {name}")
    if len(blob) <= _KEY_ID.size:
        msg = f"the signature of {name} is too short"
        raise ProofError(msg)
    return Signature(name, _KEY_ID.unpack_from(blob)[0], blob[_KEY_ID.size :])


def _verify_known(
    note: Note, known: dict[tuple[str, int], Sequence[Verifier]]
) -> Iterator[Verified]:
    for signature in note.signatures:
        candidates = known.get((signature.name, signature.key_id), ())
        if len(candidates) > 1:
            msg = f"two different keys are called {signature.name}+{signature.key_id:08x}"
            raise ProofError(msg)
        for verifier in candidates:
            yield Verified(verifier, verifier.verify(note.text, signature.blob))


def _by_id(verifiers: Iterable[Verifier]) -> dict[tuple[str, int], Sequence[Verifier]]:
    known: dict[tuple[str, int], list[Verifier]] = {}
    for verifier in dict.fromkeys(verifiers):
        known.setdefault((verifier.name, verifier.key_id), []).append(verifier)
    return dict(known)


@lru_cache(maxsize=256)
def _key_id(name: str, material: bytes) -> int:
    digest = sha256(name.encode() + b"\n" + material).digest()
    return int(_KEY_ID.unpack_from(digest)[0])


@lru_cache(maxsize=256)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)
