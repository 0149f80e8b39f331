"""The client's address: believed only as far as trusted proxies wrote it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import AuditSettingsError
from otel_audit.web.proxies import TrustedProxies, forwarded_for, normalized

PEER = "10.0.0.1"
CLIENT = "203.0.113.9"
PRIVATE = TrustedProxies(["10.0.0.0/8", "fd00::/8"])
RFC_7239 = TrustedProxies(["10.0.0.0/8", "fd00::/8"], header="Forwarded")


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    """Anybody can write X-Forwarded-For; the peer of the connection cannot be made up."""
    proxies = TrustedProxies()
    assert not proxies
    assert proxies.client_ip(CLIENT, [b"1.2.3.4"]) == CLIENT


def test_a_peer_that_is_no_proxy_is_the_client() -> None:
    """A client that reaches us directly cannot use the header either."""
    assert PRIVATE.client_ip(CLIENT, [b"1.2.3.4"]) == CLIENT


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"203.0.113.9", CLIENT),
        (b"1.2.3.4, 203.0.113.9", CLIENT),  # the client put an address in front
        (b"1.2.3.4, 203.0.113.9, 10.0.0.2", CLIENT),  # two proxies of ours
        (b"10.0.0.3, 10.0.0.2", "10.0.0.3"),  # a request from within: the farthest we know
        (b"203.0.113.9:4711", CLIENT),  # some proxies append the port
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"2001:DB8:0:0::1", "2001:db8::1"),
        (b"::ffff:203.0.113.9", CLIENT),
        (b"", PEER),
        (b"garbage", PEER),
        (b"1.2.3.4, garbage", PEER),  # what stands left of garbage has no credit
        (b"1.2.3.4, , 10.0.0.2", "10.0.0.2"),
        (b"203.0.113.9 10.0.0.2", PEER),
        (b"[2001:db8::1", PEER),
        (b"[2001:db8::1]x", PEER),
        (b"\xff\xfe", PEER),
    ],
)
def test_the_walk_through_x_forwarded_for(header: bytes, expected: str) -> None:
    """From the right, to the first address that is not ours; garbage ends it."""
    assert PRIVATE.client_ip(PEER, [header]) == expected


def test_several_header_lines_are_one_list() -> None:
    """RFC 9110, section 5.3: lines of one name are one list, in order."""
    assert PRIVATE.client_ip(PEER, [b"1.2.3.4", b"203.0.113.9", b"10.0.0.2"]) == CLIENT


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"for=203.0.113.9", CLIENT),
        (b"For=203.0.113.9;proto=https;by=10.0.0.1", CLIENT),
        (b"proto=https; for=203.0.113.9", CLIENT),
        (b"for=1.2.3.4, for=203.0.113.9", CLIENT),
        (b'for="203.0.113.9:4711"', CLIENT),
        (b'for="[2001:db8::1]:4711"', "2001:db8::1"),
        (b'for="[2001:db8::1]", for=10.0.0.2', "2001:db8::1"),
        (b'for="\\1.2.3.4"', "1.2.3.4"),
        (b'host="a,b;for=6.6.6.6";for=203.0.113.9', CLIENT),
        (b"for=unknown", PEER),
        (b"for=203.0.113.9, for=_hidden", PEER),
        (b"for=1.2.3.4, by=10.0.0.1", PEER),
        (b'for="1.2.3.4', PEER),
        (b'for="1.2.3.4, for=203.0.113.9', CLIENT),  # the client left a quote open
        (b'x=", for="[2001:db8::1]:80"', "2001:db8::1"),  # ... so that ours would close it
        (b"for=1.2.3.4 for=1.2.3.5", PEER),
        (b"203.0.113.9", PEER),
        (b"", PEER),
        (b";;,,;", PEER),
    ],
)
def test_the_walk_through_forwarded(header: bytes, expected: str) -> None:
    """RFC 7239: quoted strings, ports, brackets, obfuscated nodes."""
    assert RFC_7239.client_ip(PEER, [header]) == expected


def test_only_one_header_is_read() -> None:
    """Which one is set, so that the other cannot be smuggled through the proxy."""
    assert PRIVATE.header == b"x-forwarded-for"
    assert RFC_7239.header == b"forwarded"


def test_a_unix_socket_is_trusted_only_when_named() -> None:
    """A peer without address is a local process: a proxy only if the operator says so."""
    assert TrustedProxies(["10.0.0.0/8"]).client_ip(None, [b"203.0.113.9"]) is None
    assert TrustedProxies(["unix"]).client_ip(None, [b"203.0.113.9"]) == CLIENT
    assert TrustedProxies(["unix"]).client_ip("", [b"garbage"]) is None
    assert TrustedProxies(["unix"]).client_ip("not-an-address", [b"203.0.113.9"]) is None


def test_one_address_has_one_name() -> None:
    """A dual-stack listener reports IPv4 peers in IPv6 clothes; trust must see through."""
    assert normalized("::ffff:10.0.0.1") == PEER
    assert PRIVATE.client_ip("::ffff:10.0.0.1", [b"203.0.113.9"]) == CLIENT
    assert PRIVATE.client_ip("FD00:0::1", [b"203.0.113.9"]) == CLIENT


def test_a_zone_is_no_part_of_an_address() -> None:
    """It names an interface of one host, and anything may be written there."""
    assert normalized("fe80::1%eth0") == "fe80::1"
    assert normalized("fe80::1%<b>anything</b>") == "fe80::1"
    local = TrustedProxies(["fe80::/10"])
    assert local.client_ip("fe80::1%eth0", [b"203.0.113.9"]) == CLIENT


def test_a_made_up_chain_is_not_followed_for_ever() -> None:
    """A header of thousands of trusted addresses ends in one of them, soon."""
    chain = b",".join(b"10.%d.%d.1" % (n >> 8, n & 255) for n in range(20_000))
    found = PRIVATE.client_ip(PEER, [b"6.6.6.6," + chain])
    assert found is not None
    assert ip_address(found) in ip_network("10.0.0.0/8")


def test_a_network_that_is_none_is_an_error_that_says_so() -> None:
    """Settings are validated once, when the middleware is made."""
    with pytest.raises(AuditSettingsError, match=r"'10.0.0.0/99' cannot be used"):
        TrustedProxies(["10.0.0.0/99"])
    with pytest.raises(AuditSettingsError, match=r"'X-Real-IP' cannot be used"):
        TrustedProxies(["10.0.0.0/8"], header="X-Real-IP")


def test_a_single_network_may_be_a_plain_string() -> None:
    """A string is not taken for a list of its characters."""
    assert TrustedProxies("10.0.0.0/8").client_ip(PEER, [b"203.0.113.9"]) == CLIENT


HEADER_TEXT = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='for=";,\\[]:.0123456789abcdef _%', max_size=200).map(str.encode),
)


@given(peer=st.one_of(st.none(), st.just(PEER), st.text(max_size=40)), lines=st.lists(HEADER_TEXT))
def test_garbage_never_raises_and_never_passes(peer: str | None, lines: list[bytes]) -> None:
    """Whatever arrives, the answer is an address in canonical form, or None."""
    for proxies in (PRIVATE, RFC_7239):
        found = proxies.client_ip(peer, lines)
        assert found is None or normalized(found) == found


ADDRESS = st.ip_addresses()


@given(
    spoofed=HEADER_TEXT.filter(lambda text: b'"' not in text),
    client=ADDRESS.filter(
        lambda a: (
            not (a in ip_network("10.0.0.0/8") if a.version == 4 else a in ip_network("fd00::/8"))
        )
    ),
    hops=st.lists(st.ip_addresses(network="10.0.0.0/8"), max_size=5),
)
def test_what_a_client_writes_never_wins(
    spoofed: bytes, client: object, hops: list[object]
) -> None:
    """What our proxies appended decides, whatever stands to the left of it."""
    written = [str(hop) for hop in [client, *hops]]
    expected = normalized(written[0])
    x_forwarded_for = b", ".join([spoofed, *(text.encode() for text in written)])
    assert PRIVATE.client_ip(PEER, [x_forwarded_for]) == expected
    quoted = [f'for="[{text}]"' if ":" in text else f"for={text}" for text in written]
    forwarded = b", ".join([spoofed, *(text.encode() for text in quoted)])
    assert RFC_7239.client_ip(PEER, [forwarded]) == expected


@given(spoofed=HEADER_TEXT, hops=st.lists(ADDRESS, min_size=1, max_size=4))
def test_open_quotes_do_not_hide_the_last_elements(spoofed: bytes, hops: list[object]) -> None:
    """A quote that the client opens is closed by our proxy's, and then neither is readable."""
    mine = [f'for="[{hop}]:80"' if ":" in str(hop) else f'for="{hop}:80"' for hop in hops]
    text = spoofed.decode("latin-1") + ", " + ", ".join(mine)
    found = forwarded_for(text)
    assert found[-1] in (f"[{hops[-1]}]:80", f"{hops[-1]}:80")
