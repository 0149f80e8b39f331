"""The shapes of secrets: tables, and the regular expressions made of them.

Promises: `SEARCH` stops where a secret of these shapes may be, in time linear
in the text's length; what the groups of its match mean is in `GROUPS`. Where
exactly a secret begins and ends, and whether it is one (check digits, names),
is left to secret_search.py.

Each alternative begins with a character that is rare in names, numbers and
prose (the last one of ``ghp_``, ``sk-`` or ``SG.``) and looks back at what
stands before it, so that most of a text is passed over by a scan for a few
characters. For linear time, whatever repeats without limit either ends the
match, or cannot contain the beginning of the next attempt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# The escapes of JSON, Python and URLs, by length: they end with letters and digits, but a secret
# may begin right after them. Ours too: coerce.py writes lone surrogates so.
_ESCAPES: Final = (r"\\[abfnrtv]", r"%[0-9A-Fa-f]{2}", r"\\x[0-9A-Fa-f]{2}", r"\\u[0-9A-Fa-f]{4}")
ESCAPE: Final = re.compile("|".join(_ESCAPES))


def _at_its_start(before: str, then: str = "") -> str:
    """Look back over ``then`` for a place where nothing that ``before`` matches goes on."""
    escaped = "|".join(f"(?<={escape}{then})" for escape in _ESCAPES)
    return f"(?:(?<!{before}{then})|{escaped})"


# Kind, beginnings, rest. Before a beginning that "<" marks no letter or digit may stand.
TOKENS: Final = (
    ("age", "AGE-SECRET-KEY-", "1[0-9A-Z]{58}"),
    ("anthropic", "<sk-", "ant-[A-Za-z0-9_-]{20,}"),
    ("aws", "<ABI <AKI <ASI", "A[A-Z2-7]{16}(?![A-Z2-7])"),
    ("aws", "<ABSK", "[A-Za-z0-9+/]{100,}={0,2}"),
    ("buildkite", "<bkua_", "[0-9a-f]{40}"),
    ("circleci", "CCIPAT_", "[A-Za-z0-9]{22}_[0-9a-f]{40}"),
    ("cloudflare", "<v1.0-", "[0-9a-f]{24}-[0-9a-f]{146}"),
    ("digitalocean", "doo_v1_ dop_v1_ dor_v1_", "[0-9a-f]{64}"),
    ("discord", "discord. discordapp.", "com/api/webhooks/[0-9]{5,25}/[A-Za-z0-9_-]{60,}"),
    ("docker", "dckr_pat_ dckr_oat_", "[A-Za-z0-9_-]{24,}"),
    ("doppler", "<dp.", "(?:audit|ct|pt|sa|scim|st)\\.(?:[a-z0-9_-]{1,40}\\.)?[A-Za-z0-9]{40,}"),
    ("dropbox", "<sl.", "(?:u\\.)?[A-Za-z0-9_-]{100,}"),
    ("figma", "<figd_ <figo_ <figor_", "[A-Za-z0-9_-]{40,}"),
    ("github", "ghp_ gho_ ghu_ ghs_ ghr_", "[A-Za-z0-9]{36,}"),
    ("github", "github_pat_", "[A-Za-z0-9_]{36,}"),
    (
        "gitlab",
        "glagent- glcbt- gldt- glffct- glft- glimt- gloas- glpat- glptt- glrt- glrtr- glsoat- glwt-",
        "[A-Za-z0-9_.-]{19,}[A-Za-z0-9_-]",
    ),
    ("google", "<AI", "za[A-Za-z0-9_-]{35}"),
    ("google", "<ya29.", "[A-Za-z0-9_-]{20,}"),
    ("google", "GOCSPX-", "[A-Za-z0-9_-]{20,}"),
    ("grafana", "<glsa_", "[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}"),
    ("grafana", "<glc_", "[A-Za-z0-9+/]{32,}={0,2}"),
    ("groq", "<gsk_", "[A-Za-z0-9]{40,}"),
    ("heroku", "HRKU-", "[A-Za-z0-9_-]{36,}"),
    ("huggingface", "<hf_ api_org_", "[A-Za-z0-9]{34,}"),
    ("langsmith", "lsv2_pt_ lsv2_sk_", "[0-9a-f]{32}_[0-9a-f]{10}"),
    ("linear", "lin_api_ lin_oauth_", "[A-Za-z0-9]{40,}"),
    ("netlify", "<nfp_", "[A-Za-z0-9]{36,}"),
    ("newrelic", "NRAK-", "[A-Z0-9]{27}"),
    ("notion", "<ntn_", "[A-Za-z0-9]{40,}"),
    ("npm", "<npm_", "[A-Za-z0-9]{36}"),
    ("nvidia", "nvapi-", "[A-Za-z0-9_-]{60,}"),
    ("onepassword", "<ops_", "eyJ[A-Za-z0-9+/_-]{100,}={0,2}"),
    ("openai", "<sk-", "(?:admin|None|or-v1|proj|service|svcacct)-[A-Za-z0-9_-]{20,}"),
    ("openai", "<sk-", "[A-Za-z0-9]{32,}"),
    ("perplexity", "pplx-", "[A-Za-z0-9]{40,}"),
    ("pinecone", "<pcsk_", "[A-Za-z0-9_]{40,}"),
    ("planetscale", "pscale_tkn_ pscale_pw_ pscale_oauth_", "[A-Za-z0-9_=.-]{31,}[A-Za-z0-9_=-]"),
    ("postman", "PMAK-", "[a-f0-9]{24}-[a-f0-9]{34}"),
    ("pulumi", "<pul-", "[a-f0-9]{40}"),
    ("pypi", "<pypi-", "AgE[A-Za-z0-9_-]{50,}"),
    ("replicate", "<r8_", "[A-Za-z0-9]{37,}"),
    ("rubygems", "rubygems_", "[0-9a-f]{48}"),
    ("sendgrid", "<SG.", "[A-Za-z0-9_-]{16,32}\\.[A-Za-z0-9_-]{32,}"),
    ("sentry", "sntrys_ sntryu_", "[A-Za-z0-9+/_=-]{60,}"),
    ("shopify", "shpat_ shpca_ shppa_ shpss_", "[A-Za-z0-9]{32,}"),
    ("slack", "<xapp- <xoxa- <xoxb- <xoxc- <xoxd- <xoxe- <xoxo- <xoxp- <xoxr- <xoxs-",
     "[A-Za-z0-9%-]{10,}"),
    ("slack", "hooks.", "slack\\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{20,}"),
    ("square", "sq0atp- sq0csp-", "[A-Za-z0-9_-]{22,}"),
    ("stripe", "sk_live_ sk_test_ rk_live_ rk_test_", "[A-Za-z0-9]{10,}"),
    ("stripe", "<whsec_", "[A-Za-z0-9+/]{24,}={0,2}"),
    ("supabase", "<sbp_", "[0-9a-f]{40}"),
    ("supabase", "sb_secret_", "[A-Za-z0-9_-]{20,}"),
    ("tailscale", "tskey-", "[a-z]{2,20}-[A-Za-z0-9_-]{16,}"),
    ("tavily", "tvly-", "(?:dev-|prod-)?[A-Za-z0-9]{30,}"),
    ("twilio", "<SK", "[0-9a-f]{32}(?![A-Za-z0-9])"),
    ("vault", "<hvb. <hvr. <hvs.", "[A-Za-z0-9_-]{24,}"),
    ("vercel", "<vca_ <vci_ <vck_ <vcp_ <vcr_", "[A-Za-z0-9]{24,}"),
    ("xai", "<xai-", "[A-Za-z0-9]{70,}"),
)  # fmt: skip


class _Special(NamedTuple):
    """What cannot be told by a beginning of fixed length.

    ``rest`` follows ``anchor``, the character that is searched for; its one
    group and the ``width`` characters before that are the secret.
    """

    kind: str
    anchor: str
    width: int
    rest: str


# Where no secret follows "Bearer", but a sentence goes on.
_NO_WORD: Final = r"(?![A-Za-z][a-z]{0,19}(?:[_-][a-z]{1,19}){0,3}\.?(?![A-Za-z0-9._~+/=-]))"
_BEARER: Final = rf"[ :=]{{1,4}}({_NO_WORD}[A-Za-z0-9._~+/-]{{8,}}=*)"
_BASIC: Final = r"[ :=]{1,4}([A-Za-z0-9+/_-]{2,}={0,2})"
# The last letters of names that may mean a secret. They only say where to look; in
# secret_search.py the whole name decides.
_NAME_ENDS: Final = "als ase ass cvc cvv eds ens ets ial ies ion jwt ken key kie ode ord otp pin pwd ret sig ssn swd ure"


def _after_a_name(then: str) -> str:
    """Look back, over what stands between, at the end of a name.

    At its last letter first, and then by first letters: each alternative that
    is tried costs the same, and there are many after each ``=`` of a statement.
    """
    ends: dict[str, list[str]] = defaultdict(list)
    for end in _NAME_ENDS.split():
        ends[end[0]].append(end[1:])
    last = "".join(sorted({end[-1] for end in _NAME_ENDS.split()}))
    either = "|".join(f"{first}(?:{'|'.join(rest)})" for first, rest in ends.items())
    return rf"(?<=(?i:[{last}]){then})(?<=(?i:{either}){then})"


def _after_escapes(quote: str) -> str:
    """Look back at the end of a name that JSON within JSON has in quotes."""
    return "|".join(_after_a_name(rf"\\{{{count}}}{quote}") for count in (1, 2, 3))


_GAP: Final = r"[ \t]"
# Of "==" and "=>". Behind the latter only a quote: "token => token.id" is a function.
_REST_OF_A_SIGN: Final = r"(?:={1,2}(?=[ \t\"'`])|>(?=[ \t]{0,4}[\"']))?"

_SPECIALS: Final = (
    _Special("mailchimp", "-", 33, r"(?=us)(?<=[0-9a-f]{32}-)(us[0-9]{1,2}(?![A-Za-z0-9]))"),
    # A claims set is a JSON object, and so begins with an encoded brace; before it, its header.
    # Encrypted (RFC 7516): header, key or nothing, nonce, content, tag.
    _Special(
        "jwt",
        ".",
        0,
        r"((?:ey[AJ]|ewo[gJ]I|ew0KI)[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
        r"|(?:[A-Za-z0-9_-]{40,})?\.[A-Za-z0-9_-]{16,22}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{22,86}(?![A-Za-z0-9_-]))",
    ),
    # The first part is the bot's number in base64; secret_search.py looks at it.
    _Special(
        "discord",
        ".",
        0,
        r"(?<=[A-Za-z0-9_-]{23}\.)([A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}(?![A-Za-z0-9_-]))",
    ),
    _Special("airtable", ".", 18, r"(?=[0-9a-f]{8})(?<=pat[A-Za-z0-9]{14}\.)([0-9a-f]{64})"),
    _Special("terraform", ".", 15, r"(?=a)(?<=[A-Za-z0-9]{14}\.)(atlasv1\.[A-Za-z0-9_-]{60,})"),
    _Special("url_password", ":", 0, r"//[^\s/:@\"'<>\\]*:(?![0-9]{1,5}[?#])([^\s/\"'<>\\]+)@"),
    _Special("telegram", ":", 0, r"(?=AA)(?<=[0-9]{8}:)(AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-]))"),
    # Signs in columns: how far back the name is, secret_search.py finds out.
    *(
        _Special(
            "assignment",
            anchor,
            0,
            rf"(?:{_after_a_name(anchor)}"
            rf"|(?<={_GAP}{anchor})(?:{_after_a_name(_GAP + anchor)}|(?<={_GAP}{{2}}{anchor}))){rest}()",
        )
        for anchor, rest in (("=", _REST_OF_A_SIGN), (":", "=?"))
    ),
    *(
        _Special(
            "assignment",
            quote,
            0,
            rf"(?:{_after_a_name(quote)}|(?<=\\{quote})(?:{_after_escapes(quote)}))"
            rf"{_GAP}{{0,8}}(?:=>|:=|={{1,3}}|:){_GAP}{{0,8}}()",
        )
        for quote in "\"'"
    ),
    # An option of a command: the value follows after a space.
    _Special(
        "assignment",
        "-",
        0,
        r"-(?<![^\s\"'`(,\[\x00]--)[A-Za-z][A-Za-z0-9_.-]{0,60}"
        rf"[ \t]{_after_a_name(_GAP)}()",
    ),
    # An element of XML; secret_search.py looks at its end.
    _Special("assignment", ">", 0, rf"{_after_a_name('>')}()"),
    # SQL; secret_search.py looks at the words before.
    *(
        _Special(
            "sql_password",
            quote,
            0,
            rf"(?:(?<=(?i:password)\s{quote})|(?<=(?i:by)\s{quote}))([^{quote}])",
        )
        for quote in "'\""
    ),
    _Special(
        "private_key",
        "B",
        6,
        r"(?<=-----B)(EGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END[^-]{0,60}-----|\Z))",
    ),
    _Special("bearer", "B", 0, rf"(?:earer|EARER){_BEARER}"),
    _Special("bearer", "b", 0, rf"earer{_BEARER}"),
    _Special("basic", "B", 0, rf"(?:asic|ASIC){_BASIC}"),
    _Special("basic", "b", 0, rf"asic{_BASIC}"),
    _Special("azure", "~", 6, r"(?<=[A-Za-z0-9_~.]{3}[0-9]Q~)([A-Za-z0-9_~.-]{31,34})"),
    # crypt(3), bcrypt and Argon2; Django's PBKDF2.
    _Special(
        "password_hash",
        "$",
        1,
        r"(2[abxy]?\$[0-9]{2}\$[A-Za-z0-9./]{53}|argon2(?:id|[di])\$[A-Za-z0-9=,.+/$-]{19,}[A-Za-z0-9+/]|[1567y]\$[A-Za-z0-9./=$]{20,})",
    ),
    _Special(
        "password_hash",
        "$",
        14,
        r"(?<=pbkdf2_sha256\$)([0-9]{3,8}\$[A-Za-z0-9]{1,64}\$[A-Za-z0-9+/=]{20,})",
    ),
)

# The issuers' ranges and lengths (ISO/IEC 7812), without a separator or with one as printed on
# the card. Numbers of 13 digits are left out: no issuer gives them out, but articles have them.
CARD: Final = re.compile(
    _at_its_start("[0-9A-Za-z_]")
    + r"""(?<![0-9][.-])(?:
    4[0-9]{15}(?:[0-9]{3})?
    |5[1-5][0-9]{14}
    |2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}
    |3[47][0-9]{13}
    |3(?:0[0-5]|[68][0-9])[0-9]{11}
    |35(?:2[89]|[3-8][0-9])[0-9]{12}
    |6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12}
    |62[0-9]{14,17}
    |(?:4[0-9]{3}|5[1-5][0-9]{2}|2[2-7][0-9]{2}|35[2-8][0-9]|6[0-9]{3})([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}
    |3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}
    |3(?:0[0-5]|[68][0-9])[0-9]([ -])[0-9]{6}\3[0-9]{4}
    )(?![0-9A-Za-z_])(?![.-][0-9])""",
    re.VERBOSE,
)


# What stands before all specials of an anchor, looked at once.
_GUARDS: Final = {".": r"(?<=[A-Za-z0-9_-]{10}\.)"}
# The most frequent first: an alternative that is tried earlier is found earlier.
_ANCHORS: Final = "-._:=\"'BbIK$~>"


def _expression() -> tuple[str, list[tuple[str, int]]]:
    """Write the one regular expression; group n is of the kind and width at index n."""
    groups = [("", 0)]
    branches = []
    for anchor in _ANCHORS:
        specials = [one for one in _SPECIALS if one.anchor == anchor]
        guard = _GUARDS.get(anchor, "")
        tokens = list(_tokens(anchor))
        groups += [(one.kind, one.width) for one in specials]
        groups += [(kind, width) for kind, width, _ in tokens]
        alternatives = []
        if specials:
            alternatives.append(f"{guard}(?:{'|'.join(one.rest for one in specials)})")
        if tokens:
            either = "|".join(rest for *_, rest in tokens)
            alternatives.append(f"{_second_glance(anchor)}(?:{either})")
        branches.append(f"{re.escape(anchor)}(?:{'|'.join(alternatives)})")
    return "|".join(branches), groups


def _tokens(anchor: str) -> Iterator[tuple[str, int, str]]:
    """Kind, width and expression of all beginnings that end in ``anchor``."""
    for kind, beginnings, rest in TOKENS:
        same: dict[tuple[int, bool], list[str]] = defaultdict(list)
        for beginning in beginnings.split():
            if beginning[-1] == anchor:
                text = beginning.removeprefix("<")
                same[len(text), text != beginning].append(re.escape(text))
        for (width, guarded), texts in same.items():
            either = "|".join(texts)
            guard = _at_its_start("[A-Za-z0-9]", f"(?:{either})") if guarded else ""
            yield kind, width, f"(?<={either}){guard}({rest})"


def _second_glance(anchor: str) -> str:
    """Look at the one or two characters before first: they decide most often."""
    tails = {
        beginning.removeprefix("<")[-3:-1]
        for _, beginnings, _ in TOKENS
        for beginning in beginnings.split()
        if beginning[-1] == anchor
    }
    length = min(map(len, tails))
    classes = [
        "[" + re.escape("".join(sorted({tail[-place] for tail in tails}))) + "]"
        for place in range(length, 0, -1)
    ]
    return f"(?<={''.join(classes)}{re.escape(anchor)})"


_EXPRESSION, _WIDTHS = _expression()

SEARCH: Final = re.compile(_EXPRESSION).search
"""Search for the next place where a secret may be."""

GROUPS: Final = tuple(_WIDTHS)
"""For each group of a match: the kind, and how many characters before the group belong to it."""
