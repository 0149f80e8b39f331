"""Which names say that their value is a secret.

Promises: a name is judged by its whole words, however it is written
(``api_key``, ``apiKey``, ``X-Api-Key``, ``db.password``, ``APIKEY``), so that
``tokens_used``, ``author`` and ``secretary`` name no secrets; judging costs one
look-up for a name that was seen before. In doubt a name means a secret, unless
its last word says that the value is only *about* one (``token_type``,
``password_changed_at``). What happens to the value is left to redact.py.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Verdict(IntEnum):
    """What a name says about its value."""

    INNOCENT = 0
    """Nothing: the value may still look like a secret."""
    DECISION = 1
    """A credential or a decision (``authorization: granted``): one plain word is the latter."""
    PLURAL = 2
    """Secrets, or how many there are: a number under it is a count (``tokens: 512``)."""
    SECRET = 3
    """A secret, be it text, a number or an object."""
    REVEALING = 4
    """The name itself holds a secret; nothing is known about the value."""


SCHEMES: Final = "api-?key|basic|bearer|digest|negotiate|token"
"""What stands before credentials, and says of which scheme they are: an expression."""


def is_decision(value: str) -> bool:
    """Whether a value under a `Verdict.DECISION` is a word or three: "granted"."""
    return _PLAIN_WORDS.fullmatch(value) is not None


class _Rule(NamedTuple):
    verdict: Verdict
    guessable: bool
    """Whether it can be found by trying, so that its hash must not be shown either."""


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What people choose or remember, and what can be found by trying.
_GUESSABLE: Final = (
    "password", "passwd", "pwd", "passphrase", "passcode", "pass word", "pass phrase", "pass code",
    "passwort", "kennwort", "contraseña", "contrasena", "senha", "mot de passe", "mnemonic",
    "seed phrase", "recovery phrase", "secret answer", "security answer",
    "pin code", "pin hash", "pin number", "user pin", "card pin", "login pin", "sim pin", "new pin", "old pin",
    "otp", "totp", "mfa code", "tfa code", "sms code", "one time code", "verification code",
    "backup code", "recovery code", "reset code", "security code", "access code",
    "cvv", "cvc", "card number", "credit card", "ssn", "social security",
    *(f"{whose} pass" for whose in (
        "admin", "auth", "bind", "database", "db", "email", "ftp", "http", "imap", "key",
        "keystore", "ldap", "login", "mail", "my", "mysql", "pg", "postgres", "proxy", "redis",
        "root", "sftp", "smtp", "ssh", "user", "wifi",
    )),
)  # fmt: skip

# What machines make: long and random, so that a hash of it is a harmless name for it.
_RANDOM: Final = (
    "secret", "secret key", "token", "jwt", "jwt key", "credential", "cookie", "csrf", "xsrf", "bearer", "secret id",
    "api key", "apikey", "app key", "access key", "account key", "auth key", "client key",
    "decryption key", "deploy key", "encryption key", "hmac key", "license key", "master key",
    "private key", "root key", "service key", "session key", "shared key", "signing key",
    "storage account key", "symmetric key", "webhook key", "wrapping key",
    "auth code", "auth header", "authorization code", "authorization header", "code verifier",
    "basic auth", "http auth", "proxy auth", "amz signature", "goog signature",
    "access signature", "connection string", "sess id", "phpsessid", "jsessionid",
)  # fmt: skip

# Names that mean a secret only when they stand alone (after the last dot).
_ALONE: Final = {
    **dict.fromkeys(("creds", "dsn", "pin", "salt", "sig", "tan"), Verdict.SECRET),
    "pass": Verdict.PLURAL,  # of tests it is a number
}

# At the end of a longer word too, as in "dbpassword" or "accesstoken".
_ENDINGS: Final = ("password", "passwd", "passphrase", "secret", "token", "cookie")

# After a secret's name: the value is about the secret, and not the secret.
_ABOUT: Final = _set_of(
    """
    accepted access accessed account action address age alert alerts alg algorithm allowed amount
    arn at attempt attempts audience authorities authority backend balance bits brand breached
    bucket budget by bytes caller change changed chars check class column compromised consent consumed
    cost count country created creation date days deleted deletion denied detected distribution
    domain domains enabled endpoint engine entropy error event exchange exists expiration expired
    expires expiry exposed failed failures feature field fields file fingerprint format found
    granted helper holder hours id identifier ids index introspection invalid issued issuer key kind
    kinds label last leaked len length level lifetime limit line lines location lock locked lookup
    manager managers masked match matched matches method minutes mismatch missing mode ms name names
    needed network operation operations option origin outcome owner path payment policies policy
    prefix present price provider purpose rate reader reason ref reference refresh refreshed rejected
    remaining request requested required requirements reset resets result retries retrieval
    retrieved reuse reused review reviewed revocation revoke revoked ring role rotate rotated
    rotation rules scanning scheme scope scopes score seconds sent service set size source standard
    state status store stored strength suffix supply symbol table thumbprint time
    timestamp ttl type types unlock until update updated updates uri url usage used user username
    uses valid validation validity vault verification verified version versions window writer
    """
)
_HASHES: Final = frozenset({"digest", "hash", "hashes", "sha", "md"})

# Before "token": it marks a place in a list or a text, or is a unit of language models.
_NO_TOKEN: Final = _set_of(
    """
    begin bos cached cancellation completion continuation cursor each end eos first generated
    idempotency input last mask max min next output pad page pagination per prompt reasoning sep
    single special start stop sync total unk
    """
)

# A run of capitals belongs together up to the last one before a small letter: "APIKey".
_WORD: Final = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+")
_PLAIN_WORDS: Final = re.compile(
    rf"(?!(?i:{SCHEMES}) )"
    r"[A-Za-z][a-z]{0,19}(?:[_ -][a-z]{1,19}){0,2}\.?"
)
_SEEN: Final = 4_096
_LONGEST_SEEN: Final = 512


class SecretNames(dict[str, Verdict]):
    """Names and what they say; ``names[name]`` judges a name that is not known yet.

    ``extra`` names mean secrets too, with whatever words around them. At most
    4,096 verdicts are kept, and none on a long name: names may come from outside. Raises
    `AuditSettingsError` for an extra name without a word.
    """

    def __init__(self, extra: Iterable[str] = ()) -> None:
        super().__init__()
        self._rules = dict(_RULES)
        for name in extra:
            words = _words(str(name))
            if not words:
                message = (
                    f"redaction key {name!r} cannot be used: it has no word; name a field, such "
                    f"as 'patient_name', or leave it out"
                )
                raise AuditSettingsError(message)
            self._rules |= _with_plural(words, _Rule(Verdict.SECRET, guessable=True))
        self._longest = max(map(len, self._rules))

    def __missing__(self, name: str) -> Verdict:
        if len(self) >= _SEEN:
            self.clear()
        alone = _words(name.rpartition(".")[2])
        if len(alone) == 1 and alone[0] in _ALONE:
            verdict = _ALONE[alone[0]]
        else:
            verdict = self._judge(_words(name))
        if len(name) <= _LONGEST_SEEN:
            self[name] = verdict
        return verdict

    def _judge(self, words: tuple[str, ...]) -> Verdict:
        found = Verdict.INNOCENT
        for start in range(len(words)):
            for end in range(start + 1, min(len(words), start + self._longest) + 1):
                rule = self._rules.get(words[start:end])
                if rule is None and end == start + 1:
                    rule = _ending(words[start])
                if rule is not None and not _harmless(words, start, end, rule):
                    found = max(found, rule.verdict)
        return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(name))


def _ending(word: str) -> _Rule | None:
    """Find the rule for a word that ends in a secret's name: "dbpassword"."""
    for ending in _ENDINGS:
        for suffix in (ending, f"{ending}s"):
            if word.endswith(suffix) and word.removesuffix(suffix) not in _NO_TOKEN:
                return _RULES[(suffix,)]
    return None


def _harmless(words: tuple[str, ...], start: int, end: int, rule: _Rule) -> bool:
    """Whether the words around a secret's name say that the value is none."""
    if end < len(words):
        last = words[-1]
        return last in _ABOUT or (last in _HASHES and not rule.guessable)
    return start > 0 and words[-1] in {"token", "tokens"} and words[start - 1] in _NO_TOKEN


def _with_plural(words: tuple[str, ...], rule: _Rule) -> dict[tuple[str, ...], _Rule]:
    plural = (*words[:-1], words[-1] + "s")
    return {words: rule, plural: rule._replace(verdict=Verdict.PLURAL)}


def _built_in() -> dict[tuple[str, ...], _Rule]:
    rules: dict[tuple[str, ...], _Rule] = {}
    for phrases, guessable in ((_GUESSABLE, True), (_RANDOM, False)):
        rule = _Rule(Verdict.SECRET, guessable)
        for phrase in phrases:
            words = (*phrase.split(),)
            rules |= _with_plural(words, rule)
            # Also as one word: "apikey", "creditcard", "seedphrase".
            rules |= _with_plural(("".join(words),), rule)
    rules["authorization",] = _Rule(Verdict.DECISION, guessable=False)
    return rules


_RULES: Final = _built_in()
