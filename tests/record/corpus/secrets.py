"""Texts that hold a made-up secret, made from what the issuers publish about the form of theirs.

Nothing here looks at the rules in otel_audit/record: the forms come from the issuers' pages and
from the RFCs, so that a rule that is too narrow is found out. No file holds a secret, not even a
made-up one: they are made when they are needed, the same ones each time.
"""

from __future__ import annotations

import base64
import json
import random
import string
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Maker = Callable[[random.Random], str]

EACH: Final = 20
"""Secrets of each form; each stands in all contexts."""

ALNUM: Final = string.ascii_letters + string.digits
LOWER: Final = string.ascii_lowercase + string.digits
UPPER: Final = string.ascii_uppercase + string.digits
BASE32: Final = string.ascii_uppercase + "234567"
BASE64: Final = ALNUM + "+/"
URL64: Final = ALNUM + "-_"
HEX: Final = "0123456789abcdef"
DIGITS: Final = string.digits


class Sample(NamedTuple):
    """A text, the secret in it, and which kind of secret that is."""

    kind: str
    text: str
    secret: str


CONTEXTS: Final = (
    "{}",
    "could not use {} for the call",
    "The key was {}.",
    "refused: '{}'",
    'refused: "{}"',
    "see ({}), please",
    '{{"note": "{}", "count": 3}}',
    "https://api.example.com/v1/items?x={}&page=2",
    "first line\n{}\nlast line",
    "value:{}",
    "a,{},b",
    "Schlüssel {} ungültig, 鍵 無効",
    "['one', '{}']",
    "\t{}\t",
    '{{"log": "first line\\n{}\\nlast line"}}',
    "\\ud800{}",
    "https://example.com/login?next=%2Fitems%3Fx%3D{}",
)


def made(*parts: str | tuple[str, int] | tuple[str, int, int]) -> Maker:
    """Return a maker of texts: fixed ones, and (alphabet, length) or (alphabet, from, to)."""

    def maker(rng: random.Random) -> str:
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
            else:
                text += "".join(rng.choices(part[0], k=rng.randint(part[1], part[-1])))
        return text

    return maker


ARGON: Final = made("$argon2id$v=19$m=65536,t=3,p=4$", (BASE64, 22), "$", (BASE64, 43))

FORMS: Final[tuple[tuple[str, Maker], ...]] = (
    ("age", made("AGE-SECRET-KEY-1", (UPPER, 58))),
    ("airtable", made("pat", (ALNUM, 14), ".", (HEX, 64))),
    ("anthropic", made("sk-ant-api03-", (URL64, 93), "AA")),
    ("anthropic", made("sk-ant-admin01-", (URL64, 93), "AA")),
    ("anthropic", made("sk-ant-oat01-", (URL64, 93), "AA")),
    ("aws", made("AKIA", (BASE32, 16))),
    ("aws", made("ASIA", (BASE32, 16))),
    ("aws", made("ABSK", (BASE64, 132))),
    ("azure", made((ALNUM + "_~.", 3), (DIGITS, 1), "Q~", (ALNUM + "_~-", 34))),
    ("buildkite", made("bkua_", (HEX, 40))),
    ("circleci", made("CCIPAT_", (ALNUM, 22), "_", (HEX, 40))),
    ("cloudflare", made("v1.0-", (HEX, 24), "-", (HEX, 146))),
    ("digitalocean", made("dop_v1_", (HEX, 64))),
    ("digitalocean", made("dor_v1_", (HEX, 64))),
    ("discord", made("discord.com/api/webhooks/", (DIGITS, 18, 19), "/", (URL64, 68))),
    ("docker", made("dckr_pat_", (URL64, 27))),
    ("doppler", made("dp.pt.", (ALNUM, 43))),
    ("doppler", made("dp.st.dev.", (ALNUM, 43))),
    ("dropbox", made("sl.", (URL64, 130, 150))),
    ("figma", made("figd_", (URL64, 40))),
    ("github", made("ghp_", (ALNUM, 36))),
    ("github", made("gho_", (ALNUM, 36))),
    ("github", made("ghu_", (ALNUM, 36))),
    ("github", made("ghs_", (ALNUM, 36))),
    ("github", made("ghr_", (ALNUM, 76))),
    ("github", made("github_pat_", (ALNUM, 22), "_", (ALNUM, 59))),
    ("gitlab", made("glpat-", (URL64, 20))),
    ("gitlab", made("glpat-", (URL64, 27), ".01.", (LOWER, 9))),
    ("gitlab", made("gldt-", (URL64, 20))),
    ("gitlab", made("glrt-", (URL64, 20))),
    ("gitlab", made("glcbt-1a_", (URL64, 20))),
    ("gitlab", made("glagent-", (URL64, 50))),
    ("google", made("AIza", (URL64, 35))),
    ("google", made("ya29.", (URL64, 120, 200))),
    ("google", made("GOCSPX-", (URL64, 28))),
    ("grafana", made("glsa_", (ALNUM, 32), "_", (HEX, 8))),
    ("grafana", made("glc_", (BASE64, 80, 120))),
    ("groq", made("gsk_", (ALNUM, 52))),
    ("heroku", made("HRKU-AA", (URL64, 58))),
    ("huggingface", made("hf_", (string.ascii_letters, 34))),
    ("langsmith", made("lsv2_pt_", (HEX, 32), "_", (HEX, 10))),
    ("linear", made("lin_api_", (ALNUM, 40))),
    ("mailchimp", made((HEX, 32), "-us", (DIGITS, 1, 2))),
    ("netlify", made("nfp_", (ALNUM, 36))),
    ("newrelic", made("NRAK-", (UPPER, 27))),
    ("notion", made("ntn_", (DIGITS, 11), (ALNUM, 35))),
    ("npm", made("npm_", (ALNUM, 36))),
    ("nvidia", made("nvapi-", (URL64, 64))),
    ("onepassword", made("ops_eyJ", (BASE64, 260))),
    ("openai", made("sk-", (ALNUM, 48))),
    ("openai", made("sk-proj-", (URL64, 74), "T3BlbkFJ", (URL64, 74))),
    ("openai", made("sk-svcacct-", (URL64, 58), "T3BlbkFJ", (URL64, 58))),
    ("openai", made("sk-or-v1-", (HEX, 64))),
    ("perplexity", made("pplx-", (ALNUM, 48))),
    ("pinecone", made("pcsk_", (ALNUM, 6), "_", (ALNUM, 63))),
    ("planetscale", made("pscale_tkn_", (URL64, 43))),
    ("postman", made("PMAK-", (HEX, 24), "-", (HEX, 34))),
    ("pulumi", made("pul-", (HEX, 40))),
    ("pypi", made("pypi-AgEIcHlwaS5vcmc", (URL64, 120, 160))),
    ("replicate", made("r8_", (ALNUM, 37))),
    ("rubygems", made("rubygems_", (HEX, 48))),
    ("sendgrid", made("SG.", (URL64, 22), ".", (URL64, 43))),
    ("sentry", made("sntryu_", (HEX, 64))),
    ("shopify", made("shpat_", (HEX, 32))),
    ("slack", made("xoxb-", (DIGITS, 12), "-", (DIGITS, 13), "-", (ALNUM, 24))),
    ("slack", made("xoxp-", (DIGITS, 12), "-", (DIGITS, 12), "-", (DIGITS, 13), "-", (HEX, 32))),
    ("slack", made("xoxa-2-", (ALNUM, 20, 40))),
    ("slack", made("xoxr-", (ALNUM, 10))),
    ("slack", made("xapp-1-A", (UPPER, 10), "-", (DIGITS, 13), "-", (HEX, 64))),
    (
        "slack",
        made("hooks.slack.com/services/T", (UPPER, 10), "/B", (UPPER, 10), "/", (ALNUM, 24)),
    ),
    ("square", made("sq0atp-", (URL64, 22))),
    ("square", made("sq0csp-", (URL64, 43))),
    ("stripe", made("sk_live_", (ALNUM, 24, 99))),
    ("stripe", made("rk_test_", (ALNUM, 24, 99))),
    ("stripe", made("whsec_", (ALNUM, 32))),
    ("supabase", made("sbp_", (HEX, 40))),
    ("supabase", made("sb_secret_", (URL64, 31))),
    ("tailscale", made("tskey-auth-", (ALNUM, 12), "-", (ALNUM, 32))),
    ("tavily", made("tvly-", (ALNUM, 32))),
    ("telegram", made((DIGITS, 10), ":AA", (URL64, 33))),
    ("terraform", made((ALNUM, 14), ".atlasv1.", (URL64, 67))),
    ("twilio", made("SK", (HEX, 32))),
    ("vault", made("hvs.", (URL64, 90))),
    ("vault", made("hvb.", (URL64, 138))),
    ("vercel", made("vcp_", (ALNUM, 40))),
    ("xai", made("xai-", (ALNUM, 80))),
    ("password_hash", made("$2b$12$", (ALNUM + "./", 53))),
    ("password_hash", ARGON),
    ("password_hash", made("$6$rounds=5000$", (ALNUM + "./", 16), "$", (ALNUM + "./", 86))),
    ("password_hash", made("$y$j9T$", (ALNUM + "./", 22), "$", (ALNUM + "./", 43))),
    ("password_hash", made("pbkdf2_sha256$600000$", (ALNUM, 22), "$", (BASE64, 43), "=")),
)


def _base64url(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def jwt(rng: random.Random) -> str:
    """Make a signed JWT (RFC 7519)."""
    header = {"alg": rng.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"}
    claims = {"sub": made((ALNUM, 12))(rng), "iat": rng.randrange(10**9, 2 * 10**9), "admin": True}
    return f"{_base64url(header)}.{_base64url(claims)}.{made((URL64, 43, 342))(rng)}"


def unsigned_jwt(rng: random.Random) -> str:
    """Make an unsecured JWT (RFC 7519, section 6): it ends with a dot."""
    return f"{_base64url({'alg': 'none'})}.{_base64url({'sub': made((ALNUM, 12))(rng)})}."


def encrypted_jwt(rng: random.Random) -> str:
    """Make a JWE in compact form (RFC 7516)."""
    header = _base64url({"alg": "RSA-OAEP", "enc": "A256GCM"})
    return made(f"{header}.", (URL64, 342), ".", (URL64, 16), ".", (URL64, 63), ".", (URL64, 22))(
        rng
    )


def directly_encrypted_jwt(rng: random.Random) -> str:
    """Make a JWE whose key both sides know already: its second part is empty."""
    header = _base64url({"alg": "dir", "enc": "A128CBC-HS256"})
    return made(f"{header}..", (URL64, 22), ".", (URL64, 64), ".", (URL64, 22))(rng)


def discord_bot(rng: random.Random) -> str:
    """Make the token of a Discord bot: its number in base64, a time, a signature."""
    number = base64.b64encode(made("1", (DIGITS, 17))(rng).encode()).decode()
    return f"{number}." + made((URL64, 6), ".", (URL64, 27))(rng)


def card(rng: random.Random) -> str:
    """Make a card number with the right check digit, in a form that people write."""
    beginning, length, groups = rng.choice(
        [
            ("4", 16, (4, 4, 4, 4)),
            ("51", 16, (4, 4, 4, 4)),
            ("55", 16, (4, 4, 4, 4)),
            ("2221", 16, (4, 4, 4, 4)),
            ("6011", 16, (4, 4, 4, 4)),
            ("3530", 16, (4, 4, 4, 4)),
            ("34", 15, (4, 6, 5)),
            ("37", 15, (4, 6, 5)),
            ("305", 14, (4, 6, 4)),
            ("36", 14, (4, 6, 4)),
            ("62", 16, (4, 4, 4, 4)),
        ]
    )
    body = beginning + made((DIGITS, length - 1 - len(beginning)))(rng)
    digits = [int(digit) for digit in reversed(body)]
    total = sum(sum(divmod(2 * digit, 10)) for digit in digits[::2]) + sum(digits[1::2])
    number = body + str(-total % 10)
    separator = rng.choice(["", " ", "-"])
    parts, start = [], 0
    for size in groups:
        parts.append(number[start : start + size])
        start += size
    return separator.join(parts)


def private_key(rng: random.Random) -> str:
    """Make a PEM block with a private key's label (RFC 7468); the content is noise."""
    label = rng.choice(
        ["RSA PRIVATE", "EC PRIVATE", "PRIVATE", "ENCRYPTED PRIVATE", "OPENSSH PRIVATE"]
    )
    newline = rng.choice(["\n", "\r\n", "\\n"])
    lines = [made((BASE64, 64))(rng) for _ in range(rng.randint(3, 24))]
    edge = "-" * 5
    return newline.join([f"{edge}BEGIN {label} KEY{edge}", *lines, f"{edge}END {label} KEY{edge}"])


PASSWORD: Final = made((ALNUM + "!#%*+._~^-", 12, 24))
WORD: Final = made((string.ascii_lowercase, 4, 10))

# Where the context is what tells the secret: text before it, the secret, text after it.
WITHIN: Final[tuple[tuple[str, str, Maker], ...]] = (
    ("bearer", "Authorization: Bearer {}", made((URL64 + "._~+/", 24, 60), (ALNUM, 1))),
    ("bearer", "header was 'bearer {}', refused", made((HEX, 40))),
    ("bearer", "BEARER {}\n", made((ALNUM, 32))),
    ("url_password", "postgres://app:{}@db.example.com:5432/main", PASSWORD),
    ("url_password", "could not reach redis://:{}@cache:6379/0 in time", PASSWORD),
    (
        "url_password",
        "mongodb+srv://root:{}@cluster0.example.net",
        made((ALNUM, 8), "@", (ALNUM, 5)),
    ),
    ("url_password", 'url="https://alice:{}@example.com/path?x=1"', PASSWORD),
    ("url_password", "amqp://guest:{}@127.0.0.1//", made((ALNUM, 8), "%2F", (ALNUM, 5))),
    ("assignment", "host=db user=app password={} dbname=main", PASSWORD),
    ("assignment", "Server=db;User Id=app;Password={};Encrypt=true", PASSWORD),
    ("assignment", "export DB_PASSWORD={}", PASSWORD),
    ("assignment", "https://example.com/cb?access_token={}&state=1", made((URL64, 40))),
    ("assignment", "GET /v1/x?api_key={} HTTP/1.1", made((HEX, 32))),
    ("assignment", '{{"user": "app", "password": "{}"}}', PASSWORD),
    ("assignment", '{{\\"user\\": \\"app\\", \\"clientSecret\\": \\"{}\\"}}', PASSWORD),
    ("assignment", "{{'user': 'app', 'secret_key': '{}', 'x': 1}}", PASSWORD),
    ("assignment", "connect(user='app', passwd='{}', timeout=3)", PASSWORD),
    ("assignment", "X-Api-Key: {}\r\nAccept: */*", made((HEX, 32))),
    ("assignment", "Cookie: theme=dark; sid={}; lang=en", made((HEX, 32))),
    ("assignment", "token: {}", made((HEX, 40))),
    ("assignment", "AccountName=x;AccountKey={};EndpointSuffix=core", made((BASE64, 86), "==")),
    ("assignment", "https://x.blob.example.net/a?sv=2022&sig={}&se=2030", made((ALNUM, 43), "%3D")),
    ("assignment", "https://s3.example.com/a?X-Amz-Signature={}", made((HEX, 64))),
    ("assignment", "Authorization=Basic {}", made((BASE64, 24))),
    ("assignment", "Authorization: Token {}", made((HEX, 40))),
    ("assignment", "authorization: token {}", made((ALNUM, 31), (DIGITS, 1))),
    ("assignment", "curl -H 'Authorization: ApiKey {}' https://example.com/x", made((URL64, 44))),
    ("assignment", "Proxy-Authorization: Negotiate {}\r\nAccept: */*", made((BASE64, 120), "==")),
    (
        "assignment",
        'Authorization: Digest username="bob", realm="a", nonce="c4", uri="/x", response="{}", qop=auth',
        made((HEX, 32)),
    ),
    (
        "assignment",
        "Authorization: AWS4-HMAC-SHA256 Credential=x/20260102/eu-central-1/s3/aws4_request, SignedHeaders=host, Signature={}",
        made((HEX, 64)),
    ),
    ("assignment", "Authorization: SSWS {}", made("00", (URL64, 40))),
    ("assignment", '{{"pin": {}, "attempts": 2}}', made("73", (DIGITS, 6))),
    ("assignment", "user      =  app\npassword  =  {}\n", PASSWORD),
    ("assignment", 'password                 = "{}"', PASSWORD),
    ("assignment", "password\t=\t{}", PASSWORD),
    ("assignment", "password := '{}'", PASSWORD),
    ("assignment", "DB_PASSWORD := {}\n", PASSWORD),
    ("assignment", 'if password == "{}": pass', PASSWORD),
    ("assignment", "token      : {}", made((HEX, 40))),
    ("assignment", "mysqldump --user app --password {} main", made((ALNUM, 11), (DIGITS, 1))),
    ("assignment", "ran '/usr/bin/vault-get --api-key \"{}\" --all'", PASSWORD),
    ("assignment", "<user>app</user>\n<password>{}</password>", PASSWORD),
    ("assignment", "<ns:ClientSecret><![CDATA[{}]]></ns:ClientSecret>", PASSWORD),
    ("assignment", "config :app, :password => '{}', :user => 'app'", PASSWORD),
    (
        "assignment",
        '{{\\"user\\": \\"app\\", \\"clientSecret\\": \\"{}\\"}}',
        PASSWORD,
    ),
    ("sql_password", "CREATE USER app WITH PASSWORD '{}' VALID UNTIL 'infinity'", PASSWORD),
    ("sql_password", "alter role app login password '{}';", PASSWORD),
    ("sql_password", "CREATE USER 'app'@'%' IDENTIFIED BY '{}'", PASSWORD),
    ("sql_password", 'alter user app identified by "{}"', PASSWORD),
    ("sql_password", "ALTER USER app IDENTIFIED WITH caching_sha2_password BY '{}'", PASSWORD),
    ("private_key", "LANG=C\nSSH_PRIVATE_KEY={}\nHOME=/root", private_key),
    ("password_hash", "user=bob password={} active=yes", ARGON),
    ("assignment", 'password = "{}" # no', made((ALNUM, 6), " ", (ALNUM, 6))),
)


def samples() -> Iterator[Sample]:
    """Make all texts: every form in every context, and what its context alone tells."""
    rng = random.Random(20_260_101)
    forms = (
        *FORMS,
        *(("jwt", maker) for maker in (jwt, encrypted_jwt, directly_encrypted_jwt, unsigned_jwt)),
        ("discord", discord_bot),
        ("card", card),
        ("private_key", private_key),
    )
    for kind, maker in forms:
        for _ in range(EACH):
            secret = maker(rng)
            for context in CONTEXTS:
                yield Sample(kind, context.format(secret), secret)
    for kind, context, maker in WITHIN:
        for _ in range(EACH):
            secret = maker(rng)
            yield Sample(kind, context.format(secret), secret)
    for _ in range(EACH):
        user, password = WORD(rng), PASSWORD(rng)
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        yield Sample("basic", f"Authorization: Basic {secret}", secret)
        yield Sample("basic", f"sent 'basic {secret}' to the proxy", secret)
