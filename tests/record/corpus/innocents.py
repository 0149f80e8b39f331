"""Texts without a secret: what stands in audit records, and what merely looks like a secret.

Numbers and identifiers are made, the same ones each time; sentences and names are in files.
"""

from __future__ import annotations

import base64
import random
import string
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).parent
EACH: Final = 400
"""Texts of each class that is made."""

_HEX: Final = "0123456789abcdef"


def lines(name: str) -> list[str]:
    """Read a file of the corpus; lines that begin with # say what it is."""
    text = (HERE / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("# ")]


WORDS: Final = lines("words.txt")


def _some(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=rng.choice([1, 4, 5])))


def _identifier(rng: random.Random) -> str:
    separator = rng.choice("-_./:")
    words = rng.choices(WORDS, k=rng.randint(2, 6))
    return separator.join([*words, rng.choice(["", "prod", _some(rng, string.digits, 5)])])


def _slug(rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}-{_some(rng, _HEX, rng.choice([8, 16, 24, 32, 40, 64]))}"


def _pod(rng: random.Random) -> str:
    letters = "bcdfghjklmnpqrstvwxz2456789"
    return f"{rng.choice(WORDS)}-{rng.choice(WORDS)}-{_some(rng, letters, 10)}-{_some(rng, letters, 5)}"


def _url(rng: random.Random) -> str:
    path = "/".join(rng.choices(WORDS, k=rng.randint(1, 4)))
    query = "&".join(
        f"{rng.choice(['page', 'limit', 'q', 'sort', 'id'])}={rng.randint(1, 999)}"
        for _ in range(3)
    )
    port = rng.choice(["", ":8443", ":8080"])
    return f"https://{rng.choice(WORDS)}.example.com{port}/{path}?{query}"


def _path(rng: random.Random) -> str:
    return f"/srv/{'/'.join(rng.choices(WORDS, k=4))}/{rng.randint(2019, 2026)}-{rng.randint(1, 12):02}.{rng.choice(['pdf', 'csv', 'json', 'tar.gz'])}"


def _image(rng: random.Random) -> str:
    return f"registry.example.com/{rng.choice(WORDS)}/{rng.choice(WORDS)}@sha256:{_some(rng, _HEX, 64)}"


def _resource_name(rng: random.Random) -> str:
    return f"arn:aws:{rng.choice(['iam', 's3', 'kms', 'secretsmanager'])}:eu-central-1:{_some(rng, string.digits, 12)}:{rng.choice(['role/', 'secret:', 'key/'])}{rng.choice(WORDS)}-{_some(rng, string.ascii_letters, 6)}"


def _time(rng: random.Random) -> str:
    return f"20{rng.randint(19, 26)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}.{_some(rng, string.digits, 9)}Z"


def _email(rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}.{rng.choice(WORDS)}{rng.randint(1, 99)}@example.{rng.choice(['com', 'org', 'de'])}"


def _address(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return ".".join(str(rng.randint(0, 255)) for _ in range(4))
    return ":".join(_some(rng, _HEX, 4) for _ in range(8))


def _data(rng: random.Random) -> str:
    return base64.b64encode(rng.randbytes(rng.randint(30, 600))).decode()


def _data_for_urls(rng: random.Random) -> str:
    return base64.urlsafe_b64encode(rng.randbytes(rng.randint(30, 600))).rstrip(b"=").decode()


def _certificate(rng: random.Random) -> str:
    label = rng.choice(["CERTIFICATE", "PUBLIC KEY", "CERTIFICATE REQUEST"])
    body = "\n".join(base64.b64encode(rng.randbytes(48)).decode() for _ in range(8))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----"


def _ssh_key(rng: random.Random) -> str:
    return f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{base64.b64encode(rng.randbytes(33)).decode()} alice@example"


def _number(rng: random.Random) -> str:
    return rng.choice(
        [
            f"1{_some(rng, string.digits, rng.choice([12, 16, 17, 18]))}",  # times, snowflakes
            f"{rng.uniform(0, 10**6):.{rng.randint(1, 12)}f}",
            f"+49 {_some(rng, string.digits, 3)} {_some(rng, string.digits, 8)}",
            f"{rng.choice(['400', '978', '590'])}{_some(rng, string.digits, 10)}",  # EAN-13
            f"DE{_some(rng, string.digits, 20)}",  # IBAN
            f"{rng.randint(10**5, 10**9)}",
        ]
    )


def _sixteen_digits(rng: random.Random) -> str:
    return _some(rng, string.digits, 16)


MADE: Final[dict[str, Callable[[random.Random], str]]] = {
    "UUIDs": _uuid,
    "identifiers of words": _identifier,
    "words with hexadecimal digits": _slug,
    "pods": _pod,
    "URLs": _url,
    "paths": _path,
    "image digests": _image,
    "ARNs": _resource_name,
    "times": _time,
    "e-mail addresses": _email,
    "network addresses": _address,
    "base64": _data,
    "base64url": _data_for_urls,
    "certificates and public keys": _certificate,
    "SSH public keys": _ssh_key,
    "other numbers": _number,
    "16 random digits": _sixteen_digits,
}


def texts() -> dict[str, list[str]]:
    """Make all texts, by class."""
    rng = random.Random(20_260_102)
    made = {name: [maker(rng) for _ in range(EACH)] for name, maker in MADE.items()}
    return {"sentences": lines("sentences.txt"), **made}


STYLES: Final[dict[str, Callable[[list[str]], str]]] = {
    "snake_case": "_".join,
    "kebab-case": "-".join,
    "dotted.case": ".".join,
    "SCREAMING_CASE": lambda words: "_".join(words).upper(),
    "camelCase": lambda words: words[0] + "".join(map(str.capitalize, words[1:])),
    "PascalCase": lambda words: "".join(map(str.capitalize, words)),
    "Header-Case": lambda words: "-".join(map(str.capitalize, words)),
    "prefixed": lambda words: "app.config." + "_".join(words),
}


def names(file: str) -> list[str]:
    """Write the names of a file in all styles."""
    return [style(line.split()) for line in lines(file) for style in STYLES.values()]
