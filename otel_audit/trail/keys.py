"""The two signing keys of a trail: its log key and its cosigner's.

Promises: a key file is written whole or not at all, never over another one, and
is readable by its owner only; one that others can read, or that belongs to
another origin, is refused rather than used. Private parts never show in
``repr`` or in an error. The file has one key a line, in the form of Go's
``golang.org/x/mod/sumdb/note``: ``PRIVATE+KEY+<name>+<key id>+<base64(type ||
seed)>``; the log's key first (type 0x01, named as the origin), then the
cosigner's (type 0x04, named ``<origin>/cosigner``). When a trail may make new
keys at all is left to the store.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from otel_audit.errors import ProofError, TrailKeyError
from otel_audit.trail import durable
from otel_audit.trail.checkpoint import COSIGNER_SUFFIX
from otel_audit.trail.note import (
    COSIGNATURE,
    ED25519,
    PUBLIC_KEY_SIZE,
    Signer,
    Verifier,
    check_key,
    check_name,
    decode_base64,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_FILE_SIZE = 64 * 1024
_FORM = "PRIVATE+KEY+<name>+<key id>+<base64>"
_RESTORE = (
    ": put back the key from your backup or, if there is none, begin a new origin with "
    "`otel-audit new-origin`"
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_PART = 63


@dataclass(frozen=True, slots=True)
class _PrivateKey:
    """An Ed25519 seed with the name and the signature type it is used for."""

    name: str
    algorithm: int
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str, algorithm: int) -> _PrivateKey:
        return cls(name, algorithm, secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: str) -> _PrivateKey:
        """Read ``PRIVATE+KEY+...``; no message repeats the text, being secret."""
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:  # noqa: PLR2004 - see _FORM
            msg = f"a signing key must have the form {_FORM}{_RESTORE}"
            raise TrailKeyError(msg)
        name, key_id, encoded = parts[2:]
        shown = f"the signing key of {name}"
        try:
            material = decode_base64(encoded, shown)
            check_key(name, material, shown)
        except ProofError as error:
            msg = f"{error}{_RESTORE}"
            raise TrailKeyError(msg) from None
        key = cls(name, material[0], material[1:])
        if f"{key.verifier().key_id:08x}" != key_id:
            msg = f"{shown} is damaged, it does not belong to its key id {key_id}{_RESTORE}"
            raise TrailKeyError(msg)
        return key

    def encode(self) -> str:
        material = base64.b64encode(bytes([self.algorithm]) + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{self.verifier().key_id:08x}+{material}"

    def verifier(self) -> Verifier:
        public = self._key().public_key().public_bytes_raw()
        return Verifier(self.name, self.algorithm, public)

    def signer(self) -> Signer:
        return Signer(self.verifier(), self._key().sign)

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


class TrailKeys:
    """The log key and the cosigner's key of one origin.

    Make it with ``load_or_create``, ``load``, ``from_text``, ``generate``, or
    ``from_signers`` when the private keys are kept elsewhere.
    """

    __slots__ = ("_private", "cosigner", "log", "origin")

    def __init__(
        self,
        origin: str,
        log: Signer,
        cosigner: Signer,
        private: tuple[_PrivateKey, _PrivateKey] | None = None,
    ) -> None:
        """Hold the signers; ``private`` only where this process has the keys."""
        self.origin = origin
        self.log = log
        self.cosigner = cosigner
        self._private = private

    def __repr__(self) -> str:
        """Name the public halves; never the private ones."""
        log, cosigner = self.verifier_keys()
        return f"<TrailKeys {log} {cosigner}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a private key must not travel by accident."""
        msg = "signing keys cannot be pickled; load them where they are needed"
        raise TypeError(msg)

    @classmethod
    def generate(cls, origin: str) -> TrailKeys:
        """Make new keys for ``origin``. Nothing is written."""
        _check_origin(origin)
        return cls._from_private(
            _PrivateKey.generate(origin, ED25519),
            _PrivateKey.generate(origin + COSIGNER_SUFFIX, COSIGNATURE),
        )

    @classmethod
    def from_text(cls, text: str, origin: str | None = None) -> TrailKeys:
        """Read the two keys of a key file, or of a setting that holds its text.

        Any white space may stand between them. Raises ``TrailKeyError`` if they
        are malformed, or not those of ``origin`` when one is given.
        """
        keys = [_PrivateKey.parse(part) for part in text.split()]
        if [key.algorithm for key in keys] != [ED25519, COSIGNATURE]:
            msg = (
                "a trail needs two signing keys, the log's (type 0x01) and then the "
                f"cosigner's (type 0x04), each as {_FORM}{_RESTORE}"
            )
            raise TrailKeyError(msg)
        log, cosigner = keys
        if cosigner.name != log.name + COSIGNER_SUFFIX:
            msg = (
                f"the second signing key is named {cosigner.name}, not {log.name}{COSIGNER_SUFFIX}"
            )
            raise TrailKeyError(msg)
        if origin is not None and log.name != origin:
            msg = (
                f"the signing key belongs to {log.name}, this trail is {origin}; put back "
                "the key that was made with the trail"
            )
            raise TrailKeyError(msg)
        return cls._from_private(log, cosigner)

    @classmethod
    def from_signers(
        cls,
        origin: str,
        *,
        log_sign: Callable[[bytes], bytes],
        log_public: bytes,
        cosigner_sign: Callable[[bytes], bytes],
        cosigner_public: bytes,
    ) -> TrailKeys:
        """Sign through callables, so that the private keys can stay in a KMS.

        Each takes a message and returns the 64 bytes of an Ed25519 signature;
        the public halves are the raw 32 bytes. They SHOULD be two keys (C2SP
        signed-note). Raises ``TrailKeyError`` if a public half or the origin is
        unusable.
        """
        _check_origin(origin)
        for public in (log_public, cosigner_public):
            if len(public) != PUBLIC_KEY_SIZE:
                msg = f"a raw Ed25519 public key has {PUBLIC_KEY_SIZE} bytes, not {len(public)}"
                raise TrailKeyError(msg)
        return cls(
            origin,
            Signer(Verifier(origin, ED25519, log_public), log_sign),
            Signer(Verifier(origin + COSIGNER_SUFFIX, COSIGNATURE, cosigner_public), cosigner_sign),
        )

    @classmethod
    def load(cls, path: Path, origin: str | None = None) -> TrailKeys:
        """Read a key file.

        Raises ``TrailKeyError`` if it is missing, malformed, readable by group
        or others, or not of ``origin`` when one is given.
        """
        try:
            return cls.from_text(_read(path), origin)
        except FileNotFoundError:
            msg = f"there is no signing key at {path}; put back the one made with the trail"
            raise TrailKeyError(msg) from None
        except OSError as error:
            msg = f"the signing key {path} cannot be read: {error.strerror}"
            raise TrailKeyError(msg) from error
        except TrailKeyError as error:
            msg = f"{path}: {error}"
            raise TrailKeyError(msg) from None

    @classmethod
    def load_or_create(cls, path: Path, origin: str) -> TrailKeys:
        """Read the key file of ``origin``, or make one with new keys.

        Safe against other processes doing the same: all get the same keys.
        Raises ``TrailKeyError`` as ``load`` does, and if it cannot be written.
        """
        if not path.exists():
            keys = cls.generate(origin)
            try:
                durable.write(path, keys.to_text().encode(), replace=False)
            except FileExistsError:
                pass  # another process was first: its keys count
            except OSError as error:
                msg = f"the signing key cannot be written to {path}: {error.strerror}"
                raise TrailKeyError(msg) from error
            else:
                return keys
        return cls.load(path, origin)

    def to_text(self) -> str:
        """Return the text of the key file. It is SECRET.

        Raises ``TrailKeyError`` if the private keys are kept elsewhere.
        """
        if self._private is None:
            msg = f"the private keys of {self.origin} are not held by this process"
            raise TrailKeyError(msg)
        return "".join(f"{key.encode()}\n" for key in self._private)

    def verifiers(self) -> tuple[Verifier, Verifier]:
        """Return the public halves: the log's and the cosigner's."""
        return self.log.verifier, self.cosigner.verifier

    def verifier_keys(self) -> tuple[str, str]:
        """Return the public halves in verifier key form, to be handed out."""
        return str(self.log.verifier), str(self.cosigner.verifier)

    @classmethod
    def _from_private(cls, log: _PrivateKey, cosigner: _PrivateKey) -> TrailKeys:
        return cls(log.name, log.signer(), cosigner.signer(), (log, cosigner))


def new_origin(service: str, host: str) -> str:
    """Return a new name for a trail: ``otel-audit.local/<service>/<host>/<8 hex>``.

    The random end keeps trails apart that were made for one service on one
    host, so that no key ever signs two trees under one name.
    """
    parts = (_name_part(service), _name_part(host), secrets.token_hex(4))
    return "/".join(("otel-audit.local", *parts))


def _name_part(value: str) -> str:
    return _NOT_IN_NAMES.sub("-", value).strip("-.")[:_MAX_NAME_PART] or "unknown"


def _check_origin(origin: str) -> None:
    try:
        check_name(origin)
    except ProofError as error:
        raise TrailKeyError(str(error)) from None


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # The open file is asked, not the path, which may change in between.
        _refuse_exposed(os.fstat(descriptor))
        content = os.read(descriptor, _MAX_FILE_SIZE)
    finally:
        os.close(descriptor)
    try:
        return content.decode()
    except UnicodeDecodeError:
        msg = f"a signing key must have the form {_FORM}{_RESTORE}"
        raise TrailKeyError(msg) from None


def _refuse_exposed(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        msg = "not a regular file"
        raise TrailKeyError(msg)
    if status.st_mode & _OTHERS:
        msg = (
            f"its mode {stat.S_IMODE(status.st_mode):04o} lets others at the signing key; whoever "
            "could read it can forge the trail: run chmod 600 and, if others may have read it, begin "
            "a new origin with `otel-audit new-origin`"
        )
        raise TrailKeyError(msg)
